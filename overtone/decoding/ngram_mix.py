"""Linear interpolation of two n-grams into one, with shares estimated on text that neither was counted from.

The share of the second n-gram depends on which of the two knows the longer context: three shares, by deleted
interpolation (Jelinek and Mercer 1980). Every context of either is a context of the mixture, and its back-off weight
makes its probabilities sum to one.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from overtone.decoding.ngram import LOWEST, Ngram, make_arcs
from overtone.decoding.ngram_counts import LARGEST_NGRAMS, Numbers, build_ngram

Context = tuple[int, ...]
BEGIN = -1
"""The beginning of a sentence, as the first token of a context."""
FIRST_SHARES = (0.05, 0.3, 0.8)
"""Shares of the second n-gram where the first knows the longer context, where neither does, where the second does."""
TOKENS_OF_FIRST_SHARES = 20.0
"""So many tokens of text weigh as much as the first shares do."""
FOLDS = 10
STEPS = 30
LEAST_SHARE = 0.01


def contexts_of(ngram: Ngram) -> dict[Context, int]:
    """The states of an n-gram by their tokens, those of the shorter contexts first."""
    starts, tokens, following = (own.tolist() for own in (ngram.arcs.starts, ngram.arcs.tokens, ngram.arcs.next))
    found: dict[Context, int] = {(): 0}
    seen = {0, ngram.start}
    level: list[tuple[Context, int]] = [((), 0)]
    while level:
        longer: list[tuple[Context, int]] = []
        if level[0][0] == () and ngram.start != 0:
            longer.append(((BEGIN,), ngram.start))
        for context, state in level:
            for arc in range(starts[state], starts[state + 1]):
                # Every shorter context is known by now: an unknown state is this context with one token more.
                if following[arc] not in seen:
                    seen.add(following[arc])
                    longer.append(((*context, tokens[arc]), following[arc]))
        found.update(longer)
        level = longer
    return found


def known_part(context: Context, known: Container[Context]) -> Context:
    """The longest end of a context that is known; the empty one always is."""
    while context not in known:
        context = context[1:]
    return context


def mix_ngrams(first: Ngram, second: Ngram, shares: Sequence[float] = FIRST_SHARES) -> Ngram:
    """The mixture of two n-grams over one vocabulary. shares: of the second, as FIRST_SHARES has them."""
    own = contexts_of(first), contexts_of(second)
    contexts = sorted({**own[0], **own[1]}, key=lambda context: (len(context), context))
    states = [[known[known_part(context, known)] for context in contexts] for known in own]
    lengths = [[len(known_part(context, known)) for context in contexts] for known in own]
    share = np.array([shares[1 + (b > a) - (b < a)] for a, b in zip(*lengths, strict=True)])
    said = [
        sorted(
            set().union(
                *(tokens_after(ngram, known.get(context)) for ngram, known in zip((first, second), own, strict=True))
            )
        )
        for context in contexts
    ]
    counts = np.array([len(tokens) for tokens in said])
    rows = np.repeat(np.arange(len(contexts)), counts)
    tokens = torch.tensor([token for each in said for token in each])
    each = [
        ngram.arcs.follow(torch.tensor(reached)[torch.from_numpy(rows)], tokens)[0].double().exp().numpy()
        for ngram, reached in zip((first, second), states, strict=True)
    ]
    ends = [
        ngram.end(torch.tensor(reached)).double().exp().numpy()
        for ngram, reached in zip((first, second), states, strict=True)
    ]
    mixture = Mixture(
        contexts=contexts,
        said=said,
        probs=(1 - share[rows]) * each[0] + share[rows] * each[1],
        ends=(1 - share) * ends[0] + share * ends[1],
    )
    return mixture.to_ngram(order=max(first.order, second.order), starts=np.concatenate([[0], counts.cumsum()]))


def tokens_after(ngram: Ngram, state: int | None) -> list[int]:
    """The tokens that have an arc in a state; none where there is no state."""
    if state is None:
        return []
    begin, end = ngram.arcs.starts[state : state + 2].tolist()
    found: list[int] = ngram.arcs.tokens[begin:end].tolist()
    return found


@dataclass(kw_only=True)
class Mixture:
    """Probabilities of the tokens that were seen after each context, the shorter contexts first."""

    contexts: list[Context]
    said: list[list[int]]
    """The tokens of each context."""
    probs: Numbers
    """Their probabilities, context after context."""
    ends: Numbers
    """The probability that the sentence ends there, of each context."""
    by_token: list[dict[int, float]] = field(default_factory=list)
    """The same probabilities by context and token."""

    def to_ngram(self, *, order: int, starts: Numbers) -> Ngram:
        """The mixture as an n-gram. starts: the first place of each context among the probabilities, and their end."""
        places = {context: place for place, context in enumerate(self.contexts)}
        self.by_token = [
            dict(zip(tokens, self.probs[first:end].tolist(), strict=True))
            for tokens, (first, end) in zip(self.said, pairwise(starts.tolist()), strict=True)
        ]
        shorter = [places[known_part(context[1:], places)] for context in self.contexts]
        weights = np.ones(len(self.contexts))
        for place in range(1, len(self.contexts)):
            weights[place] = self.weigh(place, shorter, weights)
        following = [
            places[known_part((*context, token), places)]
            for context, tokens in zip(self.contexts, self.said, strict=True)
            for token in tokens
        ]
        arcs = make_arcs(
            tokens=torch.tensor([token for each in self.said for token in each]),
            log_probs=logs(self.probs),
            following=torch.tensor(following),
            starts=torch.from_numpy(starts),
            backoff_states=torch.tensor(shorter),
            backoff_log_probs=logs(weights),
            end_log_probs=logs(self.ends),
        )
        return Ngram(arcs, order=order, start=places.get((BEGIN,), 0))

    def weigh(self, place: int, shorter: Sequence[int], weights: Numbers) -> float:
        """The weight of a context's back-off, with which its probabilities sum to one."""
        below = shorter[place]
        left = 1.0 - self.ends[place] - sum(self.by_token[place].values())
        room = 1.0 - self.ends[below] - sum(self.prob(below, token, shorter, weights) for token in self.said[place])
        return float(max(left, 1e-12) / max(room, 1e-12))

    def prob(self, place: int, token: int, shorter: Sequence[int], weights: Numbers) -> float:
        """The probability of a token after a context, by back-off where it was not seen there."""
        weight = 1.0
        while token not in self.by_token[place]:
            weight, place = weight * float(weights[place]), shorter[place]
        return weight * self.by_token[place][token]


