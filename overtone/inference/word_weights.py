"""The weights of a word part, chosen by the errors of recordings that nothing was learnt from.

Emissions are computed once; every candidate is then a search over them. A part that does not make fewer errors than
none is not used at all.

Legend: B batch, T encoder frames, C channels of an emission.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overtone.adapters.words import WordPart
from overtone.decoding.decoder import DecodingOptions, find_readings
from overtone.decoding.fusion import NO_WORDS
from overtone.models.asr_model import AsrModel
from overtone.nets.layers import pad_rows
from overtone.wer import ErrorCounts, word_errors

WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
BONUSES = (0.5, 1.0, 2.0, 3.0)
"""Token bonuses that are tried besides none."""
PRIOR_SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the general prior that are tried besides the part's own."""


class Heard(NamedTuple):
    """The emissions of a batch of recordings, and what is said there."""

    emissions: Tensor
    """[B, T, C]"""
    lengths: Tensor
    """[B]"""
    texts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class WordsChoice:
    """A word part with the weights that made the fewest errors."""

    part: WordPart | None
    """None where none made fewer errors than there are without it."""
    without: ErrorCounts
    """Errors without words."""
    best: ErrorCounts
    """Errors with the chosen part; `without` where none is chosen."""
    tried: tuple[tuple[float, float, float], ...]
    """Weight, token bonus and word error rate of every candidate with the part's own share of the general prior."""
    shares: tuple[tuple[float, float], ...] = ()
    """Other shares of the general prior, with the best of these weights, and their word error rates."""


Scope = Callable[[], AbstractContextManager[object]]
Recording = tuple[Callable[[], NDArray[np.float32]], str]
"""A function that reads samples [S] at the model's rate, and what is said there as the model would write it."""
BATCH = 8


def hear(model: AsrModel, recordings: Sequence[Recording], adapter: str | None) -> Iterator[Heard]:
    """The emissions of recordings with an adapter, or of the base. Raises DataError for one that cannot be read."""
    for first in range(0, len(recordings), BATCH):
        rows = recordings[first : first + BATCH]
        waveforms, lengths = pad_rows([read() for read, _ in rows])
        with torch.no_grad(), model.adapters.use(adapter):
            emissions, frames = model(waveforms.to(model.device), lengths.to(model.device))
        yield Heard(emissions, frames, [text for _, text in rows])


def count_errors(model: AsrModel, heard: Sequence[Heard], part: WordPart | None, *, scope: Scope) -> ErrorCounts:
    """The errors of recordings decoded with a word part, or with None. scope: the adapters that act in the decoder."""
    counts = ErrorCounts()
    for batch in heard:
        with torch.no_grad(), scope():
            head = model.head
            words = NO_WORDS if part is None else part.for_decoding(head.tokenizer)
            options = [DecodingOptions(words=words)] * len(batch.texts)
            rows = find_readings(head, batch.emissions, batch.lengths, options)
        for text, readings in zip(batch.texts, rows, strict=True):
            counts += word_errors(text, head.read(readings[0].alignment).text)
    return counts


def choose_weights(model: AsrModel, heard: Sequence[Heard], part: WordPart, *, scope: Scope) -> WordsChoice:
    """The part with the weights that make the fewest errors; of equal ones those that were tried first.

    Weights of the n-gram first, then bonuses with the best of them and with its neighbours, then shares of the general
    prior, where the part has one, with the best of these.
    """
    return choose_weights_of_folds(model, [(heard, part)], scope=scope)


def choose_weights_of_folds(
    model: AsrModel, folds: Sequence[tuple[Sequence[Heard], WordPart]], *, scope: Scope
) -> WordsChoice:
    """The first part with the weights that make the fewest errors, where recordings are heard with a part each."""
    part = folds[0][1]

    def count(like: WordPart | None) -> ErrorCounts:
        each = ((heard, None if like is None else own.weighted_like(like)) for heard, own in folds)
        return sum((count_errors(model, heard, own, scope=scope) for heard, own in each), ErrorCounts())

    without = count(None)
    best, chosen = without, None
    tried: dict[tuple[float, float, float], ErrorCounts] = {}

    def attempt(candidate: WordPart) -> None:
        nonlocal best, chosen
        key = candidate.weight, candidate.token_bonus, candidate.prior_share
        if key not in tried:
            tried[key] = count(candidate)
            if tried[key].errors < best.errors:
                best, chosen = tried[key], candidate

    own = part.prior_share
    if part.ngram is None:
        attempt(part)
    else:
        for weight in WEIGHTS:
            attempt(part.weighted(weight))
        for weight, bonus in with_bonuses(min(WEIGHTS, key=lambda each: tried[each, 0.0, own].errors)):
            attempt(part.weighted(weight, bonus))
        weight, bonus, _ = min(tried, key=lambda key: tried[key].errors)
        for share in PRIOR_SHARES if part.prior is not None else ():
            attempt(part.weighted(weight, bonus, prior_share=share))
    rates = tuple((weight, bonus, counts.rate) for (weight, bonus, share), counts in tried.items() if share == own)
    shares = tuple((share, counts.rate) for (_, _, share), counts in tried.items() if share != own)
    return WordsChoice(part=chosen, without=without, best=best, tried=rates, shares=shares)


@dataclass(frozen=True, kw_only=True)
class PartsChoice:
    """The parts of an adapter that made the fewest errors on recordings: words, acoustic part, both or nothing."""

    part: WordPart | None
    """The words with their weights; None: none of them."""
    acoustic: bool
    """True with the acoustic part."""
    errors: ErrorCounts
    """Errors with what was chosen."""
    base: ErrorCounts
    """Errors of the base, decoded without words."""


def choose_parts(
    model: AsrModel, recordings: Sequence[Recording], part: WordPart, adapter: str | None = None, *, optional: bool
) -> PartsChoice:
    """The best of words, an acoustic part, both and nothing by the fewest errors; of equal ones what is less.

    adapter: one with the acoustic part, or None. optional: whether the acoustic part may be left out.
    """
    with model.evaluating():
        found = []
        for name in [None] if adapter is None else [None, adapter]:
            heard = list(hear(model, recordings, name))
            scope = partial(model.adapters.use, name)
            if name is None and adapter is not None and not optional:
                without = count_errors(model, heard, None, scope=scope)
                found.append(PartsChoice(part=None, acoustic=False, errors=without, base=without))
                continue
            chosen = choose_weights(model, heard, part, scope=scope)
            base = found[0].base if found else chosen.without
            for own, errors in ((None, chosen.without), (chosen.part, chosen.best)):
                found.append(PartsChoice(part=own, acoustic=name is not None, errors=errors, base=base))
    allowed = [own for own in found if optional or adapter is None or own.acoustic]
    return min(allowed, key=lambda own: own.errors.errors)


def with_bonuses(weight: float) -> Iterator[tuple[float, float]]:
    """The weight and those beside it, each with every bonus."""
    place = WEIGHTS.index(weight)
    for near in (weight, *WEIGHTS[place + 1 : place + 2], *WEIGHTS[max(0, place - 1) : place]):
        yield from ((near, bonus) for bonus in BONUSES)
