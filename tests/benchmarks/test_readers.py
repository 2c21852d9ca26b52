"""Bombs and mutations: every reader of foreign files refuses what asks for too much, and ends in one message."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.reader_bombs import BOMBS
from benchmarks.reader_fuzz import mutation, read
from overtone.errors import OvertoneError

WORDS = {
    "merges": None,
    "merging sets": "merges mappings alone",
    "a scalar of itself": "scalar's tag",
    "doubling references": "at model.x",
    "one long text": "characters",
    "aliases": "aliases unfold",
}
"""Words of the message, where it is not that of a budget; None where the file is small once it is read."""


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str, tmp_path: Path) -> None:
    """Without the budgets each takes minutes or gigabytes."""
    kind, make = BOMBS[name]
    content = make()
    if WORDS.get(name, "") is None:
        read(kind, content, tmp_path)
        return
    with pytest.raises((OvertoneError, ValueError)) as caught:
        read(kind, content, tmp_path)
    assert kind == "yaml" or isinstance(caught.value, OvertoneError)
    told = WORDS.get(name)
    assert (told or "") in str(caught.value)
    assert told or any(word in str(caught.value) for word in ("more", "most", "longer", "larger")), str(caught.value)


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_mutations_end_in_a_value_or_one_message(first: int, tmp_path: Path) -> None:
    for number in range(first, first + 50):
        kind, content = mutation(number)
        with suppress(OvertoneError, *([ValueError] if kind == "yaml" else [])):
            read(kind, content, tmp_path)
