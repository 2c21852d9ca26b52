"""Fusion with words: scores beside plain sums, rows of different words, tables of phrases, and frames in portions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone.decoding import ctc_search
from overtone.decoding.ctc_beam import BeamDecoder
from overtone.decoding.ctc_path import best_path
from overtone.decoding.ctc_search import CtcSearch
from overtone.decoding.decoder import BeamSettings
from overtone.decoding.fusion import NO_WORDS, Fusion, Words
from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_counts import build_ngram
from overtone.decoding.phrase_boost import Boost, BoostState, BoostTree
from overtone.tokenizers import CharTokenizer
from support.pieces import Pieces

LETTERS = CharTokenizer([" ", "a", "b", "c", "t"])
SMALL = CharTokenizer(["a", "b", "c"])
CPU = torch.device("cpu")


def ngram_of(texts: list[str], tokenizer: CharTokenizer = LETTERS, order: int = 3) -> Ngram:
    return build_ngram([tokenizer.encode(text) for text in texts], vocabulary_size=tokenizer.size, order=order)


def log_probs_of(seed: int, rows: int, frames: int, symbols: int, sharpness: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(rows, frames, symbols, generator=generator)).log_softmax(-1)


def raised(ngram: Ngram, by: float) -> Ngram:
    """An n-gram that does not sum to one: its longer contexts give more to what they have not seen."""
    tensors = ngram.to_tensors()
    tensors["backoff_log_probs"] = tensors["backoff_log_probs"].clone()
    tensors["backoff_log_probs"][1:] += by
    return Ngram.from_tensors(tensors)


def found_with_slack(
    slack: float, rows: list[Words], log_probs: torch.Tensor, chosen: BeamSettings
) -> list[list[tuple[list[int], float, float]]]:
    """Readings with their scores and ranks. slack: infinite where every word is to be looked up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctc_search, "SLACK", slack)
        search = CtcSearch(rows, LETTERS.size, chosen, CPU)
        search.push(log_probs, torch.tensor([log_probs.size(1)] * len(rows)))
        answer = search.best(chosen.width)
    return [[(path.ids.tolist(), path.score, rank) for path, rank in row] for row in answer]


@pytest.mark.parametrize("by", [0.0, 3.0])
@pytest.mark.parametrize("weight", [0.8, 5.0])
@pytest.mark.parametrize("floor", [3.0, 20.0])
@given(seed=st.integers(0, 10_000), width=st.integers(1, 6), bonus=st.sampled_from([-1.0, 0.0, 3.0]))
@settings(max_examples=20, deadline=None)
def test_words_that_are_not_looked_up_would_change_nothing(
    by: float, weight: float, floor: float, seed: int, width: int, bonus: float
) -> None:
    rows = [Words(ngrams=((raised(ngram_of(["cab a", "bat"]), by), weight),), token_bonus=bonus), NO_WORDS]
    log_probs, chosen = log_probs_of(seed, 2, 25, LETTERS.size + 1), BeamSettings(width=width, score_floor=floor)
    one, every = (found_with_slack(slack, rows, log_probs, chosen) for slack in (ctc_search.SLACK, math.inf))
    assert one == every


def test_a_phrase_that_gains_more_than_its_largest_token_is_looked_up() -> None:
    """The end of a word ends two phrases at once."""
    ids = LETTERS.encode("cab at")
    log_probs = torch.full((1, 2 * len(ids) + 4, LETTERS.size + 1), -12.0)
    log_probs[..., -1] = -0.001
    for place, token in enumerate(ids):
        log_probs[0, 2 * place, -1], log_probs[0, 2 * place, token] = -7.0, -0.01
    log_probs[0, 2 * len(ids), LETTERS.encode(" a")[0]] = -4.5
    log_probs[0, 2 * len(ids) + 2, LETTERS.encode("c")[0]], log_probs[0, 2 * len(ids) + 2, -1] = -0.01, -5.0
    rows = [Words(boosts=(BoostTree([Boost(phrases=("cab at", "at"), boost=50.0)], LETTERS),))]
    one, every = (
        found_with_slack(slack, rows, log_probs, BeamSettings(width=1)) for slack in (ctc_search.SLACK, math.inf)
    )
    assert one == every


