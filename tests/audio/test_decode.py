"""Audio in any container and any portions: the samples of the whole file, and nothing past the limits."""

from __future__ import annotations

import contextlib
import io
import resource
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overtone.audio.decode import AudioDecoder, AudioLimits
from overtone.audio.load import load_audio
from overtone.audio.pcm import TABLES, Block, Resampler, Samples
from overtone.errors import AudioError
from support.media import WRITTEN, packed, sound

PIECEWISE = ("webm", "mkv", "m4a", "m4a-fast", "mp4-fragments", "alac", "mov", "aac", "mp3-bare", "mp3-tagged")
"""Kinds of FFmpeg's writing that are decoded from pieces."""
FROM_DISK = ("wma", "caf", "aiff", "au", "w64", "wav-adpcm")


def expected(data: bytes, target: int = 16_000) -> np.ndarray:
    """libsndfile's samples [S] at the target rate."""
    if data[28:36] == b"OpusHead":
        data = at_48_khz(data)
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1, dtype=np.float32)
    return mono if rate == target else soxr.resample(mono, rate, target, quality="HQ")


def at_48_khz(opus: bytes) -> bytes:
    """An Ogg Opus file for which libsndfile runs the decoder at its full rate, whatever the recording's was."""
    head = bytearray(opus[:47])
    head[40:44] = struct.pack("<I", 48_000)
    head[22:26] = bytes(4)
    checksum = 0
    for byte in head:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ 0x04C11DB7 if checksum >> 31 else checksum << 1) & 0xFFFFFFFF
    head[22:26] = struct.pack("<I", checksum)
    return bytes(head) + opus[47:]


def portioned(data: bytes, portion: int, **options: Any) -> np.ndarray:
    with AudioDecoder(**options) as decoder:
        parts = [decoder.push(data[first : first + portion]) for first in range(0, len(data), portion)]
        return np.concatenate([*parts, decoder.finish()])


def decode_audio(data: bytes, **options: Any) -> np.ndarray:
    return portioned(data, 10**9, **options)


