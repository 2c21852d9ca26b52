"""`tokenizer.json` splits and joins as in transformers, and becomes the sentencepiece model that it came from."""

from __future__ import annotations

import copy
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from overtone.checkpoints.huggingface.tokenizer import read_model, read_pieces, write_model, write_pieces
from overtone.checkpoints.load import load_model
from overtone.errors import CheckpointError
from overtone.tokenizers import SentencePieceTokenizer
from support.fixtures import HERE

FOLDER = HERE / "fixtures" / "huggingface"
TEXTS = ("two more words", "the doctor said nine", "a  b", "hello ünïcode")
"""The texts of `make.py` there."""


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "ctc" / "tokenizer.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def original() -> SentencePieceTokenizer:
    tokenizer = load_model("fundamental").tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


def test_ids_are_those_of_transformers(content: dict[str, Any]) -> None:
    ids = np.load(FOLDER / "expected.npz")["ids"].tolist()
    theirs = [list(group) for is_end, group in groupby(ids, lambda token: token == -1) if not is_end]
    tokenizer = read_pieces(content, 128, "tokenizer.json")
    assert [tokenizer.encode(text) for text in TEXTS] == theirs
    assert tokenizer.decode(theirs[1]) == TEXTS[1]
    assert [word for word, _, _ in tokenizer.words(theirs[1])] == TEXTS[1].split()


def test_it_is_the_model_that_it_came_from(content: dict[str, Any], original: SentencePieceTokenizer) -> None:
    tokenizer = read_pieces(content, 128, "tokenizer.json")
    assert tokenizer.digest() == original.digest()
    for text in (*TEXTS, "  before and behind  ", "something else altogether", ""):
        assert tokenizer.encode(text) == original.encode(text)


def test_vocabulary_and_merges_are_written_as_transformers_does(
    content: dict[str, Any], original: SentencePieceTokenizer
) -> None:
    written = write_pieces(original, "<pad>")
    assert written["model"]["vocab"] == content["model"]["vocab"]
    assert written["model"]["merges"] == content["model"]["merges"]
    assert written["added_tokens"] == content["added_tokens"]


def unigram_model(folder: Path, **options: Any) -> SentencePieceTokenizer:
    text = folder / "text.txt"
    text.write_text("the doctor said nine more words\nwords of a doctor are more than nine\n" * 30)
    sentencepiece.SentencePieceTrainer.Train(
        input=str(text),
        model_prefix=str(folder / "m"),
        vocab_size=40,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
        **options,
    )
    return SentencePieceTokenizer((folder / "m.model").read_bytes())


def test_unigram_models_with_bytes_symbols_and_tables_come_back(tmp_path: Path) -> None:
    options = {"user_defined_symbols": ["<de>"], "control_symbols": ["<ctl>"]}
    tokenizer = unigram_model(tmp_path, normalization_rule_name="nmt_nfkc_cf", hard_vocab_limit=False, **options)
    again = read_pieces(json.loads(json.dumps(write_pieces(tokenizer, "<blank>"))), tokenizer.size, "x")
    assert read_model(again.model_bytes)[0] == read_model(tokenizer.model_bytes)[0]
    assert again.digest() == tokenizer.digest()
    for text in ("The Doctor", "nine <de> words", "ｗｏｒｄｓ"):
        assert again.encode(text) == tokenizer.encode(text)


def test_a_model_over_single_letters_has_no_form_there(tmp_path: Path) -> None:
    tokenizer = unigram_model(tmp_path, model_type="char", hard_vocab_limit=False)
    with pytest.raises(CheckpointError, match="neither BPE nor unigram"):
        write_pieces(tokenizer, "<pad>")


def test_bytes_of_a_model_are_read_as_they_are_written() -> None:
    pieces = [("<unk>", 0.0, 2), ("▁ä", -1.5, 1), ("<0x41>", 0.0, 6)]
    read, trainer, table = read_model(write_model(pieces, 1, b"\x00" * 300))
    assert read == pieces
    assert trainer[3] == 1
    assert table == b"\x00" * 300


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("model", "type"), "WordPiece", "model.type is WordPiece.*Supported: BPE and Unigram"),
        (("model",), None, "model.type is null"),
        (("normalizer",), {"type": "Lowercase"}, "normalizer.type is Lowercase.*tokenizer.model beside it"),
        (("normalizer", "normalizers"), 3, "normalizer.normalizers is 3"),
        (("normalizer",), {"type": "Replace", "content": "x"}, "normalizer.content is x"),
        (("normalizer",), {"type": "Precompiled", "precompiled_charsmap": "?"}, "precompiled_charsmap is damaged"),
        (("pre_tokenizer",), {"type": "ByteLevel"}, "pre_tokenizer is .*ByteLevel.*Supported: Metaspace"),
        (("model", "vocab"), ["a"], "is malformed"),
        (("added_tokens",), [{"id": "zero"}], "is malformed"),
        (("model", "unk_token"), None, "the unknown token null"),
    ],
)
def test_other_rules_are_refused(content: dict[str, Any], keys: tuple[str, ...], value: Any, words: str) -> None:
    changed = place = copy.deepcopy(content)
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(CheckpointError, match=f"tokenizer.json.*{words}"):
        read_pieces(changed, 128, "tokenizer.json")


def test_normalizers_that_stand_in_each_other_without_end_are_refused(content: dict[str, Any]) -> None:
    nested: dict[str, Any] = {"type": "Strip"}
    for _ in range(5000):
        nested = {"type": "Sequence", "normalizers": [nested]}
    with pytest.raises(CheckpointError, match="too deeply"):
        read_pieces({**content, "normalizer": nested}, 128, "tokenizer.json")
