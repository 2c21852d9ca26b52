"""Start of a command: fast imports, and environment variables of PyTorch and oneDNN."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Limits of the kernel caches of oneDNN and of PyTorch's calls to it. By default each holds a thousand kernels and
more, which grew to 0.8 GB over batches of random shapes and saved no time."""
CACHED_KERNELS = (512, 64)
"""Kernels in these caches: about thirty shapes of a batch."""
TRAINING_CACHED_KERNELS = (128, 32)
"""Kernels where every batch has another shape and several processes have caches: no slower, and 400 MB less."""


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
