"""The training of the embedded base: a student learns from transcripts and from the layers of a teacher."""

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
LAYERS = 2
"""Of the teacher."""
FRAMES = (20, 28)
"""Of the teacher, one every 40 ms, of the two utterances."""


@pytest.fixture
def distil(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPE))
    return importlib.import_module("distil")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two utterances of noise, the second without words, with a teacher's frames: tones over time and dimensions."""
    generator = np.random.default_rng(3)
    path = tmp_path / "train.jsonl"
    lines = []
    for number, frames in enumerate(FRAMES):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * generator.standard_normal(frames * 640), 16_000)
        lines.append(json.dumps({"audio_filepath": f"{number}.wav", "duration": frames * 0.04, "text": "hello"}))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    width = LAYERS * small_model().encoder.width
    np.save(tmp_path / "train.teacher.npy", frames_of_the_teacher(width).astype(np.float16))
    np.save(tmp_path / "train.teacher.bounds.npy", np.cumsum([0, *FRAMES]))
    return path


def frames_of_the_teacher(width: int) -> np.ndarray[Any, Any]:
    times = np.concatenate([np.arange(frames) for frames in FRAMES])[:, None]
    return np.sin(0.2 * times + np.arange(width)) * (1 + np.arange(width) % 3)


def batch_of(manifest: Path) -> Batch:
    utterances = read_manifest(manifest)
    tokens = [small_model().tokenizer.encode(utterance.text or "") for utterance in utterances]
    batch = collate([SpeechDataset(utterances, tokens, sample_rate=16_000)[index] for index in range(len(utterances))])
    assert isinstance(batch, Batch)
    return batch


def begin(distil: Any, manifest: Path) -> Any:
    torch.manual_seed(1)
    model = small_model(layers=LAYERS + 1)
    settings = distil.read_settings(RECIPE / "training" / "harder.yaml")
    return distil.Student.begin(model, distil.Teacher([manifest], model.encoder.width), settings, 1e-3)


def test_targets_are_the_standardised_frames_of_each_layer_stretched_with_the_utterance(
    distil: Any, manifest: Path
) -> None:
    width = small_model().encoder.width
    teacher = distil.Teacher([manifest], width)
    assert teacher.layers == LAYERS
    targets = teacher.targets(batch_of(manifest), torch.tensor([40, 28]), 41)
    assert targets.shape == (2, 41, LAYERS, width)
    frames = torch.from_numpy(frames_of_the_teacher(LAYERS * width)).float()
    standard = (frames - teacher.mean) / teacher.deviation
    found = torch.nn.functional.layer_norm(standard.unflatten(1, (LAYERS, width)), (width,))
    torch.testing.assert_close(targets[1, :28], found[FRAMES[0] :], rtol=0, atol=0.02)  # half precision
    assert targets[1, 28:].abs().max() == 0
    torch.testing.assert_close(targets[0, 0], found[0], rtol=0, atol=0.02)  # twice as many frames
    between = torch.nn.functional.layer_norm(
        (0.75 * standard[7] + 0.25 * standard[8]).unflatten(0, (LAYERS, width)), (width,)
    )
    torch.testing.assert_close(targets[0, 15], between, rtol=0, atol=0.02)


