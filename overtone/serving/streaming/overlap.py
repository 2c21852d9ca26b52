"""Overlapping windows of a stream -> one average of their probabilities for each frame.

A frame of a chunk was in the right context of the windows before. They had less audio after it, but more before it, so
that they know something that the newest does not. Each window is weighted by the shorter of its two contexts. Nothing
waits for the average, and nothing is computed again for it. Legend: T frames, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LogProbs = npt.NDArray[np.float32]
SMALLEST = np.finfo(np.float32).tiny


class Overlap:
    """Windows of one stream in order, their chunks side by side."""

    def __init__(self, *, averages: bool = True) -> None:
        """averages: emissions are log-probabilities; without it the newest window's are taken as they are."""
        self.averages = averages
        self._start = -1
        """First frame of the newest window; an earlier one that began there too knew nothing more, and is dropped."""
        self._sums: LogProbs = np.zeros((0, 0), dtype=np.float32)
        """[T, V+1] weighted probabilities of the frames after the last chunk."""
        self._weights: LogProbs = np.zeros((0, 1), dtype=np.float32)
        """[T, 1]"""

    def push(self, log_probs: LogProbs, *, start: int, keep_from: int, keep_to: int, ends: bool = False) -> LogProbs:
        """Average log_probs [T, V+1] of the window from `start` on for its chunk, [keep_to - keep_from, V+1].

        ends: the speech is over at the window's end, so that no frame lacks context after it.
        """
        fresh = log_probs[keep_from - start :]
        if not self.averages:
            return fresh[: keep_to - keep_from]
        left = np.arange(1, len(fresh) + 1, dtype=np.float32) + (keep_from - start)
        right = np.full_like(left, np.inf) if ends else np.arange(len(fresh), 0, -1, dtype=np.float32)
        weights = np.minimum(left, right)[:, None]
        sums = np.exp(fresh) * weights
        kept = keep_to - keep_from
        chunk = fresh[:kept]
        both = min(len(self._sums), len(fresh)) if self._start < start else 0
        if both:
            sums[:both] += self._sums[:both]
            weights[:both] += self._weights[:both]
            shared = min(both, kept)
            mean = np.log(np.maximum(sums[:shared] / weights[:shared], SMALLEST))
            chunk = np.concatenate((mean, chunk[shared:]))
        self._start = start
        self._sums, self._weights = sums[kept:].copy(), weights[kept:].copy()
        return chunk
