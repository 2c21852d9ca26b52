"""Mixtures of n-grams: probabilities sum to one, lie between those that are mixed, and shares follow the text."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_counts import build_ngram
from overtone.decoding.ngram_mix import BEGIN, FIRST_SHARES, contexts_of, estimate_shares, extend_ngram, mix_ngrams

SIZE = 5
GENERAL = [[0, 1, 2], [0, 1, 3], [0, 2, 2], [1, 1, 0, 2], [3, 0, 1]]
SPECIAL = [[4, 3, 4], [4, 3, 1], [0, 4, 3]]


def ngram_of(sentences: list[list[int]], order: int = 3) -> Ngram:
    return build_ngram(sentences, vocabulary_size=SIZE, order=order)


def state_after(ngram: Ngram, context: tuple[int, ...]) -> torch.Tensor:
    state = torch.tensor([ngram.start])
    for token in context:
        state = ngram.advance(state, torch.tensor([token]))
    return state


def probabilities(ngram: Ngram, context: tuple[int, ...]) -> torch.Tensor:
    """Of every next token and of the end, [V+1]."""
    state = state_after(ngram, context)
    return torch.cat([ngram.score(state)[0], ngram.end(state)]).double().exp()


@pytest.mark.parametrize("orders", [(3, 3), (2, 4), (1, 3), (4, 1)])
def test_every_context_sums_to_one_and_its_own_tokens_are_the_mixture(orders: tuple[int, int]) -> None:
    first, second = ngram_of(GENERAL, orders[0]), ngram_of(SPECIAL, orders[1])
    mixed = mix_ngrams(first, second, (0.25, 0.25, 0.25))
    assert mixed.order == max(orders)
    for context in product(range(SIZE), repeat=3):
        for length in range(4):
            assert float(probabilities(mixed, context[:length]).sum()) == pytest.approx(1.0, abs=1e-5)
    start = 0.75 * probabilities(first, ()) + 0.25 * probabilities(second, ())
    knowing = [own for own, order in zip((GENERAL, SPECIAL), orders, strict=True) if order > 1]
    seen = [sentence[0] for each in knowing for sentence in each] + [SIZE]
    assert torch.allclose(probabilities(mixed, ())[seen], start[seen], atol=1e-5)
    again = Ngram.from_tensors(mixed.to_tensors())
    assert again.sentence_log_prob([4, 3, 4]) == pytest.approx(mixed.sentence_log_prob([4, 3, 4]))


def test_a_mixture_with_itself_is_itself() -> None:
    own = ngram_of(GENERAL)
    mixed = mix_ngrams(own, own)
    for sentence in [*GENERAL, *SPECIAL]:
        assert mixed.sentence_log_prob(sentence) == pytest.approx(own.sentence_log_prob(sentence), abs=1e-4)


def test_contexts_have_the_states_that_their_tokens_lead_to() -> None:
    own = ngram_of(GENERAL)
    known = contexts_of(own)
    assert len(known) == own.states
    for context, state in known.items():
        if context[:1] == (BEGIN,):
            assert int(state_after(own, context[1:])) == state


def test_what_was_learnt_becomes_likelier_and_what_was_known_stays_so() -> None:
    general = ngram_of(GENERAL)
    more = extend_ngram(general, SPECIAL, vocabulary_size=SIZE, order=3)
    assert more.sentence_log_prob([4, 3, 4]) > general.sentence_log_prob([4, 3, 4]) + 1.0
    assert more.sentence_log_prob([0, 1, 2]) > general.sentence_log_prob([0, 1, 2]) - 2.0
    alone = extend_ngram(None, SPECIAL, vocabulary_size=SIZE, order=3)
    assert alone.sentence_log_prob([4, 3, 4]) == ngram_of(SPECIAL).sentence_log_prob([4, 3, 4])


def test_shares_follow_the_text() -> None:
    general = ngram_of(GENERAL)
    assert estimate_shares(general, [[4, 3, 4]], order=3) == FIRST_SHARES
    alike = estimate_shares(general, [[4, 3, 4]] * 40, order=3)
    other = estimate_shares(general, [[0, 1, 2], [3, 4, 4], [2, 2, 0], [1, 3, 1]] + GENERAL, order=3)
    assert alike[1] > other[1]
    assert all(0.0 < share < 1.0 for share in (*alike, *other))
