"""Decoding of clients' audio: in turn, a moment at a time, and within a limit of what is held in memory.

A small file can be hours of work. Nobody waits for the whole of another client's: decoding goes on in steps, and each
step waits for its turn. It ends where its client is gone, because nobody asks for the next step then.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from overtone.audio.pcm import Samples
from overtone.serving.errors import OverloadError
from overtone.serving.recognition.turns import Turns

__all__ = ["DecodingThreads", "HeldAudio"]

R = TypeVar("R")
THREADS = max(2, min(4, os.cpu_count() or 2))
"""Threads that decode audio."""
STEP_SECONDS = 0.02
"""Time after which a step leaves its place to the next client."""
MOST_OF_ONE = 0.5
"""Share of the audio in memory that one tenant may hold."""


@dataclass(kw_only=True, eq=False)
class Holding:
    """One recording in memory."""

    whole: HeldAudio
    tenant: str
    seconds: float = 0.0

    def grow(self, seconds: float) -> None:
        """Count so much more of it. Raises OverloadError where it does not fit beside the others."""
        whole, tenant = self.whole, self.tenant
        if whole.recordings > 1 and whole.seconds + seconds > whole.max_seconds:
            raise OverloadError("The recordings that are being transcribed are too long together; try again later.")
        own = whole.by_tenant[tenant] + seconds
        if tenant and whole.recordings_of[tenant] > 1 and own > whole.max_seconds * MOST_OF_ONE:
            raise OverloadError(f"The recordings of '{tenant}' that are being transcribed are too long together.")
        self.seconds += seconds
        whole.seconds += seconds
        whole.by_tenant[tenant] += seconds


class HeldAudio:
    """Decoded audio of all recordings in memory, limited. Belongs to one event loop."""

    def __init__(self, max_seconds: float = 8 * 3600.0) -> None:
        """max_seconds: of all recordings together; one tenant gets a half. A recording alone is never refused."""
        self.max_seconds = max_seconds
        self.recordings = 0
        """Recordings in memory now."""
        self.seconds = 0.0
        """Their length together, but for rounding."""
        self.recordings_of: Counter[str] = Counter()
        self.by_tenant: dict[str, float] = {}
        """Seconds of each tenant that has a recording in memory."""

    @contextmanager
    def hold(self, seconds: float, tenant: str = "") -> Iterator[Holding]:
        """Count a recording while it is decoded or worked on; it may grow. Raises OverloadError."""
        holding = Holding(whole=self, tenant=tenant)
        self.recordings += 1
        self.recordings_of[tenant] += 1
        self.by_tenant.setdefault(tenant, 0.0)
        try:
            holding.grow(seconds)
            yield holding
        finally:
            self.recordings -= 1
            self.seconds -= holding.seconds
            self.by_tenant[tenant] -= holding.seconds
            self.recordings_of[tenant] -= 1
            if not self.recordings_of[tenant]:
                del self.recordings_of[tenant], self.by_tenant[tenant]


class DecodingThreads:
    """Threads that decode audio, one step for one client after the other. Belongs to one event loop."""

    def __init__(self, count: int = THREADS) -> None:
        self.turns = Turns(count)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="overtone-audio")

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[..., R], *arguments: object, client: str) -> R:
        """Run short work in a thread, when it is the client's turn."""
        async with self.turns.turn(client):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def steps(self, pieces: Iterator[Samples], client: str) -> AsyncGenerator[list[Samples]]:
        """Pieces [S] of a recording, as they are decoded while this is iterated. Raises what the iterator raises."""
        ended = False
        while not ended:
            found, ended = await self.run(take_for_a_moment, pieces, client=client)
            yield found


def take_for_a_moment(pieces: Iterator[Samples]) -> tuple[list[Samples], bool]:
    """Pieces [S] that are decoded within `STEP_SECONDS`, at least one, and whether they were the last."""
    ends = time.monotonic() + STEP_SECONDS
    found = []
    for piece in pieces:
        found.append(piece)
        if time.monotonic() >= ends:
            return found, False
    return found, True
