"""Audio of any length -> one sequence of frames: overlapping windows through the engine, joined as they come back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import partial

import numpy as np

from overtone.decoding.ctc import CtcPath
from overtone.decoding.decoder import Decoder, path_of
from overtone.inference.windows import Window, join_paths, plan_windows
from overtone.serving.engine.engine import Engine, LogProbs, Samples
from overtone.serving.engine.submit import Answer, Steps, placed

WINDOW_SECONDS = 30.0
OVERLAP_SECONDS = 4.0
AHEAD = 4
"""Windows of one recording in the queue at a time."""

Submit = Callable[[Window], Future[LogProbs]]


def windows_of(engine: Engine, frames: int) -> list[Window]:
    """The windows of 30 s that cover so many encoder frames."""
    most, overlap = (int(seconds / engine.seconds_per_frame) for seconds in (WINDOW_SECONDS, OVERLAP_SECONDS))
    return plan_windows(frames, window=most, overlap=overlap)


def recording_windows(engine: Engine, waveform: Samples) -> list[Window]:
    """Those of a recording [S]."""
    samples_per_frame = engine.seconds_per_frame * engine.sample_rate
    return windows_of(engine, max(1, math.ceil(waveform.size / samples_per_frame - 1e-6)))


def samples_in(engine: Engine, waveform: Samples, window: Window) -> Samples:
    """What of a recording [S] lies in one of its windows; the last one holds the rest."""
    samples_per_frame = engine.seconds_per_frame * engine.sample_rate
    return waveform[round(window.start * samples_per_frame) : round(window.stop * samples_per_frame)]


def heard_in_windows(joiner: Joiner, submit: Submit, *, begins: bool) -> Steps[None]:
    """Fill the joiner's decoder. begins: a full queue refuses the first window at once, rather than let it wait."""
    waiting: deque[Future[LogProbs]] = deque()
    try:
        for index, window in enumerate(joiner.windows):
            if len(waiting) == AHEAD:
                joiner.push((yield from awaited(waiting)))
            waiting.append((yield from placed(partial(submit, window), begins=begins and index == 0)))
        while waiting:
            joiner.push((yield from awaited(waiting)))
    finally:
        for future in waiting:
            future.cancel()


def awaited(waiting: deque[Future[LogProbs]]) -> Generator[Future[LogProbs], Answer, LogProbs]:
    answer = yield waiting[0]
    assert answer is not None
    waiting.popleft()
    return answer


class Joiner:
    """Windows in order -> one sequence of frames in a decoder; only two windows are held at a time."""

    def __init__(self, windows: list[Window], decoder: Decoder, *, first: int = 0, last: int | None = None) -> None:
        """The frames [first, last) are decoded, all unless given; the rest is context."""
        self.windows = windows
        self.decoder = decoder
        self.last = windows[-1].stop if last is None else last
        self.index = 0
        """The window that comes next."""
        self.before: LogProbs | None = None
        self.begin = first
        """The frame of the recording from which the window before is still to be decoded."""

    def push(self, answer: LogProbs) -> None:
        if self.before is not None:
            left, right = self.windows[self.index - 1], self.windows[self.index]
            end = min(max(seam(left, self.before, right, answer), self.begin), self.last)
            self._decode(left, self.before, end)
        self.before = answer
        self.index += 1
        if self.index == len(self.windows):
            self._decode(self.windows[-1], answer, self.last)

    def _decode(self, window: Window, answer: LogProbs, end: int) -> None:
        if end > self.begin:
            self.decoder.push(answer.log_probs[self.begin - window.start : end - window.start])
            self.begin = end


def seam(left: Window, left_answer: LogProbs, right: Window, right_answer: LogProbs) -> int:
    """The frame of the recording where the right window takes over, as recordings of the jobs are joined."""
    marked = [
        CtcPath(ids=path.ids, log_probs=np.full(path.ids.size, mark, dtype=np.float32), blank=path.blank)
        for mark, path in enumerate(path_of(answer.log_probs) for answer in (left_answer, right_answer))
    ]
    joined = join_paths([left, right], marked)
    return left.start + int(np.count_nonzero(joined.log_probs == 0))
