"""A training from settings to files: what it leaves, what it leaves alone, and how it fails."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from overtone.adapters.kinds.lora import LoraAdapter
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.adapters import read_adapters_pt
from overtone.config import AdapterSettings, LinearSettings
from overtone.models.asr_model import AsrModel
from overtone.training.callback import TrainingCallback
from overtone.training.console import Progress, Reporter, format_duration
from overtone.training.row_processes import RowProcesses
from overtone.training.train import run_training, train
from support.small_models import add_trained, small_model
from support.train_samples import environment, losses, script, settings_for, write_corpus

QUIET = Reporter(quiet=True)


@pytest.fixture
def model() -> AsrModel:
    return small_model()


def reporter() -> Reporter:
    return Reporter(console=Console(record=True, width=200, quiet=True))


# What it leaves


def test_a_whole_training(tmp_path: Path, model: AsrModel) -> None:
    """Best and last adapter, files for NeMo, log and card; the base is bit for bit what it was."""
    add_trained(model, "older")
    before = {name: tensor.clone() for name, tensor in model.base_state_dict().items()}
    older = {name: tensor.clone() for name, tensor in model.adapters["older"].tensors().items()}
    fingerprint, random = model.fingerprint(), torch.get_rng_state()

    result = run_training(settings_for(tmp_path), model=model, reporter=QUIET)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.base_state_dict().items())
    assert all(torch.equal(tensor, older[name]) for name, tensor in model.adapters["older"].tensors().items())
    assert model.fingerprint() == fingerprint
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.training
    assert model.compute_dtype == "float32"

    checkpoints = tmp_path / "run/checkpoints"
    assert result.best == checkpoints / "mine-best"
    assert result.last == checkpoints / "mine-last"
    assert result.nemo == checkpoints / "ASR-Adapter.nemo"
    assert result.checkpoint == checkpoints / "ASR-Adapter-last.ckpt"
    assert result.steps == 6
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"checkpoints", "hparams.yaml", "log.txt"}
    assert len(list(checkpoints.glob("ASR-Adapter--val_wer=*-epoch=*-step=*.nemo"))) == 2

    fresh = small_model()
    loaded = fresh.adapters.load(result.best)
    best = model.adapters["mine"].tensors()
    assert all(torch.equal(tensor, best[name]) for name, tensor in loaded.tensors().items())
    assert any(tensor.abs().max() > 0 for name, tensor in best.items() if name.endswith("up.weight"))
    assert loaded.card == result.card | {"trained": loaded.card["trained"]}
    assert result.adapters_file is not None
    assert [stored.name for stored in read_adapters_pt(result.adapters_file)] == ["older", "mine"]
    adapted = load_model(result.nemo)
    assert adapted.adapters.names == ["older", "mine"]
    assert adapted.adapters.file_choice == ("mine",)


def test_the_global_settings_of_adapters_are_written_as_in_nemo(tmp_path: Path, model: AsrModel) -> None:
    """Under `adapters.global_cfg`, beside the modules of each adapter; NeMo's own checks read them there."""
    key = "model.adapter.global_cfg.check_decoder_adapter=false"
    result = run_training(settings_for(tmp_path, key, "trainer.max_steps=1"), model=model, reporter=QUIET)
    assert result.nemo is not None
    again = load_model(result.nemo)
    written = {
        "check_encoder_adapter": True,
        "check_decoder_adapter": False,
        "check_joint_adapter": True,
        "adapter_meta_cfg": {"modules": {"mine": ""}},
    }
    assert again.config["adapters"]["global_cfg"] == written
    save_model(again, tmp_path / "again.nemo")
    assert load_model(tmp_path / "again.nemo").config["adapters"]["global_cfg"] == written


def test_the_base_computes_after_training_as_before(tmp_path: Path, model: AsrModel) -> None:
    before = model.set_compute_dtype("float32", prepared=True).backend
    run_training(settings_for(tmp_path, "trainer.max_steps=1", validation=False), model=model, reporter=QUIET)
    assert model.backend is before


