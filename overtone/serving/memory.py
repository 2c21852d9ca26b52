"""What the C library does with the memory that a forward has freed: the next one takes as much."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys

from overtone.serving.engine.engine import Engine

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's `mallopt`, from its malloc.h."""
KEPT = {TRIM_THRESHOLD: 256 << 20, TOP_PAD: 64 << 20, MMAP_THRESHOLD: 32 << 20}
"""Bytes. The pad is the size of a thread's heap, so that none is given back when it happens to be empty; the last one
is the most that glibc allows."""
EVERY = 60.0
"""Seconds from one `give_back` to the next."""
QUIET = 0.05
"""Seconds until it is looked again whether anything is being computed."""
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


def give_back() -> None:
    """All that is kept, once. Only where `keep_freed_memory` has been asked."""
    ctypes.CDLL(None).malloc_trim(0)


async def give_back_now_and_then(engine: Engine, *, every: float = EVERY) -> None:
    """What forwards do not take again goes back to the kernel, each time in a moment when nothing is computed.

    What stays in memory lies scattered among what comes and goes, so that batches of other shapes find no room and take
    fresh pages: the heap of the worker grew by some megabytes a minute. To fill what the next forwards take costs
    some 0.02 s of processor time: nothing once a minute, though up to a tenth of all after each batch.
    """
    seen = 0
    while True:
        await asyncio.sleep(every)
        while (state := engine.state()).running or state.waiting:
            await asyncio.sleep(QUIET)
        if state.batches > seen:
            seen = state.batches
            await asyncio.to_thread(give_back)
