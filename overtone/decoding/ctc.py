"""From CTC log-probabilities to text: the best path, collapsed, with the frames that each token held.

Greedy CTC decoding (Graves et al. 2006, section 3.2): the likeliest symbol of every frame, repeats merged,
blanks dropped. The two halves are separate: `best_path` reduces [B, T, V+1] to two numbers a frame on the model's
device, and `read_path` turns a path of any length into a `Hypothesis`. The windows of a long recording are joined
between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overtone.tokenizers import Tokenizer

__all__ = ["CtcPath", "Hypothesis", "Word", "best_path", "greedy", "read_path"]


@dataclass(frozen=True, kw_only=True)
class Word:
    """One word of a hypothesis and where it was heard."""

    text: str
    """The word, without spaces around it."""

    start: float
    """Beginning in seconds, from the start of the recording."""

    end: float
    """End in seconds; later than `start`."""

    confidence: float
    """Probability of the word's least sure token, in 0…1; a token's is the mean over the frames that hold it."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """The decoder's reading of one recording."""

    text: str
    """The transcript, exactly as the tokenizer writes it."""

    words: tuple[Word, ...] = ()
    """The words of `text` in order."""

    score: float = 0.0
    """Natural logarithm of the probability of the path that was chosen, over all frames."""

    ids: tuple[int, ...] = ()
    """Token ids of the text: repeats collapsed, blanks removed."""

    spans: tuple[tuple[int, int], ...] = ()
    """For each id the encoder frames that hold it: first, and one past the last."""


@dataclass(frozen=True, kw_only=True)
class CtcPath:
    """The likeliest symbol of each frame of one recording, blanks included."""

    ids: npt.NDArray[np.int64]
    """[T] symbol of each frame."""

    log_probs: npt.NDArray[np.float32]
    """[T] natural logarithm of its probability."""

    blank: int
    """The id that stands for no symbol."""


def greedy(log_probs: Tensor, lengths: Tensor, tokenizer: Tokenizer, *, seconds_per_frame: float) -> list[Hypothesis]:
    """The best path of each row, read as text.

    log_probs [B, T, V+1], blank last; lengths [B] valid frames; seconds_per_frame: from one frame to the next.
    """
    return [read_path(path, tokenizer, seconds_per_frame=seconds_per_frame) for path in best_path(log_probs, lengths)]


def best_path(log_probs: Tensor, lengths: Tensor) -> list[CtcPath]:
    """log_probs [B, T, V+1], lengths [B] -> for each row its likeliest symbols, cut to its length."""
    values, symbols = log_probs.detach().max(dim=-1)  # both [B, T]
    ids = symbols.cpu().numpy()
    scores = values.to(torch.float32).cpu().numpy()
    return [
        CtcPath(ids=ids[row, :length], log_probs=scores[row, :length], blank=log_probs.shape[-1] - 1)
        for row, length in enumerate(lengths.tolist())
    ]


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
    return Hypothesis(
        text=tokenizer.decode(ids),
        words=_words(ids, spans, probability[spoken].tolist(), tokenizer, seconds_per_frame),
        score=float(path.log_probs.sum(dtype=np.float64)),
        ids=tuple(ids),
        spans=tuple(spans),
    )


def _words(
    ids: list[int],
    spans: list[tuple[int, int]],
    probabilities: list[float],
    tokenizer: Tokenizer,
    seconds_per_frame: float,
) -> tuple[Word, ...]:
    """A word lasts from its first token's first frame to the end of its last token."""
    return tuple(
        Word(
            text=text,
            start=round(spans[first][0] * seconds_per_frame, 3),
            end=round(spans[last - 1][1] * seconds_per_frame, 3),
            confidence=min(1.0, min(probabilities[first:last])),
        )
        for text, first, last in tokenizer.words(ids)
    )
