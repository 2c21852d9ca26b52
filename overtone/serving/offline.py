"""A whole recording -> hypotheses: overlapping windows through the engine, decoded as they come back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from overtone.decoding.beam import BeamDecoder, BeamSettings, BoostTree
from overtone.decoding.ctc import CtcPath, Hypothesis
from overtone.decoding.incremental import Decoder, GreedyDecoder, path_of
from overtone.jobs.windows import Window, join_paths, plan_windows
from overtone.serving.driving import Answer, Steps, drive, drive_async, placed
from overtone.serving.engine import Engine, LogProbs, Samples
from overtone.serving.shelf import Lease

WINDOW_SECONDS = 30.0
OVERLAP_SECONDS = 4.0
AHEAD = 4
"""Windows of one recording in the queue at a time."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a request wants its log-probabilities read; greedy unless phrases or alternatives are asked for."""

    boosts: BoostTree | None = None
    """`BoostTree([Boost(phrases=…, boost=…)], model.tokenizer)`."""
    alternatives: int = 1
    """How many hypotheses at most."""
    beam: BeamSettings = field(default_factory=BeamSettings)

    def decoder(self, engine: Engine, first_frame: int = 0) -> Decoder:
        tokenizer, seconds = engine.model.tokenizer, engine.seconds_per_frame
        if self.alternatives > 1 or self.boosts:
            return BeamDecoder(
                tokenizer, seconds_per_frame=seconds, settings=self.beam, boosts=self.boosts, first_frame=first_frame
            )
        return GreedyDecoder(tokenizer, seconds_per_frame=seconds, first_frame=first_frame)


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The answer for one recording."""

    hypotheses: tuple[Hypothesis, ...]
    """At least one, best first."""
    seconds: float
    """Duration of the audio."""


def recognise(
    engine: Engine,
    waveform: Samples,
    *,
    lease: Lease | None = None,
    decoding: Decoding | None = None,
    deadline: float | None = None,
    group: str | None = None,
) -> Recognition:
    """waveform [S] float32 of any length; windows of 30 s that overlap. Raises what `Engine.submit` and its futures
    raise. The caller keeps the lease until this returns."""
    return drive(_steps(engine, waveform, lease, decoding or Decoding(), deadline, group))


async def recognise_async(
    engine: Engine,
    waveform: Samples,
    *,
    lease: Lease | None = None,
    decoding: Decoding | None = None,
    deadline: float | None = None,
    group: str | None = None,
) -> Recognition:
    """The same for an event loop; cancelling it frees the places in the queue."""
    steps = _steps(engine, waveform, lease, decoding or Decoding(), deadline, group)
    return await drive_async(steps, begins_quickly=True)


def _steps(
    engine: Engine,
    waveform: Samples,
    lease: Lease | None,
    decoding: Decoding,
    deadline: float | None,
    group: str | None,
) -> Steps[Recognition]:
    samples_per_frame = engine.seconds_per_frame * engine.sample_rate
    frames = max(1, math.ceil(waveform.size / samples_per_frame - 1e-6))
    most, overlap = (int(seconds / engine.seconds_per_frame) for seconds in (WINDOW_SECONDS, OVERLAP_SECONDS))
    windows = plan_windows(frames, window=most, overlap=overlap)
    waiting: deque[Future[LogProbs]] = deque()
    joiner = Joiner(windows, decoding.decoder(engine))
    try:
        for index, window in enumerate(windows):
            if len(waiting) == AHEAD:
                joiner.push((yield from awaited(waiting)))
            stop = waveform.size if window is windows[-1] else round(window.stop * samples_per_frame)
            part = waveform[round(window.start * samples_per_frame) : stop]
            submit = partial(engine.submit, part, lease=lease, deadline=deadline, group=group)
            waiting.append((yield from placed(submit, begins=index == 0)))
        while waiting:
            joiner.push((yield from awaited(waiting)))
    finally:
        for future in waiting:
            future.cancel()
    hypotheses = joiner.decoder.hypotheses(decoding.alternatives)
    return Recognition(hypotheses=tuple(hypotheses), seconds=waveform.size / engine.sample_rate)


def awaited(waiting: deque[Future[LogProbs]]) -> Generator[Future[LogProbs], Answer, LogProbs]:
    answer = yield waiting[0]
    assert answer is not None
    waiting.popleft()
    return answer


class Joiner:
    """Windows in order -> one sequence of frames in a decoder; only two windows are held at a time."""

    def __init__(self, windows: list[Window], decoder: Decoder) -> None:
        self.windows = windows
        self.decoder = decoder
        self.index = 0
        """The window that comes next."""
        self.before: LogProbs | None = None
        self.begin = 0
        """The frame of the recording from which the window before is still to be decoded."""

    def push(self, answer: LogProbs) -> None:
        if self.before is not None:
            left, right = self.windows[self.index - 1], self.windows[self.index]
            end = seam(left, self.before, right, answer)
            self.decoder.push(self.before.log_probs[self.begin - left.start : end - left.start])
            self.begin = end
        self.before = answer
        self.index += 1
        if self.index == len(self.windows):
            self.decoder.push(answer.log_probs[self.begin - self.windows[-1].start :])


def seam(left: Window, left_answer: LogProbs, right: Window, right_answer: LogProbs) -> int:
    """The frame of the recording where the right window takes over, as recordings of the jobs are joined."""
    marked = [
        CtcPath(ids=path.ids, log_probs=np.full(path.ids.size, mark, dtype=np.float32), blank=path.blank)
        for mark, path in enumerate(path_of(answer.log_probs) for answer in (left_answer, right_answer))
    ]
    joined = join_paths([left, right], marked)
    return left.start + int(np.count_nonzero(joined.log_probs == 0))
