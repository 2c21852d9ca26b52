"""A run that was cut off goes on exactly where it stood, whatever the number of workers."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping

from overtone.checkpoints.load import save_model
from overtone.config import Settings
from overtone.errors import CheckpointError, OvertoneError
from overtone.training.callback import TrainingCallback
from overtone.training.console import Reporter
from overtone.training.run import check_same_run, describe_machine
from overtone.training.train import run_training
from support.small_models import small_model
from support.train_samples import kill_at_step, let_batches_take_a_second, losses, same_adapters, settings_for

QUIET = Reporter(quiet=True)
OPTIONS = [
    "trainer.max_steps=14",
    "trainer.val_check_interval=5",
    "exp_manager.checkpoint_callback_params.every_n_train_steps=3",
    "model.adapter.linear.dropout=0.2",
    "model.adapter.linear.adapter_strategy.stochastic_depth=0.3",
    "model.spec_augment.time_masks=2",
    "model.train_ds.augmentor={speed: {prob: 0.5}, coloured_noise: {prob: 0.5}}",
    "exp_manager.resume_if_exists=true",
    "exp_manager.resume_ignore_no_checkpoint=true",
]


def trained(folder: Path, *overrides: str) -> Settings:
    settings = settings_for(folder, *OPTIONS, *overrides)
    run_training(settings, model=small_model(), reporter=QUIET)
    return settings


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    trained(folder)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed(whole: Path, tmp_path: Path, workers: int) -> None:
    """Losses, rates and scores of every step, the best adapter and the last: all as if nothing had happened."""
    save_model(small_model(), tmp_path / "base")
    overrides = [f"model.{name}.num_workers={workers}" for name in ("train_ds", "validation_ds")]
    settings_for(tmp_path)
    kill_at_step(tmp_path, [*OPTIONS, *overrides], at_step=8)
    assert not (tmp_path / "run/checkpoints/ASR-Adapter.nemo").exists()
    trained(tmp_path, *overrides)
    assert losses(tmp_path / "run") == losses(whole / "run")
    for name in ("mine-best", "mine-last"):
        assert same_adapters(tmp_path / "run/checkpoints" / name, whole / "run/checkpoints" / name)
    names = {path.name for path in (whole / "run/checkpoints").iterdir()}
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == names


def test_a_complete_run_may_go_further(whole: Path, tmp_path: Path) -> None:
    """A complete run has nothing left to do; with more steps it goes on from its end."""
    trained(tmp_path, "trainer.max_steps=5", "model.optim.sched=null")
    again = run_training(
        settings_for(tmp_path, *OPTIONS, "trainer.max_steps=5", "model.optim.sched=null"),
        model=small_model(),
        reporter=QUIET,
    )
    assert again.steps == 5
    more = run_training(
        settings_for(tmp_path, *OPTIONS, "trainer.max_steps=7", "model.optim.sched=null"),
        model=small_model(),
        reporter=QUIET,
    )
    assert more.steps == 7
    assert [step for step, _ in losses(tmp_path / "run")["train_loss"]] == list(range(1, 8))


def test_a_checkpoint_holds_what_the_last_validation_found(tmp_path: Path) -> None:
    """That validation comes after everything else."""
    options = [*OPTIONS, "trainer.val_check_interval=3", "trainer.max_steps=4"]
    result = run_training(settings_for(tmp_path, *options), model=small_model(), reporter=QUIET)
    assert result.checkpoint is not None
    state = torch.load(result.checkpoint, weights_only=True)["overtone"]
    assert (state["step"], state["validated_step"]) == (4, 4)
    assert state["keeper"]["best"]["step"] == result.best_step


def test_the_checkpoint_holds_the_adapter_alone(whole: Path) -> None:
    content = torch.load(whole / "run/checkpoints/ASR-Adapter-last.ckpt", weights_only=True)
    assert content["state_dict"]
    assert all(".adapters." in name for name in content["state_dict"])
    assert content["overtone"]["step"] == 14
    assert content["overtone"]["identity"]["machine"]["threads"] == torch.get_num_threads()


def test_another_run_is_not_resumed(whole: Path, tmp_path: Path) -> None:
    override = f"exp_manager.resume_from_checkpoint={whole / 'run/checkpoints/ASR-Adapter-last.ckpt'}"
    options = [option for option in OPTIONS if "resume" not in option]
    with pytest.raises(
        CheckpointError, match=r"belongs to another run: batches\.batch_size was 4, now 3; seed was 0, now 1\."
    ):
        run_training(
            settings_for(tmp_path, *options, override, "seed=1", "model.train_ds.batch_size=3"),
            model=small_model(),
            reporter=QUIET,
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.adapter.linear.dim=8", "kind.dim was 4, now 8"),
        ("model.adapter.linear.norm_position=post", "kind.norm_position was pre, now post"),
        ("model.adapter.adapter_type=lora", "kind.name was linear, now lora"),
        ("model.adapter.linear.adapter_strategy.stochastic_depth=0.5", "strategy.stochastic_depth was 0.3, now 0.5"),
        ("model.adapter.layers=last:1", "layers was all, now last:1"),
        ("model.adapter.adapter_module_name=decoder", "modules was encoder, now decoder"),
        ("model.optim.name=sgd", "optimiser.name was adamw, now sgd"),
        ("model.optim.lr=0.1", "optimiser.lr was 0.001, now 0.1"),
        ("model.optim.weight_decay=0.1", "optimiser.weight_decay was 0.0, now 0.1"),
        ("model.train_ds.drop_last=true", "batches.drop_last was False, now True"),
        ("trainer.limit_train_batches=2", "batches.limit was 1.0, now 2"),
        ("trainer.gradient_clip_val=0.5", "gradient_clipping.value was None, now 0.5"),
        ("trainer.limit_val_batches=1", "validation_batches was 1.0, now 1"),
        ("trainer.precision=bf16", "precision was 32-true, now bf16-mixed"),
        ("compute_dtype=bfloat16", "compute_dtype was float32, now bfloat16"),
    ],
)
def test_other_settings_are_not_resumed(whole: Path, override: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"belongs to another run: {re.escape(message)}[.;]"):
        trained(whole, override)


def test_another_base_is_not_resumed(whole: Path) -> None:
    with pytest.raises(CheckpointError, match=r"belongs to another run: base was sha256:\w+, now sha256:\w+\. Give"):
        run_training(settings_for(whole, *OPTIONS), model=small_model(seed=1), reporter=QUIET)


@pytest.mark.parametrize(("name", "key"), [("train3.wav", "recordings"), ("valid1.wav", "validation_recordings")])
def test_other_recordings_under_the_same_names_are_not_resumed(whole: Path, name: str, key: str) -> None:
    """As long and as many as before."""
    before = (whole / name).read_bytes()
    try:
        (whole / name).write_bytes(before[:-2000] + bytes(2000))
        with pytest.raises(CheckpointError, match=rf"belongs to another run: {key} was .*sha256:"):
            trained(whole)
    finally:
        (whole / name).write_bytes(before)


def test_another_validation_set_is_not_resumed(whole: Path) -> None:
    before = (whole / "valid.json").read_text()
    try:
        (whole / "valid.json").write_text("".join(before.splitlines(keepends=True)[:-1]))
        with pytest.raises(CheckpointError, match=r"belongs to another run: validation was \['sha256:"):
            trained(whole)
    finally:
        (whole / "valid.json").write_text(before)


def test_another_number_of_threads_is_said() -> None:
    before = {"seed": 0, "machine": {"threads": 2, "row_processes": 1}}
    now = {"seed": 0, "machine": {"threads": 4, "row_processes": 1}}
    check_same_run(Path("a"), before, now)
    assert describe_machine(before, now).startswith("The machine is another one: threads was 2, now 4. Sums are")
    assert describe_machine(before, before) == describe_machine({"seed": 0}, now) == ""


def test_what_a_checkpoint_does_not_name_is_not_compared() -> None:
    before = {"seed": 0, "batches": {"batch_size": 4}, "prefix_cache": None}
    check_same_run(Path("a"), before, {**before, "base": "b", "batches": {"batch_size": 4, "drop_last": True}})
    with pytest.raises(CheckpointError, match=r"prefix_cache was None, now \{'cut': 2\}\. Give"):
        check_same_run(Path("a"), before, {**before, "prefix_cache": {"cut": 2}})


def test_a_base_of_another_size_is_not_resumed(tmp_path: Path) -> None:
    options = [*OPTIONS[:3], *OPTIONS[6:], "model.train=everything", "trainer.max_steps=1"]
    run_training(settings_for(tmp_path, *options, validation=False), model=small_model(), reporter=QUIET)
    with pytest.raises(OvertoneError, match="other parameters than this run trains"):
        run_training(settings_for(tmp_path, *options, validation=False), model=small_model(width=64), reporter=QUIET)


@pytest.mark.parametrize("steps", [14, 17])
def test_a_checkpoint_of_another_folder(whole: Path, tmp_path: Path, steps: int) -> None:
    """The best so far comes along, and the folder of the other run stays as it is."""
    before = contents(whole / "run")
    override = f"exp_manager.resume_from_checkpoint={whole / 'run/checkpoints/ASR-Adapter-last.ckpt'}"
    options = [option for option in OPTIONS if "resume" not in option]
    limits = [f"trainer.max_steps={steps}", "exp_manager.checkpoint_callback_params.save_top_k=1"]
    result = run_training(settings_for(tmp_path, *options, *limits, override), model=small_model(), reporter=QUIET)
    assert result.steps == steps
    if steps == 14:
        assert same_adapters(result.best, whole / "run/checkpoints/mine-best")
    assert small_model().adapters.load(result.best).card["steps"] == result.best_step
    assert small_model().adapters.load(result.last).card["steps"] == steps
    assert contents(whole / "run") == before


def test_a_checkpoint_of_the_same_folder(tmp_path: Path) -> None:
    options = [option for option in OPTIONS if "resume" not in option]
    first = settings_for(tmp_path, *options, "trainer.max_steps=5")
    checkpoint = run_training(first, model=small_model(), reporter=QUIET).checkpoint
    further = settings_for(tmp_path, *options, f"exp_manager.resume_from_checkpoint={checkpoint}")
    assert run_training(further, model=small_model(), reporter=QUIET).steps == 14


def test_a_best_adapter_that_is_gone(tmp_path: Path) -> None:
    """The best of what follows takes its place."""
    result = run_training(settings_for(tmp_path, *OPTIONS, "trainer.max_steps=5"), model=small_model(), reporter=QUIET)
    shutil.rmtree(result.best)
    again = run_training(settings_for(tmp_path, *OPTIONS), model=small_model(), reporter=QUIET)
    assert again.best_step > 5
    assert small_model().adapters.load(again.best).card["steps"] == again.best_step


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "bad.ckpt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"bad\.ckpt is no checkpoint of a training, or damaged"):
        run_training(
            settings_for(tmp_path, f"exp_manager.resume_from_checkpoint={tmp_path / 'bad.ckpt'}"),
            model=small_model(),
            reporter=QUIET,
        )


def test_every_weight_is_resumed(tmp_path: Path) -> None:
    """The statistics of the batch norms go along."""
    folders = [tmp_path / "whole", tmp_path / "parts"]
    options = [*OPTIONS[:3], *OPTIONS[6:], "model.train=everything", "model.optim.sched=null"]
    results = []
    for folder, lengths in zip(folders, ((8,), (3, 8)), strict=True):
        for steps in lengths:
            settings = settings_for(folder, *options, f"trainer.max_steps={steps}", validation=False)
            result = run_training(settings, model=small_model(), reporter=QUIET)
        results.append(result)
    assert losses(folders[0] / "run")["train_loss"] == losses(folders[1] / "run")["train_loss"]
    first, second = ((result.last / "model.safetensors").read_bytes() for result in results)
    assert first == second


def test_early_stopping_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation before an interruption is among those without a better score."""
    overrides = [
        "trainer.max_steps=50",
        "trainer.val_check_interval=1",
        "exp_manager.checkpoint_callback_params.save_top_k=0",
        "exp_manager.create_early_stopping_callback=true",
        "exp_manager.early_stopping_callback_params.monitor=val_wer",
        "exp_manager.early_stopping_callback_params.min_delta=1.0",
        "exp_manager.early_stopping_callback_params.patience=3",
        *OPTIONS[-2:],
    ]
    begin = TrainingCallback.on_train_batch_start

    def interrupt(self: TrainingCallback, *arguments: Any) -> None:
        begin(self, *arguments)
        if self.progress.batches == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingCallback, "on_train_batch_start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_training(settings_for(tmp_path, *overrides), model=small_model(), reporter=QUIET)
    assert run_training(settings_for(tmp_path, *overrides), model=small_model(), reporter=QUIET).steps == 4
    said = (tmp_path / "run/log.txt").read_text()
    assert "Ended early, at step 4 of 50: no better val_wer in 3 validations." in said


