"""Recordings: windows of audio of any length through the engine, a few ahead, joined in a decoder as they come back."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from overtone.decoding.decoder import Alignment, DecodingOptions, Emissions, Head
from overtone.decoding.fusion import NO_WORDS
from overtone.decoding.hypothesis import Hypothesis
from overtone.inference.windows import OVERLAP_SECONDS, WINDOW_SECONDS, Window, WindowJoiner, plan_windows
from overtone.serving.adapter_store.store import Lease
from overtone.serving.engine.engine import Engine, Group, Samples
from overtone.serving.errors import NO_NUMBERS, OverloadError, WorkerError

AHEAD = 4
"""Windows of one recording in the queue at a time."""
AHEAD_IN_PARTS = 2
"""The same for a recording whose transcript is read after each window."""
REST = 0.05
"""Seconds between tries while the queue is full."""
TRIES = 100
"""Tries for a place in the queue."""

A = TypeVar("A")
Submit = Callable[[Window], Future[Emissions]]


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """Transcript of a recording, or of its beginning."""

    hypotheses: tuple[Hypothesis, ...]
    """At least one, best first."""
    seconds: float
    """Duration of the audio that it covers."""


async def recognise(
    engine: Engine,
    waveform: Samples,
    *,
    lease: Lease | None = None,
    decoding: DecodingOptions | None = None,
    deadline: float | None = None,
    group: Group = None,
) -> Recognition:
    """Recognise waveform [S] float32 of any length. The caller keeps the lease until this returns.

    Raises the errors of `Engine.submit` and its futures. Cancelling it frees the places in the queue.
    """
    decoding = with_words(engine, lease, decoding)
    joiner, submit = plan_recording(engine, waveform, lease, decoding, deadline, group)

    def decode(answer: Emissions) -> list[Hypothesis]:
        joiner.push(answer)
        return check_scores(joiner.decoder.hypotheses(decoding.alternatives)) if joiner.is_complete else []

    hypotheses: list[Hypothesis] = []
    async with aclosing(window_answers(joiner.windows, submit)) as answers:
        async for answer in answers:
            hypotheses = await asyncio.to_thread(decode, answer)
    return Recognition(hypotheses=tuple(hypotheses), seconds=waveform.size / engine.sample_rate)


async def recognise_in_parts(
    engine: Engine,
    waveform: Samples,
    *,
    lease: Lease | None = None,
    decoding: DecodingOptions | None = None,
    deadline: float | None = None,
    group: Group = None,
) -> AsyncGenerator[Recognition]:
    """Recognise waveform [S] and yield the transcript so far after each window; the last one is that of `recognise`.

    Raises the errors of `recognise`. Leaving the iteration frees the places in the queue.
    """
    decoding = with_words(engine, lease, decoding)
    joiner, submit = plan_recording(engine, waveform, lease, decoding, deadline, group)

    def decode(answer: Emissions) -> list[Hypothesis]:
        joiner.push(answer)
        if not (joiner.decoder.frames or joiner.is_complete):
            return []
        return check_scores(joiner.decoder.hypotheses(decoding.alternatives))

    async with aclosing(window_answers(joiner.windows, submit, ahead=AHEAD_IN_PARTS)) as answers:
        async for answer in answers:
            if hypotheses := await asyncio.to_thread(decode, answer):
                whole = waveform.size / engine.sample_rate
                seconds = whole if joiner.is_complete else joiner.begin * engine.seconds_per_frame
                yield Recognition(hypotheses=tuple(hypotheses), seconds=seconds)


def check_scores(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    """The hypotheses. Raises WorkerError where a score is NaN: of a joint network that gives no numbers."""
    if any(math.isnan(hypothesis.score) for hypothesis in hypotheses):
        raise WorkerError(NO_NUMBERS)
    return hypotheses


def head_of(engine: Engine, lease: Lease | None) -> Head:
    """The head that recognises with the adapters of a lease."""
    with engine.lock:
        return engine.model.head_of(None if lease is None else lease.choice)


def with_words(engine: Engine, lease: Lease | None, decoding: DecodingOptions | None) -> DecodingOptions:
    """Decoding options with the words of a lease's adapters."""
    decoding, choice = decoding or DecodingOptions(), None if lease is None else lease.choice
    if choice is None:
        return decoding
    with engine.lock:
        parts = engine.model.adapters.words_of(choice)
    tokenizer = head_of(engine, lease).tokenizer
    return decoding.with_words(sum((part.for_decoding(tokenizer) for part in parts), start=NO_WORDS))


def plan_recording(
    engine: Engine,
    waveform: Samples,
    lease: Lease | None,
    decoding: DecodingOptions,
    deadline: float | None,
    group: Group,
) -> tuple[WindowJoiner, Submit]:
    """Joiner of the windows of waveform [S], and the function that submits one of them."""
    samples_per_frame = engine.seconds_per_frame * engine.sample_rate
    windows = windows_of(engine, max(1, math.ceil(waveform.size / samples_per_frame - 1e-6)))
    head, scope = head_of(engine, lease), engine.decoding_scope(lease)

    def align(emissions: Emissions) -> Alignment:
        with scope(), engine.model.speaking(decoding.language):
            return head.align_row(emissions)

    def submit(window: Window) -> Future[Emissions]:
        part = waveform[round(window.start * samples_per_frame) : round(window.stop * samples_per_frame)]
        return engine.submit(part, lease=lease, deadline=deadline, group=group, language=decoding.language)

    return WindowJoiner(windows, head.decoder(decoding, scope=scope), align), submit


def windows_of(engine: Engine, frames: int) -> list[Window]:
    """Windows of 30 s that cover so many encoder frames."""
    most, overlap = (int(seconds / engine.seconds_per_frame) for seconds in (WINDOW_SECONDS, OVERLAP_SECONDS))
    return plan_windows(frames, window=most, overlap=overlap)


async def window_answers(
    windows: Sequence[Window], submit: Submit, *, ahead: int = AHEAD, begins: bool = True
) -> AsyncGenerator[Emissions]:
    """Submit windows, at most `ahead` at a time, and yield their answers [T, C] in order.

    begins: a full queue refuses the first window at once. Raises the errors of `place` and of the answers; leaving the
    iteration frees the places in the queue.
    """
    waiting: deque[Future[Emissions]] = deque()
    unsent = deque(windows)
    try:
        while unsent or waiting:
            while unsent and len(waiting) < ahead:
                is_first = begins and len(unsent) == len(windows)
                waiting.append(await place(partial(submit, unsent[0]), begins=is_first))
                unsent.popleft()
            answer = await asyncio.wrap_future(waiting[0])
            waiting.popleft()
            yield answer
    finally:
        while waiting:  # emptied: an error would lead from its future through its traceback to this frame, and round
            waiting.popleft().cancel()


async def place(submit: Callable[[], Future[A]], *, begins: bool) -> Future[A]:
    """Submit a row. Where the queue is full, work that `begins` is refused at once; other work tries for a while.

    Raises OverloadError, and other errors of `Engine.submit`.
    """
    for _ in range(TRIES):
        try:
            return submit()
        except OverloadError:
            if begins:
                raise
        await asyncio.sleep(REST)
    return submit()
