"""Beam search: beside greedy, beside every path there is, and with boosted phrases."""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone.decoding.ctc import GreedyDecoder, greedy
from overtone.decoding.ctc_beam import BeamDecoder, beam_search
from overtone.decoding.decoder import BeamSettings
from overtone.decoding.phrase_boost import NATS_PER_CHARACTER, Boost, BoostTree
from overtone.tokenizers import CharTokenizer, Tokenizer
from support.pieces import Pieces

LETTERS = CharTokenizer([" ", "a", "b", "c", "t"])


def random_log_probs(seed: int, frames: int, symbols: int, sharpness: float = 2.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(frames, symbols)) * sharpness
    values = values - values.max(axis=1, keepdims=True)
    return (values - np.log(np.exp(values).sum(axis=1, keepdims=True))).astype(np.float32)


def spelt(text: str, vocabulary: list[str], *, rival: str = "", share: float = 0.3) -> np.ndarray:
    """Frames that say the pieces of a text, each followed by blank; with the share, those of a rival."""
    symbols = len(vocabulary)
    frames = []
    for index, sign in enumerate(text):
        row = np.full(symbols + 1, 1e-5)
        row[vocabulary.index(sign)] = 1.0
        if rival and rival[index] != sign:
            row[vocabulary.index(sign)], row[vocabulary.index(rival[index])] = 1 - share, share
        blank = np.full(symbols + 1, 1e-5)
        blank[symbols] = 1.0
        frames += [row / row.sum(), blank / blank.sum()]
    return np.log(np.array(frames)).astype(np.float32)


def search(log_probs: np.ndarray, tokenizer: Tokenizer = LETTERS, **options: object) -> list[str]:
    return [each.text for each in beam_search(log_probs, tokenizer, seconds_per_frame=0.04, **options)]


# Beside greedy


@pytest.mark.parametrize("width", [1, 4, 16])
@given(seed=st.integers(0, 10_000), frames=st.integers(0, 30), sharpness=st.sampled_from([0.3, 1.0, 3.0, 8.0]))
@settings(max_examples=40, deadline=None)
def test_without_boosts_the_best_reading_is_the_greedy_one(
    width: int, seed: int, frames: int, sharpness: float
) -> None:
    log_probs = random_log_probs(seed, frames, LETTERS.size + 1, sharpness)
    (expected,) = greedy(torch.from_numpy(log_probs)[None], torch.tensor([frames]), LETTERS, seconds_per_frame=0.04)
    found = beam_search(log_probs, LETTERS, seconds_per_frame=0.04, settings=BeamSettings(width=width))[0]
    assert found.text == expected.text
    assert found.ids == expected.ids
    assert found.spans == expected.spans
    assert found.score == pytest.approx(expected.score, abs=1e-3)
    assert [word.text for word in found.words] == [word.text for word in expected.words]
    for mine, theirs in zip(found.words, expected.words, strict=True):
        assert (mine.start, mine.end) == (theirs.start, theirs.end)
        assert mine.confidence == pytest.approx(theirs.confidence, abs=1e-4)


def test_boosts_that_do_not_apply_change_nothing() -> None:
    boosts = BoostTree([Boost(phrases=("tactac",), boost=10.0)], LETTERS)
    for seed in range(20):
        log_probs = spelt("ab ca b", LETTERS.vocabulary) + 0.01 * random_log_probs(seed, 14, LETTERS.size + 1)
        assert search(log_probs, boosts=boosts)[0] == "ab ca b"


@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 40), max_size=4))
@settings(max_examples=30, deadline=None)
def test_frames_may_come_in_any_portions(seed: int, cuts: list[int]) -> None:
    log_probs = random_log_probs(seed, 40, LETTERS.size + 1)
    boosts = BoostTree([Boost(phrases=("cat", "a b"), boost=8.0)], LETTERS)
    for make in (
        lambda: BeamDecoder(LETTERS, seconds_per_frame=0.04, boosts=boosts),
        lambda: GreedyDecoder(LETTERS, seconds_per_frame=0.04),
    ):
        whole, parts = make(), make()
        whole.push(log_probs)
        for first, last in itertools.pairwise([0, *sorted(cuts), 40]):
            fork = parts.fork()
            fork.push(log_probs[::-1].copy())  # a look ahead leaves no trace
            parts.push(log_probs[first:last])
        assert parts.hypotheses(4) == whole.hypotheses(4)


def test_times_count_from_the_first_frame() -> None:
    log_probs = spelt("ab c", LETTERS.vocabulary)
    for kind in (BeamDecoder, GreedyDecoder):
        decoder = kind(LETTERS, seconds_per_frame=0.04, first_frame=100)
        decoder.push(log_probs)
        best = decoder.hypotheses()[0]
        assert [(word.text, word.start, word.end) for word in best.words] == [("ab", 4.0, 4.12), ("c", 4.24, 4.28)]
        assert best.spans[0] == (100, 101)


# Beside every path


