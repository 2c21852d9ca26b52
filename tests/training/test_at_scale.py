"""Trainings on tarred and mixed sets, cut off in the middle of an epoch; two processes against one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from overtone.checkpoints.load import save_model
from overtone.training.console import Reporter
from overtone.training.train import run_training
from support.shards import pack, packed_corpus
from support.small_models import small_model
from support.train_samples import (
    environment,
    kill_at_step,
    losses,
    same_adapters,
    script,
    settings_for,
    write_corpus,
)

RESUMED = [
    "trainer.max_steps=9",
    "trainer.val_check_interval=4",
    "exp_manager.checkpoint_callback_params.every_n_train_steps=2",
    "exp_manager.resume_if_exists=true",
    "exp_manager.resume_ignore_no_checkpoint=true",
    "model.adapter.linear.dropout=0.2",
]


def tarred_overrides(folder: Path) -> list[str]:
    manifest, archives = packed_corpus(folder)
    return [
        "model.train_ds.is_tarred=true",
        f"model.train_ds.manifest_filepath={manifest}",
        f"model.train_ds.tarred_audio_filepaths={archives}",
        "model.train_ds.shuffle_n=6",
    ]


def mixed_overrides(folder: Path) -> list[str]:
    """Tarred and plain sets by weight, in groups."""
    first = write_corpus(folder / "a", count=8, name="a")
    manifest, archives = pack(write_corpus(folder / "b", count=6, name="b"), folder / "b/tarred", shards=2)
    (folder / "mix.yaml").write_text(
        "- {type: group, weight: 0.7, input_cfg: [\n"
        f"    {{type: nemo, manifest_filepath: {first}, weight: 3}},\n"
        f"    {{type: nemo_tarred, weight: 1, manifest_filepath: {manifest},\n"
        f"     tarred_audio_filepaths: '{archives}'}}]}}\n"
        f"- {{type: nemo, weight: 0.3, manifest_filepath: {folder / 'valid.json'}}}\n"
    )
    return ["model.train_ds.manifest_filepath=null", f"+model.train_ds.input_cfg={folder / 'mix.yaml'}"]


def check_resumed(folder: Path, whole: Path, overrides: list[str]) -> None:
    """A run of `folder` that is killed has losses and adapters of the one in `whole` that is not, bit for bit."""
    save_model(small_model(), folder / "base")
    settings_for(folder)
    for place in (whole, folder):
        settings_for(place)
    quiet = Reporter(quiet=True)
    run_training(settings_for(whole, *RESUMED, *overrides), model=small_model(), reporter=quiet)
    kill_at_step(folder, [*RESUMED, *overrides, "model.train_ds.num_workers=2"], at_step=5)
    run_training(settings_for(folder, *RESUMED, *overrides), model=small_model(), reporter=quiet)
    assert losses(folder / "run") == losses(whole / "run")
    for name in ("mine-best", "mine-last"):
        assert same_adapters(folder / "run/checkpoints" / name, whole / "run/checkpoints" / name)


def test_a_tarred_set_killed_and_resumed(tmp_path: Path) -> None:
    settings_for(tmp_path)
    check_resumed(tmp_path / "cut", tmp_path / "whole", tarred_overrides(tmp_path))


def test_a_mixture_killed_and_resumed(tmp_path: Path) -> None:
    settings_for(tmp_path)
    check_resumed(tmp_path / "cut", tmp_path / "whole", mixed_overrides(tmp_path))


def run_alone(folder: Path, overrides: list[str]) -> None:
    save_model(small_model(), folder / "base")
    settings_for(folder)
    finished = subprocess.run(script(folder, overrides), env=environment(), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Gradients are the mean over both; with accumulation over the batches of a step too."""
    plain = [
        "trainer.accelerator=cpu",
        "trainer.max_steps=3",
        "trainer.accumulate_grad_batches=2",
        "model.base_dropout=false",
        "model.train_ds.shuffle=false",
        "compute_processes=1",
    ]
    run_alone(tmp_path / "two", [*plain, "trainer.devices=2", "model.train_ds.batch_size=2"])
    run_alone(tmp_path / "one", [*plain, "trainer.devices=1", "model.train_ds.batch_size=4"])
    two, one = (
        small_model().adapters.load(tmp_path / name / "run/checkpoints/mine-last").tensors() for name in ("two", "one")
    )
    assert all(tensor.any() for tensor in two.values())  # a new adapter ends in zeros
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, one[name], rtol=1e-4, atol=1e-6)


def test_two_processes_read_shards_of_their_own(tmp_path: Path) -> None:
    settings_for(tmp_path)
    overrides = [*tarred_overrides(tmp_path), "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=3"]
    run_alone(tmp_path / "two", [*overrides, "trainer.precision=bf16-mixed"])
    assert [step for step, _ in losses(tmp_path / "two/run")["train_loss"]] == [1, 2, 3]
