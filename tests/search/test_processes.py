"""Several trainings of a search at once, each in a process of its own; one that dies is told."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from overtone import cli
from overtone.cli.overrides import read_launcher, read_trials
from overtone.config import ExperimentSettings, Settings
from overtone.errors import ConfigError
from overtone.search import processes
from overtone.search.processes import Slot, explain_end, plan_slots, run_at_once
from overtone.search.trials import Trial, find_folder
from support.train_samples import environment, losses, search_words

SLOT = Slot(gpu=None, threads=1)


def test_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Results, errors and the table are those of a search in one process; hyperparameters reach TensorBoard."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    words = search_words(tmp_path)
    assert cli.main(["train", "-m", "--jobs", "2", *words]) == 1
    out, err = capsys.readouterr()
    assert "3 trainings, 2 at once" in err
    assert "Adapter 'taken' exists already." in err
    assert err.endswith("1 of 3 trainings failed.\n")
    folder = tmp_path / "runs/adapter_name=three"
    assert str(folder) in out
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 1
    assert Path(result["best"]).name == "three-best"
    assert losses(folder)["hp/wer_after"][0][1] == pytest.approx(result["wer_after"], abs=1e-6)
    assert not (tmp_path / "runs/adapter_name=taken/result.json").exists()


def dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> list[str | None]:
    """The errors of two trials whose processes are this script."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    settings = [Settings(exp_manager=ExperimentSettings(explicit_log_dir=str(tmp_path / name))) for name in "ab"]
    trials = [Trial(chosen=(), settings=each) for each in settings]
    return [outcome.error for outcome in run_at_once(trials, [SLOT, SLOT], [])]


def test_a_training_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = dying(tmp_path, monkeypatch, "kill -9 $$")
    assert all("ended by SIGKILL" in (error or "") for error in errors)
    twice = "case \"$*\" in *resume_if_exists*) echo 'overtone: error: twice.' >&2; exit 2;; esac; kill -9 $$"
    errors = dying(tmp_path, monkeypatch, twice)
    assert errors == ["twice.", "twice."]
    errors = dying(tmp_path, monkeypatch, "echo 'Traceback: x' >&2; echo 'overtone: error: no room.' >&2; exit 2")
    assert errors == ["no room.", "no room."]


def test_an_interruption_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that run are ended and waited for."""
    program, pids = tmp_path / "python", tmp_path / "pids"
    program.write_text(
        '#!/bin/sh\nfor word; do last="$word"; done\ncase "$last" in *zero*) exit 2;; esac\n'
        f"echo $$ >> {pids}\nexec tail -f /dev/null\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    names = ("zero", "one", "two", "three")
    settings = [Settings(exp_manager=ExperimentSettings(explicit_log_dir=f"runs/{name}")) for name in names]
    outcomes = run_at_once([Trial(chosen=(), settings=each) for each in settings], [SLOT, SLOT], [])
    assert next(outcomes).error is not None
    outcomes.close()
    started = [int(line) for line in pids.read_text().split()] if pids.exists() else []
    assert len(started) <= 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


PARENT = """
import sys
from pathlib import Path
from overtone.config import ExperimentSettings, Settings
from overtone.search.processes import Slot, run_at_once
from overtone.search.trials import Trial

folder, sys.executable = sys.argv[1:]
settings = Settings(exp_manager=ExperimentSettings(explicit_log_dir=folder))
list(run_at_once([Trial(chosen=(), settings=settings)], [Slot(gpu=None, threads=1)], []))
"""
TRAINING = """
import fcntl, signal, sys
from overtone.startup import end_with_parent

signal.signal(signal.SIGTERM, signal.SIG_IGN)
end_with_parent()
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write("begun")
lock.flush()
while True:
    signal.pause()
