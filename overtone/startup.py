"""Start of a command: imports without garbage collection, and bounds for caches of its libraries."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The caches of oneDNN, and of PyTorch's calls to it. By default each holds a thousand kernels and more, which grew to
0.8 GB over batches of random shapes and saved no time."""
KERNELS_KEPT = (512, 64)
"""Kernels in these caches: about thirty shapes of a batch."""
TRAINING_KERNELS_KEPT = (128, 32)
"""Kernels where every batch has another shape and several processes have caches: no slower, and 400 MB less."""


def keep_few_kernels(kept: tuple[int, int] = KERNELS_KEPT) -> None:
    """Bound these caches, unless the user has. PyTorch reads the bounds when it is loaded."""
    for name, number in zip(KERNEL_CACHES, kept, strict=True):
        os.environ.setdefault(name, str(number))


@contextmanager
def importing(*, kernels: tuple[int, int] = KERNELS_KEPT) -> Iterator[None]:
    """Import without garbage collection: half a million objects come with PyTorch and Lightning, and all stay.

    Later collections leave the imported objects out. So does the one at the exit of the process, which otherwise takes
    a second. Nothing of this happens in a process that has PyTorch already: its objects may become garbage.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    keep_few_kernels(kernels)
    with garbage_collection_paused():
        yield
        gc.freeze()
    atexit.register(gc.freeze)


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause garbage collection, where many objects are new and none of them is garbage."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