def test_the_card_says_where_the_weights_come_from(tmp_path: Path, model: AsrModel) -> None:
    result = run_training(settings_for(tmp_path, "seed=3"), model=model, reporter=QUIET)
    card = yaml.safe_load((result.best / "adapter.yaml").read_text())["card"]
    assert card["data"]["utterances"] == 12
    assert card["data"]["hours"] == pytest.approx(sum(0.8 + 0.8 * index / 12 for index in range(12)) / 3600, abs=1e-4)
    assert card["data"]["digest"].startswith("sha256:")
    assert card["validation"][0]["utterances"] == 3
    assert card["dtypes"] == {"base": "float32", "trained": "float32"}
    assert card["wer_before"] == pytest.approx(result.wer_before, abs=1e-6)
    assert card["wer_after"] == pytest.approx(result.wer_after, abs=1e-6)
    assert (card["steps"], card["seed"]) == (result.best_step, 3)
    assert set(card["versions"]) == {"overtone", "torch", "lightning", "python"}


def test_the_first_lines_and_the_progress(tmp_path: Path, model: AsrModel) -> None:
    said = reporter()
    run_training(
        settings_for(tmp_path, "model.log_prediction=true", "trainer.log_every_n_steps=3"), model=model, reporter=said
    )
    lines = (tmp_path / "run/log.txt").read_text().splitlines()
    text = [line.split(" ", 2)[2] if line[:2] == "20" else line for line in lines]
    assert text[0] == "Base 'small': frozen, in float32; adapter 'mine': trained, in float32"
    assert re.fullmatch(r"Trainable parameters: 640 of [\d,]+ \(\d\.\d\d%\)", text[1])
    assert text[2].startswith("Training audio: 0.00 h in 12 utterances; 6 steps of 4 utterances, 2.0 epochs")
    steps = [line for line in text if line.startswith("step 3/6")]
    assert re.match(r"step 3/6  epoch 1  loss \S+  lr \S+  .*× real time  \d:\d\d left", steps[0])
    assert any(line.startswith("step 0: WER") for line in text)
    assert "reference: " in "\n".join(text)


def test_tensorboard_shows_every_step_and_the_base(tmp_path: Path, model: AsrModel) -> None:
    result = run_training(settings_for(tmp_path), model=model, reporter=QUIET)
    shown = losses(tmp_path / "run")
    assert [step for step, _ in shown["train_loss"]] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in shown["learning_rate"]] == pytest.approx(
        [1e-3, *[x for _, x in shown["learning_rate"]][1:]]
    )
    assert {"val_wer", "val_cer", "val_loss"} <= set(shown)
    assert [step for step, _ in shown["val_loss"]] == [3, 6]
    assert shown["val_wer"][0] == (0, pytest.approx(result.wer_before))
    assert [step for step, _ in shown["val_wer"]] == [0, 3, 6]


def test_a_run_shorter_than_an_epoch_is_validated_at_its_end(tmp_path: Path, model: AsrModel) -> None:
    result = run_training(settings_for(tmp_path, "trainer.max_steps=2"), model=model, reporter=QUIET)
    assert (result.best_step, result.steps) == (2, 2)
    assert result.wer_after is not None


def test_without_validation_the_last_weights_count(tmp_path: Path, model: AsrModel) -> None:
    result = run_training(settings_for(tmp_path, "trainer.max_steps=2", validation=False), model=model, reporter=QUIET)
    assert (result.wer_before, result.wer_after) == (None, None)
    assert (result.best / "adapter.safetensors").read_bytes() == (result.last / "adapter.safetensors").read_bytes()
    assert result.checkpoint is not None


def test_epochs_limit_a_run_and_several_sets_are_validated(tmp_path: Path, model: AsrModel) -> None:
    other = write_corpus(tmp_path / "other", count=2)
    result = run_training(
        settings_for(
            tmp_path,
            "trainer.max_steps=-1",
            "trainer.max_epochs=3",
            "trainer.accumulate_grad_batches=2",
            f"model.validation_ds.manifest_filepath=[{tmp_path / 'valid.json'},{other}]",
        ),
        model=model,
        reporter=QUIET,
    )
    assert result.steps == 5  # 9 batches by twos
    assert "val_wer_1" in losses(tmp_path / "run")


def test_only_the_best_few_are_kept(tmp_path: Path, model: AsrModel) -> None:
    run_training(
        settings_for(
            tmp_path,
            "trainer.val_check_interval=1",
            "exp_manager.checkpoint_callback_params.save_top_k=2",
            "exp_manager.checkpoint_callback_params.monitor=val_loss",
            "exp_manager.checkpoint_callback_params.always_save_nemo=false",
            "delete_ckpt_after_train=true",
        ),
        model=model,
        reporter=QUIET,
    )
    kept = [path.name for path in (tmp_path / "run/checkpoints").iterdir() if "--val_loss=" in path.name]
    values = [value for _, value in losses(tmp_path / "run")["val_loss"]]
    assert sorted(re.findall(r"val_loss=([\d.]+)-", " ".join(kept))) == [f"{value:.4f}" for value in sorted(values)[:2]]
    assert all((tmp_path / "run/checkpoints" / name / "adapter.yaml").exists() for name in kept)
    assert not list((tmp_path / "run/checkpoints").glob("*.ckpt"))


