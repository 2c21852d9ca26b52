"""Mixtures of two token n-grams: each probability is a share of a domain's n-gram and a share of a general one's.

Linear interpolation (Jelinek and Mercer 1980): where a small text has not seen a token, the general n-gram still knows
how likely it is in its own, longer context. Both are read side by side; many domains share one general n-gram.

Legend: N queries, B rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overtone.decoding.ngram import LOWEST, Ngram
from overtone.decoding.ngram_counts import build_ngram
from overtone.decoding.ngram_pack import NgramBatch
from overtone.errors import DataError

FOLDS = 4
"""Parts of a text that are predicted from the others, to estimate a share."""
MOST_HELD_OUT = 1000
"""Sentences of a part that are predicted."""
ONE_FOLD = 200_000
"""Tokens from which one part alone is predicted."""
ROUNDS = 50
SHARES = (0.02, 0.95)
"""A smaller estimate counts as none, a larger one as this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """(1 - share) · P(domain) + share · P(general), over the tokens of one vocabulary."""

    domain: Ngram
    general: Ngram
    share: float
    """Share of the general n-gram, above 0 and below 1."""

    def __post_init__(self) -> None:
        """Raises DataError for a share out of range, and for n-grams of different vocabularies."""
        if not 0.0 < self.share < 1.0:
            raise DataError(f"The share of the general n-gram is {self.share:g}; above 0 and below 1 is needed.")
        sizes = self.domain.vocabulary_size, self.general.vocabulary_size
        if sizes[0] != sizes[1]:
            raise DataError(f"The domain's n-gram has {sizes[0]} tokens, the general one {sizes[1]}.")


class MixtureBatch:
    """Rows with a mixture each, or with none: the scores of these are 0.

    A state is a pair of the row's own two, as one number: domain state · `span` + general state.
    """

    def __init__(self, mixtures: Sequence[Mixture | None], *, vocabulary_size: int, device: torch.device) -> None:
        """mixtures: one or None for each of B rows. Raises DataError for n-grams of another number of tokens."""
        domains = [None if own is None else own.domain.to(device) for own in mixtures]
        generals = [None if own is None else own.general.to(device) for own in mixtures]
        self.domain = NgramBatch(domains, vocabulary_size=vocabulary_size)
        self.general = NgramBatch(generals, vocabulary_size=vocabulary_size)
        self.span = max((own.general.states for own in mixtures if own is not None), default=1)
        shares = [0.5 if own is None else own.share for own in mixtures]
        self.of_domain = torch.tensor([math.log1p(-share) for share in shares], device=device)
        """[B] float32: the logarithm of the domain's share."""
        self.of_general = torch.tensor([math.log(share) for share in shares], device=device)
        self.start = self.domain.start * self.span + self.general.start
        """[B] int64: the state at the beginning of a sentence."""

    def follow(self, rows: Tensor, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probability of each token in its state, [N], and the state after it, [N]; all [N] int64."""
        domain, after_domain = self.domain.follow(rows, states // self.span, tokens)
        general, after_general = self.general.follow(rows, states % self.span, tokens)
        return self.mix(rows, domain, general), after_domain * self.span + after_general

    def end(self, rows: Tensor, states: Tensor) -> Tensor:
        """Log-probabilities [N] of the end of the sentence, rows and states [N] int64."""
        return self.mix(rows, self.domain.end(rows, states // self.span), self.general.end(rows, states % self.span))

    def mix(self, rows: Tensor, domain: Tensor, general: Tensor) -> Tensor:
        """The logarithms [N] of the mixed probabilities, never below LOWEST; rows, domain and general [N]."""
        return torch.logaddexp(self.of_domain[rows] + domain, self.of_general[rows] + general).clamp(LOWEST, 0.0)


def estimate_share(sequences: Sequence[Sequence[int]], general: Ngram, *, order: int) -> float:
    """The share of the general n-gram with which a text predicts itself best, 0 where it does so alone.

    sequences: the text's sentences in tokens, two at least for anything but the largest share. Each part is predicted
    from the others, and the share found by expectation-maximisation (deleted interpolation).
    """
    folds = min(FOLDS, len(sequences))
    if folds < 2:
        return SHARES[1]
    own, others = [], []
    for fold in range(1 if sum(map(len, sequences)) > ONE_FOLD else folds):
        rest = [sentence for place, sentence in enumerate(sequences) if place % folds != fold]
        held_out = list(sequences[fold::folds])
        held_out = held_out[:: -(-len(held_out) // MOST_HELD_OUT)]
        domain = build_ngram(rest, vocabulary_size=general.vocabulary_size, order=order)
        own.append(token_log_probs(domain, held_out))
        others.append(token_log_probs(general, held_out))
    gain = torch.cat(others).double() - torch.cat(own).double()
    share = torch.tensor(0.5, dtype=torch.float64)
    for _ in range(ROUNDS):
        share = torch.sigmoid(gain + torch.logit(share)).mean().clamp(1e-6, 1 - 1e-6)
    found = float(share)
    return 0.0 if found < SHARES[0] else min(round(found, 3), SHARES[1])


def token_log_probs(ngram: Ngram, sequences: Sequence[Sequence[int]]) -> Tensor:
    """The log-probabilities [N] of all tokens of sentences and of their ends, in no particular order."""
    batch = NgramBatch([ngram] * len(sequences), vocabulary_size=ngram.vocabulary_size)
    lengths = torch.tensor([len(sentence) for sentence in sequences])
    states, found = batch.start, []
    for place in range(int(lengths.max())):
        rows = torch.nonzero(lengths > place)[:, 0]
        tokens = torch.tensor([sequences[row][place] for row in rows.tolist()])
        values, after = batch.follow(rows, states[rows], tokens)
        states = states.index_copy(0, rows, after)
        found.append(values)
    return torch.cat([*found, batch.end(torch.arange(len(sequences)), states)])
