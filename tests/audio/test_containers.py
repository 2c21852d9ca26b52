"""Containers: every kind, to its true length, from any place on; and files that would open others."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from overtone.audio.containers import Track
from overtone.audio.load import SAMPLE_RATE, AudioReader, audio_duration, load_audio
from overtone.errors import DataError
from support.media import ENCODED, WRITTEN, packed, sound, write_media


@pytest.mark.parametrize("kind", [*WRITTEN, *ENCODED])
def test_the_length_is_counted_and_every_kind_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "sound"
    path.write_bytes(packed(kind, channels=2, seconds=3.0))
    samples, reference = load_audio(path), sound(SAMPLE_RATE, 3.0, 2).mean(axis=1)
    assert audio_duration(path) == pytest.approx(len(samples) / SAMPLE_RATE, abs=0.04)
    assert len(samples) == pytest.approx(3 * SAMPLE_RATE, abs=0.11 * SAMPLE_RATE)
    inner = reference[4_000:44_000]
    late = max(range(-600, 1_600), key=lambda shift: float(samples[4_000 + shift :][:40_000] @ inner))
    assert np.abs(samples[4_000 + late :][:40_000] - inner).max() < 0.06, f"{late} samples late"


@pytest.mark.parametrize("kind", [*WRITTEN, *ENCODED])
@pytest.mark.parametrize("offset", [0.0, 2.3])
def test_windows_in_order_are_slices_of_the_whole(tmp_path: Path, kind: str, offset: float) -> None:
    path = tmp_path / "sound"
    path.write_bytes(packed(kind, seconds=9.0))
    whole = load_audio(path, offset=offset, duration=6.0)
    with AudioReader(path, offset=offset, duration=6.0) as reader:
        for start, stop in [(0.0, 1.5), (1.0, 2.5), (1.0, 1.25), (3.1, 4.0), (5.0, None)]:
            part = reader.read(start, stop)
            last = None if stop is None else round(stop * SAMPLE_RATE)
            np.testing.assert_array_equal(part, whole[round(start * SAMPLE_RATE) : last])
        np.testing.assert_array_equal(reader.read(0.5, 1.0), whole[8_000:16_000], "and back again")
        with pytest.raises(DataError, match=rf"sound: the recording ends after {offset + 6.0:.3f} s"):
            reader.read(6.5, 7.0)


@pytest.mark.parametrize("kind", ["flac16", "vorbis", "mp3", "mp3-bare", "m4a", "alac"])
def test_a_part_far_into_a_file_is_that_of_the_whole(tmp_path: Path, kind: str) -> None:
    """FFmpeg jumps there, and decodes what lossy codecs need from before."""
    path = tmp_path / "sound"
    path.write_bytes(packed(kind, seconds=60.0))
    whole, rate = load_audio(path), 16_000
    for offset in (1.7, 31.25, 58.0):
        part = load_audio(path, offset=offset, duration=1.0)
        first = round(offset * rate)
        np.testing.assert_allclose(part[400:-400], whole[first : first + rate][400:-400], atol=1e-5)


@pytest.mark.parametrize("kind", ["wav16", "flac16", "vorbis", "opus", "mp3", "m4a", "webm", "aac", "wma"])
def test_an_offset_past_the_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "sound"
    path.write_bytes(packed(kind, seconds=3.0))
    for offset in (3.5, 50.0, 1e8):
        with pytest.raises(DataError, match=r"but the recording ends after (2\.9|3\.)\d+ s. Correct the offset"):
            load_audio(path, offset=offset)
    assert 0 < len(load_audio(path, offset=2.9, duration=5.0)) < 4_000


@pytest.mark.parametrize("time", [2.5, float("inf")])
def test_a_jump_that_goes_too_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time: float) -> None:
    path = tmp_path / "sound"
    path.write_bytes(packed("flac16", seconds=4.0))
    whole = load_audio(path)
    monkeypatch.setattr(Track, "_time", lambda track, frame: time)
    np.testing.assert_array_equal(load_audio(path, offset=2.0), whole[32_000:])


def test_flac_of_unknown_length(tmp_path: Path) -> None:
    path = tmp_path / "piped.flac"
    data = bytearray(packed("flac16", seconds=3.0))
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # STREAMINFO's total samples, as a writer into a pipe leaves them
    path.write_bytes(data)
    assert audio_duration(path) == 3.0
    np.testing.assert_array_equal(load_audio(path), soundfile_samples(packed("flac16", seconds=3.0)))
    assert len(load_audio(path, offset=2.5)) == 8_000


def soundfile_samples(data: bytes) -> NDArray[np.float32]:
    samples, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    return np.asarray(samples)


@pytest.mark.parametrize("kind", ["mp3", "mp3-bare", "mp3-tagged", "vorbis", "opus", "aac"])
def test_joined_files_are_read_to_the_end(tmp_path: Path, kind: str) -> None:
    """Two recordings after each other: joined MP3 and AAC, chained Ogg."""
    path, one = tmp_path / "joined", tmp_path / "one"
    one.write_bytes(packed(kind, seconds=2.0))
    path.write_bytes(one.read_bytes() + packed(kind, seconds=3.0))
    samples = load_audio(path)
    assert len(samples) / SAMPLE_RATE == pytest.approx(5.0, abs=0.25)
    assert audio_duration(path) == pytest.approx(len(samples) / SAMPLE_RATE, abs=0.08)
    # FFmpeg counts what an MP3's own header tells it to drop; a frame or two is left out where it jumps.
    assert len(load_audio(path, offset=4.0)) == pytest.approx(len(samples) - 4 * SAMPLE_RATE, abs=1_200)
    np.testing.assert_allclose(samples[1_000:30_000], load_audio(one)[1_000:30_000], atol=1e-4)


def test_the_rate_may_change_within_a_file(tmp_path: Path) -> None:
    path = tmp_path / "joined.mp3"
    path.write_bytes(packed("mp3-bare", seconds=2.0) + packed("mp3", seconds=2.0))
    samples = load_audio(path)
    assert len(samples) / SAMPLE_RATE == pytest.approx(4.0, abs=0.25)
    hertz = np.abs(np.fft.rfft(samples[-24_000:-8_000])).argmax()
    assert hertz == pytest.approx(300, abs=3)


@pytest.mark.parametrize(
    "sizes", [(0, 0), (36, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0), (0x7FFFF024, 0x7FFFF000)]
)
def test_wav_whose_writer_was_cut_off(tmp_path: Path, sizes: tuple[int, int]) -> None:
    path, whole = tmp_path / "cut.wav", packed("wav16", seconds=2.0)
    data = bytearray(whole)
    data[4:8], data[40:44] = (struct.pack("<I", size) for size in sizes)
    path.write_bytes(data)
    assert audio_duration(path) == 2.0
    np.testing.assert_array_equal(load_audio(path), soundfile_samples(whole))


def test_wav_without_samples_but_with_chunks_after_them(tmp_path: Path) -> None:
    path = tmp_path / "empty.wav"
    data = packed("wav16")[:40] + bytes(4) + b"LIST" + struct.pack("<I", 400) + b"x" * 400
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    with pytest.raises(DataError, match="holds no samples"):
        audio_duration(path)
    with pytest.raises(DataError, match="no samples could be decoded"):
        load_audio(path)


def test_the_sound_of_a_film(tmp_path: Path) -> None:
    for form, coding in (("mp4", "aac"), ("matroska", "libopus")):
        path = tmp_path / f"film.{form}"
        write_media(path, sound(48_000, 2.0), 48_000, form=form, coding=coding, options={}, video=True)
        assert len(load_audio(path)) == pytest.approx(2 * SAMPLE_RATE, abs=1_100)
        assert audio_duration(path) == pytest.approx(2.0, abs=0.07)


def test_a_film_without_sound(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(picture.encode(None))
    with pytest.raises(DataError, match=r"silent\.mp4: cannot be read as audio .* holds no sound"):
        load_audio(path)


PLAYLISTS = {
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "hls.wav": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:{}\n#EXT-X-ENDLIST\n",
    "concat.mp3": "ffconcat version 1.0\nfile {}\n",
    "concat.txt": "file '{}'\n",
    "show.xspf": "<playlist><trackList><track><location>{}</location></track></trackList></playlist>",
    "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={}\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    "image.ppm": "P6 2 2 255\n{}",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_that_names_another_is_refused(tmp_path: Path, name: str) -> None:
    other, path = tmp_path / "other.wav", tmp_path / name
    other.write_bytes(packed("wav16"))
    path.write_text(PLAYLISTS[name].format(other))
    for read in (load_audio, audio_duration):
        with pytest.raises(DataError, match="cannot be read as audio"):
            read(path)


@pytest.mark.parametrize("box", [b"url ", b"alis"])
def test_an_mp4_file_that_refers_to_another_opens_only_itself(tmp_path: Path, box: bytes) -> None:
    other, path = tmp_path / "other.mov", tmp_path / "refers.mov"
    other.write_bytes(packed("mov"))
    data = bytearray(packed("mov"))
    place = data.index(b"dref") + 12
    name = b"file:" + bytes(other) + b"\0"
    data[place + 4 : place + 8], data[place + 11] = box, 0  # not in this file
    data[place + 12 : place + 12] = name
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        load_audio(path)  # its own bytes at most
    other.write_bytes(b"")
    with contextlib.suppress(DataError):
        load_audio(path)


def test_reference_decoder_of_opus(tmp_path: Path) -> None:
    """FFmpeg's own decoder is wrong by more than a quarter of the full scale here."""
    path = tmp_path / "sound.ogg"
    path.write_bytes(packed("opus16"))
    samples = load_audio(path)
    assert np.abs(samples[2_000:-2_000] - sound(SAMPLE_RATE)[2_000:-2_000, 0]).max() < 0.05


def test_a_rate_of_one_hertz(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "slow.wav", np.zeros(1_000_000, np.int16), 1)
    with pytest.raises(DataError, match=r"slow\.wav: .* 1 Hz, and at least 1000 Hz are needed"):
        load_audio(tmp_path / "slow.wav")


def test_damage_inside_is_told_with_its_place(tmp_path: Path) -> None:
    data = bytearray(packed("flac16", seconds=20.0))
    data[len(data) // 2 : len(data) // 2 + 3_000] = bytes(3_000)
    (tmp_path / "holes.flac").write_bytes(data)
    with pytest.raises(DataError, match=r"holes\.flac: cannot be read as audio .it is damaged after (9|10)\.\d+ s"):
        load_audio(tmp_path / "holes.flac")
