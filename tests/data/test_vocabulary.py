"""Before training: which transcripts can the model write?"""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone.data.manifest import Utterance
from overtone.data.vocabulary import SHOWN, apply_policy, check_vocabulary, shown
from overtone.errors import DataError
from overtone.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer(list(" abc"))


def lines(*texts: str) -> list[Utterance]:
    return [
        Utterance(audio_path=Path("a.wav"), duration=1.0, text=text, line=number, manifest=Path("m.json"))
        for number, text in enumerate(texts, 1)
    ]


def test_nothing_to_report() -> None:
    assert check_vocabulary(TOKENIZER, lines("a b", "cab")) is None


def test_characters_are_counted_and_shown_with_examples() -> None:
    report = check_vocabulary(TOKENIZER, lines("a", "b-b-é", "A", "c\u200b"))
    assert report is not None
    assert report.characters == {"-": 2, "é": 1, "A": 1, "\u200b": 1}
    assert report.utterances == (1, 2, 3)
    assert report.writable_in_lower_case == 1
    message = report.message
    assert "3 of 4 transcripts" in message
    assert "'-' × 2" in message
    assert "'é' (latin small letter e with acute) × 1" in message
    assert "(zero width space) × 1" in message
    assert "m.json:2: b-b-é" in message
    assert "In lower case 1 of them could be written" in message


def test_only_a_few_examples_are_shown() -> None:
    report = check_vocabulary(TOKENIZER, lines(*["x"] * 9))
    assert report is not None
    assert len(report.examples) == SHOWN


def test_refuse_drop_and_keep() -> None:
    utterances = lines("a", "x", "b")
    report = check_vocabulary(TOKENIZER, utterances)
    with pytest.raises(DataError, match=r"model\.vocabulary_check=drop .* or model\.vocabulary_check=keep"):
        apply_policy(report, utterances, "refuse")
    assert [line.line for line in apply_policy(report, utterances, "drop")] == [1, 3]
    assert apply_policy(report, utterances, "keep") == utterances
    assert apply_policy(None, utterances, "refuse") == utterances


def test_names_of_what_cannot_be_seen() -> None:
    assert shown("a") == "'a'"
    assert shown(" ") == "' ' (space)"
    assert shown("\u2019") == "'\u2019' (right single quotation mark)"
