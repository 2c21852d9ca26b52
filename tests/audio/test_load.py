from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from overtone.audio.load import SAMPLE_RATE, audio_duration, load_audio
from overtone.errors import DataError
from support.fixtures import fixture_file, speech_root

FORMATS = [
    ("wav", "WAV", "PCM_16", 16_000),
    ("wav", "WAV", "PCM_U8", 8_000),
    ("wav", "WAV", "PCM_24", 44_100),
    ("wav", "WAV", "FLOAT", 48_000),
    ("wav", "WAV", "ULAW", 8_000),
    ("flac", "FLAC", "PCM_16", 22_050),
    ("ogg", "OGG", "VORBIS", 44_100),
    ("ogg", "OGG", "OPUS", 48_000),
    ("opus", "OGG", "OPUS", 16_000),
    ("mp3", "MP3", "MPEG_LAYER_III", 44_100),
    ("mp3", "MP3", "MPEG_LAYER_III", 16_000),
    ("aiff", "AIFF", "PCM_16", 11_025),
]


def tone(seconds: float, rate: int, hertz: float = 440.0) -> NDArray[np.float32]:
    """A slow crescendo, so that every moment is told from the others."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * time / seconds * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


@pytest.mark.parametrize(("suffix", "container", "subtype", "rate"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_reads_every_format(
    tmp_path: Path, suffix: str, container: str, subtype: str, rate: int, channels: int
) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([tone(1.5, rate)] * channels, 1), rate, format=container, subtype=subtype)
    samples = load_audio(path)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert samples.flags.c_contiguous
    assert len(samples) == pytest.approx(1.5 * SAMPLE_RATE, abs=2)
    assert audio_duration(path) == pytest.approx(1.5, abs=1e-3)
    expected = tone(1.5, SAMPLE_RATE)[2_000:22_000]
    assert np.abs(samples[2_000:22_000] - expected).max() < 0.03


@pytest.mark.parametrize(("suffix", "container", "subtype", "rate"), FORMATS)
def test_reads_a_part(tmp_path: Path, suffix: str, container: str, subtype: str, rate: int) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(3.0, rate), rate, format=container, subtype=subtype)
    whole = load_audio(path)
    part = load_audio(path, offset=1.0, duration=0.5)
    assert len(part) == pytest.approx(8_000, abs=2)
    inner = slice(200, 7_700)
    np.testing.assert_allclose(part[inner], whole[16_000:24_000][inner], atol=2e-3)
    assert len(load_audio(path, offset=2.5)) == pytest.approx(8_000, abs=2)
    assert len(load_audio(path, offset=2.5, duration=60.0)) == pytest.approx(8_000, abs=2)


def test_sixteen_bits_are_exact(tmp_path: Path) -> None:
    integers = np.arange(-32_768, 32_768, dtype=np.int16)
    for name, container in (("all.wav", "WAV"), ("all.flac", "FLAC")):
        soundfile.write(tmp_path / name, integers, 16_000, format=container, subtype="PCM_16")
        assert (load_audio(tmp_path / name) == integers.astype(np.float32) / np.float32(32_768)).all()
        part = load_audio(tmp_path / name, offset=0.5, duration=0.25)
        assert (part == integers[8_000:12_000].astype(np.float32) / np.float32(32_768)).all()


def test_reference_recordings() -> None:
    for index, samples in enumerate((24_000, 43_680, 64_000)):
        path = fixture_file(f"wavs/w{index}.wav")
        integers, _ = soundfile.read(path, dtype="int16")
        loaded = load_audio(path)
        assert len(loaded) == pytest.approx(samples, abs=1)
        assert (loaded == integers.astype(np.float32) / np.float32(32_768)).all()
        assert audio_duration(path) == len(integers) / 16_000


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(0.2, 16_000), tone(0.2, 16_000, 1_000.0)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right, left], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "stereo.wav"), (2 * left + right) / 3, atol=1e-7)


def test_other_sample_rates(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(1.0, 16_000), 16_000)
    assert len(load_audio(tmp_path / "tone.wav", sample_rate=8_000)) == 8_000
    soundfile.write(tmp_path / "high.wav", tone(1.0, 48_000, 10_000.0), 48_000)
    assert np.abs(load_audio(tmp_path / "high.wav")[500:-500]).max() < 1e-3, "no aliases"


def test_the_telephone_prompts() -> None:
    audio = sorted((Path(__file__).parents[2] / "overtone" / "prompts" / "audio").iterdir())[:5]
    for path in audio:
        assert len(load_audio(path)) == pytest.approx(audio_duration(path) * SAMPLE_RATE, abs=2)


def test_real_speech() -> None:
    for corpus in sorted(path for path in speech_root().iterdir() if path.is_dir()):
        path = min(path for path in corpus.rglob("*") if path.suffix in {".wav", ".flac", ".ogg", ".opus", ".mp3"})
        samples = load_audio(path)
        assert len(samples) == pytest.approx(audio_duration(path) * SAMPLE_RATE, abs=2)
        assert 0.0 < np.abs(samples).max() <= 1.5


def test_names_in_any_script(tmp_path: Path) -> None:
    path = tmp_path / "Ünïcode 漢字 name.flac"
    soundfile.write(path, tone(0.1, 16_000), 16_000)
    assert len(load_audio(str(path))) == 1_600


def test_missing_file(tmp_path: Path) -> None:
    for read in (load_audio, audio_duration):
        for path in (tmp_path / "none.wav", tmp_path / "none" / "none.wav"):
            with pytest.raises(DataError, match=r"none\.wav: no such audio file"):
                read(path)
        with pytest.raises(DataError, match="not a file"):
            read(tmp_path)
        with pytest.raises(DataError, match="cannot be read as audio"):
            read(tmp_path / ("long" * 100))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.wav", b"", "the file is empty"),
        ("text.wav", b"this is not audio\n" * 50, r"text\.wav: cannot be read as audio .* Convert it to WAV"),
        ("headerless.raw", bytes(1_000), r"headerless\.raw: cannot be read as audio"),
        ("cut.wav", b"RIFF\x24\x00\x00\x00WAVEfmt ", "cannot be read as audio"),
    ],
)
def test_files_that_are_not_audio(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (load_audio, audio_duration):
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_no_samples(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"zero.{suffix}"
    soundfile.write(path, np.zeros(0, dtype=np.float32), 16_000)
    for read in (load_audio, audio_duration):
        with pytest.raises(DataError, match=f"zero.{suffix}: "):
            read(path)


def test_nothing_left_after_resampling(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.wav", np.ones(1, dtype=np.float32), 96_000)
    with pytest.raises(DataError, match="1 samples at 96000 Hz are nothing at 16000 Hz"):
        load_audio(tmp_path / "one.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers(tmp_path: Path, value: float) -> None:
    samples = tone(0.5, 16_000)
    samples[100:103] = value
    soundfile.write(tmp_path / "bad.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"bad\.wav: 3 samples are NaN or infinite"):
        load_audio(tmp_path / "bad.wav")
    assert len(load_audio(tmp_path / "bad.wav", offset=0.25)) == 4_000


def truncated(folder: Path, name: str, share: float) -> Path:
    soundfile.write(folder / f"whole-{name}", tone(2.0, 16_000), 16_000)
    content = (folder / f"whole-{name}").read_bytes()
    (folder / name).write_bytes(content[: round(len(content) * share)])
    return folder / name


def test_truncated_files(tmp_path: Path) -> None:
    assert len(load_audio(truncated(tmp_path, "cut.wav", 0.5))) == pytest.approx(16_000, abs=20)
    with pytest.raises(DataError, match=r"cut\.flac: cannot be read as audio"):
        load_audio(truncated(tmp_path, "cut.flac", 0.5))
    with pytest.raises(DataError, match=r"cut\.ogg: "):
        load_audio(truncated(tmp_path, "cut.ogg", 0.5))
    with pytest.raises(DataError, match=r"cut\.mp3: cannot be read as audio .nothing in it can be decoded"):
        load_audio(truncated(tmp_path, "cut.mp3", 0.1))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"offset": -0.1}, "offset is -0.1"),
        ({"offset": float("nan")}, "offset is nan"),
        ({"offset": 5.0}, "offset is 5.0 s, but the recording ends after 1.000 s"),
        ({"duration": 0.0}, "duration is 0.0"),
        ({"duration": float("inf")}, "duration is inf"),
    ],
)
def test_impossible_parts(tmp_path: Path, part: dict[str, float], message: str) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(1.0, 16_000), 16_000)
    with pytest.raises(DataError, match=message):
        load_audio(tmp_path / "tone.wav", **part)


def test_chosen_channels_are_read_alone(tmp_path: Path) -> None:
    both = np.stack([np.full(1_600, 0.25), np.full(1_600, -0.5)], axis=1)
    for path in (tmp_path / "both.wav", tmp_path / "both.flac"):
        soundfile.write(path, both, 16_000)
        assert load_audio(path, channel=0).tolist() == [0.25] * 1_600
        assert load_audio(path, channel=(1,)).tolist() == [-0.5] * 1_600
        assert load_audio(path, channel=(0, 1)).tolist() == load_audio(path).tolist() == [-0.125] * 1_600
        with pytest.raises(DataError, match="channel 2 was chosen, but the recording has 2 channels, numbers 0 to 1"):
            load_audio(path, channel=2)