"""


def test_a_training_ends_with_the_process_that_began_it(tmp_path: Path) -> None:
    """Also where that process is killed and can tell it nothing. The lock is free when the training is gone."""
    program, lock = tmp_path / "python", tmp_path / "lock"
    (tmp_path / "training.py").write_text(TRAINING)
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{tmp_path}/training.py' '{lock}'\n")
    program.chmod(0o755)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), str(program)], env=environment())
    try:
        until(lambda: lock.exists() and lock.read_text() == "begun")
        assert not is_free(lock)
    finally:
        parent.kill()
        parent.wait(60)
    until(lambda: is_free(lock))


def is_free(lock: Path) -> bool:
    """Tell whether nobody holds a lock."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def until(true: Callable[[], bool]) -> None:
    """Wait for a condition, for a minute at most."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ends_are_explained(tmp_path: Path) -> None:
    assert "exit code 3" in explain_end(3, "", tmp_path)
    assert explain_end(1, "a\nb\n", tmp_path) == "b"


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's keys say how many run on each GPU; on processors one at a time, or --jobs."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(processes, "visible_gpus", list)
    assert plan_slots(None, {"num_gpus": -1, "jobs_per_gpu": 4}) == [Slot(gpu=None, threads=threads)]
    assert len(plan_slots(3, {})) == 3
    monkeypatch.setattr(processes, "visible_gpus", lambda: ["2", "5"])
    assert [slot.gpu for slot in plan_slots(None, {"jobs_per_gpu": 2})] == ["2", "5", "2", "5"]
    assert [slot.gpu for slot in plan_slots(None, {"num_gpus": 1})] == ["2"]
    assert [slot.gpu for slot in plan_slots(3, {})] == ["2", "5", "2"]
    for keys, message in (({"num_gpus": 3}, "3 are asked for, 2 are here"), ({"jobs_per_gpu": 0}, "jobs_per_gpu: 0")):
        with pytest.raises(ConfigError, match=message):
            plan_slots(None, keys)


def test_the_search_of_nemo_is_taken_as_it_is(tmp_path: Path) -> None:
    """A file with the keys of NeMo's `asr_adaptation_hp.yaml` that its training configuration does not have."""
    (tmp_path / "hp.yaml").write_text(
        "defaults:\n  - asr_adaptation\n  - _self_\n  - override hydra/launcher: nemo_launcher\n"
        "name: hp\n"
        "trainer: {max_epochs: 1, max_steps: -1, strategy: ddp, resume_from_checkpoint: null}\n"
        "exp_manager:\n  name: ${name}-lr-${model.optim.lr}-adim-${model.adapter.linear.dim}\n"
        "  resume_if_exists: true\n  resume_ignore_no_checkpoint: true\n"
        "hydra:\n  sweep: {dir: '.', subdir: '.'}\n"
        "  sweeper: {params: {model.optim.lr: '0.001,0.0001', model.adapter.linear.dim: '32,64'}}\n"
        "  launcher: {num_gpus: -1, jobs_per_gpu: 1}\n"
    )
    given = ["model.nemo_model=a.nemo", "model.adapter.adapter_name=a", "model.train_ds.manifest_filepath=a.json"]
    arguments = Namespace(config_path=str(tmp_path), config_name="hp.yaml", settings=given)
    trials = read_trials(arguments, given)
    assert [Path(find_folder(trial.settings).path).name for trial in trials] == [
        f"hp-lr-{rate}-adim-{dim}" for rate in ("0.001", "0.0001") for dim in (32, 64)
    ]
    with pytest.raises(ConfigError, match=r"exp_manager\.resume_from_checkpoint"):
        read_trials(arguments, [*given, "trainer.resume_from_checkpoint=a.ckpt"])


def test_the_keys_of_the_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    """NeMo's search names them in its file; the command line has the last word."""
    arguments = Namespace(config_path=None, config_name="asr_adaptation_hp", settings=["hydra.launcher.jobs_per_gpu=2"])
    assert read_launcher(arguments) == {"num_gpus": -1, "jobs_per_gpu": 2}
    assert cli.main(["train", "--jobs", "2", "model.nemo_model=x"]) == 2
    assert "give --multirun too" in capsys.readouterr().err


def test_an_interruption_from_outside_does_not_lose_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster raises it in the thread of a task at any moment, also while the process is being started."""
    thread = threading.get_ident()

    def start(*_: object, **__: object) -> str:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))
        return "the process"

    monkeypatch.setattr(subprocess, "Popen", start)
    settings = Settings(exp_manager=ExperimentSettings(explicit_log_dir=str(tmp_path / "a")))
    running: set[subprocess.Popen[str]] = set()
    with pytest.raises(KeyboardInterrupt):
        processes.train_in_process(Trial(chosen=(), settings=settings), SLOT, [], running, threading.Event())
    assert running == {"the process"}
