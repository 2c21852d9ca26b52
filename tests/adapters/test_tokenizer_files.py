"""Files of tokenizers: a list of labels is counted before it becomes a vocabulary."""

from __future__ import annotations

import json

import pytest

from overtone.adapters.tokenizer_files import LABELS, LARGEST_VOCABULARY, parse_tokenizer
from overtone.errors import CheckpointError


def content(name: str, labels: list[str]) -> bytes:
    return (json.dumps(labels) if name == LABELS else "\n".join(labels)).encode()


@pytest.mark.parametrize("name", [LABELS, "labels.txt"])
def test_too_many_labels_are_counted_before_they_are_compared(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"has {LARGEST_VOCABULARY + 1} tokens; {LARGEST_VOCABULARY} are allowed"):
        parse_tokenizer(name, content(name, ["a"] * (LARGEST_VOCABULARY + 1)))


@pytest.mark.parametrize("name", [LABELS, "labels.txt"])
def test_the_largest_vocabulary_is_read(name: str) -> None:
    labels = [f"w{number}" for number in range(LARGEST_VOCABULARY)]
    assert parse_tokenizer(name, content(name, labels)).vocabulary == labels