def readings(log_probs: np.ndarray, merge: str) -> dict[tuple[int, ...], float]:
    """The score of every labelling, by going through all paths."""
    frames, symbols = log_probs.shape
    found: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for path in itertools.product(range(symbols), repeat=frames):
        ids = tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != symbols - 1)
        found[ids].append(sum(float(log_probs[frame, symbol]) for frame, symbol in enumerate(path)))
    if merge == "max":
        return {ids: max(scores) for ids, scores in found.items()}
    return {ids: math.log(sum(map(math.exp, scores))) for ids, scores in found.items()}


@pytest.mark.parametrize("merge", ["max", "sum"])
@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_what_going_through_all_paths_finds(merge: str, seed: int) -> None:
    tokenizer = CharTokenizer(["a", "b", "c"])
    log_probs = random_log_probs(seed, 5, 4, 1.0)
    expected = sorted(readings(log_probs, merge).items(), key=lambda item: -item[1])[:10]
    options = BeamSettings(width=2000, merge=merge, token_floor=-1e9, score_floor=1e9)
    found = beam_search(log_probs, tokenizer, seconds_per_frame=0.04, settings=options, count=10)
    assert [each.ids for each in found] == [ids for ids, _ in expected]
    assert [each.score for each in found] == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_boosts_are_what_the_scale_says(seed: int) -> None:
    """Every labelling's score plus its phrases' worth, by going through all paths."""
    tokenizer = CharTokenizer([" ", "a", "b"])
    log_probs = random_log_probs(seed, 6, 4, 0.7)
    boosts = BoostTree([Boost(phrases=("ab",), boost=15.0), Boost(phrases=("a",), boost=-12.0)], tokenizer)

    def worth(text: str) -> float:
        words = text.split()
        return NATS_PER_CHARACTER * (15.0 * 2 * words.count("ab") - 12.0 * words.count("a"))

    scores = {
        "".join(tokenizer.pieces(ids)): score + worth("".join(tokenizer.pieces(ids)))
        for ids, score in readings(log_probs, "max").items()
    }
    expected = sorted(scores, key=lambda text: -scores[text])[:8]
    options = BeamSettings(width=3000, token_floor=-1e9, score_floor=1e9)
    assert search(log_probs, tokenizer, settings=options, boosts=boosts, count=8) == expected


# Phrases


def test_a_boosted_word_wins_over_a_likelier_one_and_is_not_invented() -> None:
    log_probs = spelt("a bat b", LETTERS.vocabulary, rival="a cat b", share=0.2)
    assert search(log_probs) == ["a bat b"]
    boosts = BoostTree([Boost(phrases=("cat",), boost=20.0)], LETTERS)
    assert search(log_probs, boosts=boosts) == ["a cat b"]
    assert search(spelt("a bab b", LETTERS.vocabulary), boosts=boosts) == ["a bab b"]


def test_the_advance_is_withdrawn_when_the_word_goes_on_otherwise() -> None:
    """`bat` is boosted; `bata` begins like it and is another word."""
    boosts = BoostTree([Boost(phrases=("bat",), boost=20.0)], LETTERS)
    state = boosts.start
    bonuses = []
    for sign in "bata":
        state = boosts.after(state, LETTERS.vocabulary.index(sign))
        bonuses.append(state.bonus)
    assert bonuses == pytest.approx([1.0, 2.0, 3.0, 0.0])
    assert boosts.final(state) == 0.0
    log_probs = spelt("cata", LETTERS.vocabulary, rival="bata", share=0.3)
    assert search(log_probs, boosts=boosts) == ["cata"]


def bonus_of(boosts: BoostTree, tokens: list[int]) -> float:
    state = boosts.start
    for token in tokens:
        state = boosts.after(state, token)
    return boosts.final(state)


def letters(text: str) -> list[int]:
    return [LETTERS.vocabulary.index(sign) for sign in text]


def test_phrases_of_several_words_and_phrases_within_phrases() -> None:
    unit = NATS_PER_CHARACTER * 10
    boosts = BoostTree([Boost(phrases=("ab", "ab cat"), boost=10.0)], LETTERS)
    assert bonus_of(boosts, letters("ab")) == pytest.approx(2 * unit)
    assert bonus_of(boosts, letters("ab cat")) == pytest.approx(6 * unit)
    assert bonus_of(boosts, letters("ab ca")) == pytest.approx(2 * unit)
    assert bonus_of(boosts, letters("ab ab")) == pytest.approx(4 * unit)
    assert bonus_of(boosts, letters("cab cat")) == 0.0
    assert bonus_of(boosts, letters("c ab  cat a")) == pytest.approx(6 * unit)


def test_a_phrase_is_found_however_it_is_cut() -> None:
    pieces = Pieces(["▁", "▁c", "c", "a", "t", "at", "▁cat", "▁ca", "s"])
    boosts = BoostTree([Boost(phrases=("cat",), boost=10.0)], pieces)
    ways = [["▁cat"], ["▁c", "at"], ["▁", "c", "a", "t"], ["▁ca", "t"], ["c", "at"]]
    for way in ways:
        ids = [pieces.vocabulary.index(piece) for piece in way]
        assert bonus_of(boosts, ids) == pytest.approx(10 * NATS_PER_CHARACTER * 3), way
        assert bonus_of(boosts, [*ids, pieces.vocabulary.index("s")]) == 0.0
    onward = {pieces.vocabulary[token] for token in boosts.onward(boosts.start)}
    assert onward == {"▁", "▁c", "c", "▁cat", "▁ca"}
    state = boosts.after(boosts.start, pieces.vocabulary.index("▁c"))
    assert {pieces.vocabulary[token] for token in boosts.onward(state)} == {"a", "at", "▁", "▁c", "▁cat", "▁ca"}


