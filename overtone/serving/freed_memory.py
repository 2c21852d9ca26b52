"""What the C library does with the memory that a forward has freed: the next one takes as much."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's `mallopt`, from its malloc.h."""
KEPT = {TRIM_THRESHOLD: 256 << 20, TOP_PAD: 64 << 20, MMAP_THRESHOLD: 32 << 20}
"""Bytes. The pad is the size of a thread's heap, so that none is given back when it happens to be empty; the last one
is the most that glibc allows."""
OF_THE_USER = ("MALLOC_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed for what is asked for next; whether it will.

    By its own rule it gives a batch's activations back to the kernel after a forward, which clears page by page what
    the next one gets: up to a tenth of the processor time, depending on what else lies in the heaps. Nothing happens
    elsewhere than with glibc, nor where the user's environment tunes it.
    """
    if sys.platform != "linux" or any(name.startswith(OF_THE_USER) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(bool(mallopt(parameter, size)) for parameter, size in KEPT.items())
