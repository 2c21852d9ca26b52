"""Recordings in memory, channels, names, and outputs that are not finite."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from overtone.decoding.decoder import Decoder, DecodingOptions
from overtone.errors import OutputError, UsageError
from overtone.inference.recordings import find_recordings
from overtone.inference.transcribe import Transcriber, transcribe
from support.small_models import add_trained, small_model
from support.tone_model import SAMPLE_RATE, ToneModel, sentence, spoken

# Recordings in memory


def test_recordings_in_memory_are_heard_as_files_are(model: ToneModel, record: Callable[..., Path]) -> None:
    path = record("a.wav", "abc bad")
    samples = soundfile.read(path, dtype="float32")[0]
    forms = [
        samples,
        torch.from_numpy(samples),
        path.read_bytes(),
        {"audio_filepath": str(path)},
        (samples, SAMPLE_RATE),
    ]
    for single in forms:
        assert [each.text for each in transcribe(model, single)] == ["abc bad"]
    assert [each.text for each in transcribe(model, forms)] == ["abc bad"] * len(forms)
    assert [each.text for each in transcribe(model, (each for each in forms[:2]))] == ["abc bad"] * 2
    assert [each.text for each in transcribe(model, [samples, str(path)], adapter=[None, None])] == ["abc bad"] * 2
    results = list(Transcriber(model).stream([samples, samples]))
    assert [str(each.path) for each in results] == ["recording 1", "recording 2"]


def test_long_samples_go_through_windows(model: ToneModel) -> None:
    text = sentence(40)
    whole = Transcriber(model, window=2.0, overlap=0.5).transcribe(spoken(text))[0].text
    assert whole == text


@pytest.mark.parametrize(
    "source", [3, [3], [["a.wav"]], torch.utils.data.DataLoader([torch.zeros(9)] * 2, batch_size=2)]
)
def test_what_is_no_recording_is_one_error(model: ToneModel, source: Any) -> None:
    with pytest.raises(UsageError, match=r"allowed is a path|a batch"):
        transcribe(model, source)


def test_files_of_one_name_are_told_apart(record: Callable[..., Path], tmp_path: Path) -> None:
    paths = [record("x/a/call.wav", "abc"), record("x/b/call.wav", "abc"), record("y/b/call.wav", "abc")]
    names = [recording.name for group in find_recordings([*paths, paths[0]]) for recording in group]
    assert names == ["x/a/call.wav", "x/b/call.wav", "y/b/call.wav", "x/a/call.wav"]
    assert [group[0].name for group in find_recordings(paths[:2])] == ["a/call.wav", "b/call.wav"]
    assert find_recordings(paths[0])[0][0].name == "call.wav"


def test_channels_of_a_manifest_are_heard_alone(model: ToneModel, tmp_path: Path) -> None:
    both = np.stack([spoken("abc"), spoken("bad")], axis=1)
    soundfile.write(tmp_path / "call.wav", both, SAMPLE_RATE)
    lines = [{"audio_filepath": "call.wav", "channel": channel} for channel in (0, 1)]
    (tmp_path / "m.json").write_text("\n".join(map(json.dumps, lines)))
    assert [each.text for each in transcribe(model, tmp_path / "m.json")] == ["abc", "bad"]


# Outputs that are not finite


def test_damaged_weights_are_named(record: Callable[..., Path]) -> None:
    path, model = record("a.wav", "abc"), small_model()
    add_trained(model, "good", seed=1)
    add_trained(model, "bad", seed=2)
    name, tensor = next(iter(model.adapters["bad"].tensors().items()))
    tensor.detach().view(-1)[0] = np.nan
    assert len(transcribe(model, [path, path], adapter=["good", None])) == 2
    with pytest.raises(OutputError, match=f"not finite: {re.escape(name)} of adapter 'bad' holds NaN or infinity"):
        transcribe(model, path, adapter="good+bad")
    next(model.encoder.parameters()).detach().view(-1)[0] = np.inf
    with pytest.raises(OutputError, match=r"not finite: encoder\.\S+ holds NaN or infinity"):
        transcribe(model, path)


def test_every_decoder_refuses_what_is_not_finite() -> None:
    model = small_model()
    head, emissions = model.heads["ctc"], np.full((9, model.tokenizer.size + 1), -1.0, np.float32)
    emissions[4, 2] = np.nan
    for options in (DecodingOptions(), DecodingOptions(alternatives=3)):
        with pytest.raises(OutputError, match="not finite"):
            read(head.decoder(options), emissions)


def read(decoder: Decoder, emissions: np.ndarray) -> str:
    decoder.push(emissions)
    return decoder.hypotheses()[0].text
