"""Where utterances begin and end, judged by the frames in which the model hears nothing; after Riva's service."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from overtone.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Endpointing:
    """When an utterance begins and ends; names and defaults are Riva's. Histories are rounded to whole frames."""

    start_history: int = 300
    """Milliseconds looked at for the beginning."""
    start_threshold: float = 0.2
    """The share of them that must not be blank; one frame at least."""
    stop_history: int = 800
    """Milliseconds looked at for the end; 0 never ends an utterance before the stream (or `max_utterance`)."""
    stop_threshold: float = 0.98
    """The share of them that must be blank."""
    stop_history_eou: int | None = None
    """Milliseconds of an earlier guess, told by an Interim of stability 1; shorter than `stop_history`."""
    stop_threshold_eou: float | None = None
    """The share for it; `stop_threshold` unless given."""

    def __post_init__(self) -> None:
        for name in ("start_history", "stop_history", "stop_history_eou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 60_000:
                raise UsageError(f"{name} is {value}; 0 to 60000 milliseconds are allowed.")
        for name in ("start_threshold", "stop_threshold", "stop_threshold_eou"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise UsageError(f"{name} is {value}; a share from 0 to 1 is needed.")
        if self.stop_history_eou and self.stop_history and self.stop_history_eou >= self.stop_history:
            raise UsageError(
                f"stop_history_eou is {self.stop_history_eou} ms and stop_history {self.stop_history} ms; "
                "the first must be shorter."
            )


@dataclass(frozen=True)
class Mark:
    """Something that was found after so many frames of a block."""

    frames: int
    kind: Literal["early", "end"]


class Endpointer:
    """Fed with one flag a frame: whether it is blank."""

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
        """Whether the utterance has begun."""
        self.told = False
        """Whether its early end has been told since the last frame that was not blank."""

    def push(self, blanks: Iterable[bool]) -> list[Mark]:
        """The next frames; after an end the next utterance begins."""
        marks = []
        for index, blank in enumerate(blanks, start=1):
            self.history.append(blank)
            if not blank:
                self.told = False
            if not self.started:
                self.started = self.start - self.blanks_in(self.start, missing=True) >= self.start_needed
            elif self.stop and self.blanks_in(self.stop) >= self.stop_needed:
                marks.append(Mark(index, "end"))
                self.reset()
            elif self.early and not self.told and self.blanks_in(self.early) >= self.early_needed:
                marks.append(Mark(index, "early"))
                self.told = True
        return marks

    def blanks_in(self, frames: int, *, missing: bool = False) -> int:
        """How many of the last frames are blank; those before the beginning count as `missing` says."""
        have = min(frames, len(self.history))
        blank = sum(self.history[-index] for index in range(1, have + 1))
        return blank + (frames - have if missing else 0)

    def reset(self) -> None:
        """Begin a new utterance."""
        self.history.clear()
        self.started = self.told = False


def needed(share: float, frames: int) -> int:
    return max(1, math.ceil(share * frames - 1e-6))
