"""Building token n-grams: counts, Witten-Bell or modified Kneser-Ney smoothing, pruning to a size.

Both smoothings are interpolated (Chen and Goodman 1998): a share of every context's probability goes to the next
shorter one. Pruning leaves out the n-grams whose absence changes the text's probability least (Seymore and Rosenfeld
1996), and then gives the contexts new weights, so that probabilities sum to one.

Legend: G n-grams of one order, P places of the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from overtone.decoding.ngram import LARGEST_ORDER, LOWEST, Ngram, make_arcs
from overtone.errors import DataError

Smoothing = Literal["witten-bell", "kneser-ney"]
Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

LARGEST_NGRAMS = 300_000
"""N-grams that are kept unless another number is given: some 5 MB."""


@dataclass
class Grams:
    """The distinct n-grams of one order, sorted by context and last token."""

    contexts: Integers
    """[G] place of the first n-1 tokens among the n-grams of the order below; 0 for n = 1."""
    tokens: Integers
    """[G] last token; V is the beginning of a sentence, V+1 its end."""
    suffixes: Integers
    """[G] place of the last n-1 tokens among the n-grams of the order below; 0 for n = 1."""
    counts: Integers
    """[G]"""
    first: Flags
    """[G] true where the n-gram begins a sentence."""
    probs: Numbers
    """[G] smoothed probability of the last token after the others."""
    backoff: Numbers
    """[G] share of the next shorter context where this n-gram is a context; 1 where it never is one."""

    def __len__(self) -> int:
        return len(self.tokens)

    def keep(self, kept: Flags) -> None:
        """Forget all but the kept ones, kept [G]."""
        for name, values in vars(self).items():
            setattr(self, name, values[kept])


def build_ngram(
    sequences: Iterable[Sequence[int]],
    *,
    vocabulary_size: int,
    order: int = 6,
    smoothing: Smoothing = "witten-bell",
    largest: int = LARGEST_NGRAMS,
) -> Ngram:
    """An n-gram of sentences, each the ids of its tokens; at most `largest` n-grams of two and more tokens.

    Raises DataError where there is no token, for a token outside the vocabulary, and for an impossible order.
    """
    if not 1 <= order <= LARGEST_ORDER:
        raise DataError(f"An n-gram of order {order} cannot be built; allowed are 1 to {LARGEST_ORDER}.")
    tokens, places = flatten(sequences, vocabulary_size)
    grams = count_grams(tokens, places, order, vocabulary_size)
    smooth(grams, vocabulary_size, smoothing)
    prune(grams, largest)
    return make_ngram(grams, vocabulary_size)


def flatten(sequences: Iterable[Sequence[int]], vocabulary_size: int) -> tuple[Integers, Integers]:
    """The tokens [P] of all sentences with their beginnings and ends, and the place of each in its sentence, [P].

    Raises DataError where there are none, or one is outside the vocabulary.
    """
    begin, end = vocabulary_size, vocabulary_size + 1
    sentences = [sequence for sequence in sequences if len(sequence)]
    if not sentences:
        raise DataError("There is no text to build an n-gram from. Give at least one sentence.")
    sizes = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    said = np.fromiter(chain.from_iterable(sentences), dtype=np.int64, count=int(sizes.sum()))
    if said.min() < 0 or said.max() >= vocabulary_size:
        raise DataError(f"Token {said.max()} is not in a vocabulary of {vocabulary_size} tokens.")
    starts = np.cumsum(sizes + 2) - (sizes + 2)
    places = np.arange(len(said) + 2 * len(sizes)) - np.repeat(starts, sizes + 2)
    tokens = np.full(len(places), end)
    tokens[starts] = begin
    inside = np.ones(len(places), dtype=np.bool_)
    inside[starts] = inside[starts + sizes + 1] = False
    tokens[inside] = said
    return tokens, places


def count_grams(tokens: Integers, places: Integers, order: int, vocabulary_size: int) -> list[Grams]:
    """The n-grams of each order from 1 to `order`, of tokens [P] at places [P] of their sentences."""
    grams: list[Grams] = []
    below: Integers = np.zeros(len(tokens), dtype=np.int64)
    for size in range(1, order + 1):
        ends = np.flatnonzero(places >= size - 1)  # where n-grams of this size end
        if not len(ends):
            break
        contexts = below[ends - 1] if size > 1 else np.zeros(len(ends), dtype=np.int64)
        keys, where, inverse, counts = np.unique(
            contexts * (vocabulary_size + 2) + tokens[ends], return_index=True, return_inverse=True, return_counts=True
        )
        shown = ends[where]
        grams.append(
            Grams(
                contexts=keys // (vocabulary_size + 2),
                tokens=keys % (vocabulary_size + 2),
                suffixes=below[shown] if size > 1 else np.zeros(len(keys), dtype=np.int64),
                counts=counts,
                first=places[shown] == size - 1,
                probs=np.zeros(len(keys)),
                backoff=np.ones(len(keys)),
            )
        )
        below = np.full(len(tokens), -1, dtype=np.int64)
        below[ends] = inverse
    return grams


def smooth(grams: list[Grams], vocabulary_size: int, smoothing: Smoothing) -> None:
    """Give every n-gram its probability, and every context the share of the shorter one."""
    begin = vocabulary_size
    lower, below = np.full(1, 1.0 / (vocabulary_size + 1)), None
    for place, own in enumerate(grams):
        counts = own.counts.astype(np.float64)
        if smoothing == "kneser-ney" and place + 1 < len(grams):
            longer = np.bincount(grams[place + 1].suffixes, minlength=len(own)).astype(np.float64)
            counts = np.where(own.first, counts, longer)
        if below is None:
            counts[own.tokens == begin] = 0.0  # no sentence goes on with a beginning
        many = len(lower) if below is not None else 1
        total = np.bincount(own.contexts, counts, many)
        if smoothing == "kneser-ney":
            taken = discounts(counts)
            passed = np.bincount(own.contexts, taken, many)
        else:
            taken = np.zeros(len(own))
            passed = np.bincount(own.contexts, counts > 0, many)
            total = total + passed
        share = passed / np.maximum(total, 1e-300)
        own.probs = (counts - taken) / total[own.contexts] + share[own.contexts] * lower[own.suffixes]
        if below is not None:
            seen = np.bincount(own.contexts, minlength=len(below)) > 0
            below.backoff = np.where(seen, share, 1.0)
        lower, below = own.probs, own


def discounts(counts: Numbers) -> Numbers:
    """The modified Kneser-Ney discount of each count [G]; fixed ones where the counts of counts do not allow it."""
    ones, twos, threes, fours = (float((counts == number).sum()) for number in (1, 2, 3, 4))
    fallback = (0.5, 1.0, 1.5)
    if min(ones, twos, threes, fours) > 0:
        ratio = ones / (ones + 2 * twos)
        found = (1 - 2 * ratio * twos / ones, 2 - 3 * ratio * threes / twos, 3 - 4 * ratio * fours / threes)
        if all(0 < value <= number for number, value in enumerate(found, start=1)):
            fallback = found
    return np.array([0.0, *fallback])[np.minimum(counts, 3).astype(np.int64)]


def prune(grams: list[Grams], largest: int) -> None:
    """Leave the `largest` n-grams of two and more tokens that matter most, and weight the contexts anew."""
    sizes = [len(own) for own in grams]
    if sum(sizes[1:]) <= largest:
        return
    worth = worths(grams)
    # Of equal ones the shorter come first: an n-gram is never worth more than those that it rests on.
    best = np.argsort(-np.concatenate(worth[1:]), kind="stable")[:largest]
    kept = np.zeros(sum(sizes[1:]), dtype=np.bool_)
    kept[best] = True
    parts = np.split(kept, np.cumsum(sizes[1:])[:-1])
    for place in range(len(grams) - 1, 0, -1):
        forget(grams, place, parts[place - 1])
    while len(grams) > 1 and not len(grams[-1]):
        grams.pop()
    weigh(grams)


def worths(grams: list[Grams]) -> list[Numbers]:
    """For each order what its n-grams are worth, [G]: never less than a longer one that rests on them."""
    found: list[Numbers] = []
    for place, own in enumerate(grams):
        if place == 0:
            found.append(np.full(len(own), np.inf))
            continue
        below = grams[place - 1]
        without = below.backoff[own.contexts] * below.probs[own.suffixes]
        found.append(own.counts.astype(np.float64) * np.log(own.probs / without))
    for place in range(len(grams) - 1, 0, -1):
        np.maximum.at(found[place - 1], grams[place].contexts, found[place])
        np.maximum.at(found[place - 1], grams[place].suffixes, found[place])
    return found


def forget(grams: list[Grams], place: int, kept: Flags) -> None:
    """Leave the kept n-grams of one order, kept [G], and renumber those of the order above."""
    numbers = np.cumsum(kept) - 1
    grams[place].keep(kept)
    if place + 1 < len(grams):
        above = grams[place + 1]
        above.contexts, above.suffixes = numbers[above.contexts], numbers[above.suffixes]


def weigh(grams: list[Grams]) -> None:
    """Give every context the weight with which its probabilities sum to one."""
    for below, own in zip(grams, [*grams[1:], None], strict=True):
        below.backoff = np.ones(len(below))
        if own is None:
            continue
        said = np.bincount(own.contexts, own.probs, len(below))
        shorter = np.bincount(own.contexts, below.probs[own.suffixes], len(below))
        seen = np.bincount(own.contexts, minlength=len(below)) > 0
        left, room = np.maximum(1.0 - said, 1e-12), np.maximum(1.0 - shorter, 1e-12)
        below.backoff = np.where(seen, left / room, 1.0)


def make_ngram(grams: list[Grams], vocabulary_size: int) -> Ngram:
    """The arrays of smoothed n-grams; a context is a state where any token was seen after it."""
    begin, end = vocabulary_size, vocabulary_size + 1
    unigrams = grams[0]
    said = unigrams.tokens != begin
    unseen = (1.0 - unigrams.probs[said].sum()) / max(vocabulary_size + 1 - said.sum(), 1)
    root = np.full(vocabulary_size + 2, np.log(max(unseen, 1e-300)))
    root[unigrams.tokens] = _logs(unigrams.probs)
    numbers = [np.zeros(1, dtype=np.int64)]  # by order of the context: the state of each, or of its longest suffix
    states = 1
    columns: dict[str, list[npt.NDArray[Any]]] = {
        "tokens": [np.arange(vocabulary_size)],
        "log_probs": [root[:vocabulary_size]],
        "counts": [np.array([vocabulary_size])],
        "backoff_states": [np.zeros(1, dtype=np.int64)],
        "backoff_log_probs": [np.zeros(1)],
        "end_log_probs": [root[end:]],
    }
    for own, above in pairwise(grams):
        leads = np.bincount(above.contexts, minlength=len(own)) > 0
        shorter = numbers[-1][own.suffixes]
        numbers.append(np.where(leads, states + np.cumsum(leads) - 1, shorter))
        states += int(leads.sum())
        goes_on = above.tokens != end
        ends = np.concatenate(columns["end_log_probs"])[shorter] + _logs(own.backoff)
        ends[above.contexts[~goes_on]] = _logs(above.probs[~goes_on])
        columns["tokens"].append(above.tokens[goes_on])
        columns["log_probs"].append(_logs(above.probs[goes_on]))
        columns["counts"].append(np.bincount(above.contexts[goes_on], minlength=len(own))[leads])
        columns["backoff_states"].append(shorter[leads])
        columns["backoff_log_probs"].append(_logs(own.backoff[leads]))
        columns["end_log_probs"].append(ends[leads])
    every = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in columns.items()}
    counts = every.pop("counts")
    arcs = make_arcs(
        **every,
        following=torch.from_numpy(_following(grams, numbers, vocabulary_size)),
        starts=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
    )
    start = numbers[1][np.searchsorted(unigrams.tokens, begin)] if len(numbers) > 1 else 0
    return Ngram(arcs, order=len(grams), start=int(start))


def _following(grams: list[Grams], numbers: list[Integers], vocabulary_size: int) -> Integers:
    """The state after each arc, in the order of the arcs."""
    end = vocabulary_size + 1
    root = np.zeros(vocabulary_size + 2, dtype=np.int64)
    if len(numbers) > 1:
        root[grams[0].tokens] = numbers[1]
    found = [root[:vocabulary_size]]
    for place, own in enumerate(grams[1:], start=2):
        after = numbers[place] if place < len(numbers) else numbers[place - 1][own.suffixes]
        found.append(after[own.tokens != end])
    return np.concatenate(found)


def _logs(values: Numbers) -> Numbers:
    """Natural logarithms, never below LOWEST."""
    logs: Numbers = np.maximum(np.log(np.maximum(values, 1e-300)), LOWEST)
    return logs