@pytest.mark.parametrize("merge", ["max", "sum"])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_with_an_ngram_finds_what_going_through_all_paths_finds(merge: str, seed: int) -> None:
    ngram = ngram_of(["abcab", "cab", "bca"], SMALL)
    words = Words(ngrams=((ngram, 0.7),), token_bonus=0.4)
    log_probs = log_probs_of(seed, 1, 5, 4, 1.0)
    values = log_probs[0].double().numpy()
    found: dict[tuple[int, ...], list[float]] = {}
    for path in itertools.product(range(4), repeat=5):
        ids = tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != 3)
        found.setdefault(ids, []).append(float(values[range(5), path].sum()))
    own = {ids: max(each) if merge == "max" else float(np.logaddexp.reduce(each)) for ids, each in found.items()}
    ranks = {ids: score + 0.7 * ngram.sentence_log_prob(ids) + 0.4 * len(ids) for ids, score in own.items()}
    expected = sorted(ranks, key=lambda ids: -ranks[ids])[:8]
    options = BeamSettings(width=2000, merge=merge, token_floor=-1e9, score_floor=1e9)  # type: ignore[arg-type]
    decoder = BeamDecoder(SMALL, seconds_per_frame=0.04, settings=options, words=words)
    decoder.push(log_probs[0].numpy())
    best = decoder.hypotheses(8)
    assert [each.ids for each in best] == expected
    assert [each.score for each in best] == pytest.approx([own[ids] for ids in expected], abs=1e-4)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_each_row_of_a_batch_is_searched_as_if_alone(width: int) -> None:
    first, second = ngram_of(["a cat", "a bat"]), ngram_of(["tact", "cab cab"], order=2)
    boosts = BoostTree([Boost(phrases=("cat", "a b"), boost=8.0)], LETTERS)
    rows = [
        NO_WORDS,
        Words(ngrams=((first, 0.8),), token_bonus=0.5),
        Words(ngrams=((second, 0.5), (first, 0.3))),
        Words(boosts=(boosts,)),
        Words(ngrams=((first, 1.0),), boosts=(boosts,)),
    ]
    lengths = [40, 31, 7, 26, 0]
    log_probs = log_probs_of(width, 5, 40, LETTERS.size + 1, 3.0)
    options = BeamSettings(width=width)
    search = CtcSearch(rows, LETTERS.size, options, CPU)
    search.push(log_probs, torch.tensor(lengths))
    changed = 0
    for row, (words, length, found) in enumerate(zip(rows, lengths, search.best(4), strict=True)):
        alone = BeamDecoder(LETTERS, seconds_per_frame=0.04, settings=options, words=words)
        alone.push(log_probs[row, :length].numpy())
        expected = alone.search.best(4)[0]
        assert [path.ids[:length].tolist() for path, _ in found] == [path.ids.tolist() for path, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)
        (greedy,) = best_path(log_probs[row : row + 1], torch.tensor([length]))
        changed += greedy.ids.tolist() != found[0][0].ids[:length].tolist()
        if not words:
            assert greedy.ids.tolist() == found[0][0].ids[:length].tolist()
    assert changed >= 2, "words that change nothing show nothing"


@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 60), max_size=5))
@settings(max_examples=30, deadline=None)
def test_frames_may_come_in_any_portions_and_what_is_settled_does_not_change(seed: int, cuts: list[int]) -> None:
    words = Words(ngrams=((ngram_of(["a cat", "a bat", "cab"]), 0.6),), token_bonus=0.5)
    log_probs = log_probs_of(seed, 1, 60, LETTERS.size + 1, 4.0)[0].numpy()
    options = BeamSettings(width=4, token_floor=-4.0, settled_lead=math.inf)
    whole = BeamDecoder(LETTERS, seconds_per_frame=0.04, settings=options, words=words)
    whole.push(log_probs)
    ((final, _),) = whole.search.best(1)[0]
    parts = BeamDecoder(LETTERS, seconds_per_frame=0.04, settings=options, words=words)
    settled = 0
    for first, last in itertools.pairwise([0, *sorted(cuts), 60]):
        parts.push(log_probs[first:last])
        assert settled <= parts.settled <= last
        settled = parts.settled
        ((path, _),) = parts.search.best(1)[0]
        assert path.ids[:settled].tolist() == final.ids[:settled].tolist()
    assert parts.hypotheses(4) == whole.hypotheses(4)


@given(
    phrases=st.lists(st.text(" abct", min_size=1, max_size=6), min_size=1, max_size=5),
    boost=st.sampled_from([10.0, 100.0, -20.0]),
    tokens=st.lists(st.integers(0, 9), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_the_table_of_phrases_is_the_tree(phrases: list[str], boost: float, tokens: list[int]) -> None:
    vocabulary = ["▁", "▁a", "a", "at", "▁cat", "t", "b▁c", "b▁", "", "▁c"]
    tree = BoostTree([Boost(phrases=tuple(phrases), boost=boost)], Pieces(vocabulary))
    state, number, total = tree.start, torch.tensor([0]), 0.0
    for token in tokens:
        every = tree.table.score(number)[0]
        after: list[BoostState] = [tree.after(state, each) for each in range(len(vocabulary))]
        assert every.tolist() == pytest.approx([each.bonus - state.bonus for each in after], abs=1e-4)
        gain, number = tree.table.follow(number, torch.tensor([token]))
        state = after[token]
        total += float(gain)
        assert total == pytest.approx(state.bonus, abs=1e-4)
        assert total + float(tree.table.end(number)) == pytest.approx(tree.final(state), abs=1e-4)


def test_words_add_up_and_none_are_false() -> None:
    ngram = ngram_of(["a cat"])
    tree = BoostTree([Boost(phrases=("cat",), boost=8.0)], LETTERS)
    both = Words(ngrams=((ngram, 0.5),), token_bonus=0.25) + Words(boosts=(tree,), token_bonus=0.5)
    assert not NO_WORDS
    assert not Words(ngrams=((ngram, 0.0),))
    assert both
    fusion = Fusion([both, NO_WORDS], LETTERS.size, CPU)
    states, tokens = fusion.begin(), LETTERS.encode("cat")
    total = torch.zeros(2)
    for token in tokens:
        gain, states = fusion.follow(torch.arange(2), states, torch.full((2,), token))
        total += gain
    total += fusion.end(torch.arange(2), states)
    expected = 0.5 * ngram.sentence_log_prob(tokens) + 3 * 0.75 + 8.0 * 0.05 * 3
    assert total.tolist() == pytest.approx([expected, 0.0], abs=1e-4)
