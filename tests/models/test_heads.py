"""Heads: a recogniser with a second head, unlike CTC, goes every way that a CTC model goes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from overtone.config import FlatStartSettings
from overtone.errors import ConfigError
from overtone.evaluation.evaluate import evaluate
from overtone.evaluation.verify import verify
from overtone.inference.transcribe import Transcriber, transcribe
from overtone.models.asr_model import AsrModel
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.recognition.offline import recognise
from overtone.training.console import Reporter
from overtone.training.flat_start import FlatStart
from overtone.training.train import run_training
from support.families import batch, family_model
from support.small_models import add_trained, small_model
from support.step_head import StepHead, give_step_head
from support.streams import run
from support.train_samples import settings_for


@pytest.fixture
def model() -> AsrModel:
    return give_step_head(small_model())


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    paths = []
    for index, seconds in enumerate((1.0, 2.3, 7.0)):
        waveform = batch(round(16_000 * seconds), seed=index)[0][0]
        paths.append(tmp_path / f"{index}.wav")
        soundfile.write(paths[-1], waveform.numpy(), 16_000, subtype="FLOAT")
    return paths


def text_alone(model: AsrModel, path: Path) -> str:
    waveform = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    with torch.no_grad():
        emissions, lengths = model(waveform[None], torch.tensor([len(waveform)]))
    assert emissions.size(-1) == model.tokenizer.size + 2
    return model.head.read(model.head.align(emissions, lengths)[0]).text


def test_the_ten_line_way(model: AsrModel) -> None:
    waveforms, lengths = batch(16_000, 30_000)
    found = model.transcribe(waveforms, lengths)
    assert all(hypothesis.text.strip() for hypothesis in found)
    alone = model.transcribe(waveforms[1:], lengths[1:])[0]
    assert found[1].text == alone.text
    model.head_name = "ctc"
    assert model.transcribe(waveforms, lengths)[1].text != alone.text


def test_files_are_transcribed(model: AsrModel, recordings: list[Path]) -> None:
    whole = transcribe(model, recordings, window=None)
    assert [hypothesis.text for hypothesis in whole] == [text_alone(model, path) for path in recordings]


def test_windows_are_joined(model: AsrModel, recordings: list[Path]) -> None:
    """Frames of the joined windows are those of the whole, but near the seams, where context is missing."""
    (whole,) = transcribe(model, recordings[2], window=None)
    (joined,) = Transcriber(model, window=3.0, overlap=1.0).transcribe(recordings[2])
    assert joined.spans == tuple(sorted(joined.spans))
    assert len(set(whole.spans) & set(joined.spans)) > 0.5 * len(whole.spans)


def test_adapters_act_below_it(model: AsrModel, recordings: list[Path]) -> None:
    add_trained(model, "mine")
    assert verify(model, recordings).passed
    base, adapted = transcribe(model, [recordings[1]] * 2, adapter=[None, "mine"])
    assert base.text != adapted.text


def test_evaluation_counts_what_it_reads(model: AsrModel, recordings: list[Path], tmp_path: Path) -> None:
    lines = [
        {
            "audio_filepath": str(path),
            "duration": soundfile.info(path).duration,
            "text": text_alone(model, path).strip(),
        }
        for path in recordings
    ]
    manifest = tmp_path / "manifest.json"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (result,) = evaluate(model, manifest, window=None).results
    assert result.words.reference_length > 0
    assert result.wer == 0.0


def test_an_adapter_is_trained_under_it(model: AsrModel, tmp_path: Path) -> None:
    """By the head's own loss; the flat start of CTC is refused by its name."""
    result = run_training(
        settings_for(tmp_path, "trainer.max_steps=6", "model.optim.lr=0.01"), model=model, reporter=Reporter(quiet=True)
    )
    assert result.steps == 6
    with model.adapters.use("mine"):
        trained = model(*batch(16_000))[0]
    assert not torch.equal(trained, model(*batch(16_000))[0])
    flat = FlatStartSettings(steps=3, weight=1.0)
    with pytest.raises(ConfigError, match="flat_start is for CTC heads"):
        FlatStart.for_model(model, flat)


def test_the_engine_answers_with_its_emissions(model: AsrModel, recordings: list[Path]) -> None:
    samples, _ = soundfile.read(recordings[1], dtype="float32")
    with Engine(model, EngineSettings(max_wait=0.0)) as engine:
        emissions = engine.submit(samples).result(30)
        assert emissions.shape[1] == model.tokenizer.size + 2
        assert run(recognise(engine, samples)).hypotheses[0].text == text_alone(model, recordings[1])


def test_silence_before_a_push_and_after_it_agree() -> None:
    """The decoder has a state: whether a frame has a token hangs on the frame before."""
    head = give_step_head(family_model()).head
    assert isinstance(head, StepHead)
    generator = np.random.default_rng(0)
    emissions = generator.standard_normal((40, head.tokenizer.size + 2)).astype(np.float32)
    decoder = head.decoder()
    asked = []
    for first in range(0, 40, 7):
        asked.append(decoder.silent(emissions[first : first + 7]))
        decoder.push(emissions[first : first + 7])
    assert np.array_equal(np.concatenate(asked), decoder.steps.silent)
    assert not np.concatenate(asked).all()
