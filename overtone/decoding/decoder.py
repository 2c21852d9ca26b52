"""Decoders: protocols that the decoders of every head keep, and the options of decoding.

Legend: T encoder frames, C channels of an emission (V+1 log-probabilities for CTC).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from overtone.decoding.hypothesis import Hypothesis
from overtone.decoding.phrase_boost import BoostTree

Emissions = npt.NDArray[np.float32]
"""[T, C]: the output of a head's net for T encoder frames of one recording, which its decoder takes."""
Flags = npt.NDArray[np.bool_]
Scope = Callable[[], AbstractContextManager[object]]
"""A block in which the adapters of a recording act, entered anew for every computation of its decoder."""


class Alignment(Protocol):
    """The decoded frames of one recording, or of one window of it: tokens and silence, frame by frame."""

    def __len__(self) -> int:
        """The number of frames T."""

    @property
    def silent(self) -> Flags:
        """[T] bool, true on frames without a token."""

    def cut(self, start: int, stop: int) -> Self:
        """The frames [start, stop) alone."""

    def join(self, later: Sequence[Self]) -> Self:
        """These frames, followed by the later ones in order."""


class Decoder(Protocol):
    """An incremental decoder: it takes emissions as they come, and can be read at any time."""

    frames: int
    """The number of frames pushed so far."""

    def push(self, emissions: Emissions) -> None:
        """Decode the next T frames, emissions [T, C]."""

    def silent(self, emissions: Emissions) -> Flags:
        """[T] bool: the frames without a token, if emissions [T, C] were pushed next."""

    def fork(self) -> Self:
        """An independent copy, for a look ahead."""

    def hypotheses(self, count: int = 1) -> list[Hypothesis]:
        """One to `count` readings, best first, as if the audio ended here."""


@dataclass(frozen=True, kw_only=True)
class BeamSettings:
    """Width and pruning of a beam search."""

    width: int = 8
    """Prefixes kept from frame to frame."""

    merge: Literal["max", "sum"] = "max"
    """Score of a prefix: its best path (without boosts the first reading is then the greedy one) or the sum over
    its paths."""

    tokens: int = 16
    """Tokens considered in a frame, the likeliest."""

    token_floor: float = -9.0
    """Natural logarithm of the probability below which a token is not considered; for tokens of a boosted phrase
    it lies lower by what the phrase is worth."""

    score_floor: float = 20.0
    """Prefixes that fall so far (natural logarithm) behind the best are dropped."""


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Options of decoding: greedy, or a beam search where phrases are boosted or alternatives asked for."""

    boosts: BoostTree | None = None
    """`BoostTree([Boost(phrases=…, boost=…)], model.tokenizer)`."""
    alternatives: int = 1
    """The greatest number of hypotheses."""
    beam: BeamSettings = field(default_factory=BeamSettings)

    @property
    def is_greedy(self) -> bool:
        return self.alternatives == 1 and not self.boosts

    @property
    def ignored(self) -> tuple[str, ...]:
        """Options without effect, for the log; it names no phrases."""
        phrases = 0 if self.boosts is None else len(self.boosts.ignored)
        return (f"{phrases} phrase{'' if phrases == 1 else 's'}",) if phrases else ()
