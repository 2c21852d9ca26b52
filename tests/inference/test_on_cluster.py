"""Workers of a Ray cluster: recordings, a worker that dies of one, evaluation, and datasets."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

pytest.importorskip("starlette", reason="the serving extra is not installed")
pytest.importorskip("grpc", reason="the serving extra is not installed")
ray = pytest.importorskip("ray", reason="the ray extra is not installed")

from overtone.errors import CheckpointError, UsageError  # noqa: E402
from overtone.evaluation.evaluate import evaluate  # noqa: E402
from overtone.inference.on_cluster import (  # noqa: E402
    ClusterTranscriber,
    WorkerPlan,
    transcribe_dataset,
    transcribe_parts,
)
from overtone.inference.parts import Row, plan_parts  # noqa: E402
from overtone.inference.recordings import Recording  # noqa: E402
from support.ray_service import ray_cluster  # noqa: E402
from support.speaking_model import LETTERS, SAMPLE_RATE, SpeakingModel, put_adapter, spoken  # noqa: E402

TEXTS = {"good": "abba", "fatal": "ah", "other": "cab"}


class FatalModel(SpeakingModel):
    """Kills its process where it hears an h."""

    def recognise(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, frames = super().recognise(mel, lengths)
        if torch.any(log_probs.argmax(-1) == LETTERS.index("h")):
            os.kill(os.getpid(), signal.SIGKILL)
        return log_probs, frames


def load_fatal(source: str) -> FatalModel:
    return FatalModel()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Recordings and adapters, with a cluster beside them."""
    folder = tmp_path_factory.mktemp("calls")
    for name in ("swap", "other"):
        put_adapter(SpeakingModel(), name, folder / "adapters")
    for name, text in TEXTS.items():
        soundfile.write(folder / f"{name}.wav", spoken(text), SAMPLE_RATE)
    with ray_cluster(str(Path(__file__).parent)):
        yield folder


@pytest.fixture
def plan(folder: Path) -> WorkerPlan:
    return WorkerPlan(adapters=folder / "adapters", load=load_fatal)


def row(folder: Path, name: str, adapter: str | None = None) -> Row:
    path = folder / f"{name}.wav"
    return Row(recording=Recording(path=path, name=path.name), adapter=adapter)


def test_the_recording_that_kills_its_workers_fails_alone(
    folder: Path, plan: WorkerPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overtone.inference.on_cluster.DEATHS", 1)
    rows = [row(folder, "good"), row(folder, "fatal"), row(folder, "good", "swap"), row(folder, "other")]
    parts = plan_parts(rows, seconds=90.0)
    done = dict(sorted((part.number, results) for part, results in transcribe_parts(parts, plan, workers=1)))
    results = [result for found in done.values() for result in found]
    assert [result.hypothesis and result.hypothesis.text for result in results] == ["abba", None, "baab", "cab"]
    assert "workers died of it (1)" in str(results[1].error)


def load_nothing(source: str) -> SpeakingModel:
    raise CheckpointError(f"{source} is no model.")


def load_badly(source: str) -> SpeakingModel:
    raise ValueError("seven is no eight")


@pytest.mark.parametrize(
    ("load", "kind", "message"),
    [(load_nothing, CheckpointError, "base.nemo is no model"), (load_badly, UsageError, "seven is no eight")],
)
def test_a_model_that_cannot_be_loaded_is_said_at_once(folder: Path, load: Any, kind: type, message: str) -> None:
    parts = plan_parts([row(folder, "good")])
    with pytest.raises(kind, match=message):
        list(transcribe_parts(parts, WorkerPlan(model="base.nemo", load=load), workers=1))


def test_relative_paths_begin_where_the_plan_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results name the recording as it was given."""
    monkeypatch.chdir(folder)
    recording = Recording(path=Path("good.wav"), name="good.wav")
    choices = ["adapters/swap", None, "adapters/swap+adapters/other"]
    parts = plan_parts([Row(recording=recording, adapter=choice) for choice in choices])
    ((_, results),) = transcribe_parts(parts, WorkerPlan(load=load_fatal), workers=1)
    assert [result.hypothesis and result.hypothesis.text for result in results] == ["baab", "abba", "baab"]
    assert {result.recording.path for result in results} == {Path("good.wav")}
    assert [result.adapter for result in results] == choices


def test_an_evaluation_hears_with_workers(folder: Path, plan: WorkerPlan) -> None:
    manifest = folder / "test.json"
    manifest.write_text('{"audio_filepath": "good.wav", "duration": 1.4, "text": "abba"}\n' * 2)
    model, adapter = SpeakingModel(), str(folder / "adapters/swap")
    elsewhere = WorkerPlan(load=load_fatal)
    results = [
        evaluate(model, manifest, adapters=[None, adapter], resamples=10, elsewhere=there).results
        for there in (None, lambda sources: ClusterTranscriber(elsewhere, workers=1, sources=sources))
    ]
    here, there = ([[each.hypothesis for each in result.utterances] for result in found] for found in results)
    assert here == there == [["abba", "abba"], ["baab", "baab"]]


def test_a_dataset_gets_columns_of_transcripts(folder: Path, plan: WorkerPlan) -> None:
    paths = [str(folder / f"{name}.wav") for name in ("good", "other", "absent")]
    items = [{"audio_filepath": path, "tenant": tenant} for path, tenant in zip(paths, ("swap", "", None), strict=True)]
    found = transcribe_dataset(ray.data.from_items(items), plan, adapter="tenant", workers=1, batch_size=2).take_all()
    by_path = {entry["audio_filepath"]: entry for entry in found}
    assert [by_path[path]["pred_text"] for path in paths] == ["baab", "cab", None]
    assert by_path[paths[0]]["words"][0]["word"] == "baab"
    assert "absent.wav" in by_path[paths[2]]["error"]
