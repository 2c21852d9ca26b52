"""The messages of a client's stream, read ahead as far as a little memory allows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Self

from overtone.serving.riva.errors import sound

MOST_MESSAGES = 256
MOST_BYTES = 2**18
"""Read ahead while less than this waits: at 16 kHz 8 seconds of samples. Then the client's own sending stalls."""


class Inbox:
    """A context manager; leaving it stops the reading."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = requests
        self._waiting: deque[Any] = deque()
        self._bytes = 0
        self._ended = False
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def take(self, seconds: float, *, most: int = MOST_MESSAGES) -> list[Any]:
        """The messages that are there, at least one; none at the client's end of the stream.

        Raises TimeoutError after so many seconds without any.
        """
        while not self._waiting and not self._ended:
            self._changed.clear()
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        if self._failure is not None and not self._waiting:
            raise self._failure
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        self._bytes -= sum(map(size, taken))
        self._room.set()
        return taken

    async def _read(self) -> None:
        try:
            async for request in self._requests:
                self._waiting.append(sound(request))
                self._bytes += size(request)
                self._changed.set()
                while self._bytes >= MOST_BYTES or len(self._waiting) >= MOST_MESSAGES:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self._failure = error
        finally:
            self._ended = True
            self._changed.set()


def size(request: Any) -> int:
    return len(request.audio_content)
