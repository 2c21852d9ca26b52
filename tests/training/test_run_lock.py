"""One run folder is for one training at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from overtone.errors import ConfigError
from overtone.training.console import Reporter
from overtone.training.run_folder import LOCK_FILE, RunFolder, RunLock
from overtone.training.train import run_training
from support.small_models import small_model
from support.train_samples import settings_for

QUIET = Reporter(quiet=True)

HOLDER = """
import sys
from pathlib import Path
from overtone.training.run_folder import RunFolder, RunLock

path = Path(sys.argv[1])
folder = RunFolder(path=path, checkpoints=path / "checkpoints", exp_dir=path.parent, name="mine", version="")
with RunLock(folder, leads=True) as lock:
    lock.take_all()
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds a run folder until it is killed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def folder_at(path: Path, checkpoints: Path | None = None) -> RunFolder:
    return RunFolder(
        path=path, checkpoints=checkpoints or path / "checkpoints", exp_dir=path.parent, name="mine", version=""
    )


def test_two_trainings_in_one_folder_refuse_each_other(tmp_path: Path) -> None:
    """Both ways: before anything is read, and where the other one began meanwhile. A killed one holds nothing."""
    settings = settings_for(tmp_path, "trainer.max_steps=1", validation=False)
    model = small_model()
    with hold(tmp_path / "run") as holder:
        message = rf"run is in use by another training \(process {holder.pid} on .*Wait until it has ended"
        with pytest.raises(ConfigError, match=message):
            run_training(settings, model=model, reporter=QUIET)
        assert model.adapters.names == []
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
        holder.kill()
    run_training(settings, model=model, reporter=QUIET)
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_folder_that_another_training_made_meanwhile(tmp_path: Path) -> None:
    with RunLock(folder_at(tmp_path / "run"), leads=True) as lock, hold(tmp_path / "run") as holder:
        with pytest.raises(ConfigError, match="in use by another training"):
            lock.take_all()
        holder.kill()


def test_checkpoints_elsewhere_are_held_too(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    with RunLock(folder_at(tmp_path / "first", shared), leads=True) as first:
        first.take_all()
        with pytest.raises(ConfigError, match="shared is in use"):
            RunLock(folder_at(tmp_path / "second", shared), leads=True).__enter__()
        with RunLock(folder_at(tmp_path / "third"), leads=True) as third:
            third.take_all()
        with RunLock(folder_at(tmp_path / "first", shared), leads=False) as follower:
            follower.take_all()
    assert not list(tmp_path.rglob(LOCK_FILE))
