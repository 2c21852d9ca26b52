"""Endpointing: beginning and end of utterances, by the silent frames of the model, after Riva's service."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from overtone.serving.recognition.request import Endpointing


@dataclass(frozen=True)
class Mark:
    """A change that was found after so many frames of a block."""

    frames: int
    kind: Literal["early", "end"]


class Endpointer:
    """Finds the ends of utterances. It takes one flag a frame, true on frames without a token."""

    def __init__(self, settings: Endpointing, seconds_per_frame: float) -> None:
        def frames(milliseconds: int | None) -> int:
            return max(1, round((milliseconds or 0) / 1000 / seconds_per_frame)) if milliseconds else 0

        stop_eou = settings.stop_threshold if settings.stop_threshold_eou is None else settings.stop_threshold_eou
        self.start = frames(settings.start_history) or 1
        self.start_needed = max(1, math.floor(settings.start_threshold * self.start))
        self.stop = frames(settings.stop_history)
        self.stop_needed = needed(settings.stop_threshold, self.stop)
        self.early = frames(settings.stop_history_eou)
        self.early_needed = needed(stop_eou, self.early)
        self.history: deque[bool] = deque(maxlen=max(self.start, self.stop, self.early))
        self.started = False
        """True once the utterance has begun."""
        self.marked = False
        """True once its early end has been found since the last frame with a token."""

    def push(self, silent: Iterable[bool]) -> list[Mark]:
        """Take the next frames; after an end the next utterance begins."""
        marks = []
        for index, is_silent in enumerate(silent, start=1):
            self.history.append(is_silent)
            if not is_silent:
                self.marked = False
            if not self.started:
                self.started = self.start - self.silent_in(self.start, missing=True) >= self.start_needed
            elif self.stop and self.silent_in(self.stop) >= self.stop_needed:
                marks.append(Mark(index, "end"))
                self.reset()
            elif self.early and not self.marked and self.silent_in(self.early) >= self.early_needed:
                marks.append(Mark(index, "early"))
                self.marked = True
        return marks

    def silent_in(self, frames: int, *, missing: bool = False) -> int:
        """Number of silent ones among the last frames; those before the beginning count as `missing` says."""
        have = min(frames, len(self.history))
        silent = sum(self.history[-index] for index in range(1, have + 1))
        return silent + (frames - have if missing else 0)

    def reset(self) -> None:
        """Begin a new utterance."""
        self.history.clear()
        self.started = self.marked = False


def needed(share: float, frames: int) -> int:
    """Number of frames that are such a share of all; one at least."""
    return max(1, math.ceil(share * frames - 1e-6))
