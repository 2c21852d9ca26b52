"""Streams that are fed a waveform in portions, and coroutines from tests that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np

from overtone.serving.streaming.stream import Event, Final, Stream

R = TypeVar("R")


def run(work: Coroutine[Any, Any, R]) -> R:
    """Result of a coroutine, in an event loop of its own."""
    return asyncio.run(work)


def stream_all(stream: Stream, waveform: np.ndarray, portion: int = 1600) -> list[Event]:
    """Events of a whole stream; waveform: [S]."""

    async def events() -> list[Event]:
        found: list[Event] = []
        with stream:
            for first in range(0, waveform.size, portion):
                found += await stream.push(waveform[first : first + portion])
            found += await stream.finish()
        return found

    return run(events())


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
    stream_all(stream, waveform, portion)
    return np.concatenate(captured)
