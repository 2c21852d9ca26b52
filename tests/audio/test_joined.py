"""Joined FLAC files are heard to their end, from files, from memory and in pieces of any size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from overtone.audio.decode import AudioDecoder
from overtone.audio.joined import Stretch
from overtone.audio.load import AudioReader, audio_duration, load_audio
from overtone.errors import DataError

RATE = 16_000


def flac(seconds: float, seed: int, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(buffer, noise, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def whole_of(*parts: bytes) -> np.ndarray:
    return np.concatenate([soundfile.read(io.BytesIO(part), dtype="float32")[0] for part in parts])


@pytest.fixture
def parts() -> list[bytes]:
    return [flac(1.5, 0), flac(0.75, 1), flac(2.0, 2)]


@pytest.fixture
def joined(tmp_path: Path, parts: list[bytes]) -> Path:
    path = tmp_path / "joined.flac"
    path.write_bytes(b"".join(parts))
    return path


def test_joined_files_are_read_to_their_end(joined: Path, parts: list[bytes]) -> None:
    expected = whole_of(*parts)
    assert audio_duration(joined) == pytest.approx(4.25)
    np.testing.assert_array_equal(load_audio(joined), expected)
    np.testing.assert_array_equal(load_audio(joined.read_bytes()), expected)
    for offset, duration in ((0.5, 0.5), (1.4, 0.2), (1.5, 0.5), (2.0, 2.0), (4.0, None)):
        first = round(offset * RATE)
        last = None if duration is None else first + round(duration * RATE)
        np.testing.assert_array_equal(load_audio(joined, offset=offset, duration=duration), expected[first:last])
    with AudioReader(joined) as reader:
        windows = [reader.read(start, start + 1.0) for start in (0.0, 1.0, 2.0, 3.0, 4.0)]
    np.testing.assert_array_equal(np.concatenate(windows), expected)


@pytest.mark.parametrize("size", [1, 7, 1_000, 1_000_000])
def test_joined_files_in_pieces(parts: list[bytes], size: int) -> None:
    data = b"".join([flac(0.02, 0), flac(0.03, 1), flac(0.01, 2)] if size < 100 else parts)
    expected = load_audio(data)
    with AudioDecoder() as decoder:
        found = [decoder.push(data[first : first + size]) for first in range(0, len(data), size)]
        found.append(decoder.finish())
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_rates_may_change(tmp_path: Path) -> None:
    path = tmp_path / "rates.flac"
    path.write_bytes(flac(1.0, 0) + flac(1.0, 1, rate=8_000))
    assert audio_duration(path) == pytest.approx(2.0)
    assert len(load_audio(path)) == pytest.approx(2 * RATE, abs=2)


def test_a_joined_file_that_is_cut_short_is_told(joined: Path) -> None:
    joined.write_bytes(joined.read_bytes()[:-2_000])
    with pytest.raises(DataError, match=r"joined\.flac: cannot be read as audio"):
        load_audio(joined)


def test_a_changed_file_is_looked_at_again(joined: Path, parts: list[bytes]) -> None:
    assert audio_duration(joined) == pytest.approx(4.25)
    joined.write_bytes(b"".join(parts[:2]))
    assert audio_duration(joined) == pytest.approx(2.25)


def test_a_stretch_is_a_file_of_its_own() -> None:
    stretch = Stretch(io.BytesIO(b"0123456789"), 2, 7)
    assert (stretch.read(2), stretch.tell(), stretch.read(), stretch.read()) == (b"23", 2, b"456", b"")
    assert (stretch.seek(0, 2), stretch.seek(-1, 1), stretch.read(), stretch.seek(99), stretch.seek(1)) == (
        5,
        4,
        b"6",
        5,
        1,
    )