def logs(values: Numbers) -> torch.Tensor:
    """Natural logarithms as float32, never below LOWEST."""
    return torch.from_numpy(np.maximum(np.log(np.maximum(values, 1e-300)), LOWEST)).float()


def estimate_shares(first: Ngram, sentences: Sequence[Sequence[int]], *, order: int) -> tuple[float, ...]:
    """The shares of an n-gram of the sentences beside another, by which each sentence is likeliest from the others.

    They are FIRST_SHARES where there is one sentence alone, and leave them as there are more.
    """
    folds = min(FOLDS, len(sentences))
    if folds < 2:
        return FIRST_SHARES
    kinds, ours, theirs = [], [], []
    known = contexts_of(first)
    for fold in range(folds):
        others = [own for place, own in enumerate(sentences) if place % folds != fold]
        second = build_ngram(others, vocabulary_size=first.vocabulary_size, order=order)
        known_second = contexts_of(second)
        for sentence in sentences[fold::folds]:
            one, other = read_through(first, known, sentence), read_through(second, known_second, sentence)
            kinds += [1 + (b > a) - (b < a) for (a, _), (b, _) in zip(one, other, strict=True)]
            ours += [prob for _, prob in one]
            theirs += [prob for _, prob in other]
    place, old, new = np.array(kinds), np.array(ours), np.array(theirs)
    shares = np.array(FIRST_SHARES)
    prior = TOKENS_OF_FIRST_SHARES * shares
    for _ in range(STEPS):
        taken = shares[place] * new / np.maximum((1 - shares[place]) * old + shares[place] * new, 1e-300)
        shares = (prior + np.bincount(place, taken, 3)) / (TOKENS_OF_FIRST_SHARES + np.bincount(place, minlength=3))
    return tuple(np.clip(shares, LEAST_SHARE, 1 - LEAST_SHARE).tolist())


def read_through(ngram: Ngram, known: dict[Context, int], sentence: Sequence[int]) -> list[tuple[int, float]]:
    """The length of the known context and the probability of each token of a sentence, and of its end."""
    lengths, context, states = [], known_part((BEGIN,), known), []
    for token in [*sentence, None]:
        lengths.append(len(context))
        states.append(known[context])
        if token is not None:
            context = known_part((*context, token), known)
    reached = torch.tensor(states)
    said = ngram.arcs.follow(reached[:-1], torch.tensor(list(sentence), dtype=torch.int64))[0]
    probs = torch.cat([said, ngram.end(reached[-1:])]).double().exp().tolist()
    return list(zip(lengths, probs, strict=True))


def extend_ngram(first: Ngram | None, sentences: Sequence[Sequence[int]], *, vocabulary_size: int, order: int) -> Ngram:
    """An n-gram with what further sentences say, each the ids of its tokens; of them alone where there is no first.

    Raises DataError where there is no token, and for a token outside the vocabulary.
    """
    largest = LARGEST_NGRAMS if first is None else LARGEST_NGRAMS // 2
    second = build_ngram(sentences, vocabulary_size=vocabulary_size, order=order, largest=largest)
    return second if first is None else mix_ngrams(first, second, estimate_shares(first, sentences, order=order))
