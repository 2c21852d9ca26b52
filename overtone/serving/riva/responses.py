"""Hypotheses and events of streams -> results of the Riva interface.

Every transcript ends with a space, as Riva's do: clients put results together without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from overtone.decoding.hypothesis import Word
from overtone.serving.recognition.offline import Recognition
from overtone.serving.recognition.request import RecognitionRequest
from overtone.serving.recognition.service import Mask
from overtone.serving.riva.protobuf import (
    SpeechRecognitionAlternative,
    SpeechRecognitionResult,
    StreamingRecognitionResult,
    WordInfo,
)
from overtone.serving.streaming.stream import Event, Final, Interim

CHANNEL = 1


@dataclass(frozen=True, kw_only=True)
class ResultWriter:
    """Writes the results of one request."""

    request: RecognitionRequest
    mask: Mask
    language: str
    """BCP-47 tag of the model."""

    def recording(self, recognition: Recognition) -> list[Any]:
        """Results of a recording: none where nothing was said, else one."""
        best = recognition.hypotheses[0]
        if not best.text:
            return []
        alternatives = [self._alternative(each.text, each.words) for each in recognition.hypotheses]
        if self.request.word_times:
            alternatives[0].words.extend(self._word_infos(best.words))
        result = SpeechRecognitionResult(
            alternatives=alternatives, channel_tag=CHANNEL, audio_processed=recognition.seconds
        )
        return [result]

    def stream(self, event: Event) -> Any:
        """Result of a stream's event."""
        if isinstance(event, Interim):
            return StreamingRecognitionResult(
                alternatives=[self._alternative(event.text, ())],
                stability=event.stability,
                channel_tag=CHANNEL,
                audio_processed=event.audio_processed,
            )
        first = self._alternative(event.text, event.words)
        if self.request.word_times:
            first.words.extend(self._word_infos(event.words))
        others = (self._alternative(each.text, each.words) for each in event.alternatives[1:])
        return StreamingRecognitionResult(
            alternatives=[first, *others],
            is_final=True,
            channel_tag=CHANNEL,
            audio_processed=event.audio_processed,
        )

    def _alternative(self, text: str, words: Sequence[Word]) -> Any:
        """Confidence is the mean of the words', 0…1, and 0 (unset) without words."""
        confidence = sum(word.confidence for word in words) / len(words) if words else 0.0
        return SpeechRecognitionAlternative(
            transcript=f"{self.mask(text).strip()} ", confidence=confidence, language_code=[self.language]
        )

    def _word_infos(self, words: Sequence[Word]) -> list[Any]:
        """Times are milliseconds from the beginning of the audio."""
        return [
            WordInfo(
                start_time=round(1000 * word.start),
                end_time=round(1000 * word.end),
                word=self.mask(word.text),
                confidence=word.confidence,
                language_code=self.language,
            )
            for word in words
        ]


def responses_for(events: Sequence[Event], chunks: int) -> list[list[Event]]:
    """Distribute the events of `chunks` messages over one response each (some of them empty), or more where needed.

    A response holds at most one final result and then one interim result. An interim result is left out when a later
    one or its final result is there already, unless it marks the early end of an utterance.
    """
    last = len(events) - 1
    kept = [
        event
        for index, event in enumerate(events)
        if isinstance(event, Final) or index == last or event.stability == 1.0
    ]
    groups: list[list[Event]] = []
    for event in kept:
        joins = isinstance(event, Interim) and groups and all(isinstance(each, Final) for each in groups[-1])
        if joins and len(kept) > chunks:
            groups[-1].append(event)
        else:
            groups.append([event])
    return [[] for _ in range(chunks - len(groups))] + groups
