"""Paths of transducers: the tokens of a recording with their frames, and the text that they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from overtone.decoding.decoder import Flags
from overtone.decoding.hypothesis import Hypothesis, make_hypothesis
from overtone.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TransducerPath:
    """The tokens of one recording and the frames in which they are said; nothing else is said in its `frames`."""

    ids: npt.NDArray[np.int64]
    """[U] tokens."""

    places: npt.NDArray[np.int64]
    """[U] frame of each token, not falling."""

    durations: npt.NDArray[np.int64]
    """[U] frames that each token lasts, as its model says; 0 where it does not say."""

    log_probs: npt.NDArray[np.float32]
    """[U] natural logarithm of each token's probability."""

    frames: int
    """Encoder frames T of the recording."""

    score: float = 0.0
    """Natural logarithm of the probability of all tokens and blanks."""

    def __len__(self) -> int:
        return self.frames

    @property
    def silent(self) -> Flags:
        """[T] bool, true on frames without a token; those that a token lasts count as its own."""
        flags = np.ones(self.frames, dtype=np.bool_)
        for place, duration in zip(self.places.tolist(), self.durations.tolist(), strict=True):
            flags[place : place + max(1, duration)] = False
        return flags

    def cut(self, start: int, stop: int) -> TransducerPath:
        """The tokens of the frames [start, stop); the score becomes that of these tokens alone."""
        kept = (self.places >= start) & (self.places < stop)
        if kept.all() and start == 0 and stop == self.frames:
            return self
        return TransducerPath(
            ids=self.ids[kept],
            places=self.places[kept] - start,
            durations=self.durations[kept],
            log_probs=self.log_probs[kept],
            frames=stop - start,
            score=float(self.log_probs[kept].sum(dtype=np.float64)),
        )

    def join(self, later: Sequence[TransducerPath]) -> TransducerPath:
        """These frames, followed by later ones in order."""
        if not later:
            return self
        paths = [self, *later]
        begins = np.cumsum([0, *(path.frames for path in paths)]).tolist()
        return TransducerPath(
            ids=np.concatenate([path.ids for path in paths]),
            places=np.concatenate([path.places + begin for path, begin in zip(paths, begins, strict=False)]),
            durations=np.concatenate([path.durations for path in paths]),
            log_probs=np.concatenate([path.log_probs for path in paths]),
            frames=begins[-1],
            score=sum(path.score for path in paths),
        )


def read_path(path: TransducerPath, tokenizer: Tokenizer, *, seconds_per_frame: float) -> Hypothesis:
    """The text of a path, with words and times."""
    spans = [
        (place, min(place + max(1, duration), max(path.frames, place + 1)))
        for place, duration in zip(path.places.tolist(), path.durations.tolist(), strict=True)
    ]
    return make_hypothesis(
        path.ids.tolist(),
        spans,
        np.exp(path.log_probs, dtype=np.float64).tolist(),
        tokenizer,
        seconds_per_frame=seconds_per_frame,
        score=path.score,
    )
