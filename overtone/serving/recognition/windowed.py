"""Audio of any length -> one sequence of frames: overlapping windows through the engine, joined as they come back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import partial

from overtone.decoding.decoder import Emissions
from overtone.inference.windows import OVERLAP_SECONDS, WINDOW_SECONDS, Window, WindowJoiner, plan_windows
from overtone.serving.engine.engine import Engine, Samples
from overtone.serving.engine.submit import Answer, Steps, placed

AHEAD = 4
"""Windows of one recording in the queue at a time."""

Submit = Callable[[Window], Future[Emissions]]


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


def heard_in_windows(joiner: WindowJoiner, submit: Submit, *, begins: bool) -> Steps[None]:
    """Fill the joiner's decoder. begins: a full queue refuses the first window at once, rather than let it wait."""
    waiting: deque[Future[Emissions]] = deque()
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


def awaited(waiting: deque[Future[Emissions]]) -> Generator[Future[Emissions], Answer, Emissions]:
    answer = yield waiting[0]
    assert answer is not None
    waiting.popleft()
    return answer
