"""What windows of a stream say about the same frames, averaged."""

from __future__ import annotations

import numpy as np
import pytest

from overtone.decoding.ctc import GreedyDecoder
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.recognition.request import Endpointing
from overtone.serving.streaming.stream import Stream, StreamSettings
from overtone.serving.streaming.utterances import Ended, Overlap, Utterances
from overtone.tokenizers import CharTokenizer
from support.serving_models import noise, tiny_model
from support.streams import frames_of
from support.tone_model import ToneModel

BLANK = 2


def likely(ids: list[int], probability: float = 0.9) -> np.ndarray:
    """[T, 3]: each frame sure of its symbol."""
    table = np.full((len(ids), 3), (1 - probability) / 2, dtype=np.float32)
    table[np.arange(len(ids)), ids] = probability
    return np.log(table)


def random_log_probs(frames: int, seed: int) -> np.ndarray:
    scores = np.random.default_rng(seed).standard_normal((frames, 5)).astype(np.float32)
    return np.asarray(scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True)), dtype=np.float32)


def test_what_one_window_alone_heard_is_untouched() -> None:
    log_probs = random_log_probs(9, seed=0)
    overlap = Overlap()
    first = overlap.push(log_probs, start=0, keep_from=0, keep_to=4)
    np.testing.assert_array_equal(first, log_probs[:4])
    beyond = overlap.push(log_probs, start=4, keep_from=4, keep_to=13, ends=True)  # the first one ended at frame 9
    np.testing.assert_array_equal(beyond[5:], log_probs[5:])


def test_windows_that_agree_give_what_the_whole_gives() -> None:
    whole = random_log_probs(23, seed=1)
    overlap = Overlap()
    chunks = [
        overlap.push(whole[max(0, kept - 5) : kept + 9], start=max(0, kept - 5), keep_from=kept, keep_to=kept + 3)
        for kept in range(0, 15, 3)
    ]
    chunks.append(overlap.push(whole[10:], start=10, keep_from=15, keep_to=23, ends=True))
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-5)


def test_each_window_counts_for_its_shorter_context() -> None:
    """By hand: a frame is worth the frames to the nearer end of its window, itself included."""
    before, after = likely([BLANK] * 8, 0.6), likely([1] * 8, 0.8)
    overlap = Overlap()
    overlap.push(before, start=0, keep_from=2, keep_to=4)
    chunk = overlap.push(after, start=2, keep_from=4, keep_to=6)
    # Frame 4: min(5, 4) of the window [0, 8) and min(3, 6) of [2, 10); frame 5: min(6, 3) and min(4, 5).
    expected = [
        (4 * np.exp(before[0]) + 3 * np.exp(after[0])) / 7,
        (3 * np.exp(before[0]) + 4 * np.exp(after[0])) / 7,
    ]
    np.testing.assert_allclose(np.exp(chunk), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(chunk).sum(axis=-1), 1.0, rtol=1e-5)


def test_three_windows_are_averaged_together() -> None:
    tables = [likely([symbol] * 6) for symbol in (0, 1, 2)]
    overlap = Overlap()
    for index, table in enumerate(tables):
        chunk = overlap.push(table, start=1 + index, keep_from=2 + index, keep_to=3 + index)
    weights = np.array([3, 3, 2])  # of frame 4, in [1, 7), [2, 8) and [3, 9): min(4, 3), min(3, 4), min(2, 5)
    expected = sum(weight * np.exp(table[0]) for weight, table in zip(weights, tables, strict=True)) / weights.sum()
    np.testing.assert_allclose(np.exp(chunk[0]), expected, rtol=1e-5)


