"""The last stage of the embedded base's training: a student learns from transcripts and from a teacher's frames."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from overtone.data.dataset import Batch, SpeechDataset, collate
from overtone.data.manifest import read_manifest
from support.small_models import small_model

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "fundamental"
WIDTH = 6
FRAMES = (10, 14)
"""Of the teacher, one every 80 ms, of the two utterances."""


@pytest.fixture
def distil(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPE))
    return importlib.import_module("distil")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two utterances of noise with a teacher's frames, which rise evenly."""
    generator = np.random.default_rng(3)
    path = tmp_path / "train.jsonl"
    lines = []
    for number, frames in enumerate(FRAMES):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * generator.standard_normal(frames * 1280), 16_000)
        lines.append(json.dumps({"audio_filepath": f"{number}.wav", "duration": frames * 0.08, "text": "hello"}))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    ramp = np.concatenate([np.arange(frames) for frames in FRAMES])[:, None] + np.zeros(WIDTH)
    np.save(tmp_path / "train.teacher.npy", ramp.astype(np.float16))
    np.save(tmp_path / "train.teacher.bounds.npy", np.cumsum([0, *FRAMES]))
    return path


def batch_of(manifest: Path) -> Batch:
    utterances = read_manifest(manifest)
    tokens = [small_model().tokenizer.encode(utterance.text or "") for utterance in utterances]
    batch = collate([SpeechDataset(utterances, tokens, sample_rate=16_000)[index] for index in range(len(utterances))])
    assert isinstance(batch, Batch)
    return batch


def begin(distil: Any, manifest: Path) -> Any:
    torch.manual_seed(1)
    return distil.Student.begin(small_model(layers=6), distil.Teacher([manifest]), 1e-3)


def test_frames_of_the_teacher_are_stretched_with_the_utterance(distil: Any, manifest: Path) -> None:
    teacher = distil.Teacher([manifest])
    targets, places = teacher.targets(batch_of(manifest), torch.tensor([20, 14]))
    assert targets.shape == (2, 20, WIDTH)
    assert places.sum(dim=1).tolist() == [20, 14]
    ramp = targets * teacher.deviation + teacher.mean
    assert ramp[1, :14, 0].tolist() == pytest.approx(range(14), abs=1e-4)
    assert ramp[0, :, 0].tolist() == pytest.approx(
        [0.0, *(place / 2 - 0.25 for place in range(1, 19)), 9.0], abs=1e-4
    )  # twice as many frames


def test_both_losses_fall(distil: Any, manifest: Path) -> None:
    student, batch = begin(distil, manifest), batch_of(manifest)
    losses = [student.learn(batch, rate=3e-3, weight=1.0) for _ in range(40)]
    first, last = np.mean(losses[:5], axis=0), np.mean(losses[-5:], axis=0)
    assert (last < 0.7 * first).all(), (first, last)


def test_a_student_goes_on_where_it_was_saved(distil: Any, manifest: Path, tmp_path: Path) -> None:
    whole, batch = begin(distil, manifest), batch_of(manifest)
    for step in range(4):
        if step == 2:
            whole.share()
            whole.save(tmp_path / "state.pt")
        whole.learn(batch, rate=1e-3, weight=1.0)
    resumed = begin(distil, manifest)
    resumed.restore(tmp_path / "state.pt")
    assert resumed.step == 2
    for _ in range(2):
        resumed.learn(batch, rate=1e-3, weight=1.0)
    assert resumed.seconds == whole.seconds
    for name, tensor in whole.model.base_state_dict().items():
        assert torch.equal(tensor, resumed.model.base_state_dict()[name]), name
        assert torch.equal(whole.mean[name], resumed.mean[name]), name


def test_the_mean_follows_the_weights_slowly(distil: Any, manifest: Path) -> None:
    student = begin(distil, manifest)
    before = {name: tensor.clone() for name, tensor in student.mean.items()}
    student.learn(batch_of(manifest), rate=1e-3, weight=1.0)
    student.share()
    name = "decoder.projection.weight"
    moved = (student.mean[name] - before[name]).abs().sum() / (
        student.model.base_state_dict()[name] - before[name]
    ).abs().sum()
    assert float(moved) == pytest.approx(1 - distil.KEPT**distil.MEAN_EVERY, rel=1e-3)


def test_the_rate_rises_holds_and_falls(distil: Any) -> None:
    course = distil.Course(peak=1.0, steps=1000, decay=200)
    assert [course(step) for step in (0, 199, 500, 800, 900, 999)] == [
        pytest.approx(1 / distil.WARMUP),
        1.0,
        1.0,
        1.0,
        pytest.approx(0.5),
        pytest.approx(1 / 200),
    ]
