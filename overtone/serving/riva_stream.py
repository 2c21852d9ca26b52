"""One client's stream: messages in, responses out, at least one for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from overtone.serving.engine import Samples
from overtone.serving.messages import StreamingRecognizeResponse
from overtone.serving.riva_request import RecognitionRequest, check_channels
from overtone.serving.riva_results import Mask, responses_for, stream_result
from overtone.serving.riva_status import invalid
from overtone.serving.sniff import AudioDecoder
from overtone.serving.streaming import Event, Stream

LARGE = 2**16
"""Bytes of a message that are decoded in a thread."""


@dataclass(kw_only=True)
class Conversation:
    """Not to be used by two tasks at a time."""

    context: Any
    stream: Stream
    decoder: AudioDecoder
    request: RecognitionRequest
    mask: Mask
    in_thread: Callable[..., Awaitable[Samples]]
    id: Any
    """The RequestId that responses carry, or None."""
    samples: int = 0
    """Heard so far, at the model's rate."""
    received: int = 0
    """Bytes of audio so far."""
    pieces: list[Samples] = field(default_factory=list)
    """Decoded, not yet given to the stream."""
    unanswered: int = 0
    """Messages without a response yet."""

    async def hear(self, messages: Sequence[Any]) -> None:
        """Messages that have arrived together go to the stream together."""
        for message in messages:
            if message.WhichOneof("streaming_request") == "streaming_config":
                raise invalid("streaming_config was already received")
            if message.HasField("id"):
                self.id = message.id
            await self.decode(message.audio_content)
            self.unanswered += 1
            if message.runtime_config.get("force_eou", "").lower() == "true":
                await self.push(force_eou=True)
        if self.unanswered:
            await self.push()

    async def decode(self, data: bytes) -> None:
        if not data:
            return
        self.received += len(data)
        large = len(data) > LARGE
        self.pieces.append(await self.in_thread(self.decoder.push, data) if large else self.decoder.push(data))
        check_channels(self.decoder.format, self.request)

    async def push(self, *, force_eou: bool = False) -> None:
        samples = self.taken()
        events: list[Event] = []
        if samples.size or force_eou:
            events = await self.stream.push_async(samples, force_eou=force_eou)
        await self.respond(events, self.unanswered)
        self.unanswered = 0

    async def end(self) -> None:
        """The client has said everything: what is left of the last utterance, and in any case one more response."""
        events: list[Event] = []
        if self.received:
            self.pieces.append(await self.in_thread(self.decoder.finish))
            samples = self.taken()
            if samples.size:
                events = await self.stream.push_async(samples)
        await self.respond([*events, *await self.stream.finish_async()], 1)

    def taken(self) -> Samples:
        samples = np.concatenate(self.pieces) if self.pieces else np.zeros(0, dtype=np.float32)
        self.pieces.clear()
        self.samples += samples.size
        return samples

    async def respond(self, events: Sequence[Event], chunks: int) -> None:
        for group in responses_for(events, chunks):
            response = StreamingRecognizeResponse(
                results=[stream_result(event, self.request, self.mask) for event in group]
            )
            if self.id is not None:
                response.id.CopyFrom(self.id)
            await self.context.write(response)
