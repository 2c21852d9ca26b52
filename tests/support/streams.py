"""Streams that are fed a waveform in portions."""

from __future__ import annotations

import numpy as np

from overtone.serving.streaming.stream import Event, Final, Stream


def run(stream: Stream, waveform: np.ndarray, portion: int = 1600) -> list[Event]:
    events: list[Event] = []
    with stream:
        for first in range(0, waveform.size, portion):
            events += stream.push(waveform[first : first + portion])
        events += stream.finish()
    return events


def finals(events: list[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def frames_of(stream: Stream, waveform: np.ndarray, portion: int) -> np.ndarray:
    """[T, V+1]: what a stream decodes."""
    captured: list[np.ndarray] = []
    decode = stream._utterances.push

    def push(log_probs: np.ndarray, heard: float) -> list[Event]:
        captured.append(log_probs)
        return decode(log_probs, heard)

    stream._utterances.push = push  # type: ignore[method-assign]
    run(stream, waveform, portion)
    return np.concatenate(captured)
