"""Shallow fusion: n-grams with weights and boosted phrases, added to the scores of tokens, another set for each row.

A scorer reads a prefix token by token: it knows a state, the gain of a token in it, and the state after it. A row of a
batch has some of them or none; those of one place in all rows are computed together.

Legend: B rows of a batch, N queries, S scorers of a row, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from overtone.decoding.mixture import Mixture, MixtureBatch
from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_pack import NgramBatch
from overtone.decoding.phrase_boost import BoostBatch, BoostTree


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words that a row's decoder expects."""

    ngrams: tuple[tuple[Ngram, float], ...] = ()
    """N-grams over the model's tokens, each with the weight of its logarithms."""
    mixtures: tuple[tuple[Mixture, float], ...] = ()
    """Mixtures of a domain's n-gram with a general one, each with the weight of its logarithms."""
    boosts: tuple[BoostTree, ...] = ()
    """Phrases that are likelier or less likely than the model thinks."""
    token_bonus: float = 0.0
    """Natural logarithm that every token gains, against the n-grams' leaning to few tokens."""
    width: int = 0
    """Prefixes of the search that they were tuned with; 0 leaves that to the decoder."""

    def __bool__(self) -> bool:
        weights = (weight for _, weight in (*self.ngrams, *self.mixtures))
        return bool(self.token_bonus or any(weights) or any(self.boosts))

    def __add__(self, other: Words) -> Words:
        """Both together, as a chain of adapters has them."""
        return Words(
            ngrams=self.ngrams + other.ngrams,
            mixtures=self.mixtures + other.mixtures,
            boosts=self.boosts + other.boosts,
            token_bonus=self.token_bonus + other.token_bonus,
            width=max(self.width, other.width),
        )


NO_WORDS = Words()


def largest_gain(words: Words) -> float:
    """The most that one token can gain by n-grams and bonus."""
    gains = [weight * ngram.largest_gain for ngram, weight in words.ngrams]
    gains += [weight * max(own.domain.largest_gain, own.general.largest_gain) for own, weight in words.mixtures]
    return words.token_bonus + sum(max(0.0, gain) for gain in gains)


class Scorer(Protocol):
    """The n-grams or phrases of the rows of a batch."""

    @property
    def start(self) -> Tensor:
        """[B] int64: the state of the empty prefix."""

    def follow(self, rows: Tensor, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The gain of each token in its state, [N], and the state after it, [N]; rows, states, tokens [N] int64."""

    def end(self, rows: Tensor, states: Tensor) -> Tensor:
        """The gain of a prefix that ends there, [N]; rows, states [N] int64."""


class Fusion:
    """The words of the rows of a batch as scorers; it is asked with tensors on the device that it is made for."""

    def __init__(self, rows: Sequence[Words], vocabulary_size: int, device: torch.device) -> None:
        self.rows = len(rows)
        self.scorers: list[tuple[Scorer, Tensor]] = []
        """Scorers, each with the weight [B] of its gains."""
        self.token_bonus = torch.tensor([row.token_bonus for row in rows], device=device)
        """[B] float32"""
        self.reach = self.token_bonus.clamp(min=0.0)
        """[B] float32: the most that one token can gain beyond an n-gram's scores, which are never above 0."""
        self.most = torch.tensor([largest_gain(row) for row in rows], device=device)
        """[B] float32: the most that one token can gain by all but phrases, from n-grams that do not sum to one too."""
        self.lifting: list[tuple[BoostBatch, int]] = []
        """The phrases among the scorers, and their places."""
        for place in range(max((len(row.ngrams) for row in rows), default=0)):
            found = [row.ngrams[place] if place < len(row.ngrams) else (None, 0.0) for row in rows]
            batch = NgramBatch(
                [None if ngram is None else ngram.to(device) for ngram, _ in found], vocabulary_size=vocabulary_size
            )
            self.scorers.append((batch, torch.tensor([weight for _, weight in found], device=device)))
        for place in range(max((len(row.mixtures) for row in rows), default=0)):
            mixed = [row.mixtures[place] if place < len(row.mixtures) else (None, 0.0) for row in rows]
            mixtures = MixtureBatch([own for own, _ in mixed], vocabulary_size=vocabulary_size, device=device)
            self.scorers.append((mixtures, torch.tensor([weight for _, weight in mixed], device=device)))
        for place in range(max((len(row.boosts) for row in rows), default=0)):
            trees = BoostBatch(
                [row.boosts[place] if place < len(row.boosts) else None for row in rows], vocabulary_size
            )
            self.lifting.append((trees, len(self.scorers)))
            self.scorers.append((trees, torch.ones(self.rows, device=device)))
            self.reach = self.reach + trees.reach.to(device)

    @property
    def scores(self) -> bool:
        """True if any token gains or loses anything."""
        return bool(self.scorers) or bool(self.token_bonus.any())

    @property
    def lifts(self) -> bool:
        """True if tokens that are unlikely by themselves may become likely."""
        return bool(self.lifting)

    def begin(self) -> Tensor:
        """[B, S] int64: the states of empty prefixes."""
        if not self.scorers:
            return torch.zeros(self.rows, 0, dtype=torch.int64, device=self.token_bonus.device)
        return torch.stack([scorer.start.to(weight.device) for scorer, weight in self.scorers], dim=1)

    def follow(self, rows: Tensor, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The gain of each token, [N] float32, and the states after it, [N, S]; rows [N], states [N, S], tokens [N]."""
        total, following = self.token_bonus[rows], []
        for (scorer, weight), own in zip(self.scorers, states.unbind(1), strict=True):
            gain, after = scorer.follow(rows, own, tokens)
            total = total + weight[rows] * gain
            following.append(after)
        return total, torch.stack(following, dim=1) if following else states

    def lifts_of(self, rows: Tensor, states: Tensor) -> Tensor:
        """The gain of every token by phrases alone, [N, V] float32; rows [N], states [N, S]."""
        parts = [trees.score(rows, states[:, place]) for trees, place in self.lifting]
        return torch.stack(parts).sum(0)

    def end(self, rows: Tensor, states: Tensor) -> Tensor:
        """The gain of a prefix that ends there, [N] float32; rows [N], states [N, S]."""
        total = torch.zeros(len(rows), device=rows.device)
        for (scorer, weight), own in zip(self.scorers, states.unbind(1), strict=True):
            total = total + weight[rows] * scorer.end(rows, own)
        return total
