"""Before a command begins: its imports, and what its libraries have to know beforehand."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Of oneDNN, and of PyTorch's calls to it. By default each holds a thousand kernels and more, which grew to 0.8 GB over
batches of random shapes and saved no time."""
KERNELS_KEPT = (512, 64)
"""In these caches: about thirty shapes of a batch."""
TRAINING_KERNELS_KEPT = (128, 32)
"""Where every batch has another shape and several processes have caches of their own: no slower, and 400 MB less."""


def keep_few_kernels(kept: tuple[int, int] = KERNELS_KEPT) -> None:
    """Bound these caches, unless the user has. PyTorch reads it when it is loaded."""
    for name, number in zip(KERNEL_CACHES, kept, strict=True):
        os.environ.setdefault(name, str(number))


@contextmanager
def importing(*, kernels: tuple[int, int] = KERNELS_KEPT) -> Iterator[None]:
    """Import without searches for garbage: half a million objects come with PyTorch and Lightning, and all stay.

    Later searches leave out what has been imported. So does the one at the exit of the process, together with what was
    imported meanwhile: taking it apart piece by piece took a second. Nothing of this happens in a process that has
    PyTorch already: what lives there may become garbage.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    keep_few_kernels(kernels)
    with garbage_search_paused():
        yield
        gc.freeze()
    atexit.register(gc.freeze)


@contextmanager
def garbage_search_paused() -> Iterator[None]:
    """No search for garbage, where there is much that is new and none of it garbage."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
