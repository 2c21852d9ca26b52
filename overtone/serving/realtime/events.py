"""Events of a stream -> deltas and transcripts of the realtime interface, as Riva's clients expect them."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from overtone.decoding.hypothesis import Word
from overtone.serving.recognition.service import Mask
from overtone.serving.streaming.session import StreamSession
from overtone.serving.streaming.stream import Event, Final, Interim

EVENT = "conversation.item.input_audio_transcription"


@dataclass(kw_only=True)
class SessionEvents:
    """Sends the results of one session. For one task at a time."""

    send: Callable[[dict[str, Any]], Awaitable[None]]
    session: StreamSession
    mask: Mask
    utterances: list[str] = field(default_factory=list)
    """Texts of the final results."""
    item: str = ""
    """Id of the current utterance."""

    async def push(self, *, force_eou: bool = False) -> None:
        """Send the results of the audio that was taken. force_eou: the utterance ends there."""
        await self.send_results(await self.session.push(force_eou=force_eou))

    async def end(self) -> None:
        """Send the result of the last utterance, if there was one, and in any case a last result."""
        finals = [event for event in await self.session.finish() if isinstance(event, Final)]
        await self.send_results(finals[:-1])
        last = finals[-1] if finals else None
        await self.complete(last.text if last else "", last.words if last else (), is_last=True)

    async def send_results(self, events: Sequence[Event]) -> None:
        """Send each final result; of interim ones the last, and those that mark the early end of an utterance."""
        for index, event in enumerate(events):
            if isinstance(event, Final):
                await self.complete(event.text, event.words, is_last=False)
            elif index == len(events) - 1 or event.stability == 1.0:
                await self.delta(event)

    async def delta(self, event: Interim) -> None:
        """Send the current utterance as it is recognised so far."""
        await self.send(
            {
                "type": f"{EVENT}.delta",
                "event_id": new_id("event"),
                "item_id": self.current(),
                "content_index": 0,
                "delta": self.mask(event.text).strip(),
                "stability": round(event.stability, 3),
            }
        )

    async def complete(self, text: str, words: Sequence[Word], *, is_last: bool) -> None:
        """Send the text of an utterance that has ended, after all texts before it."""
        utterance = self.mask(text).strip()
        if utterance:
            self.utterances.append(utterance)
        timed = words if self.session.request.word_times else ()
        await self.send(
            {
                "type": f"{EVENT}.completed",
                "event_id": new_id("event"),
                "item_id": self.current(),
                "content_index": 0,
                "transcript": " ".join(self.utterances),
                "utterance": utterance,
                "is_last_result": is_last,
                "words_info": {"words": [self.word_json(word) for word in timed]},
            }
        )
        self.item = ""

    def word_json(self, word: Word) -> dict[str, Any]:
        """JSON of a word, with milliseconds from the beginning of the session's audio, as in Riva's gRPC interface."""
        return {
            "word": self.mask(word.text),
            "start_time": round(1000 * word.start),
            "end_time": round(1000 * word.end),
            "confidence": word.confidence,
            "speaker_tag": 0,
        }

    def current(self) -> str:
        """Id of the current utterance, made where there is none."""
        self.item = self.item or new_id("item")
        return self.item


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(10)}"
