"""A training that is asked to end: by Ctrl-C, or by a system that sends SIGTERM."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import Strategy

from overtone import cli
from overtone.checkpoints.load import save_model
from overtone.training.callback import TrainingCallback
from overtone.training.console import Reporter
from overtone.training.loop import resume_overrides
from overtone.training.module import TrainingModule
from overtone.training.plan import plan_training
from overtone.training.row_processes import RowProcesses
from overtone.training.train import run_training
from support.small_models import small_model
from support.train_samples import environment, losses, script, settings_for

QUIET = Reporter(quiet=True)
OPTIONS = ["trainer.max_steps=12", "trainer.val_check_interval=5", "compute_processes=1"]
ENDS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]


def step_kept(folder: Path) -> int:
    content = torch.load(folder / "run/checkpoints/ASR-Adapter-last.ckpt", weights_only=True)
    return int(content["overtone"]["step"])


def signal_first(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, when: Callable[[Any], bool], *numbers: int):  # type: ignore[no-untyped-def]
    """Send the signals to this process before the method of that name does its work."""
    whole = getattr(owner, name)

    def sending(self: Any, *arguments: Any, **options: Any) -> Any:
        if when(self):
            for number in numbers:
                signal.raise_signal(number)
        return whole(self, *arguments, **options)

    monkeypatch.setattr(owner, name, sending)


def stopped(folder: Path, overrides: list[str], number: int) -> tuple[int, str]:
    """Exit code and last line of a training whose processes are all sent the signal after some steps."""
    save_model(small_model(), folder / "base")
    settings_for(folder)
    process = subprocess.Popen(
        script(folder, overrides), stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3/"):
            os.killpg(process.pid, number)
            break
    last = process.stdout.read().splitlines()[-1]
    return process.wait(), last


def test_sigterm_ends_processes_that_read(tmp_path: Path) -> None:
    """The end of the run is no failure."""
    overrides = ["trainer.max_steps=100000", "trainer.val_check_interval=1", "model.validation_ds.num_workers=1"]
    code, last = stopped(tmp_path, overrides, signal.SIGTERM)
    steps = small_model().adapters.load(tmp_path / "run/checkpoints/mine-last").card["steps"]
    assert code == 128 + signal.SIGTERM
    assert f"at step {steps}. Written: " in last


def test_ctrl_c_leaves_the_processes_that_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal tells them too; the validation has still most of its batches to ask for."""
    settings_for(tmp_path)
    overrides = ["num_workers=1", "batch_size=1", f"manifest_filepath={tmp_path / 'train.json'}"]
    step = TrainingModule.validation_step

    def interrupting(self: TrainingModule, *arguments: Any) -> None:
        if self.global_step == 5:
            for process in multiprocessing.active_children():
                os.kill(int(process.pid or 0), signal.SIGINT)
            if not self.counts[0].utterances:
                signal.raise_signal(signal.SIGINT)
        step(self, *arguments)

    monkeypatch.setattr(TrainingModule, "validation_step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run_training(
            settings_for(tmp_path, *OPTIONS, *(f"model.validation_ds.{override}" for override in overrides)),
            model=small_model(),
            reporter=QUIET,
        )
    assert step_kept(tmp_path) == 5


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_ends_after_the_step(tmp_path: Path, processes: int) -> None:
    """Sent to all processes of the run, as batch systems do."""
    overrides = ["trainer.max_steps=100000", "trainer.val_check_interval=100000", f"compute_processes={processes}"]
    code, last = stopped(tmp_path, overrides, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    steps = small_model().adapters.load(tmp_path / "run/checkpoints/mine-last").card["steps"]
    assert steps == step_kept(tmp_path) >= 3
    assert last == (
        f"Interrupted at step {steps}. Written: {tmp_path}/run/checkpoints/mine-last. "
        f"Go on with exp_manager.explicit_log_dir={tmp_path}/run exp_manager.resume_if_exists=true"
    )


@pytest.mark.parametrize(("number", "error"), ENDS)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_while_the_base_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException], processes: int
) -> None:
    """Nothing is lost, nothing is kept, and the folder may be used again."""
    owner, name = (TrainingModule, "validation_step") if processes == 1 else (RowProcesses, "first_result")
    with monkeypatch.context() as patch:
        signal_first(patch, owner, name, lambda _: True, number)
        settings = settings_for(tmp_path, f"compute_processes={processes}", "trainer.max_steps=1")
        with pytest.raises(error) as caught:
            run_training(settings, model=small_model(), reporter=QUIET)
    assert getattr(caught.value, "code", 143) == 143
    assert not list((tmp_path / "run/checkpoints").iterdir())
    assert "Interrupted at step 0." in (tmp_path / "run/log.txt").read_text()
    assert run_training(settings, model=small_model(), reporter=QUIET).steps == 1


