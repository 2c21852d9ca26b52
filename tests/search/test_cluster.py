"""Trainings as tasks of a Ray cluster on this machine: results, a process that dies, an interruption."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("ray", reason="the ray extra is not installed")

from overtone import cli
from overtone.checkpoints.load import save_model
from overtone.config import ExperimentSettings, Settings
from overtone.errors import UsageError
from overtone.search import cluster
from overtone.search.cluster import ClusterPlan, check_room, room, run_on_cluster
from overtone.search.trials import Outcome, Trial
from support.ray_service import ray_cluster
from support.small_models import small_model
from support.train_samples import write_corpus

NODES = [
    {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}},
    {"Alive": True, "Resources": {"CPU": 1.0}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
]


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with ray_cluster():
        yield


def test_room_on_the_nodes() -> None:
    """Fractions count, a training does not span nodes, and nodes that are gone have no room."""
    assert room(ClusterPlan(cpus=1), NODES) == 5
    assert room(ClusterPlan(cpus=2), NODES) == 2
    assert room(ClusterPlan(cpus=0.5, gpus=0.5), NODES) == 4
    assert room(ClusterPlan(cpus=0.1), NODES) == 50
    check_room(ClusterPlan(cpus=4, gpus=2), NODES)
    with pytest.raises(
        UsageError, match="asks for 5 CPUs and 0 GPUs, but the cluster's nodes have 4 CPUs and 2 GPUs; 1"
    ):
        check_room(ClusterPlan(cpus=5), NODES)


@pytest.mark.usefixtures("ray_here")
def test_a_fleet_on_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paths may be relative to the folder of the command."""
    monkeypatch.chdir(tmp_path)
    save_model(small_model(), tmp_path / "base")
    write_corpus(tmp_path)
    write_corpus(tmp_path, count=3, name="valid")
    (tmp_path / "t.csv").write_text("adapter_name,train_manifest\none,train.json\ntwo,nothing.json\n")
    words = ["model.nemo_model=base", "model.validation_ds.manifest_filepath=valid.json", "trainer.max_steps=1"]
    loading = ["model.train_ds.num_workers=0", "model.validation_ds.num_workers=0", "trainer.devices=1"]
    own = ["exp_manager.explicit_log_dir=fleet", "model.adapter.words=off"]
    assert cli.main(["train", "--fleet", "t.csv", "--ray", "--job-cpus", "0.5", *words, *loading, *own]) == 1
    out, err = capsys.readouterr()
    assert "2 trainings on the Ray cluster" in err
    assert "nothing.json" in err
    assert (tmp_path / "fleet/adapters/one/adapter.yaml").is_file()
    assert out.splitlines()[-1] == "Table: fleet/fleet.csv"


def trials_of(folder: Path) -> list[Trial]:
    """Two trials for a function that stands in for their training."""
    chosen = [ExperimentSettings(explicit_log_dir=str(folder / name)) for name in "ab"]
    return [Trial(chosen=(), settings=Settings(exp_manager=each)) for each in chosen]


@pytest.mark.usefixtures("ray_here")
def test_a_task_that_is_lost_is_repeated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second attempt goes on from a checkpoint; both errors are told."""

    def train(trial: Trial, *_: object) -> Outcome:
        if not any("resume_if_exists" in word for word in trial.overrides):
            os.kill(os.getpid(), 9)
        return Outcome(trial=trial, error="twice")

    monkeypatch.setattr(cluster, "train_there", train)
    outcomes = list(run_on_cluster(trials_of(tmp_path), ClusterPlan(cpus=1), []))
    assert [outcome.error for outcome in outcomes] == ["twice", "twice"]
    assert all("lost on the cluster" in (outcome.repeated or "") for outcome in outcomes)
    assert all(outcome.trial.overrides for outcome in outcomes)


@pytest.mark.usefixtures("ray_here")
def test_an_interruption_ends_the_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes on the nodes are told to end, and waited for."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        'for word; do last="$word"; done\n'
        f'case "$last" in *a\\\'*) exit 2;; esac\n'
        f"trap 'touch {tmp_path}/ended; exit 143' TERM\ntouch {tmp_path}/begun\nwhile :; do sleep 0.1; done\n"
    )
    script.chmod(0o755)
    real, program = cluster.train_there, str(script)

    def train(*arguments: Any) -> Outcome:
        """The worker's process may be used again: its program and folder are put back."""
        python, place = sys.executable, Path.cwd()
        sys.executable = program
        try:
            return real(*arguments)
        finally:
            sys.executable = python
            os.chdir(place)

    monkeypatch.setattr(cluster, "train_there", train)
    outcomes = run_on_cluster(trials_of(tmp_path), ClusterPlan(cpus=1), [])
    assert next(outcomes).error is not None
    wait_for(tmp_path / "begun")
    outcomes.close()
    wait_for(tmp_path / "ended")


def wait_for(path: Path) -> None:
    """Wait until a file is there, for a minute at most."""
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)
