"""The journal of corrections: what counts, what a killed process leaves, what is removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from overtone.errors import DataError
from overtone.learning.corrections import Correction, Corrections
from support.learning_samples import held_out

RATE = 16_000


def tone(seed: int, seconds: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3000, 3000, round(seconds * RATE)).astype(np.int16)


@pytest.fixture
def store(tmp_path: Path) -> Corrections:
    return Corrections(tmp_path / "medical", sample_rate=RATE)


def test_corrections_come_back_with_their_recordings(store: Corrections) -> None:
    samples = tone(0)
    assert store.add([Correction(text="press one", samples=samples), Correction(text="hold the line")]) == 2
    first, second = store.read()
    assert (first.text, second.text, second.audio) == ("press one", "hold the line", None)
    assert np.array_equal(np.round(store.load(first) * 32768), samples)
    assert store.add([Correction(text="press one", samples=samples)]) == 0


def test_of_one_recording_the_latest_text_counts(store: Corrections) -> None:
    store.add([Correction(text="press one", samples=tone(0)), Correction(text="dial two", samples=tone(1))])
    assert store.add([Correction(text="press won", samples=tone(0))]) == 1
    assert [own.text for own in store.read()] == ["dial two", "press won"]
    assert [own.text for own in store.read(2)] == ["press one", "dial two"]


def test_what_is_set_aside_may_be_learnt_again(store: Corrections) -> None:
    store.add([Correction(text="one"), Correction(text="two")])
    store.set_aside([store.read()[0].id])
    assert [own.text for own in store.read()] == ["two"]
    assert store.add([Correction(text="one")]) == 1
    assert [own.text for own in store.read()] == ["two", "one"]


def test_a_line_that_was_cut_off_does_not_count(store: Corrections) -> None:
    store.add([Correction(text="one"), Correction(text="two")])
    content = store.journal.read_bytes()
    for end in range(len(content) - 1, content.index(b"\n"), -7):
        store.journal.write_bytes(content[:end])
        assert [own.text for own in store.read()] == ["one"]
    assert store.add([Correction(text="three")]) == 1
    assert [own.text for own in store.read()] == ["one", "three"]


@pytest.mark.parametrize("line", [b"nothing\n", b"[1]\n", b'{"text": "x"}\n', b'{"set_aside": 5}\n'])
def test_a_damaged_line_is_named(store: Corrections, line: bytes) -> None:
    store.add([Correction(text="one")])
    store.journal.write_bytes(store.journal.read_bytes() + line)
    with pytest.raises(DataError, match=r"corrections\.jsonl:2: "):
        store.read()


def test_no_name_in_the_journal_leads_out_of_the_folder(store: Corrections, tmp_path: Path) -> None:
    (tmp_path / "secret.flac").write_bytes(b"fLaC")
    store.add([Correction(text="one")])
    line = b'{"id": "../../secret", "key": "k", "text": "two", "seconds": 1.0}\n'
    store.journal.write_bytes(store.journal.read_bytes() + line)
    assert [own.audio for own in store.read()] == [None, None]


def test_recordings_are_bounded_and_texts_stay(store: Corrections) -> None:
    store.add([Correction(text=f"text {place}", samples=tone(place)) for place in range(8)])
    (store.folder / "audio" / "left.flac").write_bytes(b"")
    assert store.trim(hours=2.0 / 3600) == 5
    left = [own for own in store.read() if own.audio is not None]
    assert len(store.read()) == 8
    assert len(left) == 4
    store.add([Correction(text=f"text {place}", samples=tone(place)) for place in range(8, 16)])
    store.trim(hours=2.0 / 3600)
    ids = sorted(own.id for own in store.read())
    assert sorted(own.id for own in store.read() if own.audio is not None) == ids[:4]


def test_a_recording_that_is_gone_comes_back_with_its_correction(store: Corrections) -> None:
    given = [Correction(text="press one", samples=tone(0)), Correction(text="hold the line", samples=tone(1))]
    store.add(given)
    gone = store.read()[0].audio
    assert gone is not None
    gone.unlink()
    assert [own.audio is None for own in store.read()] == [True, False]
    assert store.add(given) == 1
    assert [own.audio is None for own in store.read()] == [False, False]
    assert np.array_equal(np.round(store.load(store.read()[0]) * 32768), tone(0))
    assert len(store.lines()) == 2


def test_a_recording_that_would_be_removed_again_is_not_new(store: Corrections) -> None:
    given = [Correction(text=f"text {place}", samples=tone(place)) for place in range(8)]
    store.add(given)
    limit = 2.0 / 3600
    store.trim(limit)
    left = {own.id for own in store.read() if own.audio is not None}
    assert store.add(given, hours=limit) == 0
    assert {own.id for own in store.read() if own.audio is not None} == left
    assert store.trim(limit) == 0
    assert store.add(given, hours=2 * limit) == 4, "there is room for them again"


def test_one_text_is_on_one_side_in_any_case() -> None:
    """An adapter with capital letters alone reads the journal of one that had small ones."""
    texts = [f"Straße {place}" for place in range(40)]
    assert [held_out(text) for text in texts] == [held_out(text.upper()) for text in texts]
    assert [held_out(text) for text in texts] == [held_out(text.lower()) for text in texts]
    assert len({held_out(text) for text in texts}) == 2


def test_the_held_out_are_the_same_however_many_there_are(store: Corrections) -> None:
    store.add([Correction(text=f"text {place}", samples=tone(place, 0.1)) for place in range(40)])
    before = {own.text for own in store.read() if own.is_held_out}
    assert 2 <= len(before) <= 16
    store.add([Correction(text=f"text {place}", samples=tone(place, 0.1)) for place in range(40, 50)])
    after = {own.text for own in store.read() if own.is_held_out}
    assert {text for text in after if int(text.split()[1]) < 40} == before