@pytest.mark.parametrize(("number", "error"), ENDS)
@pytest.mark.parametrize("where", ["before", "during"])
def test_a_validation_is_done_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException], where: str
) -> None:
    """The checkpoint stands behind it, and the run goes on as if nothing had happened."""
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    with monkeypatch.context() as patch:
        if where == "before":
            signal_first(
                patch, TrainingCallback, "on_train_batch_start", lambda callback: callback.progress.batches == 4, number
            )
        else:
            signal_first(patch, TrainingModule, "validation_step", lambda module: module.global_step == 5, number)
        with pytest.raises(error):
            run_training(settings_for(parts, *OPTIONS), model=small_model(), reporter=QUIET)
    assert step_kept(parts) == 5
    assert small_model().adapters.load(parts / "run/checkpoints/mine-best").card["steps"] == 5
    run_training(
        settings_for(parts, *OPTIONS, "exp_manager.resume_if_exists=true"), model=small_model(), reporter=QUIET
    )
    run_training(settings_for(whole, *OPTIONS), model=small_model(), reporter=QUIET)
    assert losses(parts / "run") == losses(whole / "run")


def test_a_second_signal_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_first(
        monkeypatch,
        TrainingModule,
        "validation_step",
        lambda module: module.global_step == 5,
        signal.SIGINT,
        signal.SIGINT,
    )
    with pytest.raises(KeyboardInterrupt):
        run_training(settings_for(tmp_path, *OPTIONS), model=small_model(), reporter=QUIET)
    assert small_model().adapters.load(tmp_path / "run/checkpoints/mine-last").card["steps"] == 5
    assert not (tmp_path / "run/checkpoints/mine-best").exists()


def test_a_stop_in_the_last_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one after all steps: it is judged, and the run counts as interrupted."""
    signal_first(monkeypatch, TrainingModule, "validation_step", lambda module: module.global_step == 12, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_training(settings_for(tmp_path, *OPTIONS), model=small_model(), reporter=QUIET)
    assert "step 12: WER" in (tmp_path / "run/log.txt").read_text()
    assert step_kept(tmp_path) == 12
    assert small_model().adapters.load(tmp_path / "run/checkpoints/mine-last").card["wer_after"] is not None


@pytest.mark.parametrize(("name", "before"), [("a-1", ""), ("lr=0.1, [b] 'c'", "exp_manager.resume_from_checkpoint=x")])
def test_the_words_that_go_on_with_a_run_are_read_as_they_are_meant(tmp_path: Path, name: str, before: str) -> None:
    settings = settings_for(tmp_path, *([before] if before else []))
    run: Any = SimpleNamespace(plan=plan_training(settings), folder=SimpleNamespace(path=tmp_path / name))
    words = shlex.split(resume_overrides(run))
    chosen = settings_for(tmp_path, *([before] if before else []), *words).exp_manager
    assert chosen.explicit_log_dir == str(tmp_path / name)
    assert chosen.resume_if_exists
    assert chosen.resume_from_checkpoint is None


@pytest.mark.parametrize("stops", [False, True])
def test_what_one_process_wants_all_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: bool) -> None:
    """Another process finds a checkpoint due after step 2, or is asked to stop: this one takes part."""
    asked: list[bool] = []

    def reduced(self: Strategy, decision: bool, all: bool = True) -> bool:
        assert not all
        asked.append(decision)
        return decision or len(asked) == 2 or (stops and len(asked) == 3)

    monkeypatch.setattr(Strategy, "reduce_boolean_decision", reduced)
    written: list[int] = []
    write = TrainingCallback.write_checkpoint

    def told(self: TrainingCallback, trainer: Any) -> None:
        write(self, trainer)
        written.append(trainer.global_step)

    monkeypatch.setattr(TrainingCallback, "write_checkpoint", told)
    settings = settings_for(tmp_path, "trainer.max_steps=4", validation=False)
    if stops:
        with pytest.raises(KeyboardInterrupt):
            run_training(settings, model=small_model(), reporter=QUIET)
    else:
        run_training(settings, model=small_model(), reporter=QUIET)
    assert written == ([2] if stops else [2, 4])


@pytest.mark.parametrize(("code", "expected"), [(143, 143), (0, 0), (None, 1), ("words", 1)])
def test_exit_codes_of_a_command(monkeypatch: pytest.MonkeyPatch, code: Any, expected: int) -> None:
    """What a library ends with is no success."""

    def run(words: list[str]) -> int:
        raise SystemExit(code)

    monkeypatch.setattr(cli, "run", run)
    assert cli.main(["train"]) == expected
