"""N-grams beside probabilities computed token by token from counts, in batches, pruned, and damaged on disk."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_counts import build_ngram
from overtone.decoding.ngram_pack import NgramBatch
from overtone.errors import DataError

V = 4
BEGIN, END = V, V + 1
TEXTS = st.lists(st.lists(st.integers(0, V - 1), max_size=7), min_size=1, max_size=12).filter(any)


class WittenBell:
    """The textbook's recursion over dictionaries."""

    def __init__(self, texts: list[list[int]], order: int) -> None:
        self.order = order
        self.after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for text in texts:
            if text:
                whole = [BEGIN, *text, END]
                for place in range(1, len(whole)):
                    for size in range(min(order, place + 1)):
                        self.after[tuple(whole[place - size : place])][whole[place]] += 1

    def prob(self, context: tuple[int, ...], token: int) -> float:
        context = context[len(context) - min(len(context), self.order - 1) :]
        lower = self.prob(context[1:], token) if context else 1 / (V + 1)
        seen = self.after.get(context)
        if not seen:
            return lower
        return (seen[token] + len(seen) * lower) / (seen.total() + len(seen))


def walk(ngram: Ngram, tokens: list[int]) -> int:
    state = torch.tensor([ngram.start])
    for token in tokens:
        state = ngram.advance(state, torch.tensor([token]))
    return int(state)


