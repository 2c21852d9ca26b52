"""Beam search of transducers: beside greedy, beside all alignments there are, with words, row by row and in parts."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone.decoding.decoder import BeamSettings
from overtone.decoding.fusion import NO_WORDS, Words
from overtone.decoding.ngram_counts import build_ngram
from overtone.decoding.phrase_boost import Boost, BoostTree
from overtone.decoding.transducer import TransducerBeamDecoder, TransducerDecoder, TransducerSearch
from overtone.decoding.transducer_beam import TransducerBeamSearch
from overtone.nets.transducer import Joint, RecurrentPrediction
from support.small_transducer import BLANK, LETTERS, frames_of, make_search

NGRAM = build_ngram([LETTERS.encode(text) for text in ("a bad cab", "dad", "a fad")], vocabulary_size=BLANK, order=3)
BOOSTS = BoostTree([Boost(phrases=("cab", "bad", "a d"), boost=20.0)], LETTERS)
KINDS = [(), (0, 1, 2, 4), (1, 2)]
ROWS = [
    NO_WORDS,
    Words(ngrams=((NGRAM, 0.6),), token_bonus=0.4),
    Words(boosts=(BOOSTS,)),
    Words(ngrams=((NGRAM, 0.3),), boosts=(BOOSTS,)),
    NO_WORDS,
]


def beam_of(search: TransducerSearch, rows: list[Words], options: BeamSettings) -> TransducerBeamSearch:
    return TransducerBeamSearch(search.joint, search.prediction, rows, options, max_symbols=search.max_symbols)


@pytest.mark.parametrize("durations", KINDS)
@pytest.mark.parametrize("stateless", [False, True])
@pytest.mark.parametrize("max_symbols", [1, 3])
def test_a_width_of_one_without_words_is_greedy(durations: tuple[int, ...], stateless: bool, max_symbols: int) -> None:
    lengths, said = [23, 1, 9, 17, 0], 0
    for seed in range(3):
        search = make_search(seed, durations, max_symbols=max_symbols, stateless=stateless, blank=2.0 * seed - 1.0)
        frames = frames_of(5, 23, seed)
        with torch.no_grad():
            beam = beam_of(search, [NO_WORDS] * 5, BeamSettings(width=1))
            beam.push(frames, torch.tensor(lengths))
        for ((found, _),), expected in zip(
            beam.best(1, lengths), search.paths(frames, torch.tensor(lengths)), strict=True
        ):
            assert found.ids.tolist() == expected.ids.tolist()
            assert found.places.tolist() == expected.places.tolist()
            assert found.durations.tolist() == expected.durations.tolist()
            assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-4)
            said += len(expected.ids)
            if not durations and len(expected.ids) < max_symbols:
                assert found.score == pytest.approx(expected.score, abs=1e-3)
    assert said > 20


def all_readings(search: TransducerSearch, frames: torch.Tensor, merge: str) -> dict[tuple[int, ...], float]:
    """Every text of a transducer without durations, by going through all alignments with few tokens a frame."""
    found: dict[tuple[int, ...], list[float]] = defaultdict(list)
    joint, prediction = search.joint, search.prediction

    def walk(time: int, symbols: int, ids: tuple[int, ...], score: float) -> None:
        if time == len(frames):
            found[ids].append(score)
            return
        output, state = prediction.begin(1)
        for token in ids:
            output, state = prediction.step(torch.tensor([token]), state)
        scores = joint(frames[None, time : time + 1], joint.pred(output)[:, None])[0, 0, 0].log_softmax(-1)
        walk(time + 1, 0, ids, score + float(scores[-1]))
        for token in range(joint.blank):
            full = symbols + 1 >= search.max_symbols
            walk(time + full, 0 if full else symbols + 1, (*ids, token), score + float(scores[token]))

    walk(0, 0, (), 0.0)
    if merge == "max":
        return {ids: max(scores) for ids, scores in found.items()}
    return {ids: math.log(sum(map(math.exp, scores))) for ids, scores in found.items()}


@pytest.mark.parametrize("merge", ["max", "sum"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_wide_beam_finds_what_going_through_all_alignments_finds(merge: str, fused: bool) -> None:
    torch.manual_seed(3)
    joint = Joint(encoder_width=4, prediction_width=6, width=6, classes=2).eval()
    search = TransducerSearch(joint, RecurrentPrediction(classes=2, width=6).eval(), max_symbols=2)
    frames = frames_of(1, 3, 5)
    ngram = build_ngram([[0, 1, 0], [1, 1]], vocabulary_size=2, order=2)
    words = Words(ngrams=((ngram, 0.8),), token_bonus=0.3) if fused else NO_WORDS
    options = BeamSettings(width=500, merge=merge, token_floor=-1e9, score_floor=1e9)  # type: ignore[arg-type]
    with torch.no_grad():
        beam = beam_of(search, [words], options)
        beam.push(frames, torch.tensor([3]))
        own = all_readings(search, frames[0], merge)
    gains = {ids: 0.8 * ngram.sentence_log_prob(ids) + 0.3 * len(ids) if fused else 0.0 for ids in own}
    expected = sorted(own, key=lambda ids: -own[ids] - gains[ids])[:8]
    (found,) = beam.best(8, [3])
    assert [tuple(path.ids.tolist()) for path, _ in found] == expected
    assert [rank for _, rank in found] == pytest.approx([own[ids] + gains[ids] for ids in expected], abs=1e-4)
    assert [path.score for path, _ in found] == pytest.approx([own[ids] for ids in expected], abs=1e-4)


@pytest.mark.parametrize("durations", KINDS)
@pytest.mark.parametrize("width", [1, 4])
def test_each_row_of_a_batch_is_searched_as_if_alone(durations: tuple[int, ...], width: int) -> None:
    lengths, search = [19, 12, 19, 5, 0], make_search(1, durations)
    frames = frames_of(5, 19, 2)
    options = BeamSettings(width=width)
    with torch.no_grad():
        beam = beam_of(search, ROWS, options)
        beam.push(frames, torch.tensor(lengths))
        found = beam.best(3, lengths)
        changed = 0
        for row, (words, length) in enumerate(zip(ROWS, lengths, strict=True)):
            alone = beam_of(search, [words], options)
            alone.push(frames[row : row + 1, :length], torch.tensor([length]))
            (expected,) = alone.best(3, [length])
            assert [path.ids.tolist() for path, _ in found[row]] == [path.ids.tolist() for path, _ in expected]
            assert [path.places.tolist() for path, _ in found[row]] == [path.places.tolist() for path, _ in expected]
            plain = beam_of(search, [NO_WORDS], options)
            plain.push(frames[row : row + 1, :length], torch.tensor([length]))
            changed += plain.best(1, [length])[0][0][0].ids.tolist() != expected[0][0].ids.tolist()
    assert changed >= 2, "words that change nothing show nothing"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(KINDS), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_stream_in_parts_is_the_whole_and_what_is_settled_does_not_change(
    seed: int, durations: tuple[int, ...], parts: list[int]
) -> None:
    search = make_search(seed, durations)
    frames = frames_of(1, sum(parts), seed)[0].numpy()
    words = Words(ngrams=((NGRAM, 0.5),), boosts=(BOOSTS,))
    options = BeamSettings(width=4, settled_lead=math.inf)

    def new() -> TransducerBeamDecoder:
        greedy = TransducerDecoder(search, LETTERS, seconds_per_frame=0.08, first_frame=7)
        return TransducerBeamDecoder(greedy, words=words, settings=options)

    whole, decoder = new(), new()
    whole.push(frames)
    final = whole.hypotheses(3)
    for first, last in itertools.pairwise(itertools.accumulate(parts, initial=0)):
        fork = decoder.fork()
        fork.push(frames[first:last][::-1].copy())  # a look ahead leaves no trace
        silent = decoder.silent(frames[first:last])
        decoder.push(frames[first:last])
        assert len(silent) == last - first
        assert decoder.settled <= decoder.frames == last
        settled = decoder.settled + 7
        ids = [each for each, span in zip(final[0].ids, final[0].spans, strict=True) if span[0] < settled]
        assert list(decoder.hypotheses()[0].ids[: len(ids)]) == ids
    assert decoder.hypotheses(3) == final
    assert len({each.text for each in final}) == len(final)


def test_a_boosted_word_is_found_and_alternatives_are_ranked() -> None:
    search, frames = make_search(5), frames_of(1, 12, 4)
    greedy = search.paths(frames, torch.tensor([12]))[0].ids.tolist()
    boosts = BoostTree([Boost(phrases=("cab",), boost=100.0)], LETTERS)
    texts = []
    for words in (NO_WORDS, Words(boosts=(boosts,))):
        decoder = TransducerBeamDecoder(
            TransducerDecoder(search, LETTERS, seconds_per_frame=0.08), words=words, settings=BeamSettings(width=8)
        )
        decoder.push(frames[0].numpy())
        texts.append([each.text for each in decoder.hypotheses(5)])
        assert len(texts[-1]) == 5
    assert "cab" not in " ".join(LETTERS.decode(greedy)).split()
    assert "cab" not in texts[0][0].split()
    assert "cab" in texts[1][0].split()