def test_rare_pieces_of_a_boosted_phrase_are_considered_though_they_lie_below_the_floor() -> None:
    log_probs = spelt("a bat b", LETTERS.vocabulary, rival="a cat b", share=2e-4)
    options = BeamSettings(token_floor=-5.0)
    strong = BoostTree([Boost(phrases=("cat",), boost=100.0)], LETTERS)
    assert search(log_probs, settings=options) == ["a bat b"]
    assert search(log_probs, settings=options, boosts=strong) == ["a cat b"]


def test_negative_boosts_forbid_and_boosts_are_clamped() -> None:
    log_probs = spelt("a bat b", LETTERS.vocabulary, rival="a cat b", share=0.02)
    assert search(log_probs, boosts=BoostTree([Boost(phrases=("bat",), boost=-100.0)], LETTERS)) == ["a cat b"]
    huge = BoostTree([Boost(phrases=("bat",), boost=1e9)], LETTERS)
    assert bonus_of(huge, letters("bat")) == pytest.approx(100 * NATS_PER_CHARACTER * 3)


def test_phrases_that_cannot_be_written_are_told_and_case_follows_the_vocabulary() -> None:
    boosts = BoostTree([Boost(phrases=("CAT", "naïve", "", "  ", "a  B"), boost=10.0)], LETTERS)
    assert boosts.ignored == ("naïve", "", "  ")
    assert bonus_of(boosts, letters("cat")) > 0
    assert bonus_of(boosts, letters("a b")) > 0
    assert not BoostTree([Boost(phrases=(), boost=3.0)], LETTERS)


def test_alternatives_are_different_texts_best_first() -> None:
    log_probs = spelt("a bat b", LETTERS.vocabulary, rival="a cat b", share=0.3)
    found = beam_search(log_probs, LETTERS, seconds_per_frame=0.04, count=5)
    assert [each.text for each in found[:2]] == ["a bat b", "a cat b"]
    assert len({each.text for each in found}) == len(found) == 5
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert found[1].score == pytest.approx(found[0].score + math.log(0.3 / 0.7), abs=1e-2)


def test_nothing_said_is_one_empty_reading() -> None:
    silence = np.log(np.tile([[1e-6] * 5 + [1 - 5e-6]], (10, 1))).astype(np.float32)
    found = beam_search(silence, LETTERS, seconds_per_frame=0.04)
    assert [each.text for each in found] == [""]
    assert beam_search(silence[:0], LETTERS, seconds_per_frame=0.04)[0].text == ""


def test_a_large_vocabulary_is_searched_faster_than_it_is_spoken() -> None:
    """Ten seconds of peaky frames over 1024 pieces, with a hundred phrases."""
    generator = np.random.default_rng(0)
    vocabulary = Pieces(
        [f"▁{a}{b}" for a in "abcdefghijklmnopqrstuvwxyzäöüßéè" for b in "abcdefghijklmnopqrstuvwxyzäöüßéè"]
    )
    log_probs = random_log_probs(1, 250, vocabulary.size + 1, 1.5)
    for frame in range(250):
        log_probs[frame, vocabulary.size if frame % 3 else generator.integers(vocabulary.size)] += 12.0
    log_probs -= np.log(np.exp(log_probs.astype(np.float64)).sum(axis=1, keepdims=True)).astype(np.float32)
    phrases = tuple(f"{vocabulary.vocabulary[n][1:]} {vocabulary.vocabulary[n + 1][1:]}" for n in range(0, 1000, 10))
    boosts = BoostTree([Boost(phrases=phrases, boost=10.0)], vocabulary)
    began = time.monotonic()
    beam_search(log_probs, vocabulary, seconds_per_frame=0.04, boosts=boosts, count=3)
    assert time.monotonic() - began < 60.0  # a search that is not linear takes hours


def test_a_real_sentencepiece_vocabulary() -> None:
    import io

    from overtone.tokenizers import SentencePieceTokenizer

    model = io.BytesIO()
    sentences = ["the cat sat on the mat", "a cat and a bat", "that cat is fat", "the bat sat"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=30, model_type="bpe", minloglevel=2
    )
    tokenizer = SentencePieceTokenizer(model.getvalue())
    boosts = BoostTree([Boost(phrases=("the cat", "zebra"), boost=10.0)], tokenizer)
    assert boosts.ignored == ("zebra",)
    assert bonus_of(boosts, tokenizer.encode("the cat sat")) == pytest.approx(10 * NATS_PER_CHARACTER * 7)
    assert bonus_of(boosts, tokenizer.encode("the cats")) == 0.0
