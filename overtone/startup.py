"""Start of a command: fast imports, environment variables of PyTorch and oneDNN, and its end with its parent."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Limits of the kernel caches of oneDNN and of PyTorch's calls to it. By default each holds a thousand kernels and
more, which grew to 0.8 GB over batches of random shapes and saved no time."""
CACHED_KERNELS = (512, 64)
"""Kernels in these caches: about thirty shapes of a batch."""
TRAINING_CACHED_KERNELS = (128, 32)
"""Kernels where every batch has another shape and several processes have caches: no slower, and 400 MB less."""

LIFELINE = "OVERTONE_LIFELINE"
"""Environment variable with the descriptor of a parent's lifeline."""
OPENING = threading.Lock()
"""Held while this process's lifeline is opened."""


def limit_kernel_caches(kernels: tuple[int, int] = CACHED_KERNELS) -> None:
    """Limit these caches, unless the user has. PyTorch reads the limits when it is loaded."""
    for name, number in zip(KERNEL_CACHES, kernels, strict=True):
        os.environ.setdefault(name, str(number))


@contextmanager
def fast_imports(*, kernels: tuple[int, int] = CACHED_KERNELS) -> Iterator[None]:
    """Import without garbage collection: half a million objects come with PyTorch and Lightning, and all stay.

    Later collections leave out the imported objects. So does the one at the exit of the process, together with later
    imports: taking them apart piece by piece took a second. A process that has PyTorch already collects as before:
    its objects may become garbage.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    limit_kernel_caches(kernels)
    with pause_garbage_collection():
        yield
        gc.freeze()
    atexit.register(gc.freeze)


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Collect no garbage inside the block, where much is new and none of it garbage."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def lifeline() -> int:
    """Descriptor of a pipe that ends when this process does, however it ends; a child that gets it may watch it.

    There is one for all threads.
    """
    with OPENING:
        return open_lifeline()


@cache
def open_lifeline() -> int:
    """The pipe of `lifeline`. Two threads that come at once would make two."""
    reader, _ = os.pipe()  # the other end stays open as long as the process
    return reader


def end_with_parent() -> None:
    """Kill this process and its children as soon as the parent that gave it a lifeline is gone; else do nothing.

    It is killed at once: where its parent died, the same work may begin anew in the same folder.
    """
    told = os.environ.pop(LIFELINE, "")
    if not told:
        return

    def watch() -> None:
        while os.read(int(told), 1):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="overtone-lifeline", daemon=True).start()
