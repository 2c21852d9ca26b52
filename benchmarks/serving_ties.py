"""Which texts the frames of a recogniser allow where symbols are about as likely: rounding decides between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from overtone.tokenizers import Tokenizer

LogProbs = npt.NDArray[np.float32]

TIE = 0.5
"""Nats. Twice what other batches, and audio that came in other pieces, were seen to change between the two likeliest
symbols of a frame in bfloat16: 0.07 in 99 of 100 frames, 0.24 at most."""


def tellable(parts: Sequence[LogProbs], text: str, tokenizer: Tokenizer, *, tie: float = TIE) -> bool:
    """Whether the frames say so if ties fall as they may, spaces aside.

    parts: log-probabilities [T, V+1], blank last, of one utterance after the other.
    """
    wanted = letters(text)
    reached = {(0, -1)}
    for log_probs in parts:
        blank = log_probs.shape[1] - 1
        reached = {(position, blank) for position, _ in reached}
        for frame in log_probs:
            symbols = np.flatnonzero(frame >= frame.max() - tie).tolist()
            spelt = {symbol: "" if symbol == blank else letters(tokenizer.decode([symbol])) for symbol in symbols}
            reached = {
                (position if symbol == before else position + len(piece), symbol)
                for position, before in reached
                for symbol, piece in spelt.items()
                if symbol == before or wanted.startswith(piece, position)
            }
    return any(position == len(wanted) for position, _ in reached)


def letters(text: str) -> str:
    """Without any spaces."""
    return "".join(text.split())
