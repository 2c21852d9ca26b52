"""Before a command begins: its imports, and what its libraries have to know beforehand."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

KERNELS_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": 512, "LRU_CACHE_CAPACITY": 64}
"""What the caches of oneDNN and of PyTorch's calls to it hold at most: about thirty shapes of a batch. By default each
holds a thousand and more, which grew to 0.8 GB over batches of random shapes and saved no time."""


def keep_few_kernels() -> None:
    """Bound these caches, unless the user has. PyTorch reads it when it is loaded."""
    for name, kept in KERNELS_KEPT.items():
        os.environ.setdefault(name, str(kept))


@contextmanager
def importing() -> Iterator[None]:
    """Import without searches for garbage: half a million objects come with PyTorch and Lightning, and all stay.

    Later searches leave out what has been imported. So does the one at the exit of the process, where taking it
    apart piece by piece took a second. Nothing of this happens in a process that has PyTorch already: what lives
    there may become garbage.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    keep_few_kernels()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
