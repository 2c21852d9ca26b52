"""How streams are heard: how much at a time, with how much around it, and what results are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from overtone.errors import UsageError
from overtone.serving.streaming.endpointing import Endpointing

LONGEST_SECONDS = 60.0


class StreamFrames(NamedTuple):
    """Encoder frames of a step."""

    chunk: int
    left: int
    right: int


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Seconds are rounded to whole encoder frames."""

    chunk: float = 0.8
    """Seconds between two steps."""
    left: float = 1.6
    """Seconds heard before a chunk."""
    right: float = 1.6
    """Seconds heard after it."""
    endpointing: Endpointing = field(default_factory=Endpointing)
    interim: bool = True
    """Whether interim results are wanted."""
    normalisation: Literal["running", "buffer"] = "running"
    """Statistics of the features: of the whole stream so far, or of each buffer alone."""
    finals: Literal["whole", "chunks"] = "whole"
    """What final results are decoded from: the utterance heard once more as a whole, or what its chunks gave."""
    max_utterance: float = 60.0
    """Seconds after which an utterance is ended, in the longest pause of the last ones."""
    mode: Literal["buffered", "cache_aware"] = "buffered"
    """Only `buffered` exists yet: models trained for cached activations are heard with context as well."""

    def frames(self, seconds_per_frame: float) -> StreamFrames:
        """What of the settings a model sees. Raises UsageError for those that do not fit."""
        if self.mode != "buffered":
            raise UsageError("Cache-aware streaming is not there yet; use mode='buffered', which any model can do.")
        for name in StreamFrames._fields:
            seconds = getattr(self, name)
            if not 0.0 <= seconds <= LONGEST_SECONDS:
                raise UsageError(f"{name} is {seconds} s of a stream; 0 to {LONGEST_SECONDS:g} seconds are allowed.")
        found = StreamFrames(*(round(seconds / seconds_per_frame) for seconds in (self.chunk, self.left, self.right)))
        if found.chunk < 1:
            raise UsageError(f"chunk is {self.chunk} s of a stream; {seconds_per_frame} s (one frame) are needed.")
        return found