def test_early_stopping(tmp_path: Path, model: AsrModel) -> None:
    result = run_training(
        settings_for(
            tmp_path,
            "trainer.max_steps=50",
            "trainer.val_check_interval=1",
            "exp_manager.checkpoint_callback_params.save_top_k=0",
            "exp_manager.create_early_stopping_callback=true",
            "exp_manager.early_stopping_callback_params.monitor=val_wer",
            "exp_manager.early_stopping_callback_params.min_delta=1.0",
            "exp_manager.early_stopping_callback_params.patience=2",
        ),
        model=model,
        reporter=QUIET,
    )
    assert result.steps < 20


@pytest.mark.parametrize(("limit", "count"), [("1", 1), ("2", 2), ("0.1", 1), ("0.7", 2), ("1.0", 3)])
def test_part_of_a_validation_set(
    tmp_path: Path, model: AsrModel, monkeypatch: pytest.MonkeyPatch, limit: str, count: int
) -> None:
    """The base is scored on the same batches as the adapter, by whichever process."""
    scored: list[int] = []
    first, judge = RowProcesses.first_result, TrainingCallback.judge

    def first_result(self: RowProcesses) -> Any:
        counts = first(self)
        scored.append(counts.utterances)
        return counts

    def judged(self: TrainingCallback, trainer: Any) -> None:
        scored.append(self.module.counts[0].utterances)
        judge(self, trainer)

    monkeypatch.setattr(RowProcesses, "first_result", first_result)
    monkeypatch.setattr(TrainingCallback, "judge", judged)
    overrides = [f"trainer.limit_val_batches={limit}", "model.validation_ds.batch_size=1", "trainer.max_steps=1"]
    run_training(settings_for(tmp_path, *overrides, "compute_processes=2"), model=model, reporter=QUIET)
    assert scored == [count, count]


def test_no_validation_batches(tmp_path: Path, model: AsrModel) -> None:
    """As without a manifest: the last weights count as the best."""
    overrides = ["trainer.limit_val_batches=0", "trainer.max_steps=1"]
    result = run_training(settings_for(tmp_path, *overrides), model=model, reporter=QUIET)
    assert (result.wer_before, result.wer_after) == (None, None)
    for folder in (result.best, result.last):
        assert small_model().adapters.load(folder).card["steps"] == 1


def test_versions_of_a_run(tmp_path: Path, model: AsrModel) -> None:
    overrides = [
        "exp_manager.explicit_log_dir=null",
        f"exp_manager.exp_dir={tmp_path / 'runs'}",
        "exp_manager.use_datetime_version=false",
        "trainer.max_steps=1",
    ]
    for number in range(2):
        settings = settings_for(tmp_path, *overrides, f"model.adapter.adapter_name=a{number}")
        result = run_training(settings, model=model, reporter=QUIET)
        assert result.folder == tmp_path / f"runs/ASR-Adapter/version_{number}"
    named = settings_for(tmp_path, *overrides[:2], "trainer.max_steps=1")
    dated = run_training(named, model=model, reporter=QUIET).folder.name
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", dated)


# What is trained


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.adapter.adapter_type=lora", "model.adapter.layers=last:1"],
        ["model.adapter.adapter_type=tiny_attn"],
        ["model.adapter.adapter_module_name=encoder+decoder"],
        ["model.adapter.adapter_name=decoder:mine"],
        ["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1.0"],
        ["compute_dtype=bfloat16", "model.optim.name=sgd", "model.optim.momentum=0.9", "model.optim.sched=null"],
        ["model.spec_augment.time_masks=2", "model.spec_augment.freq_masks=1", "model.base_dropout=false"],
        ["model.train_ds.batch_duration=5", "model.train_ds.num_buckets=2"],
    ],
)
def test_the_kinds_and_options(tmp_path: Path, model: AsrModel, overrides: list[str]) -> None:
    before = {name: tensor.clone() for name, tensor in model.base_state_dict().items()}
    result = run_training(
        settings_for(tmp_path, "trainer.max_steps=2", *overrides, validation=False), model=model, reporter=QUIET
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.base_state_dict().items())
    trained = small_model().adapters.load(result.last)
    untouched = small_model().adapters.add("mine", trained.kind, modules=trained.modules_text, layers=trained.layers)
    assert trained.points == untouched.points
    assert any(tensor.abs().max() > 0 for name, tensor in trained.tensors().items() if "up" in name or ".out." in name)


