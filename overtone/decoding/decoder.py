"""Decoders that are fed as the audio comes: greedy here, the beam search beside it.

Both take log-probabilities of any number of frames, can be read at any time, and can be forked for a look ahead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from overtone.decoding.ctc import CtcPath, Hypothesis, read_path
from overtone.tokenizers import Tokenizer

LogProbs = npt.NDArray[np.float32]


class Decoder(Protocol):
    """What streams and recordings need of a decoder."""

    frames: int
    """How many it has been given."""

    def push(self, log_probs: LogProbs) -> None:
        """log_probs [T, V+1], blank last: the next T frames."""

    def fork(self) -> Decoder:
        """An independent copy, for a look ahead."""

    def hypotheses(self, count: int = 1) -> list[Hypothesis]:
        """One to `count`, best first, as if the audio ended here."""


class GreedyDecoder:
    """The best path, frame by frame: the same as `ctc.greedy` on all frames together."""

    def __init__(self, tokenizer: Tokenizer, *, seconds_per_frame: float, first_frame: int = 0) -> None:
        """first_frame: the number of the first frame pushed; spans and word times count from frame 0."""
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame
        self.first_frame = first_frame
        self.frames = 0
        self._paths: list[CtcPath] = []

    def push(self, log_probs: LogProbs) -> None:
        """log_probs [T, V+1], blank last."""
        self.frames += len(log_probs)
        self._paths.append(path_of(log_probs))

    def fork(self) -> Self:
        copy = type(self)(self.tokenizer, seconds_per_frame=self.seconds_per_frame, first_frame=self.first_frame)
        copy.frames = self.frames
        copy._paths = list(self._paths)
        return copy

    def hypotheses(self, count: int = 1) -> list[Hypothesis]:
        """The one there is."""
        if not self.frames:
            return [Hypothesis(text="")]
        if len(self._paths) > 1:
            self._paths = [joined(self._paths)]
        hypothesis = read_path(self._paths[0], self.tokenizer, seconds_per_frame=self.seconds_per_frame)
        return [shifted(hypothesis, self.first_frame, self.seconds_per_frame)]


def path_of(log_probs: LogProbs) -> CtcPath:
    """log_probs [T, V+1] of one recording -> its likeliest symbols."""
    ids = log_probs.argmax(axis=-1)
    values = np.take_along_axis(log_probs, ids[:, None], axis=-1)[:, 0]
    return CtcPath(ids=ids.astype(np.int64), log_probs=values, blank=log_probs.shape[-1] - 1)


def joined(paths: list[CtcPath]) -> CtcPath:
    return CtcPath(
        ids=np.concatenate([path.ids for path in paths]),
        log_probs=np.concatenate([path.log_probs for path in paths]),
        blank=paths[0].blank,
    )


def shifted(hypothesis: Hypothesis, frames: int, seconds_per_frame: float) -> Hypothesis:
    """The same, so many frames later."""
    if not frames:
        return hypothesis
    later = frames * seconds_per_frame
    return replace(
        hypothesis,
        words=tuple(
            replace(word, start=round(word.start + later, 3), end=round(word.end + later, 3))
            for word in hypothesis.words
        ),
        spans=tuple((first + frames, last + frames) for first, last in hypothesis.spans),
    )
