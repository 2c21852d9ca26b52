"""Recordings in memory: what programs hold is heard as the file is, anything else is one error."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from overtone.audio.held import hold, is_sound
from overtone.audio.load import AudioReader, audio_duration, load_audio
from overtone.errors import DataError, UsageError

RATE = 16_000


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of two channels, of which one is silent, as 16-bit WAV."""
    path = tmp_path_factory.mktemp("held") / "speech.wav"
    rng = np.random.default_rng(0)
    loud = (rng.normal(0, 3_000, RATE)).astype(np.int16)
    soundfile.write(path, np.stack([loud, np.zeros(RATE, np.int16)], 1), RATE, subtype="PCM_16")
    return path


def whole(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


FORMS: dict[str, Callable[[Path], Any]] = {
    "path": str,
    "int16": whole,
    "float32": lambda path: whole(path) / np.float32(32768),
    "float64": lambda path: whole(path) / 32768,
    "int32": lambda path: whole(path).astype(np.int32) << 16,
    "tensor": lambda path: torch.from_numpy(whole(path) / np.float32(32768)),
    "tensor that is learnt": lambda path: torch.from_numpy(whole(path) / np.float32(32768)).requires_grad_(),
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "open file": lambda path: io.BytesIO(path.read_bytes()),
    "samples and rate": lambda path: (whole(path), RATE),
    "rate and samples": lambda path: (np.int64(RATE), whole(path)),
    "hugging face": lambda path: {"array": whole(path) / 32768, "sampling_rate": RATE, "path": None},
    "hugging face, encoded": lambda path: {"bytes": path.read_bytes(), "path": "speech.wav"},
    "hugging face, on disk": lambda path: {"bytes": None, "path": str(path)},
    "hugging face, a row": lambda path: {"text": "x", "audio": {"array": whole(path) / 32768, "sampling_rate": RATE}},
    "pipeline": lambda path: {"raw": whole(path), "sampling_rate": RATE},
    "decoder": lambda path: Torchcodec(whole(path).T / np.float32(32768)),
}


class Torchcodec:
    """The decoder of a Hugging Face data set."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = torch.from_numpy(data)
        self.sample_rate = RATE

    def get_all_samples(self) -> Torchcodec:
        return self


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_heard_as_the_file_is(speech: Path, form: str) -> None:
    value = FORMS[form](speech)
    assert is_sound(value)
    np.testing.assert_array_equal(load_audio(value), load_audio(speech))


def test_parts_channels_and_rates(speech: Path) -> None:
    held = hold((whole(speech), RATE), 8_000)
    assert audio_duration(held) == 1.0
    part = {"offset": 0.25, "duration": 0.5, "channel": 0, "sample_rate": 8_000}
    np.testing.assert_array_equal(load_audio(held, **part), load_audio(speech, **part))
    with AudioReader(held) as reader:
        windows = [reader.read(start, start + 0.25) for start in (0.0, 0.25, 0.5, 0.75)]
    np.testing.assert_array_equal(np.concatenate(windows), load_audio(speech))


def test_samples_without_a_rate_have_the_asked_one(speech: Path) -> None:
    assert len(load_audio(whole(speech), sample_rate=8_000)) == RATE


def test_lists_and_single_channels() -> None:
    assert load_audio([0.0, 0.5, -0.5, 0.25]).tolist() == [0.0, 0.5, -0.5, 0.25]
    assert load_audio(torch.tensor([[0.0, 0.5, -0.5]])).tolist() == [0.0, 0.5, -0.5]
    assert load_audio(torch.tensor([0.5, -0.5, 0.25], dtype=torch.bfloat16)).tolist() == [0.5, -0.5, 0.25]
    assert load_audio(np.array([255, 128, 0], np.uint8)).tolist() == [127 / 128, 0.0, -1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "of type int; allowed is a path, the bytes of a file"),
        (None, "of type NoneType"),
        ({"text": "x"}, "a dictionary with the keys 'text'"),
        ({}, "a dictionary with the keys none"),
        ({"array": np.zeros(5)}, "'array' without 'sampling_rate'"),
        ((np.zeros(5), 0), "the rate 0; a whole number of Hz"),
        ((np.zeros(5), 16_000.5), "the rate 16000.5"),
        ((np.zeros(5), float("nan")), "the rate nan"),
        (np.zeros((2, 3, 4)), r"the shape \[2, 3, 4\]; samples of one channel are \[S\]"),
        (
            np.zeros((2, 1_000)),
            r"the shape \[2, 1000\]. Channels come last, \[S, C\]: transpose it; or, if it is a batch",
        ),
        (np.float32(0.5), "of type float32"),
        (np.arange(5), "samples of type int64; allowed are floats"),
        (np.zeros(5, bool), "samples of type bool"),
        (np.zeros(5, complex), "samples of type complex128"),
        (np.array(["a", "b"]), "samples of type str"),
        (np.full(5, 20_000.0), "floats up to 20000; full scale is 1"),
        (io.StringIO("text"), "a file that was opened for text"),
    ],
)
def test_anything_else_is_one_error(value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"^the recording .*{message}"):
        load_audio(value)


def test_samples_must_be_finite_and_there() -> None:
    with pytest.raises(DataError, match=r"^the recording: 1 samples are NaN or infinite"):
        load_audio(np.array([0.0, np.nan]))
    with pytest.raises(DataError, match=r"^the recording: no samples"):
        load_audio(np.zeros(0, np.float32))
    with pytest.raises(DataError, match=r"^the recording: cannot be read as audio"):
        load_audio(b"nothing of the kind")


def test_git_lfs_pointers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(DataError, match=r"a\.wav: .*Git LFS pointer .* `git lfs pull`"):
        load_audio(path)
