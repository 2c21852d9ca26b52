"""The text of the general prior: nothing that a test set says, nothing of books that are read aloud in the corpora."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from overtone.adapters.prior import FILE, read_prior
from overtone.adapters.words import WordPart
from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_compact import compact, expand
from overtone.decoding.ngram_counts import build_ngram

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "fundamental"
FRONT = "Title page. " * 100
"""The front of a book, which is passed over."""


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPE))
    return importlib.import_module("prior")


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """The test manifests that no text may quote."""
    said = {
        "librispeech_resemblyzer/test_other": "the old man walked slowly to the river",
        "ljtext_matthes/test": "x y z",
    }
    for name in (
        "speechocean762/test",
        "librispeech_resemblyzer/test_other",
        "ljtext_matthes/test",
        "common_voice_rit100/test",
        "asterisk_prompts/train",
        "asterisk_prompts/test",
    ):
        path = tmp_path / "speech" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": said.get(name, "please hold the line")}) + "\n", "utf-8")
    return tmp_path / "speech"


def write_book(folder: Path, number: int, prose: str) -> None:
    folder.mkdir(exist_ok=True)
    text = f"*** START OF THE BOOK ***\n{FRONT}{prose}\n*** END OF THE BOOK ***\n"
    (folder / f"{number}.txt").write_text(text, "utf-8")


def test_test_sets_and_books_read_aloud_stay_out(recipe: Any, speech: Path, tmp_path: Path) -> None:
    books = tmp_path / "books"
    write_book(
        books, 11, "A cat sat there. We saw the old man walked slowly to town. Please hold the line. She laughed."
    )
    for number in recipe.READ_ALOUD:
        write_book(books, int(number), "An archipelago was found.")
    texts = recipe.prior_texts(books, speech)
    assert {"a cat sat there", "she laughed"} <= set(texts)
    assert not [text for text in texts if "old man walked" in text or "hold the line" in text or "archipelago" in text]
    assert len(texts) > 15_000, "the grammar's sentences are among them"
    assert texts == recipe.prior_texts(books, speech), "the same each time"


def test_without_books_nothing_is_counted(recipe: Any, speech: Path, tmp_path: Path) -> None:
    write_book(tmp_path / "books", 45, "Only a book that is left out.")
    with pytest.raises(SystemExit, match="no book to count"):
        recipe.prior_texts(tmp_path / "books", speech)


def test_the_file_is_read_as_the_prior(recipe: Any, tmp_path: Path) -> None:
    rows = compact(build_ngram([[0, 1, 2, 3], [0, 1, 2]], vocabulary_size=5, order=3).to_tensors())
    ngram = Ngram.from_tensors(expand(rows))
    part = WordPart(tokenizer_digest="sha256:one", ngram=ngram, weight=0.9, token_bonus=3.0, beam=16)
    (tmp_path / "prior.safetensors").write_bytes(recipe.compact_file(part, rows))
    prior = read_prior(tmp_path / "prior.safetensors")
    assert prior is not None
    assert (prior.tokenizer_digest, prior.weight, prior.token_bonus, prior.beam) == ("sha256:one", 0.9, 3.0, 16)
    assert prior.ngram.sentence_log_prob([0, 1, 2]) == ngram.sentence_log_prob([0, 1, 2])


def test_the_published_prior_has_what_the_recipe_says(recipe: Any) -> None:
    prior = read_prior(FILE)
    assert prior is not None
    assert (prior.weight, prior.token_bonus, prior.beam) == (recipe.WEIGHT, recipe.TOKEN_BONUS, recipe.BEAM)
    assert len(prior.ngram) <= recipe.LARGEST
