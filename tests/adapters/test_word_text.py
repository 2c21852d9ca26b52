"""Texts and phrases as word parts: read, written in tokens by a policy, counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from overtone.adapters.word_text import (
    TokenText,
    check_phrases,
    leave_out,
    make_words,
    read_sentences,
    write_tokens,
)
from overtone.decoding.ngram_counts import build_ngram
from overtone.errors import AdapterError, DataError
from overtone.tokenizers import CharTokenizer
from support.small_models import LABELS

TOKENIZER = CharTokenizer(LABELS)


def write(policy: str, *texts: str) -> TokenText:
    return write_tokens(TOKENIZER, [(text, None) for text in texts], policy=policy, option="--unwritable ")


def said(text: TokenText) -> list[str]:
    return [TOKENIZER.decode(ids) for ids in text.sequences]


def test_text_is_written_in_the_models_case() -> None:
    text = write("refuse", "The  Pound key", "", " hold ")
    assert said(text) == ["the pound key", "hold"]
    assert (text.sentences, text.unwritable, text.tokens) == (2, 0, 17)


def test_policies_for_what_cannot_be_written() -> None:
    texts = ("well-known drugs, of course.", "plain", "don\u2019t; 9")
    assert said(write("drop", *texts)) == ["plain"]
    kept = write("keep", *texts)
    assert said(kept) == ["well known drugs of course", "plain", "dont"]
    assert kept.characters == {"-": 1, ",": 1, ".": 1, "\u2019": 1, ";": 1, "9": 1}
    assert (kept.sentences, kept.unwritable) == (3, 2)
    with pytest.raises(DataError, match=r"(?s)2 of 3 sentences hold .*'-' × 1.*well-known.*--unwritable keep"):
        write("refuse", *texts)


@pytest.mark.parametrize(("policy", "texts"), [("refuse", ["", "  "]), ("drop", ["9"]), ("keep", ["9", "—"])])
def test_nothing_left_is_refused(policy: str, texts: list[str]) -> None:
    with pytest.raises(DataError, match="Nothing of the text is left"):
        write(policy, *texts)


def test_marks_inside_of_words_leave_no_gap() -> None:
    assert leave_out("cafe\u0301 o'clock a/b", {"\u0301", "'", "/"}) == "cafe oclock a b"


def test_texts_are_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("\ufefffirst\r\n\n  second \n".encode())
    assert read_sentences(tmp_path / "text") == ["first", "second"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b" \n\n", "holds no text"),
        (b"a\xff", "no UTF-8 text"),
        (b"a\0b", "holds zero bytes"),
        (b"a" * 2000, "more than 0 MB"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_sentences(path, at_most=1000)


def test_phrases_follow_the_policy() -> None:
    phrases = [("Pound key", 5.0), ("caf\u00e9", 6.0), ("9", 7.0)]
    option = "--unwritable "
    kept, text = check_phrases(TOKENIZER, phrases, policy="keep", option=option)
    assert kept == [("pound key", 5.0), ("caf", 6.0)]
    assert (text.unwritable, text.examples) == (2, ["caf\u00e9", "9"])
    assert check_phrases(TOKENIZER, phrases, policy="drop", option=option)[0] == [("pound key", 5.0)]
    with pytest.raises(DataError, match="2 of 3 phrases hold"):
        check_phrases(TOKENIZER, phrases, policy="refuse", option=option)
    with pytest.raises(DataError, match="no phrase in the file"):
        check_phrases(TOKENIZER, [], policy="keep", option=option)


def test_a_part_is_made_of_sentences_or_of_an_ngram() -> None:
    sequences = write("refuse", "press the pound key", "press the star key").sequences
    part = make_words(TOKENIZER, sequences=sequences, phrases=[("pound", 5.0)], order=4, weight=0.7)
    assert part.ngram is not None
    assert (part.ngram.order, part.weight, part.phrases) == (4, 0.7, 1)
    state = torch.tensor([part.ngram.start])
    assert int(part.ngram.score(state).argmax()) == TOKENIZER.encode("p")[0]
    assert make_words(TOKENIZER, ngram=part.ngram).ngram is part.ngram
    alone = make_words(TOKENIZER, phrases=[("pound", 5.0)])
    assert (alone.ngram, alone.weight) == (None, 0.0)
    with pytest.raises(AdapterError, match="needs an n-gram or a phrase"):
        make_words(TOKENIZER)
    with pytest.raises(DataError, match="has 3 tokens"):
        make_words(TOKENIZER, ngram=build_ngram([[1]], vocabulary_size=3))