def test_patience_is_what_is_asked_for_now() -> None:
    """A stopped run may have more of it, and why it stopped once is no reason any more."""
    callback = TrainingCallback.__new__(TrainingCallback)
    callback.restarts_timer = False
    stopping = EarlyStopping("val_loss", patience=20)
    state = {**EarlyStopping("val_loss", patience=10).state_dict(), "stopping_reason": 3, "wait_count": 10}
    trainer: Any = SimpleNamespace(early_stopping_callback=stopping)
    callback.on_load_checkpoint(trainer, LightningModule(), {"callbacks": {stopping.state_key: state}})
    stopping.load_state_dict(state)
    assert (stopping.patience, stopping.wait_count, stopping.stopping_reason.name) == (20, 10, "NOT_STOPPED")


@pytest.mark.parametrize(
    ("accumulate", "batch_size", "seconds", "parts"),
    [(1, 4, 3, [3, 5]), (3, 3, 5, [1, 2, 3, 4, 5])],  # a part may end between the batches of a step
)
def test_every_part_has_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, batch_size: int, seconds: int, parts: list[int]
) -> None:
    """With exp_manager.max_time_per_run a run that is begun again and again comes to its end, as one without parts."""
    let_batches_take_a_second(monkeypatch)
    overrides = [
        "trainer.max_steps=5",
        f"trainer.accumulate_grad_batches={accumulate}",
        f"model.train_ds.batch_size={batch_size}",
        *OPTIONS[-2:],
    ]
    whole, folder = tmp_path / "whole", tmp_path / "parts"
    run_training(settings_for(whole, *overrides, validation=False), model=small_model(), reporter=QUIET)
    keeps_nothing = ["delete_ckpt_after_train=true", "exp_manager.resume_ignore_no_checkpoint=true"]
    limit = f"exp_manager.max_time_per_run=00:00:00:{seconds:02}"
    steps = [
        run_training(
            settings_for(folder, *overrides, limit, *keeps_nothing, validation=False),
            model=small_model(),
            reporter=QUIET,
        ).steps
        for _ in parts
    ]
    assert steps == parts
    assert losses(folder / "run") == losses(whole / "run")
    assert same_adapters(folder / "run/checkpoints/mine-last", whole / "run/checkpoints/mine-last")
    why = f"Ended early, at step {parts[0]} of 5: the time of exp_manager.max_time_per_run is up."
    assert why in (folder / "run/log.txt").read_text()
