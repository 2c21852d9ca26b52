"""Before a command begins: its imports, and what its libraries have to know beforehand."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

KERNELS_KEPT = 128
"""Several times what the layers of one step ask for."""


def keep_few_kernels() -> None:
    """Let oneDNN keep the kernels of a few shapes. A training meets another shape in almost every batch, and would
    hardly use one of the thousand again that are kept by default, in hundreds of megabytes."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))


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
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
