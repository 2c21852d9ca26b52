"""Memory that forwards have freed: the C library keeps it for the next one, and gives it back now and then."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys

from overtone.serving.engine.engine import Engine, EngineState

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's `mallopt`, from its malloc.h."""
KEPT = {TRIM_THRESHOLD: 256 << 20, TOP_PAD: 64 << 20, MMAP_THRESHOLD: 32 << 20}
"""Bytes for each parameter. The pad is the size of a thread's heap, so that an empty heap is not given back; the last
one is the most that glibc allows."""
EVERY = 60.0
"""Seconds between two calls of `give_back`."""
QUIET = 0.05
"""Seconds between two looks at an engine while it computes."""
OF_THE_USER = ("MALLOC_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next request of memory. Returns whether it will.

    By its own rule it gives a batch's activations back to the kernel after a forward, and the kernel clears the pages
    of the next one: up to a tenth of the processor time, depending on the heaps. Nothing happens without glibc, nor
    where the user's environment tunes it.
    """
    if sys.platform != "linux" or any(name.startswith(OF_THE_USER) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(bool(mallopt(parameter, size)) for parameter, size in KEPT.items())


def give_back() -> None:
    """Give all freed memory back to the kernel, once. Only after `keep_freed_memory`."""
    ctypes.CDLL(None).malloc_trim(0)


async def quiet_state(engine: Engine) -> EngineState:
    """State of an engine in its next moment without work."""
    while (state := engine.state()).running or state.waiting:
        await asyncio.sleep(QUIET)
    return state


async def give_back_now_and_then(*engines: Engine, every: float = EVERY) -> None:
    """Give memory that no forward takes again back to the kernel, each time once every engine has had a quiet moment.

    Lasting objects lie scattered among short-lived ones, so that batches of other shapes find no room and take fresh
    pages: the heap of the worker grew by some megabytes a minute. To fill the pages of the next forwards again costs
    some 0.02 s of processor time: nothing once a minute, though up to a tenth of all after each batch.
    """
    seen = 0
    while True:
        await asyncio.sleep(every)
        states = await asyncio.gather(*map(quiet_state, engines))
        batches = sum(state.batches for state in states)
        if batches > seen:
            seen = batches
            await asyncio.to_thread(give_back)
