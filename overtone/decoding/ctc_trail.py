"""Backward paths of a CTC prefix beam search: steps with the places that every prefix comes from -> paths.

Where all paths of a beam lead back to one prefix, the frames before are decided: they are kept as tokens, and whatever
comes, no reading changes there.

Legend: R rows, K prefixes of a row, T frames, M paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from overtone.decoding.ctc_path import CtcPath

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float32]


class Step(NamedTuple):
    """The places in the beam before that the paths of each prefix come from, [R, K] unless said otherwise."""

    frame: Tensor
    """[R] number of the frame; -1 where none was looked at."""
    blank_slot: Tensor
    """The prefix before, for the path that ends in blank."""
    blank_from: Tensor
    """True where that path ended in a token."""
    token_slot: Tensor
    """The prefix before, for the path that ends in the last token."""
    token_from: Tensor
    """True where that path ended in a token."""
    token: Tensor
    """The last token."""
    value: Tensor
    """Logarithm of its probability."""


class Decided(NamedTuple):
    """The first frames of one row, as every path of its beam reads them."""

    frames: Integers
    tokens: Integers
    log_probs: Numbers


@dataclass
class Trail:
    """The steps of a search, oldest first, behind frames that are decided."""

    blank: int
    steps: list[Step] = field(default_factory=list)
    silences: list[Numbers] = field(default_factory=list)
    """[R, T] logarithms of the blank's probability, frame by frame."""
    decided: list[Decided] = field(default_factory=list)

    def fork(self) -> Trail:
        """An independent copy."""
        return Trail(self.blank, list(self.steps), list(self.silences), list(self.decided))

    def paths(self, rows: Integers, slots: Integers, kinds: Integers) -> list[CtcPath]:
        """The paths that end in the prefixes `slots` of rows, each in a token (kind 1) or in blank (0), all [M]."""
        if len(self.silences) > 1:
            self.silences = [np.concatenate(self.silences, axis=1)]
        log_probs = self.silences[0][rows] if self.silences else np.zeros((len(rows), 0), dtype=np.float32)
        ids = np.full(log_probs.shape, self.blank, dtype=np.int64)
        steps = stack(self.steps)
        for index in reversed(range(len(self.steps))):
            frame, token, value, slots, kinds = back(steps, index, rows, slots, kinds)
            said = np.flatnonzero(frame >= 0)
            ids[said, frame[said]], log_probs[said, frame[said]] = token[said], value[said]
        for part in self.decided:
            ids[:, part.frames], log_probs[:, part.frames] = part.tokens, part.log_probs
        return [
            CtcPath(ids=own, log_probs=values, blank=self.blank) for own, values in zip(ids, log_probs, strict=True)
        ]

    def agreed(self, slots: Integers, kinds: Integers) -> int | None:
        """The first frame in which paths of the only row differ, None where all steps are needed; slots, kinds [M]."""
        steps, rows = stack(self.steps), np.zeros(len(slots), dtype=np.int64)
        first = None
        for index in reversed(range(len(self.steps))):
            if (slots == slots[0]).all() and (kinds == kinds[0]).all():
                return first
            first = int(steps.frame[index, 0]) if steps.frame[index, 0] >= 0 else first
            _, _, _, slots, kinds = back(steps, index, rows, slots, kinds)
        return first

    def settle(self, slots: Integers, kinds: Integers) -> None:
        """Decide the frames before the prefix that all paths of the only row come from; slots and kinds [M]."""
        steps, rows = stack(self.steps), np.zeros(len(slots), dtype=np.int64)
        for index in reversed(range(len(self.steps))):
            _, _, _, slots, kinds = back(steps, index, rows, slots, kinds)
            if (slots == slots[0]).all() and (kinds == kinds[0]).all():
                self._decide(steps, index, slots[:1], kinds[:1])
                return

    def _decide(self, steps: Step, count: int, slot: Integers, kind: Integers) -> None:
        """Take the first steps as said by the path of one prefix."""
        row, found = np.zeros(1, dtype=np.int64), []
        for index in reversed(range(count)):
            frame, token, value, slot, kind = back(steps, index, row, slot, kind)
            if frame[0] >= 0:
                found.append((frame[0], token[0], value[0]))
        frames, tokens, values = zip(*found, strict=True) if found else ((), (), ())
        self.decided.append(
            Decided(np.array(frames, np.int64), np.array(tokens, np.int64), np.array(values, np.float32))
        )
        del self.steps[:count]


def stack(steps: Sequence[Step]) -> Step:
    """Steps as one of arrays [·, R] and [·, R, K], narrow beams filled up."""
    width = max((step.token.size(1) for step in steps), default=0)

    def join(name: str) -> npt.NDArray[np.generic]:
        arrays = [getattr(step, name).cpu().numpy() for step in steps]
        if name == "frame" or not arrays:
            return np.stack(arrays) if arrays else np.zeros((0, 0), dtype=np.int64)
        found = np.zeros((len(arrays), arrays[0].shape[0], width), dtype=arrays[0].dtype)
        for place, each in enumerate(arrays):
            found[place, :, : each.shape[1]] = each
        return found

    return Step(*(join(name) for name in Step._fields))  # type: ignore[arg-type]


def back(
    steps: Step, index: int, rows: Integers, slots: Integers, kinds: Integers
) -> tuple[Integers, Integers, Numbers, Integers, Integers]:
    """One step back, all [M]: frame (-1 where the path has no token there), token, value, and the prefix before."""
    said = kinds == 1
    at = index, rows, slots
    frame = np.where(said, steps.frame[index, rows], -1)
    before = np.where(said, steps.token_slot[at], steps.blank_slot[at])
    kind = np.where(said, steps.token_from[at], steps.blank_from[at]).astype(np.int64)
    return frame, steps.token[at], steps.value[at], before, kind  # type: ignore[return-value]
