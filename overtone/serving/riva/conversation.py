"""One client's stream: messages in, responses out, at least one for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from overtone.serving.riva.errors import invalid
from overtone.serving.riva.protobuf import StreamingRecognizeResponse
from overtone.serving.riva.requests import RecognitionRequest
from overtone.serving.riva.responses import Mask, responses_for, stream_result
from overtone.serving.streaming.session import Hearing
from overtone.serving.streaming.stream import Event


@dataclass(kw_only=True)
class Conversation:
    """Not to be used by two tasks at a time."""

    context: Any
    hearing: Hearing
    request: RecognitionRequest
    mask: Mask
    id: Any
    """The RequestId that responses carry, or None."""
    unanswered: int = 0
    """Messages without a response yet."""

    async def hear(self, messages: Sequence[Any]) -> None:
        """Messages that have arrived together go to the stream together."""
        for message in messages:
            if message.WhichOneof("streaming_request") == "streaming_config":
                raise invalid("streaming_config was already received")
            if message.HasField("id"):
                self.id = message.id
            if message.audio_content:
                await self.hearing.take(message.audio_content)
            self.unanswered += 1
            if message.runtime_config.get("force_eou", "").lower() == "true":
                await self.push(force_eou=True)
        if self.unanswered:
            await self.push()

    async def push(self, *, force_eou: bool = False) -> None:
        await self.respond(await self.hearing.push(force_eou=force_eou), self.unanswered)
        self.unanswered = 0

    async def end(self) -> None:
        """The client has said everything: what is left of the last utterance, and in any case one more response."""
        await self.respond(await self.hearing.finish(), 1)

    async def respond(self, events: Sequence[Event], chunks: int) -> None:
        for group in responses_for(events, chunks):
            response = StreamingRecognizeResponse(
                results=[stream_result(event, self.request, self.mask) for event in group]
            )
            if self.id is not None:
                response.id.CopyFrom(self.id)
            await self.context.write(response)
