"""Greedy CTC: by hand, by rule, and beside NeMo."""

from __future__ import annotations

import json
import math
import tarfile
from functools import cache

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone.decoding.ctc import CtcPath, best_path, greedy, read_path
from overtone.decoding.hypothesis import Hypothesis
from overtone.tokenizers import CharTokenizer, SentencePieceTokenizer, Tokenizer
from support.fixtures import fixture_file

LETTERS = CharTokenizer([" ", "a", "b", "c"])
BLANK = 4


def log_probs_of(frames: list[int], probability: float | list[float] = 0.9) -> torch.Tensor:
    """[1, T, 5]: each frame gives its symbol the probability and shares the rest among the others."""
    probabilities = probability if isinstance(probability, list) else [probability] * len(frames)
    table = torch.tensor([[(1 - p) / 4] * 5 for p in probabilities])
    for frame, symbol in enumerate(frames):
        table[frame, symbol] = probabilities[frame]
    return table.log().unsqueeze(0)


def read(frames: list[int], probability: float | list[float] = 0.9) -> Hypothesis:
    log_probs = log_probs_of(frames, probability)
    (hypothesis,) = greedy(log_probs, torch.tensor([len(frames)]), LETTERS, seconds_per_frame=0.04)
    return hypothesis


def test_repeats_merge_and_blanks_part_them() -> None:
    hypothesis = read([1, 1, 4, 1, 2, 2, 4])
    assert hypothesis.text == "aab"
    assert hypothesis.ids == (1, 1, 2)
    assert hypothesis.spans == ((0, 2), (3, 4), (4, 6))


def test_words_have_times_and_the_confidence_of_their_least_sure_token() -> None:
    hypothesis = read([4, 1, 1, 2, 0, 4, 3, 4], [0.9, 0.8, 0.6, 0.9, 0.5, 0.9, 0.95, 0.9])
    assert [word.text for word in hypothesis.words] == ["ab", "c"]
    assert [(word.start, word.end) for word in hypothesis.words] == [(0.04, 0.16), (0.24, 0.28)]
    assert [word.confidence for word in hypothesis.words] == pytest.approx([0.7, 0.95])


def test_score_is_the_log_probability_of_the_path() -> None:
    assert read([1, 4, 2], [0.5, 0.8, 0.9]).score == pytest.approx(math.log(0.5 * 0.8 * 0.9))


def test_frames_past_the_length_are_not_read() -> None:
    log_probs = log_probs_of([1, 4, 2, 3]).repeat(2, 1, 1)
    short, none = greedy(log_probs, torch.tensor([3, 0]), LETTERS, seconds_per_frame=0.04)
    assert short.text == "ab"
    assert none == Hypothesis(text="")


def test_only_blanks_and_only_spaces_hold_no_words() -> None:
    assert read([4, 4, 4]).text == ""
    assert read([4, 4, 4]).words == ()
    spaces = read([0, 4, 0])
    assert spaces.text == "  "
    assert spaces.words == ()


@settings(deadline=None)
@given(st.lists(st.integers(0, BLANK), min_size=1, max_size=40))
def test_words_are_those_of_the_text_in_order_without_overlap(frames: list[int]) -> None:
    path = CtcPath(ids=np.array(frames), log_probs=np.full(len(frames), -0.1, np.float32), blank=BLANK)
    hypothesis = read_path(path, LETTERS, seconds_per_frame=0.08)
    assert [word.text for word in hypothesis.words] == hypothesis.text.split()
    times = [time for word in hypothesis.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(word.start < word.end for word in hypothesis.words)
    assert len(hypothesis.ids) == len(hypothesis.spans)


def test_best_path_of_half_precision_is_float32() -> None:
    (path,) = best_path(log_probs_of([1, 2]).bfloat16(), torch.tensor([2]))
    assert path.log_probs.dtype == np.float32
    assert path.blank == BLANK


NEMO_CASES = [
    (model, combo)
    for model in ("conformer_ctc_bpe", "conformer_ctc_char", "fastconformer_ctc_bpe")
    for combo in ("base", "an4", "two", "an4+two", "rel", "wide", "mhsa", "an4+rel", "dec", "both", "all", "none")
]


@cache
def tokenizer_of(model: str) -> Tokenizer:
    with tarfile.open(fixture_file(f"{model}/model.nemo")) as archive:
        names = {name.lower(): name for name in archive.getnames()}
        for name in names.values():
            if name.endswith("tokenizer.model"):
                member = archive.extractfile(name)
                assert member is not None
                return SentencePieceTokenizer(member.read())
        config = archive.extractfile(next(name for name in names.values() if name.endswith("model_config.yaml")))
        assert config is not None
        return CharTokenizer(yaml.safe_load(config.read())["decoder"]["vocabulary"])


@pytest.mark.parametrize(("model", "combo"), NEMO_CASES)
def test_text_equals_that_of_nemo(model: str, combo: str) -> None:
    texts = json.loads(fixture_file(f"{model}/ref_{combo}.json").read_text("utf-8"))
    arrays = np.load(fixture_file(f"{model}/ref_{combo}.npz"))
    for part in (part for part in ("0", "1", "2", "b") if f"logp_{part}" in arrays):
        log_probs = torch.from_numpy(arrays[f"logp_{part}"])
        lengths = torch.from_numpy(arrays[f"enc_len_{part}"])
        hypotheses = greedy(log_probs, lengths, tokenizer_of(model), seconds_per_frame=0.04)
        assert [hypothesis.text for hypothesis in hypotheses] == texts[f"ctc_{part}"]
        paths = [path.ids.tolist() for path in best_path(log_probs, lengths)]
        assert paths == [ids[: len(path)] for ids, path in zip(texts[f"ctc_ids_{part}"], paths, strict=True)]
        for hypothesis in hypotheses:
            assert [word.text for word in hypothesis.words] == hypothesis.text.split()
