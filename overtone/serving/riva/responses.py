"""Hypotheses and stream events -> results of the Riva interface.

Every transcript ends with a space, as Riva's do: clients put results together without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from overtone.decoding.hypothesis import Word
from overtone.serving.recognition.offline import Recognition
from overtone.serving.riva.protobuf import (
    SpeechRecognitionAlternative,
    SpeechRecognitionResult,
    StreamingRecognitionResult,
    WordInfo,
)
from overtone.serving.riva.requests import RecognitionRequest
from overtone.serving.streaming.stream import Event, Final, Interim

Mask = Callable[[str], str]
CHANNEL = 1


def offline_results(recognition: Recognition, request: RecognitionRequest, mask: Mask) -> list[Any]:
    """No result where nothing was heard, else one."""
    best = recognition.hypotheses[0]
    if not best.text:
        return []
    hypotheses = recognition.hypotheses[: request.alternatives]
    alternatives = [alternative(each.text, each.words, request, mask) for each in hypotheses]
    if request.word_times:
        alternatives[0].words.extend(word_infos(best.words, request, mask))
    return [
        SpeechRecognitionResult(
            alternatives=alternatives, channel_tag=CHANNEL, audio_processed=recognition.seconds
        )
    ]  # fmt: skip


def stream_result(event: Event, request: RecognitionRequest, mask: Mask) -> Any:
    if isinstance(event, Interim):
        return StreamingRecognitionResult(
            alternatives=[alternative(event.text, (), request, mask)],
            stability=event.stability,
            channel_tag=CHANNEL,
            audio_processed=event.audio_processed,
        )
    first = alternative(event.text, event.words, request, mask)
    if request.word_times:
        first.words.extend(word_infos(event.words, request, mask))
    others = event.alternatives[1 : request.alternatives]
    return StreamingRecognitionResult(
        alternatives=[first, *(alternative(each.text, each.words, request, mask) for each in others)],
        is_final=True,
        channel_tag=CHANNEL,
        audio_processed=event.audio_processed,
    )


def alternative(text: str, words: Sequence[Word], request: RecognitionRequest, mask: Mask) -> Any:
    """confidence is the mean of the words', 0…1; 0 (unset) without words."""
    confidence = sum(word.confidence for word in words) / len(words) if words else 0.0
    return SpeechRecognitionAlternative(
        transcript=f"{mask(text).strip()} ", confidence=confidence, language_code=[request.language]
    )


def word_infos(words: Sequence[Word], request: RecognitionRequest, mask: Mask) -> list[Any]:
    """Times in milliseconds from the beginning of the audio."""
    return [
        WordInfo(
            start_time=round(1000 * word.start),
            end_time=round(1000 * word.end),
            word=mask(word.text),
            confidence=word.confidence,
            language_code=request.language,
        )
        for word in words
    ]


def responses_for(events: Sequence[Event], chunks: int) -> list[list[Event]]:
    """The events of so many chunks as one response a chunk (some of them empty), more only where it must be.

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
