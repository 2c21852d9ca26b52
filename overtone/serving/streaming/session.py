"""The sound of one client's stream: pieces of a recording in any container in, what is recognised of them out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from overtone.audio.decode import AudioDecoder
from overtone.serving.engine.engine import Samples
from overtone.serving.riva.requests import RecognitionRequest, check_channels
from overtone.serving.streaming.stream import Event, Stream

LARGE = 2**16
"""Bytes of a message that are decoded in a thread."""


@dataclass(kw_only=True)
class Hearing:
    """Not to be used by two tasks at a time."""

    stream: Stream
    decoder: AudioDecoder
    request: RecognitionRequest
    in_thread: Callable[..., Awaitable[Samples]]
    samples: int = 0
    """Heard so far, at the model's rate."""
    received: int = 0
    """Bytes of audio so far."""
    pieces: list[Samples] = field(default_factory=list)
    """Decoded, not yet given to the stream."""

    async def take(self, data: bytes) -> None:
        """The next bytes; what they hold is heard with the next `push`. Raises what the decoder raises."""
        self.received += len(data)
        large = len(data) > LARGE
        self.pieces.append(await self.in_thread(self.decoder.push, data) if large else self.decoder.push(data))
        check_channels(self.decoder.format, self.request)

    def clear(self) -> None:
        """Forget what has not been heard yet."""
        self.pieces.clear()

    async def push(self, *, force_eou: bool = False) -> list[Event]:
        """Hear what was taken. force_eou: the utterance ends there."""
        samples = np.concatenate(self.pieces) if self.pieces else np.zeros(0, dtype=np.float32)
        self.pieces.clear()
        self.samples += samples.size
        if not samples.size and not force_eou:
            return []
        return await self.stream.push_async(samples, force_eou=force_eou)

    async def finish(self) -> list[Event]:
        """The client has said everything: what is left in the decoder, and the end of the stream."""
        events: list[Event] = []
        if self.received:
            self.pieces.append(await self.in_thread(self.decoder.finish))
            check_channels(self.decoder.format, self.request)
            events = await self.push()
        return [*events, *await self.stream.finish_async()]
