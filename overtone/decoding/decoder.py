"""Heads and decoders: the protocols that every kind of recogniser keeps, and the options of decoding.

A head joins a net of the model, its loss and its decoders. The rest of the package knows heads by their protocol alone.

Legend: B batch, T encoder frames, D width, U target tokens, N scores, C channels of an emission (V+1
log-probabilities for CTC).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overtone.decoding.fusion import NO_WORDS, Words
from overtone.decoding.hypothesis import Hypothesis
from overtone.decoding.phrase_boost import BoostTree
from overtone.decoding.task import TaskPrompts
from overtone.nets.layers import Reduction
from overtone.tokenizers import Tokenizer

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


class Reading(NamedTuple):
    """One of the readings of a recording."""

    alignment: Alignment
    rank: float
    """Logarithm of its probability, with the gain of its words."""


class Decoder(Protocol):
    """An incremental decoder: it takes emissions as they come, and can be read at any time."""

    frames: int
    """The number of frames pushed so far."""

    @property
    def settled(self) -> int:
        """The number of frames whose reading changes no more, or hardly ever."""

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

    settled_lead: float = 5.0
    """Frames in which all readings agree but those so far (natural logarithm) behind the best count as settled."""

    length_penalty: float | None = None
    """Exponent of the penalty of length, with an attention decoder, which knows the width besides; None is the
    checkpoint's own."""


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Options of decoding: greedy, or a beam search where phrases are boosted or alternatives asked for."""

    boosts: BoostTree | None = None
    """`BoostTree([Boost(phrases=…, boost=…)], model.tokenizer)`."""
    alternatives: int = 1
    """The greatest number of hypotheses."""
    beam: BeamSettings | None = None
    """None is greedy decoding, and the defaults of `BeamSettings` where words or alternatives need a search."""
    words: Words = NO_WORDS
    """N-grams and phrases of the adapters."""
    language: str | None = None
    """Told to a model that is told languages; None is its `auto`."""

    @property
    def is_greedy(self) -> bool:
        """True if no search is needed."""
        return self.alternatives == 1 and self.beam is None and not self.boosts and not self.words

    @property
    def settings(self) -> BeamSettings:
        """Settings of the search, as wide as its words want unless told, and enough for the alternatives."""
        found = self.beam or BeamSettings(width=max(BeamSettings.width, self.words.width))
        return replace(found, width=max(found.width, self.alternatives))

    @property
    def all_words(self) -> Words:
        """The words of the adapters, and the phrases besides."""
        return self.words + Words(boosts=(self.boosts,)) if self.boosts else self.words

    def written_by(self, tokenizer: Tokenizer) -> DecodingOptions:
        """The same with the phrases over the tokens of a tokenizer."""
        if self.boosts is None or self.boosts.tokenizer is tokenizer:
            return self
        return replace(self, boosts=self.boosts.over(tokenizer))

    def with_words(self, words: Words) -> DecodingOptions:
        """The same with further words."""
        return replace(self, words=self.words + words) if words else self

    @property
    def ignored(self) -> tuple[str, ...]:
        """Options without effect, for the log; it names no phrases."""
        phrases = 0 if self.boosts is None else len(self.boosts.ignored)
        return (f"{phrases} phrase{'' if phrases == 1 else 's'}",) if phrases else ()


GREEDY = DecodingOptions()


class Head(Protocol):
    """The part that makes an encoder a recogniser: emissions, a loss on them, and decoders that take them."""

    channels: int
    """C of its emissions."""
    gives_log_probs: bool
    """True if emissions are log-probabilities of the vocabulary and blank: they may be averaged over windows."""
    reduction: Reduction
    """The sum of losses over a batch in the checkpoint's own training."""
    decodes_with_adapters: bool
    """True if adapters may act in the head's decoders too, which then need their scope."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the tokens that it writes."""

    @property
    def prompts(self) -> TaskPrompts | None:
        """The prompts of a head that is told a task; None where none is."""

    def adapters_act(self) -> bool:
        """True if adapters of the selection act in the head's decoders now, one choice for each row of the batch."""

    @property
    def inner(self) -> Head | None:
        """The head that stands on the outputs of inner layers in training; None where none does."""

    def emit(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], lengths [B] -> emissions [B, T, C] float32, which loss and decoders take."""

    def loss(
        self,
        emissions: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        *,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """The negative log-likelihood of the targets, a scalar.

        emissions [B, T, C], lengths [B], targets [B, U] int64, target_lengths [B]; reduction: the checkpoint's own
        unless given.
        """

    def frames_needed(self, tokens: Sequence[int]) -> int:
        """The fewest encoder frames that a transcript of these tokens can be learnt from."""

    def align(self, emissions: Tensor, lengths: Tensor) -> list[Alignment]:
        """Decode greedily: emissions [B, T, C], lengths [B] -> for each row its frames, cut to its length."""

    def align_row(self, emissions: Emissions) -> Alignment:
        """Decode one row greedily: emissions [T, C], already cut to its length."""

    def search(
        self, emissions: Tensor, lengths: Tensor, words: Sequence[Words], settings: BeamSettings, count: int
    ) -> list[list[Reading]]:
        """The best `count` prefixes of each row with its own words, best first: emissions [B, T, C], lengths [B]."""

    def read(self, alignment: Alignment) -> Hypothesis:
        """The text of an alignment, with words and times."""

    def scores(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Scores [B, T, N] that show what adapters change: emissions [B, T, C], lengths [B]."""

    def decoder(
        self, options: DecodingOptions = GREEDY, *, first_frame: int = 0, scope: Scope = nullcontext
    ) -> Decoder:
        """A new incremental decoder.

        first_frame: the number of the first frame pushed, from which times count. scope: the adapters of the recording.
        """


def find_readings(
    head: Head, emissions: Tensor, lengths: Tensor, options: Sequence[DecodingOptions]
) -> list[list[Reading]]:
    """The best readings of each row, as its options ask: emissions [B, T, C], lengths [B].

    Rows of greedy options are decoded as `align` does; the others in one search for each of the settings there are.
    """
    together = head.adapters_act()  # then rows are decoded in the batch that the selection is for
    found: list[list[Reading]] = [[] for _ in options]
    groups: dict[tuple[BeamSettings, int] | None, list[int]] = {}
    for row, own in enumerate(options):
        groups.setdefault(None if own.is_greedy else (own.settings, own.alternatives), []).append(row)
    for key, rows in groups.items():
        whole = together or len(rows) == len(options)
        index = torch.tensor(rows, device=emissions.device)
        part = emissions if whole else emissions[index]
        sizes = lengths if whole else lengths[index.to(lengths.device)]
        if key is None:
            answers = [[Reading(each, 0.0)] for each in head.align(part, sizes)]
        else:
            words = [own.all_words for own in options] if whole else [options[row].all_words for row in rows]
            settings, alternatives = key
            answers = head.search(part, sizes, words, settings, settings.width if alternatives > 1 else 1)
        for place, row in enumerate(rows):
            found[row] = answers[row if whole else place]
    return found


def read_best(head: Head, alignments: Sequence[Alignment], count: int) -> list[Hypothesis]:
    """One to `count` readings of different texts, in order."""
    found: dict[str, Hypothesis] = {}
    for alignment in alignments:
        hypothesis = head.read(alignment)
        found.setdefault(hypothesis.text, hypothesis)
        if len(found) == count:
            break
    return list(found.values())
