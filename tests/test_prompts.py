"""The telephone prompts that the package ships: whole, decodable, and disjoint between training and test."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

PROMPTS = Path(str(files("overtone") / "prompts"))
TEST_NAMES = Path(__file__).parents[1] / "recipes" / "prompts" / "test_names.txt"
SPLITS = ["train", "test"]


@cache
def manifest(split: str) -> list[dict[str, Any]]:
    lines = (PROMPTS / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def texts(split: str) -> list[str]:
    return [entry["text"] for entry in manifest(split)]


@pytest.mark.parametrize("split", SPLITS)
def test_texts_are_written_out(split: str) -> None:
    assert [text for text in texts(split) if not re.fullmatch(r"[a-z']+( [a-z']+)*", text)] == []


@pytest.mark.parametrize("split", SPLITS)
def test_audio_decodes_and_is_as_long_as_stated(split: str) -> None:
    for entry in manifest(split):
        assert entry.keys() == {"audio_filepath", "duration", "text"}
        samples, rate = soundfile.read(PROMPTS / entry["audio_filepath"], dtype="float32")
        assert (rate, samples.ndim) == (16_000, 1), entry
        assert abs(len(samples) / rate - entry["duration"]) < 0.010, entry
        assert 0.1 < np.abs(samples).max() < 1.0, entry


def test_every_file_is_in_one_manifest() -> None:
    listed = [entry["audio_filepath"] for split in SPLITS for entry in manifest(split)]
    assert sorted(listed) == sorted(f"audio/{path.name}" for path in (PROMPTS / "audio").iterdir())


def test_every_sentence_is_there_once() -> None:
    sentences = texts("train") + texts("test")
    assert len(sentences) == len(set(sentences))


def test_no_sentence_is_part_of_one_in_the_other_split() -> None:
    def parts(whole: str, others: list[str]) -> list[str]:
        return [text for text in others if text.count(" ") >= 2 and f" {text} " in f" {whole} "]

    assert [(whole, parts(whole, texts("test"))) for whole in texts("train") if parts(whole, texts("test"))] == []
    assert [(whole, parts(whole, texts("train"))) for whole in texts("test") if parts(whole, texts("train"))] == []


def test_no_six_words_in_a_row_are_in_both_splits() -> None:
    def runs(split: str) -> set[tuple[str, ...]]:
        sentences = [text.split() for text in texts(split)]
        return {tuple(words[i : i + 6]) for words in sentences for i in range(len(words) - 5)}

    assert runs("train") & runs("test") == set()


def test_names_kept_for_testing_are_not_trained_on() -> None:
    kept = {name.replace("/", "_") for name in TEST_NAMES.read_text("utf-8").split()}
    assert {Path(entry["audio_filepath"]).stem for entry in manifest("test")} <= kept
    assert {Path(entry["audio_filepath"]).stem for entry in manifest("train")} & kept == set()


def test_amount() -> None:
    minutes = {split: sum(entry["duration"] for entry in manifest(split)) / 60 for split in SPLITS}
    assert 9 < sum(minutes.values()) < 11
    assert 0.25 < minutes["test"] / sum(minutes.values()) < 0.35
    assert sum(len(text.split()) for text in texts("test")) >= 350
    assert sum(path.stat().st_size for path in PROMPTS.rglob("*")) < 3_000_000


def test_folder_carries_its_licence_and_no_code() -> None:
    for name in ["LICENSE", "README.md"]:
        text = (PROMPTS / name).read_text("utf-8")
        assert "Allison Smith" in text
        assert "Digium, Inc." in text
        assert "https://creativecommons.org/licenses/by-sa/3.0/" in text
    assert list(PROMPTS.rglob("*.py")) == []