@given(texts=TEXTS, asked=st.lists(st.integers(0, V - 1), max_size=6), order=st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_every_probability_is_the_textbooks(texts: list[list[int]], asked: list[int], order: int) -> None:
    ngram = build_ngram(texts, vocabulary_size=V, order=order)
    other = WittenBell(texts, order)
    state = torch.tensor([walk(ngram, asked)])
    expected = [math.log(other.prob((BEGIN, *asked), token)) for token in range(V)]
    torch.testing.assert_close(ngram.score(state)[0], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert float(ngram.end(state)) == pytest.approx(math.log(other.prob((BEGIN, *asked), END)), abs=1e-4)


@pytest.mark.parametrize("smoothing", ["witten-bell", "kneser-ney"])
@given(texts=TEXTS, asked=st.lists(st.integers(0, V - 1), max_size=6), largest=st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_probabilities_sum_to_one_after_pruning_too(
    smoothing: str, texts: list[list[int]], asked: list[int], largest: int
) -> None:
    ngram = build_ngram(texts, vocabulary_size=V, order=4, smoothing=smoothing, largest=largest)
    state = torch.tensor([walk(ngram, asked)])
    assert float(ngram.score(state).exp().sum() + ngram.end(state).exp()) == pytest.approx(1.0, abs=1e-4)
    assert len(ngram) <= V + largest


def test_what_is_pruned_is_what_matters_least() -> None:
    texts = [[0, 1, 2, 3]] * 20 + [[3, 1, 0, 2], [2, 2, 0, 3]]
    small = build_ngram(texts, vocabulary_size=V, order=4, largest=8)
    whole = build_ngram(texts, vocabulary_size=V, order=4)
    assert len(small) < len(whole)
    assert small.sentence_log_prob([0, 1, 2, 3]) > whole.sentence_log_prob([0, 1, 2, 3]) - 0.7
    assert small.sentence_log_prob([0, 1, 2, 3]) > small.sentence_log_prob([3, 1, 0, 2]) + 3


@given(texts=TEXTS, asked=st.lists(st.integers(0, V - 1), max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_step_gives_the_score_of_its_token(texts: list[list[int]], asked: list[int]) -> None:
    ngram = build_ngram(texts, vocabulary_size=V, order=3)
    state, total = torch.tensor([ngram.start]), 0.0
    for token in asked:
        total += float(ngram.score(state)[0, token])
        state = ngram.advance(state, torch.tensor([token]))
    assert ngram.sentence_log_prob(asked) == pytest.approx(total + float(ngram.end(state)), abs=1e-4)


def test_kneser_ney_counts_contexts_not_occurrences() -> None:
    """Token 2 is frequent after 1 alone; token 3 rare, after each of 0, 1 and 2."""
    texts = [[1, 2]] * 9 + [[0, 3], [1, 3], [2, 3]]
    kneser_ney = build_ngram(texts, vocabulary_size=V, order=2, smoothing="kneser-ney")
    witten_bell = build_ngram(texts, vocabulary_size=V, order=2)
    root = torch.tensor([0])
    assert kneser_ney.score(root)[0, 3] > kneser_ney.score(root)[0, 2]
    assert witten_bell.score(root)[0, 3] < witten_bell.score(root)[0, 2]


# Rows of different n-grams


def test_a_row_of_a_batch_scores_as_alone() -> None:
    first = build_ngram([[0, 1, 2], [0, 1, 3]], vocabulary_size=V, order=3)
    second = build_ngram([[3, 3, 3]], vocabulary_size=V, order=5)
    batch = NgramBatch([second, None, first, second], vocabulary_size=V)
    rows, states = torch.tensor([2, 0, 1, 3, 2]), None
    states = batch.start[rows]
    alone = [torch.tensor([each.start]) if each else None for each in (first, second, None, second, first)]
    for step in range(4):
        tokens = torch.tensor([0, 3, 2, 1, 3]) if step % 2 else torch.tensor([1, 3, 0, 3, 0])
        scores, ends = batch.score(rows, states), batch.end(rows, states)
        for place, (ngram, state) in enumerate(zip((first, second, None, second, first), alone, strict=True)):
            expected = torch.zeros(V) if ngram is None else ngram.score(state)[0]
            assert torch.equal(scores[place], expected)
            assert float(ends[place]) == (0.0 if ngram is None else float(ngram.end(state)))
        states = batch.advance(rows, states, tokens)
        alone = [
            None if ngram is None else ngram.advance(state, token[None])
            for ngram, state, token in zip((first, second, None, second, first), alone, tokens, strict=True)
        ]
        assert states[rows == 2].tolist() == [int(alone[0]), int(alone[4])]


def test_batches_without_rows_or_without_ngrams_are_batches() -> None:
    assert NgramBatch([], vocabulary_size=V).score(torch.zeros(0).long(), torch.zeros(0).long()).shape == (0, V)
    none = NgramBatch([None, None], vocabulary_size=V)
    assert not none.score(torch.tensor([0, 1]), none.start).any()
    assert none.advance(torch.tensor([1]), none.start[1:], torch.tensor([2])).tolist() == [0]


def test_an_ngram_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match="has 4 tokens, the model 5"):
        NgramBatch([build_ngram([[1]], vocabulary_size=V)], vocabulary_size=5)


# Files


@given(texts=TEXTS, asked=st.lists(st.integers(0, V - 1), max_size=6))
@settings(max_examples=30, deadline=None)
def test_tensors_hold_the_whole_ngram(texts: list[list[int]], asked: list[int]) -> None:
    ngram = build_ngram(texts, vocabulary_size=V, order=4)
    again = Ngram.from_tensors(ngram.to_tensors())
    state = torch.tensor([walk(ngram, asked)])
    assert walk(again, asked) == int(state)
    assert torch.equal(ngram.score(state), again.score(state))
    assert (again.order, again.start, len(again)) == (ngram.order, ngram.start, len(ngram))


DAMAGES = {
    "a missing tensor": lambda t: t.pop("arc_next"),
    "a tensor too many": lambda t: t.update(more=torch.zeros(1)),
    "another type": lambda t: t.update(arc_next=t["arc_next"].float()),
    "another size": lambda t: t.update(arc_next=t["arc_next"][1:]),
    "a matrix": lambda t: t.update(head=t["head"][None]),
    "an order of nothing": lambda t: t["head"].fill_(0),
    "a first state out of range": lambda t: t["head"][1:].fill_(10_000),
    "arcs out of order": lambda t: t["arc_starts"][2:3].fill_(-1),
    "arcs that are not all owned": lambda t: t["arc_starts"][-1:].sub_(1),
    "a token out of range": lambda t: t["arc_tokens"][-1:].fill_(V),
    "tokens out of order": lambda t: t["arc_tokens"][:2].fill_(1),
    "an arc to nowhere": lambda t: t["arc_next"][3:4].fill_(10_000),
    "a negative state": lambda t: t["arc_next"][3:4].fill_(-1),
    "a context that backs off to nowhere": lambda t: t["backoff_states"][1:2].fill_(10_000),
    "a circle of two": lambda t: (t["backoff_states"][1:2].fill_(2), t["backoff_states"][2:3].fill_(1)),
    "a context of its own": lambda t: t["backoff_states"][2:3].fill_(2),
    "no number": lambda t: t["arc_log_probs"][1:2].fill_(math.nan),
    "an infinite weight": lambda t: t["backoff_log_probs"][1:2].fill_(math.inf),
    "a probability above one": lambda t: t["end_log_probs"][1:2].fill_(3.0),
    "a weight of the empty context": lambda t: t["backoff_log_probs"][:1].fill_(1.0),
    "nothing": lambda t: t.update({name: tensor[:0] for name, tensor in t.items()}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tensors_are_refused(damage: str) -> None:
    tensors = build_ngram([[0, 1, 2], [3, 1]], vocabulary_size=V, order=3).to_tensors()
    DAMAGES[damage](tensors)
    with pytest.raises(DataError, match="The n-gram is damaged"):
        Ngram.from_tensors(tensors)


@pytest.mark.parametrize("texts", [[], [[]]])
def test_no_text_is_refused(texts: list[list[int]]) -> None:
    with pytest.raises(DataError, match="no text"):
        build_ngram(texts, vocabulary_size=V)


def test_tokens_and_orders_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match="Token 4 is not in a vocabulary of 4"):
        build_ngram([[1, 4]], vocabulary_size=V)
    with pytest.raises(DataError, match="order 0"):
        build_ngram([[1]], vocabulary_size=V, order=0)
