"""ARPA files: written and read again, read as other tools write them, refused where they are damaged or foreign."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone.decoding.arpa import Form, read_arpa, write_arpa
from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_counts import build_ngram
from overtone.errors import DataError

PIECES = ["<unk>", "▁the", "s", " ", "ß"]
V = len(PIECES)
TEXTS = st.lists(st.lists(st.integers(0, V - 1), max_size=7), min_size=1, max_size=10).filter(any)


def walk(ngram: Ngram, tokens: list[int]) -> torch.Tensor:
    state = torch.tensor([ngram.start])
    for token in tokens:
        state = ngram.advance(state, torch.tensor([token]))
    return state


@pytest.mark.parametrize("form", ["offset", "pieces"])
@given(texts=TEXTS, asked=st.lists(st.integers(0, V - 1), max_size=5), largest=st.sampled_from([3, 12, 1000]))
@settings(max_examples=60, deadline=None)
def test_a_written_file_says_the_same_when_it_is_read(
    form: Form, texts: list[list[int]], asked: list[int], largest: int
) -> None:
    ngram = build_ngram(texts, vocabulary_size=V, order=4, largest=largest)
    again = read_arpa(write_arpa(ngram, PIECES, form=form), PIECES)
    before, after = walk(ngram, asked), walk(again, asked)
    torch.testing.assert_close(ngram.score(before), again.score(after), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ngram.end(before), again.end(after), rtol=1e-4, atol=1e-4)


def test_a_file_of_nemo_is_read_by_its_characters() -> None:
    """As NeMo's train_kenlm.py has KenLM write it: ids 1 and 33 as characters; the latter is a control sign."""
    pieces = [f"p{number}" for number in range(40)]
    one, other = chr(101), chr(133)
    text = (
        f"\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n-2\t<unk>\t0\n0\t<s>\t-0.5\n-1\t</s>\t0\n-0.5\t{one}\t-0.25\n"
        f"-0.75\t{other}\t0\n\n\\2-grams:\n-0.125\t<s> {other}\n-0.0625\t{other} </s>\n\n\\end\\\n"
    )
    ngram = read_arpa(text.split("\n"), pieces)
    start = torch.tensor([ngram.start])
    scores = ngram.score(start)[0] / math.log(10)
    assert float(scores[33]) == pytest.approx(-0.125)
    assert float(scores[1]) == pytest.approx(-1.0)
    assert float(scores[7]) == pytest.approx(-2.5 - math.log10(38))  # a share of the unknown
    after = ngram.advance(start, torch.tensor([33]))
    assert float(ngram.end(after)) / math.log(10) == pytest.approx(-0.0625)
    assert float(ngram.end(start)) / math.log(10) == pytest.approx(-1.5)


def test_what_pruning_left_out_is_worth_what_backing_off_gives() -> None:
    """The file lacks `b c` and `a b`, on which `a b c` rests."""
    text = (
        "\\data\\\nngram 1=6\nngram 2=1\nngram 3=1\n\\1-grams:\n-99\t<s>\n-1\t</s>\n-1\t<unk>\n-0.5\ta\t-0.1\n"
        "-0.6\tb\t-0.2\n-0.7\tc\n\\2-grams:\n-0.3\tc a\n\\3-grams:\n-0.05\ta b c\n\\end\\\n"
    )
    ngram = read_arpa(text.split("\n"), ["a", "b", "c"], form="pieces")
    scores = ngram.score(walk(ngram, [0]))[0] / math.log(10)
    assert scores.tolist() == pytest.approx([-0.6, -0.7, -0.8], abs=1e-5)
    scores = ngram.score(walk(ngram, [0, 1]))[0] / math.log(10)
    assert float(scores[2]) == pytest.approx(-0.05, abs=1e-5)
    assert float(scores[0]) == pytest.approx(-0.7, abs=1e-5)


GOOD = "\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n-1\t<s>\t0\n-1\t</s>\n-1\t▁the\t0\n"
GOOD += "\n\\2-grams:\n-1\t<s> ▁the\n\n\\end\\\n"

DAMAGES = {
    "empty": (lambda text: "", "cut short or damaged"),
    "no ARPA": (lambda text: "hello\n", "begins with"),
    "cut short": (lambda text: text.replace("\\end\\", ""), "cut short"),
    "fewer than announced": (lambda text: text.replace("ngram 1=3", "ngram 1=4"), "announces {1: 4, 2: 1}"),
    "an order too many": (lambda text: text.replace("\\2-grams:", "\\3-grams:"), "out of order"),
    "no number": (lambda text: text.replace("-1\t<s> ", "x\t<s> "), ":11: 'x"),
    "not a number": (lambda text: text.replace("-1\t<s> ", "nan\t<s> "), "no 2-gram"),
    "a probability above one": (lambda text: text.replace("-1\t<s> ", "0.5\t<s> "), "no 2-gram"),
    "another number of words": (lambda text: text.replace("<s> ▁the", "▁the"), "no 2-gram"),
    "an end in the middle": (lambda text: text.replace("<s> ▁the", "</s> ▁the"), "only last"),
    "a token without a 1-gram": (lambda text: text.replace("<s> ▁the", "<s> s"), "not among the 1-grams"),
    "words": (lambda text: text.replace("▁the", "hello"), "is of other tokens than the model's: 'hello'"),
    "too many": (lambda text: text.replace("ngram 1=3", "ngram 1=30000000"), "prune the file first"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_arpa_of_the_models_tokens_is_refused(damage: str) -> None:
    harm, message = DAMAGES[damage]
    assert read_arpa(GOOD.split("\n"), PIECES).order == 2
    with pytest.raises(DataError, match=message.replace("{", r"\{").replace("}", r"\}")):
        read_arpa(harm(GOOD).split("\n"), PIECES, name="words.arpa")


def test_tokens_that_may_be_two_things_are_asked_for() -> None:
    pieces = ["e", "f", "g"]
    text = GOOD.replace("▁the", "e")
    with pytest.raises(DataError, match="pieces or offset"):
        read_arpa(text.split("\n"), pieces)
    one, other = (read_arpa(text.split("\n"), pieces, form=form) for form in ("pieces", "offset"))
    assert float(one.score(torch.tensor([one.start]))[0, 0]) == pytest.approx(-math.log(10), rel=1e-4)
    assert float(other.score(torch.tensor([other.start]))[0, 1]) == pytest.approx(-math.log(10), rel=1e-4)


def test_pieces_that_look_alike_are_written_by_number_alone() -> None:
    ngram = build_ngram([[0, 1]], vocabulary_size=2)
    with pytest.raises(DataError, match="use the form 'offset'"):
        list(write_arpa(ngram, [" ", "▁"], form="pieces"))