def test_what_nemo_cannot_hold_is_told(tmp_path: Path, model: AsrModel) -> None:
    said = reporter()
    overrides = ["model.adapter.adapter_type=lora", "trainer.max_steps=1"]
    result = run_training(settings_for(tmp_path, *overrides), model=model, reporter=said)
    assert (result.nemo, result.adapters_file) == (None, None)
    assert "No files for NeMo" in (tmp_path / "run/log.txt").read_text()


def test_the_penalty_of_the_change_is_part_of_the_loss(tmp_path: Path) -> None:
    """At birth nothing is added, so that the first loss is the same; afterwards it holds the adapter back."""
    shown = []
    for number, weight in enumerate((0.0, 100.0)):
        folder = tmp_path / str(number)
        override = f"model.adapter.linear.adapter_strategy.l2_lambda={weight}"
        run_training(settings_for(folder, override, validation=False), model=small_model(), reporter=QUIET)
        shown.append([value for _, value in losses(folder / "run")["train_loss"]])
    assert shown[0][0] == shown[1][0]
    assert shown[1][1] > shown[0][1]


def test_dropout_and_order_depend_on_the_seed_alone(tmp_path: Path) -> None:
    shown = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        overrides = ["model.adapter.linear.dropout=0.5", f"seed={seed}", "trainer.max_steps=3"]
        run_training(settings_for(folder, *overrides, validation=False), model=small_model(), reporter=QUIET)
        shown.append(losses(folder / "run")["train_loss"])
        torch.rand(7)
    assert shown[0] == shown[1]
    assert shown[0] != shown[2]


# In Python


def test_the_python_form(tmp_path: Path, model: AsrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    settings_for(tmp_path)
    result = train(
        model,
        adapter_name="mine",
        kind=LoraAdapter(rank=2),
        layers=[0],
        train_manifest=[tmp_path / "train.json"],
        validation_manifest=tmp_path / "valid.json",
        output_dir=tmp_path / "run",
        max_steps=2,
        batch_size=4,
        quiet=True,
    )
    assert model.adapters.names == ["mine"]
    assert model.adapters["mine"].points == small_model().adapters.load(result.best).points
    assert {point.split(".")[2] for point in model.adapters["mine"].points} == {"0"}
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {
        "mine-best",
        "mine-last",
        "mine-last.ckpt",
    }


# Small parts


def test_the_line_of_progress() -> None:
    progress = Progress(total_steps=100)
    assert progress.line() == "step 0/100  epoch 1  lr 0.00e+00  0× real time"
    progress.advance(step=10, epoch=2, loss=3.0, learning_rate=1e-3, audio=360.0, took=20.0)
    progress.wer = 0.25
    assert progress.line() == "step 10/100  epoch 3  loss 3  lr 1.00e-03  WER 25.00%  18× real time  3:00 left"


def test_times_are_readable() -> None:
    assert [format_duration(seconds) for seconds in (0, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]


def test_unused_sections_may_be_wrong_for_the_model() -> None:
    """Only the section of the chosen type is held against the model."""
    assert AdapterSettings(kinds={"linear": LinearSettings(in_features=1)}).adapter_type == "linear"


def test_two_processes(tmp_path: Path) -> None:
    """Each takes every second batch; one of them writes and speaks."""
    save_model(small_model(), tmp_path / "base")
    overrides = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=3", "trainer.val_check_interval=2"]
    settings_for(tmp_path)
    finished = subprocess.run(
        script(tmp_path, overrides), env=environment(), capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("Trainable parameters") == 1
    assert "step 2: WER" in finished.stdout
    assert "step 3: WER" in finished.stdout
    assert small_model().adapters.load(tmp_path / "run/checkpoints/mine-best").card["steps"] in (2, 3)
    steps = [step for step, _ in losses(tmp_path / "run")["train_loss"]]
    assert steps == [1, 2, 3]
