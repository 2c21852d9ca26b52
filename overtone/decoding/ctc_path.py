"""Paths of CTC: a symbol and its probability for each frame of a recording, and the text that they say.

Repeats are merged, blanks are dropped (Graves et al. 2006, section 3.1). Greedy decoding and the beam search both end
in a path, and paths of windows are cut and joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overtone.decoding.decoder import Emissions, Flags
from overtone.decoding.hypothesis import Hypothesis, make_hypothesis
from overtone.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class CtcPath:
    """The likeliest symbol of each frame of one recording, blanks included."""

    ids: npt.NDArray[np.int64]
    """[T] symbol of each frame."""

    log_probs: npt.NDArray[np.float32]
    """[T] natural logarithm of its probability."""

    blank: int
    """The id that stands for no symbol."""

    score: float | None = None
    """Natural logarithm of the probability of what it says; None: that of the path itself."""

    def __len__(self) -> int:
        return int(self.ids.size)

    @property
    def silent(self) -> Flags:
        """[T] bool, true on blank frames."""
        flags: Flags = self.ids == self.blank
        return flags

    def cut(self, start: int, stop: int) -> Self:
        if start == 0 and stop == len(self):
            return self
        return type(self)(ids=self.ids[start:stop], log_probs=self.log_probs[start:stop], blank=self.blank)

    def join(self, later: Sequence[CtcPath]) -> CtcPath:
        if not later:
            return self
        paths = [self, *later]
        ids, log_probs = [path.ids for path in paths], [path.log_probs for path in paths]
        return CtcPath(ids=np.concatenate(ids), log_probs=np.concatenate(log_probs), blank=self.blank)


def best_path(log_probs: Tensor, lengths: Tensor) -> list[CtcPath]:
    """log_probs [B, T, V+1], lengths [B] -> for each row its likeliest symbols, cut to its length."""
    values, symbols = log_probs.detach().max(dim=-1)  # both [B, T]
    ids = symbols.cpu().numpy()
    scores = values.to(torch.float32).cpu().numpy()
    return [
        CtcPath(ids=ids[row, :length], log_probs=scores[row, :length], blank=log_probs.shape[-1] - 1)
        for row, length in enumerate(lengths.tolist())
    ]


def path_of(log_probs: Emissions) -> CtcPath:
    """log_probs [T, V+1] of one recording -> its likeliest symbols."""
    ids = log_probs.argmax(axis=-1)
    values = np.take_along_axis(log_probs, ids[:, None], axis=-1)[:, 0]
    return CtcPath(ids=ids.astype(np.int64), log_probs=values, blank=log_probs.shape[-1] - 1)


def blank_frames(log_probs: Emissions) -> Flags:
    """log_probs [T, V+1], blank last -> [T] bool, true where blank is the likeliest symbol."""
    flags: Flags = log_probs.argmax(axis=-1) == log_probs.shape[-1] - 1
    return flags


def read_path(path: CtcPath, tokenizer: Tokenizer, *, seconds_per_frame: float) -> Hypothesis:
    """Collapse a path: merge repeats, drop blanks, spell the rest, and time every word."""
    if path.ids.size == 0:
        return Hypothesis(text="")
    first = np.flatnonzero(np.diff(path.ids, prepend=-1))  # first frame of each run of one symbol
    last = np.append(first[1:], path.ids.size)  # one past its last frame
    probability = np.add.reduceat(np.exp(path.log_probs, dtype=np.float64), first) / (last - first)
    spoken = path.ids[first] != path.blank
    ids: list[int] = path.ids[first][spoken].tolist()
    spans = list(zip(first[spoken].tolist(), last[spoken].tolist(), strict=True))
    return make_hypothesis(
        ids,
        spans,
        probability[spoken].tolist(),
        tokenizer,
        seconds_per_frame=seconds_per_frame,
        score=float(path.log_probs.sum(dtype=np.float64)) if path.score is None else path.score,
    )
