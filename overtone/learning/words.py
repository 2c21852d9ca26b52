"""The word part of an adapter that learns: the origin's n-gram, and what the corrections say.

The n-gram is always made anew, from that of the adapter before it ever learnt and from all corrections, so that no
correction counts twice and one that is set aside leaves no trace. Weights are chosen on held-out corrections, from
which nothing is counted meanwhile; afterwards these are counted too.

Tokens are those of a `writing_with` block, where an adapter has a vocabulary of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from overtone.adapters.prior import find_prior
from overtone.adapters.word_text import ORDER, make_words
from overtone.adapters.words import WordPart
from overtone.data.vocabulary import reference_text
from overtone.decoding.ngram_mix import extend_ngram
from overtone.inference.word_weights import (
    Recording,
    Scope,
    choose_weights,
    choose_weights_of_folds,
    count_errors,
    hear,
)
from overtone.learning.corrections import Corrections, Learnt
from overtone.models.asr_model import AsrModel
from overtone.models.vocabulary import tokenizer_of
from overtone.wer import ErrorCounts

ENOUGH_WORDS = 50
"""Held-out words that a choice needs: with fewer, chance would choose."""
ENOUGH_TO_CROSS = 20
"""Words of recordings that a choice by each from the others needs."""
FOLDS = 5
FEW_WEIGHT, FEW_BONUS = 0.1, 0.5
"""Weights of words of which little is known, or which help little; where there is a general prior, it has its own."""
MOST_UTTERANCES = 200
"""Held-out corrections that are heard; of more, an even draw."""


@dataclass(frozen=True, kw_only=True)
class WordChoice:
    """A new word part, and how it was judged."""

    part: WordPart | None
    before: ErrorCounts | None = None
    """Errors on held-out corrections with what was known before; None where these were too few."""
    after: ErrorCounts | None = None
    is_crossed: bool = False
    """The errors are of all corrections, each recognised with the words of the others; before: without words."""

    @property
    def is_worse(self) -> bool:
        """True if it was judged, and makes more errors than there were."""
        return self.before is not None and self.after is not None and self.after.errors > self.before.errors


def grow_part(model: AsrModel, origin: WordPart | None, learnt: Sequence[Learnt], like: WordPart | None) -> WordPart:
    """The origin's word part with what corrections say. like: has the weights, and the share of the general prior.

    Raises AdapterError where there are neither corrections nor an origin.
    """
    tokenizer = tokenizer_of(model)
    sentences = [tokenizer.encode(own.text, own.language) for own in learnt]
    ngram = None if origin is None else origin.ngram
    if sentences:
        order = ORDER if ngram is None else ngram.order
        ngram = extend_ngram(ngram, sentences, vocabulary_size=tokenizer.size, order=order)
    boosts = () if origin is None else origin.boosts
    phrases = [(phrase, boost.boost) for boost in boosts for phrase in boost.phrases]
    if like is None or like.ngram is None:
        prior = find_prior(tokenizer.digest())
        part = make_words(tokenizer, sequences=sentences, ngram=ngram, phrases=phrases, prior=prior)
        few = (FEW_WEIGHT, FEW_BONUS) if prior is None else (prior.weight, prior.token_bonus)
        return part if part.ngram is None else part.weighted(*few)
    part = make_words(tokenizer, ngram=ngram, phrases=phrases, prior=like.prior, prior_share=like.prior_share)
    return part.weighted_like(like)


def held_out_of(corrections: Sequence[Learnt]) -> list[Learnt]:
    """The held-out corrections that are heard, in an order that more of them do not change."""
    return sorted((own for own in corrections if own.is_held_out), key=lambda own: own.id)[:MOST_UTTERANCES]


def without_held_out(learnt: Sequence[Learnt], every: Sequence[Learnt]) -> list[Learnt]:
    """The corrections that say nothing of the held-out ones among all: none has the text of one, recorded or not."""
    texts = {own.text for own in every if own.is_held_out}
    return [own for own in learnt if own.text not in texts]


def recordings_of(model: AsrModel, store: Corrections, learnt: Sequence[Learnt]) -> list[Recording]:
    """Corrections as recordings to be heard."""
    tokenizer = tokenizer_of(model)
    return [(partial(store.load, own), reference_text(tokenizer, own.text, own.language)) for own in learnt]


def cross_validate(
    model: AsrModel,
    store: Corrections,
    now: Sequence[Learnt],
    whole: WordPart,
    *,
    adapter: str | None,
    origin: WordPart | None,
    current: WordPart | None,
) -> WordChoice:
    """The word part with weights by which all corrections are recognised best, each from the words of the others.

    whole: of all corrections, with the weights of today. Where there are too few words for that, these stay; they are
    small where a few sentences are all that is known.
    """
    heard = sorted((own for own in now if own.audio is not None), key=lambda own: own.id)[:MOST_UTTERANCES]
    if sum(len(own.text.split()) for own in heard) < ENOUGH_TO_CROSS or len(now) < 2:
        return WordChoice(part=whole)
    folds = []
    for fold in range(min(FOLDS, len(heard))):
        own = heard[fold::FOLDS]
        texts = {each.text for each in own}
        others = [each for each in now if each.text not in texts]
        if others or origin is not None:
            part = grow_part(model, origin, others, current)
            folds.append((list(hear(model, recordings_of(model, store, own), adapter)), part))
    if not folds:
        return WordChoice(part=whole)
    chosen = choose_weights_of_folds(model, folds, scope=lambda: model.adapters.use(adapter))
    if chosen.part is None:
        return WordChoice(part=whole.weighted(FEW_WEIGHT), before=chosen.without, after=chosen.best, is_crossed=True)
    return WordChoice(part=whole.weighted_like(chosen.part), before=chosen.without, after=chosen.best, is_crossed=True)


def choose_words(
    model: AsrModel,
    store: Corrections,
    *,
    adapter: str | None,
    origin: WordPart | None,
    current: WordPart | None,
    before: Sequence[Learnt],
    now: Sequence[Learnt],
) -> WordChoice:
    """The word part of all corrections, with weights chosen on held-out ones where these are enough.

    adapter: name of the adapter whose acoustic part is heard through. origin, current: the word parts before
    anything was learnt, and of today. before, now: the corrections that today's was made of, and all.
    """
    held = held_out_of(now)
    words = sum(len(own.text.split()) for own in held)
    whole = grow_part(model, origin, now, current)
    rest = without_held_out(now, now)
    if words < ENOUGH_WORDS or (not rest and origin is None):
        return cross_validate(model, store, now, whole, adapter=adapter, origin=origin, current=current)
    heard = list(hear(model, recordings_of(model, store, held), adapter))
    known = without_held_out(before, now)
    old = grow_part(model, origin, known, current) if known else origin

    scope: Scope = lambda: model.adapters.use(adapter)  # noqa: E731
    errors = count_errors(model, heard, old, scope=scope)
    fresh = grow_part(model, origin, rest, current)
    chosen = choose_weights(model, heard, fresh, scope=scope)
    part, after = chosen.part, chosen.best
    if part is None:  # no weights are better than none: those of today may still be as good as before
        part, after = fresh, count_errors(model, heard, fresh, scope=scope)
    chosen_weights = whole.weighted(part.weight, part.token_bonus, prior_share=part.prior_share)
    return WordChoice(part=chosen_weights, before=errors, after=after)