# What is good


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("portion", [7, 1600, 10**9])
def test_any_container_in_any_portions(kind: str, portion: int) -> None:
    data = packed(kind)
    found = portioned(data, max(portion, len(data) // 3000))
    np.testing.assert_allclose(found, expected(data), atol=2e-6)


@pytest.mark.parametrize("kind", [*WRITTEN, *PIECEWISE])
@pytest.mark.parametrize("portion", [13, 1600, 10**9])
def test_pieces_are_the_file_sample_by_sample(tmp_path: Path, kind: str, portion: int) -> None:
    data = packed(kind)
    (tmp_path / "sound").write_bytes(data)
    found = portioned(data, max(portion, len(data) // 3000))
    np.testing.assert_array_equal(found, load_audio(tmp_path / "sound"))
    reference = sound(16_000)[2_000:22_000, 0]
    late = max(range(-60, 1_100), key=lambda shift: float(found[2_060 + shift :][:19_000] @ reference[60:19_060]))
    assert np.abs(found[2_000 + late :][:20_000] - reference).max() < 0.06, f"{late} samples late"


@pytest.mark.parametrize("kind", ["wav16", "flac16", "opus", "vorbis"])
def test_channels_are_averaged(kind: str) -> None:
    data = packed(kind, channels=2)
    with AudioDecoder() as decoder:
        found = np.concatenate((decoder.push(data), decoder.finish()))
        assert decoder.format is not None
        assert decoder.format.channels == 2
    np.testing.assert_allclose(found, expected(data), atol=2e-6)
    with pytest.raises(AudioError, match="2 channels; 1 to 1"):
        decode_audio(data, limits=AudioLimits(max_channels=1))


def test_a_rate_of_one_hertz_is_refused() -> None:
    """A second of it would be as many samples as the model's rate."""
    content = io.BytesIO()
    soundfile.write(content, np.zeros(1_000, np.int16), 1, format="WAV")
    with pytest.raises(AudioError, match="1 Hz; 8000 to 192000 Hz are accepted"):
        decode_audio(content.getvalue())


@pytest.mark.parametrize("coding", ["mulaw", "alaw"])
def test_g711_is_libsndfiles(coding: str) -> None:
    data = bytes(range(256))
    subtype = {"mulaw": "ULAW", "alaw": "ALAW"}[coding]
    reference, _ = soundfile.read(
        io.BytesIO(data), dtype="float32", format="RAW", subtype=subtype, samplerate=8000, channels=1
    )
    np.testing.assert_array_equal(TABLES[coding], reference)


@pytest.mark.parametrize("portion", [1, 3, 1600])
def test_raw_samples_by_declaration(portion: int) -> None:
    pcm = (sound(16_000, 0.1)[:, 0] * 32767).astype("<i2")
    found = portioned(pcm.tobytes(), portion, encoding="linear_pcm", sample_rate=16_000)
    np.testing.assert_array_equal(found, pcm / np.float32(32768))
    np.testing.assert_array_equal(portioned(pcm.tobytes(), portion, sample_rate=16_000), found)
    stereo = np.repeat(pcm, 2).tobytes()
    np.testing.assert_array_equal(portioned(stereo, portion, sample_rate=16_000, channels=2), found)
    law = portioned(bytes(range(256)), portion, encoding="mulaw", sample_rate=16_000)
    np.testing.assert_array_equal(law, TABLES["mulaw"])


def tagged(mp3: bytes) -> bytes:
    """With an ID3 tag of 128 bytes before it."""
    return b"ID3\3\0\0\0\0\1\0" + bytes(128) + mp3


@pytest.mark.parametrize("declared", ["linear_pcm", "mulaw", "flac"])
@pytest.mark.parametrize("kind", ["wav16", "mp3"])
def test_a_header_is_believed_before_a_declaration(declared: Any, kind: str) -> None:
    data = tagged(packed(kind)) if kind == "mp3" else packed(kind)
    np.testing.assert_allclose(decode_audio(data, encoding=declared, sample_rate=8000), expected(data), atol=2e-6)


def test_other_chunks_and_unknown_lengths() -> None:
    pcm = (sound(16_000, 0.2)[:, 0] * 32767).astype("<i2").tobytes()
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    before = b"LIST" + struct.pack("<I", 5) + b"abcde\0" + form + b"fact" + struct.pack("<II", 4, 0)
    after = b"LIST" + struct.pack("<I", 1000) + b"x" * 1000
    for size, tail in ((len(pcm), after), (0, b""), (0xFFFF_FFFF, b"")):
        data = (
            b"RIFF" + struct.pack("<I", 0xFFFF_FFFF) + b"WAVE" + before + b"data" + struct.pack("<I", size) + pcm + tail
        )
        for portion in (1, 13, 10**9):
            np.testing.assert_array_equal(portioned(data, portion), np.frombuffer(pcm, "<i2") / np.float32(32768))


@pytest.mark.parametrize("kind", ["wav16", "flac16", "opus", "vorbis"])
def test_samples_come_before_the_end(kind: str) -> None:
    data = packed(kind, seconds=20.0)
    with AudioDecoder() as decoder:
        seen = decoder.push(data[: len(data) // 2]).size
        for first in range(len(data) // 2, len(data) * 3 // 4, 1000):
            time.sleep(0.005)
            seen += decoder.push(data[first : first + 1000]).size
        end = time.monotonic() + 60
        while seen <= 5 * 16_000:
            assert time.monotonic() < end
            time.sleep(0.005)
            seen += decoder.push(b"").size


def test_a_rate_that_is_not_whole_in_the_other() -> None:
    for rate in (8_000, 11_025, 22_050, 44_100):
        pcm = (sound(rate, 1.0)[:, 0] * 32767).astype("<i2").tobytes()
        found = portioned(pcm, 900, sample_rate=rate)
        assert found.size == 16_000
        reference = sound(16_000, 1.0)[:, 0]
        assert np.abs(found[400:-400] - reference[400:-400]).max() < 2e-3


# What is bad


def test_refusals_say_what_came_and_what_to_do() -> None:
    nan = io.BytesIO()
    soundfile.write(nan, np.full(1000, np.nan, np.float32), 16_000, format="WAV", subtype="FLOAT")
    wav = packed("wav16")
    adpcm = wav.replace(struct.pack("<IHH", 16, 1, 1), struct.pack("<IHH", 16, 2, 1))
    cases: list[tuple[bytes, dict[str, Any], str, str]] = [
        (b"", {}, "empty", "malformed"),
        (b"hello world, this is text", {}, "declare encoding", "unsupported"),
        (b"hello world, this is text", {"encoding": "linear_pcm"}, "sample rate", "malformed"),
        (b"hello world, this is text", {"encoding": "flac"}, "declared as flac", "malformed"),
        (b"\0\0" * 100, {"sample_rate": 4000}, "4000 Hz", "unsupported"),
        (b"\0\0" * 100, {"sample_rate": 10**6}, "1000000 Hz", "unsupported"),
        (b"\0", {"sample_rate": 16_000}, "no samples", "malformed"),
        (wav[:30], {}, "ends before its samples", "malformed"),
        (wav[:44], {}, "no samples", "malformed"),
        (adpcm, {}, "WAV audio of this coding is not accepted. Send WAV", "unsupported"),
        (packed("aiff"), {}, "AIFF audio of this coding is not accepted", "unsupported"),
        (b"#EXTM3U\n#EXTINF:10,\nother.wav\n", {}, "declare encoding", "unsupported"),
        (nan.getvalue(), {}, "NaN", "malformed"),
        (b"fLaC" + b"\xff" * 1000, {}, "FLAC audio cannot be decoded", "malformed"),
        (b"OggS" + b"\xff" * 1000, {}, "Ogg audio cannot be decoded", "malformed"),
        (b"ID3" + b"\xff" * 1000, {}, "MP3 audio cannot be decoded", "malformed"),
        (wav[:100] * 1000, {"limits": AudioLimits(max_bytes=50_000)}, "50000 bytes", "too_large"),
        (wav, {"limits": AudioLimits(max_seconds=1.0)}, "longer than 1 s", "too_large"),
    ]
    for data, options, message, fault in cases:
        with pytest.raises(AudioError, match=message) as refused:
            decode_audio(data, **options)
        assert refused.value.fault == fault, message


@pytest.mark.parametrize("kind", ["flac16", "opus", "mp3"])
def test_a_bomb_is_not_unpacked(kind: str) -> None:
    form, coding, rate = WRITTEN[kind]
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(rate * 120, np.float32), rate, format=form, subtype=coding)
    data = stream.getvalue()
    assert len(data) * 6 < 120 * rate * 2
    for portion in (10**9, 4096):
        with pytest.raises(AudioError, match="longer than 5 s"):
            portioned(data, portion, limits=AudioLimits(max_seconds=5.0))


def test_no_thread_stays_behind() -> None:
    before = threading.active_count()
    for kind in ("flac16", "opus", "mp3", "webm", "m4a-fast", "m4a"):
        data = packed(kind)
        decoder = AudioDecoder()
        decoder.push(data[:4000])
        decoder.close()
        decode_audio(data)
        with pytest.raises(AudioError):
            decode_audio(data[:20])
        late = AudioDecoder()
        late.close()  # before the bytes are there that begin it, as when a client goes away meanwhile
        late.push(data[:4000])
    end = time.monotonic() + 60
    while threading.active_count() > before:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["flac16", "webm", "m4a"])
def test_another_thread_ends_a_long_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client goes away while minutes are decoded."""
    data = packed(kind, seconds=200.0)
    decoder = AudioDecoder()
    whole = decoder.push(data).size + decoder.finish().size
    assert whole > 190 * 16_000
    begun, closed = threading.Event(), threading.Event()
    resample = Resampler.push

    def resample_once_closed(resampler: Resampler, block: Block) -> Samples:
        begun.set()
        assert closed.wait(30)
        return resample(resampler, block)

    monkeypatch.setattr(Resampler, "push", resample_once_closed)
    decoder = AudioDecoder()
    found: list[int] = []

    def decode() -> None:
        found.append(decoder.push(data).size)
        with contextlib.suppress(AudioError):
            found.append(decoder.finish().size)

    decoding = threading.Thread(target=decode)
    decoding.start()
    assert begun.wait(30)
    decoder.close()
    closed.set()
    decoding.join(30)
    assert not decoding.is_alive()
    assert sum(found) < whole


def test_one_push_decodes_a_bounded_number_of_samples() -> None:
    """The event loop pushes what is short: a minute of silence in a kilobyte must not hold it up."""
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(16_000 * 600, np.int16), 16_000, format="FLAC")
    with AudioDecoder() as decoder:
        first = decoder.push(stream.getvalue()).size
        assert 0 < first < 1.5 * 2**20
        assert first + decoder.finish().size == 16_000 * 600


def test_samples_of_all_channels_are_limited() -> None:
    """Eight channels at 192 kHz are forty-eight times the work of a telephone call."""
    wide = io.BytesIO()
    soundfile.write(wide, np.zeros((192_000, 8), np.int16), 192_000, format="FLAC")
    with pytest.raises(AudioError, match="more than 192000 samples in its 8 channels at 192000 Hz") as refused:
        decode_audio(wide.getvalue(), limits=AudioLimits(max_seconds=2.0))
    assert refused.value.fault == "too_large"
    assert decode_audio(packed("flac16"), limits=AudioLimits(max_seconds=2.0)).size == 24_000


@pytest.mark.parametrize("kind", ["mp3", "flac16", "aac"])
def test_tags_are_skipped_not_unpacked(kind: str) -> None:
    """Each frame of these tags would become 100 MB."""
    bomb = zlib.compress(bytes(100 * 2**20), 9)
    frames = b"".join(b"T%03d" % index + syncsafe(len(bomb) + 4) + b"\0\x09" + syncsafe(100 * 2**20) + bomb
                      for index in range(20))  # fmt: skip
    tag = b"ID3\4\0\0" + syncsafe(len(frames)) + frames
    data = packed(kind)
    grown = peak_memory()
    plain = decode_audio(data)
    np.testing.assert_array_equal(decode_audio(tag + tag + data), plain)
    np.testing.assert_array_equal(portioned(tag + data, 100_000), plain)
    if kind == "aac":
        small = b"ID3\4\0\0" + syncsafe(200) + bytes(200)
        assert portioned(data + small + data, 777).size >= 2 * plain.size - 4096
        with contextlib.suppress(AudioError):
            portioned(data + tag + data, 99_999)
    assert peak_memory() - grown < 90


def syncsafe(size: int) -> bytes:
    """The number of ID3 tags: seven bits a byte."""
    return bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))


def peak_memory() -> float:
    """MB, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_an_mp4_header_cannot_ask_for_gigabytes() -> None:
    """80 million packets of one byte each are claimed by 1.5 kB; so are a thousand tracks."""
    data = bytearray(packed("m4a-fast"))
    place = data.index(b"stsz") + 8
    data[place : place + 8] = struct.pack(">II", 1, 80_000_000)
    before = peak_memory()
    with pytest.raises(AudioError, match="MP4 audio cannot be decoded"):
        decode_audio(bytes(data))
    assert peak_memory() - before < 200
    tracks = packed("m4a").replace(b"mdat", b"mdat" + b"trak" * 100, 1)
    with pytest.raises(AudioError, match="more than 64 tracks"):
        decode_audio(tracks)


def test_ffmpeg_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("mp3", "webm", "m4a-fast", "aac", "vorbis"):
        damaged = bytearray(packed(kind))
        damaged[len(damaged) // 2 : len(damaged) // 2 + 200] = bytes(200)
        with contextlib.suppress(AudioError):
            decode_audio(bytes(damaged[:-100]))
    assert capfd.readouterr() == ("", "")


FILES = {
    kind: packed(kind, seconds=0.3)
    for kind in (*("wav16", "wav24", "wavmulaw", "flac16", "opus16", "vorbis", "mp3"), *PIECEWISE)
}


@given(
    kind=st.sampled_from(sorted(FILES)),
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=12),
    cut=st.integers(0, 4000),
    portion=st.sampled_from([11, 500, 10**9]),
)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_files_are_decoded_or_refused(
    kind: str, changes: list[tuple[int, int]], cut: int, portion: int
) -> None:
    data = bytearray(FILES[kind])
    for position, value in changes:
        data[position % len(data)] = value
    damaged = bytes(data[: max(1, len(data) - cut)])
    limits = AudioLimits(max_seconds=10.0)
    try:
        samples = portioned(damaged, max(portion, len(damaged) // 200), limits=limits)
    except AudioError:
        return
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert samples.size <= 10.0 * 16_000 + 10_000


@given(st.binary(max_size=400), st.sampled_from(["auto", "linear_pcm", "mulaw", "alaw", "flac", "ogg_opus"]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_decoded_or_refused(data: bytes, encoding: Any) -> None:
    try:
        samples = decode_audio(data, encoding=encoding, sample_rate=16_000)
    except AudioError:
        return
    assert np.isfinite(samples).all()