@pytest.mark.parametrize("phase", ["forced", "own", "joined"])
def test_all_losses_fall(distil: Any, manifest: Path, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    monkeypatch.setattr(distil, "FORCED", (1000, 1001) if phase == "forced" else (-2, -1))
    monkeypatch.setattr(distil, "JOINED", 0 if phase == "joined" else 1000)
    student, batch = begin(distil, manifest), batch_of(manifest)
    losses = [student.learn(batch, rate=3e-3, weight=1.0) for _ in range(40)]
    first, last = np.mean(losses[:5], axis=0), np.mean(losses[-5:], axis=0)
    assert len(first) == 1 + LAYERS
    assert (last < 0.8 * first).all(), (first, last)


def test_transcripts_reach_the_taught_layers_only_when_they_join(
    distil: Any, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, batch = begin(distil, manifest), batch_of(manifest)
    lower, upper = student.model.encoder.layers[0], student.model.encoder.layers[LAYERS]

    def gradients() -> tuple[float, float]:
        student.optimiser.zero_grad()
        student.losses(batch, 0.0)[0].backward()
        return tuple(
            sum(float(p.grad.abs().sum()) for p in layer.parameters() if p.grad is not None) for layer in (lower, upper)
        )

    monkeypatch.setattr(distil, "JOINED", 5)
    below, above = gradients()
    assert below == 0
    assert above > 0
    student.step = 5
    below, above = gradients()
    assert below > 0
    assert above > 0


def test_frames_and_channels_are_hidden_from_the_last_layer(distil: Any) -> None:
    torch.manual_seed(2)
    x = torch.ones(8, 400, 384)
    hidden = distil.hide(x) == 0
    frames, channels = hidden.all(dim=2), hidden.all(dim=1)
    assert bool((hidden == (frames[:, :, None] | channels[:, None, :])).all()), "whole frames and whole channels"
    assert 0.15 < float(frames.float().mean()) < 0.3
    assert 0.05 < float(channels.float().mean()) < 0.25
    assert not torch.equal(frames[0], frames[1])
    starts = (frames[:, 1:] & ~frames[:, :-1]).sum()
    assert float(frames.sum() / starts) > distil.SPAN - 1, "they are hidden in spans"


def test_only_the_last_layer_drops_units_and_only_when_the_transcripts_join(
    distil: Any, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil, "JOINED", 1)
    student, batch = begin(distil, manifest), batch_of(manifest)
    layers = student.model.encoder.layers
    student.learn(batch, rate=1e-3, weight=1.0)
    assert not any(layer.training for layer in layers)
    student.learn(batch, rate=1e-3, weight=1.0)
    assert [layer.training for layer in layers] == [False] * LAYERS + [True]
    assert {module.p for module in layers[-1].modules() if isinstance(module, torch.nn.Dropout)} == {distil.DROPOUT}


def test_forced_layers_learn_from_the_teachers_layer_below(distil: Any, manifest: Path) -> None:
    student, batch = begin(distil, manifest), batch_of(manifest)
    first = student.model.encoder.layers[0]
    for forced, reached in ((1.0, False), (0.0, True)):
        student.optimiser.zero_grad()
        student.losses(batch, forced)[1][1].backward()
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in first.parameters()) is reached


def test_speech_without_words_has_the_teacher_alone(distil: Any, manifest: Path) -> None:
    student, batch = begin(distil, manifest), batch_of(manifest)
    torch.manual_seed(3)
    alone, _ = student.losses(batch._replace(target_lengths=torch.tensor([len(batch.targets[0]), 0])), 0.0)
    torch.manual_seed(3)
    ctc, errors = student.losses(batch._replace(target_lengths=torch.zeros(2, dtype=torch.long)), 0.0)
    assert float(alone.detach()) > 0
    assert float(ctc.detach()) == 0
    assert (errors > 0).all()


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
    student.step = 100_000  # no longer young
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


def test_states_of_a_training_are_averaged_with_their_shares(distil: Any) -> None:
    embed = importlib.import_module("embed")
    first, second = small_model(seed=1), small_model(seed=2)
    before = [{name: tensor.clone() for name, tensor in each.base_state_dict().items()} for each in (first, second)]
    mean = embed.average([(first, 0.75), (second, 0.25)]).base_state_dict()
    for name, tensor in mean.items():
        expected = before[0][name]
        if tensor.is_floating_point() and not name.startswith("preprocessor."):
            expected = 0.75 * expected + 0.25 * before[1][name]
        torch.testing.assert_close(tensor, expected)
    assert not torch.equal(mean["decoder.projection.weight"], before[0]["decoder.projection.weight"])