def test_a_token_that_jumps_over_the_border_is_neither_doubled_nor_lost() -> None:
    """The window before heard the token well inside its context; the newest, which barely saw it, puts it later."""
    overlap = Overlap()
    first = overlap.push(likely([BLANK, BLANK, 1, BLANK, BLANK, BLANK, BLANK, BLANK]), start=0, keep_from=0, keep_to=3)
    second = overlap.push(
        likely([BLANK, 1, BLANK, BLANK, BLANK, BLANK], 0.7), start=2, keep_from=3, keep_to=6, ends=True
    )
    assert first.argmax(axis=-1).tolist() == [BLANK, BLANK, 1]
    assert second.argmax(axis=-1).tolist() == [BLANK, BLANK, BLANK]
    overlap = Overlap()
    first = overlap.push(likely([BLANK, BLANK, BLANK, 1, BLANK, BLANK, BLANK, BLANK]), start=0, keep_from=0, keep_to=3)
    second = overlap.push(
        likely([1, BLANK, BLANK, BLANK, BLANK, BLANK], 0.7), start=2, keep_from=3, keep_to=6, ends=True
    )
    assert [*first.argmax(axis=-1), *second.argmax(axis=-1)].count(1) == 1


def test_a_window_that_heard_nothing_more_is_forgotten() -> None:
    """At the beginning all windows begin together: the newest knows everything that the others knew."""
    overlap = Overlap()
    overlap.push(random_log_probs(8, seed=2), start=0, keep_from=0, keep_to=3)
    newest = random_log_probs(11, seed=3)
    chunk = overlap.push(newest, start=0, keep_from=3, keep_to=6)
    np.testing.assert_array_equal(chunk, newest[3:6])


def test_at_the_end_nothing_is_missing_on_the_right() -> None:
    before, after = likely([0] * 8), likely([1] * 6)
    overlap = Overlap()
    overlap.push(before, start=0, keep_from=2, keep_to=4)
    chunk = overlap.push(after, start=2, keep_from=4, keep_to=8, ends=True)
    expected = [(w * np.exp(before[0]) + v * np.exp(after[0])) / (w + v) for w, v in ((4, 3), (3, 4), (2, 5), (1, 6))]
    np.testing.assert_allclose(np.exp(chunk), expected, rtol=1e-5)


def test_probabilities_of_zero_do_not_end_in_infinities() -> None:
    never = np.array([[0.0, -np.inf, -200.0]] * 6, dtype=np.float32)
    overlap = Overlap()
    overlap.push(never, start=0, keep_from=1, keep_to=2)
    assert np.isfinite(overlap.push(never, start=1, keep_from=2, keep_to=4)).all()


@pytest.mark.parametrize("context", [(0.8, 1.6, 1.6), (0.16, 0.8, 0.8)])
def test_looking_ahead_leaves_no_trace_in_what_is_kept(context: tuple[float, float, float]) -> None:
    """Interim results hang on how the audio comes, and final ones must not."""
    chunk, left, right = context
    with Engine(tiny_model(), EngineSettings(max_wait=0.0)) as engine:
        heard = [
            frames_of(
                Stream(engine, settings=StreamSettings(chunk=chunk, left=left, right=right, interim=interim)),
                noise(5.0, seed=7),
                portion,
            )
            for interim, portion in ((True, 1600), (False, 10**9))
        ]
    np.testing.assert_allclose(heard[0], heard[1], atol=1e-4)


@pytest.mark.parametrize(("ending", "texts"), [("<EOU>", ["a", "aa"]), ("<EOB>", ["a", "aa"]), ("c", [])])
def test_the_model_itself_may_end_an_utterance(ending: str, texts: list[str]) -> None:
    """Long before the silence that the endpointing waits for; the mark is not in the text."""
    tones = ToneModel()
    tones.tokenizer = CharTokenizer(["a", ending])

    def new_decoder(first: int) -> GreedyDecoder:
        return GreedyDecoder(tones.tokenizer, seconds_per_frame=0.04, first_frame=first)

    with Engine(tones, EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
        pieces = tones.tokenizer.vocabulary
        utterances = Utterances(engine, Endpointing(), new_decoder, pieces=pieces, max_utterance=30.0, lead=0)
        chunks = [[BLANK, 0, BLANK, 1], [BLANK] * 4, [0, BLANK, 0], [1, BLANK]]
        events = [event for chunk in chunks for event in utterances.push(likely(chunk), 0.0)]
    found = [event.decoder.hypotheses()[0].text for event in events if isinstance(event, Ended)]
    assert found == texts
