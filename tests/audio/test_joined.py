"""Joined files are heard to their end, from files, from memory and in pieces of any size."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from overtone.audio.decode import AudioDecoder
from overtone.audio.joined import Stretch
from overtone.audio.load import AudioReader, audio_duration, load_audio
from overtone.errors import AudioError, DataError

RATE = 16_000


def flac(seconds: float, seed: int, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(buffer, noise, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def wav(seconds: float, seed: int, rate: int = RATE, **settings: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(buffer, noise, rate, **{"format": "WAV", "subtype": "PCM_16"} | settings)
    return buffer.getvalue()


def compressed(seconds: float, codec: str, container: str, **options: str) -> bytes:
    """Noise in a coding of FFmpeg's."""
    buffer, rate = io.BytesIO(), 48_000
    noise = np.random.default_rng(7).uniform(-0.1, 0.1, (1, round(seconds * rate)))
    with av.open(buffer, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(noise.astype(np.float32), format="flt", layout="mono")
        frame.sample_rate = rate
        kind = "fltp" if codec == "aac" else "s16"
        resampler = av.AudioResampler(kind, "mono", rate, frame_size=stream.codec_context.frame_size or 960)
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            file.mux(stream.encode(part))
    return buffer.getvalue()


def heard_in_pieces(data: bytes, size: int) -> np.ndarray:
    with AudioDecoder() as decoder:
        found = [decoder.push(data[first : first + size]) for first in range(0, len(data), size)]
        return np.concatenate([*found, decoder.finish()])


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
    np.testing.assert_array_equal(heard_in_pieces(data, size), load_audio(data))


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


def with_notes(data: bytes, notes: bytes = b"LIST\x05\x00\x00\x00notes", *, padding: bytes = b"\0") -> bytes:
    """A WAV file with a chunk of odd size after its samples."""
    data += notes + padding
    return data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:]


WAVS = {
    "plain": [wav(0.3, 0), wav(0.2, 1)],
    "notes between": [with_notes(wav(0.3, 0)), with_notes(wav(0.2, 1)), wav(0.1, 2)],
    "no padding": [with_notes(wav(0.3, 0), padding=b""), wav(0.2, 1)],
    "other codings": [wav(0.3, 0, subtype="ULAW"), wav(0.2, 1, subtype="FLOAT"), wav(0.1, 2, subtype="PCM_24")],
    "odd sizes": [wav(1001 / RATE, 0, subtype="PCM_U8"), wav(0.2, 1)],
    "an empty one first": [wav(0.0, 0), wav(0.2, 1)],
}


@pytest.mark.parametrize("size", [1, 17, 1_000, 1_000_000])
@pytest.mark.parametrize("parts", WAVS.values(), ids=WAVS)
def test_joined_wav(tmp_path: Path, parts: list[bytes], size: int) -> None:
    path, data = tmp_path / "joined.wav", b"".join(parts)
    path.write_bytes(data)
    expected = whole_of(*parts)
    np.testing.assert_allclose(load_audio(path), expected, atol=1e-6)
    assert audio_duration(path) == pytest.approx(len(expected) / RATE)
    np.testing.assert_array_equal(heard_in_pieces(data, size), load_audio(path))


def test_the_end_of_a_wav_stream_without_a_size_is_sound() -> None:
    """A joint would be a guess there: the bytes of another header may be samples."""
    data = bytearray(wav(0.1, 0) + wav(0.1, 1))
    data[4:8] = data[40:44] = b"\xff" * 4
    assert len(heard_in_pieces(bytes(data), 100)) == len(load_audio(bytes(data))) == (len(data) - 44) // 2


def test_a_joined_wav_that_ends_in_a_header_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    path.write_bytes(wav(0.1, 0) + wav(0.1, 1)[:30])
    with pytest.raises(DataError, match=r"cut\.wav: cannot be read as audio"):
        load_audio(path)
    with pytest.raises(AudioError, match="ends before its samples begin"):
        heard_in_pieces(path.read_bytes(), 50)


@pytest.mark.parametrize("subtype", ["PCM_16", "ULAW"])
@pytest.mark.parametrize("container", ["AIFF", "W64"])
def test_other_joined_files(tmp_path: Path, container: str, subtype: str) -> None:
    path, parts = tmp_path / "joined", [wav(0.3, n, format=container, subtype=subtype) for n in range(3)]
    path.write_bytes(b"".join(parts))
    np.testing.assert_allclose(load_audio(path), whole_of(*parts), atol=1e-6)
    assert audio_duration(path) == pytest.approx(0.9)


@pytest.mark.parametrize("size", [1, 100, 1_000_000])
def test_chained_ogg_may_change_its_codec(tmp_path: Path, size: int) -> None:
    path = tmp_path / "chained.ogg"
    vorbis = wav(0.25, 1, format="OGG", subtype="VORBIS")
    parts = [compressed(0.5, "libopus", "ogg"), vorbis, compressed(0.3, "libopus", "ogg")]
    path.write_bytes(b"".join(parts))
    expected = np.concatenate([load_audio(part) for part in parts])
    np.testing.assert_allclose(load_audio(path), expected, atol=1e-6)
    assert audio_duration(path) == pytest.approx(sum(map(duration_of, parts)), abs=1e-3)
    np.testing.assert_allclose(heard_in_pieces(path.read_bytes(), size), expected, atol=1e-6)
    np.testing.assert_allclose(load_audio(path, offset=0.6), expected[round(0.6 * RATE) :], atol=1e-3)


def duration_of(data: bytes) -> float:
    return len(load_audio(data)) / RATE


def test_joined_m4a(tmp_path: Path) -> None:
    """Phones write their description last; such files are read when they are whole."""
    path, parts = tmp_path / "joined.m4a", [compressed(0.5, "aac", "mp4"), compressed(0.25, "aac", "mp4")]
    data = b"".join(parts)
    path.write_bytes(data)
    expected = np.concatenate([load_audio(part, sample_rate=48_000) for part in parts])
    np.testing.assert_array_equal(load_audio(path, sample_rate=48_000), expected)
    np.testing.assert_array_equal(heard_in_pieces(data, 1_000), load_audio(path))


def test_joined_m4a_that_is_decoded_as_it_comes_is_refused() -> None:
    part = compressed(0.5, "aac", "mp4", movflags="frag_keyframe+empty_moov")
    assert heard_in_pieces(part, 1_000).size
    with pytest.raises(AudioError, match="Send each by itself"):
        heard_in_pieces(part + part, 1_000)
