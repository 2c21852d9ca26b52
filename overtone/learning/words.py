"""The word part of an adapter that learns: the origin's n-gram, and what the corrections say.

The n-gram is always made anew, from that of the adapter before it ever learnt and from all corrections, so that no
correction counts twice and one that is set aside leaves no trace. Weights are chosen on held-out corrections, from
which nothing is counted meanwhile; afterwards these are counted too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from overtone.adapters.word_text import ORDER, TOKEN_BONUS, WEIGHT
from overtone.adapters.words import WordPart
from overtone.data.vocabulary import reference_text
from overtone.decoding.ngram_mix import extend_ngram
from overtone.inference.word_weights import Recording, Scope, choose_weights, count_errors, hear
from overtone.learning.corrections import Corrections, Learnt
from overtone.models.asr_model import AsrModel
from overtone.wer import ErrorCounts

ENOUGH_WORDS = 50
"""Held-out words that a choice needs: with fewer, chance would choose."""
MOST_UTTERANCES = 200
"""Held-out corrections that are heard; of more, an even draw."""


@dataclass(frozen=True, kw_only=True)
class WordChoice:
    """A new word part, and how it was judged."""

    part: WordPart | None
    before: ErrorCounts | None = None
    """Errors on held-out corrections with what was known before; None where these were too few."""
    after: ErrorCounts | None = None

    @property
    def is_worse(self) -> bool:
        """True if it was judged, and makes more errors than there were."""
        return self.before is not None and self.after is not None and self.after.errors > self.before.errors


def grow_part(model: AsrModel, origin: WordPart | None, learnt: Sequence[Learnt], like: WordPart | None) -> WordPart:
    """The origin's word part with what corrections say. like: has the weights, and the share of the general prior.

    Raises AdapterError where there are neither corrections nor an origin.
    """
    tokenizer = model.tokenizer
    sentences = [tokenizer.encode(own.text, own.language) for own in learnt]
    ngram = None if origin is None else origin.ngram
    if sentences:
        order = ORDER if ngram is None else ngram.order
        ngram = extend_ngram(ngram, sentences, vocabulary_size=tokenizer.size, order=order)
    weighted = like is not None and like.ngram is not None
    return WordPart(
        tokenizer_digest=tokenizer.digest(),
        ngram=ngram,
        weight=like.weight if like is not None and weighted else WEIGHT,
        token_bonus=like.token_bonus if like is not None and weighted else TOKEN_BONUS,
        prior=like.prior if like is not None and weighted else None,
        prior_share=like.prior_share if like is not None and weighted else 0.0,
        boosts=() if origin is None else origin.boosts,
    )


def held_out_of(corrections: Sequence[Learnt]) -> list[Learnt]:
    """The held-out corrections that are heard, in an order that more of them do not change."""
    return sorted((own for own in corrections if own.is_held_out), key=lambda own: own.id)[:MOST_UTTERANCES]


def recordings_of(model: AsrModel, store: Corrections, learnt: Sequence[Learnt]) -> list[Recording]:
    """Corrections as recordings to be heard."""
    return [(partial(store.load, own), reference_text(model.tokenizer, own.text, own.language)) for own in learnt]


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
    rest = [own for own in now if not own.is_held_out]
    if words < ENOUGH_WORDS or (not rest and origin is None):
        return WordChoice(part=whole)
    heard = list(hear(model, recordings_of(model, store, held), adapter))
    known = [own for own in before if not own.is_held_out]
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
