"""Tokens as text, words and marks."""

from __future__ import annotations

import pytest

from overtone.decoding.hypothesis import Mark, make_hypothesis, mark_name, shift
from overtone.tokenizers import CharTokenizer

LABELS = ["a", "b", " ", "<EOU>", "<en-US>"]


def test_marks_are_no_text() -> None:
    ids = [4, 0, 1, 2, 1, 3]
    spans = [(2, 3), (4, 6), (6, 7), (8, 9), (10, 12), (15, 16)]
    found = make_hypothesis(
        ids, spans, [0.1, 0.9, 0.8, 0.7, 0.6, 0.2], CharTokenizer(LABELS), seconds_per_frame=0.08, score=-1.0
    )
    assert found.text == "ab b"
    assert [(word.text, word.start, word.end, word.confidence) for word in found.words] == [
        ("ab", 0.32, 0.56, 0.8), ("b", 0.8, 0.96, 0.6),
    ]  # fmt: skip
    assert (found.ids, found.spans) == (tuple(ids), tuple(spans))
    assert found.marks == (Mark(name="en-US", time=0.16), Mark(name="EOU", time=1.2))
    later = shift(found, 10, 0.08)
    assert later.marks == (Mark(name="en-US", time=0.96), Mark(name="EOU", time=2.0))


def test_a_recording_of_marks_alone_has_no_text() -> None:
    found = make_hypothesis([3], [(0, 1)], [0.5], CharTokenizer(LABELS), seconds_per_frame=0.08, score=0.0)
    assert (found.text, found.words, found.marks) == ("", (), (Mark(name="EOU", time=0.0),))


@pytest.mark.parametrize(
    ("piece", "name"),
    [
        *(("<EOU>", "EOU"), ("▁<EOB>", "EOB"), ("<fil-PH>", "fil-PH"), ("▁<de-DE>", "de-DE")),
        *(("<unk>", None), ("<pad>", None), ("a>", None), ("<EOU", None), ("▁<b>", None)),
    ],
)
def test_marks_are_told_by_their_spelling(piece: str, name: str | None) -> None:
    assert mark_name(piece) == name
