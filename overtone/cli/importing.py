"""The imports of a command: PyTorch's and Lightning's are half a million objects, all of which stay."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import without searches for garbage, which would go through what is there already again and again.

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
