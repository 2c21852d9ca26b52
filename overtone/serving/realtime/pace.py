"""Pace of a realtime session: large messages are read off the event loop, and changes cost what they weigh.

A change of the settings is a text of up to a megabyte, read, checked and compiled into a tree of phrases. Small ones
are done at once as long as they are few; large ones in a thread, when it is the client's turn, and charged to its
tenant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from overtone.serving.auth.rates import Allowance
from overtone.serving.errors import RequestError
from overtone.serving.recognition.request import Call
from overtone.serving.recognition.service import RecognitionService

R = TypeVar("R")
LARGE = 2**16
"""Characters of a message that is read in a thread."""
LARGEST = 2**20
"""Characters of a message that is not audio."""
MOST_QUOTES = 64
"""Quotation marks in a message with audio, which is one long text."""
CHANGES_PER_MINUTE = 60.0
"""Small changes of a session; so many at once, and then one a second. Others wait."""
CHANGE_SIZE = 2**14
"""Characters of a change that costs twice as much as a small one."""


class Pace:
    """One session's pace. For one task at a time."""

    def __init__(self, service: RecognitionService, call: Call) -> None:
        self._service = service
        self._call = call
        self._changes = Allowance(CHANGES_PER_MINUTE)

    async def read(self, read: Callable[[str], R], text: str) -> R:
        """Read a message. Raises RequestError for a large one that is not audio, and what `read` raises."""
        if len(text) <= LARGE:
            return read(text)
        if len(text) > LARGEST and text.count('"') > MOST_QUOTES:
            raise RequestError(
                f"A message of {len(text)} characters is too large; {LARGEST} are allowed, but for audio."
            )
        return await self._service.threads.run(read, text, client=self._call.client)

    async def change(self, work: Callable[[], R], size: int) -> R:
        """Change the settings, once their time has come. size: characters of the message.

        Raises RequestError for one that is too large, and what `work` raises.
        """
        if size > LARGEST:
            raise RequestError(f"A change of {size} characters is too large; {LARGEST} are allowed.")
        cost = 1.0 + size / CHANGE_SIZE
        while (seconds := self._changes.wait(cost)) > 0:
            await asyncio.sleep(seconds)
        self._changes.take(cost)
        if size <= CHANGE_SIZE:
            return work()
        self._service.guard.charge(self._call.tenant, requests=size // CHANGE_SIZE)
        return await self._service.threads.run(work, client=self._call.client)
