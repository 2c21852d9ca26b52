"""How a training fails: one clear message, nothing lost, nothing overwritten."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Trainer
from torch.multiprocessing import reductions
from torch.utils.data import get_worker_info

from overtone.data.dataset import SpeechDataset
from overtone.data.manifest import Utterance
from overtone.errors import AdapterError, ConfigError, DataError, OvertoneError
from overtone.models.asr_model import AsrModel
from overtone.training.callback import TrainingCallback
from overtone.training.console import Reporter
from overtone.training.interruption import explain_worker_death
from overtone.training.row_processes import PROCESS_NAME
from overtone.training.train import run_training
from support.small_models import add_trained, small_model
from support.train_samples import settings_for, write_corpus

QUIET = Reporter(quiet=True)


@pytest.fixture
def model() -> AsrModel:
    return small_model()


def fails(tmp_path: Path, model: AsrModel, *overrides: str, error: type[OvertoneError] = OvertoneError) -> str:
    """The message of a training that must fail before it writes anything, and leave the model as it was."""
    names = model.adapters.names
    with pytest.raises(error) as caught:
        run_training(settings_for(tmp_path, *overrides), model=model, reporter=QUIET)
    assert model.adapters.names == names
    assert not (tmp_path / "run").exists()
    return str(caught.value)


@pytest.mark.parametrize("override", ["model.prefix_cache.variants=2", "model.adapter.linear.in_features=5"])
def test_a_failed_training_leaves_the_model_as_it_was(tmp_path: Path, model: AsrModel, override: str) -> None:
    add_trained(model, "other")
    model.adapters.file_choice, model.adapters.nemo = ("other",), {"check_encoder_adapter": False}
    model.adapters["other"].requires_grad_(False)
    before = state_of(model)
    fails(tmp_path, model, override, error=ConfigError)
    assert state_of(model) == before


def state_of(model: AsrModel) -> list[object]:
    """What a training changes of a model, beside the numbers."""
    adapters = model.adapters
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    forms = {adapter.name: adapter.nemo for adapter in adapters}
    return [
        adapters.file_choice,
        adapters.nemo,
        forms,
        learns,
        model.base_is_frozen,
        model.base_dropout,
        model.training,
    ]


def test_an_existing_name_is_refused(tmp_path: Path, model: AsrModel) -> None:
    add_trained(model, "mine")
    assert "'mine' exists already" in fails(tmp_path, model, error=AdapterError)


def test_wrong_widths_layers_and_modules_are_refused(tmp_path: Path, model: AsrModel) -> None:
    width = fails(tmp_path, model, "model.adapter.linear.in_features=176", error=ConfigError)
    assert "176 is not the width of the model's layers, 32" in width
    assert "model.adapter.in_features: 5" in fails(tmp_path, model, "model.adapter.in_features=5", error=ConfigError)
    assert "layers" in fails(tmp_path, model, "model.adapter.layers=[7]", error=AdapterError)
    assert "joint" in fails(tmp_path, model, "model.adapter.adapter_module_name=joint", error=AdapterError)
    dim = fails(tmp_path, model, "model.adapter.adapter_type=lora", "model.adapter.dim=4", error=ConfigError)
    assert "model.adapter.dim" in dim


def test_transcripts_that_cannot_be_written(tmp_path: Path, model: AsrModel) -> None:
    settings_for(tmp_path)
    manifest = write_corpus(tmp_path / "odd", text="Größe")
    message = fails(tmp_path, model, f"model.train_ds.manifest_filepath={manifest}", error=DataError)
    assert "'ö' (latin small letter o with diaeresis) × 12" in message
    message = fails(
        tmp_path, model, f"model.train_ds.manifest_filepath={manifest}", "model.vocabulary_check=drop", error=DataError
    )
    assert "No utterance is left" in message


def test_transcripts_that_cannot_be_trained_on(tmp_path: Path, model: AsrModel) -> None:
    settings_for(tmp_path)
    manifest = write_corpus(tmp_path / "odd")
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[1]["text"], lines[2]["text"] = " ", "far too long for so short a recording as this one"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    override = f"model.train_ds.manifest_filepath={manifest}"
    message = fails(tmp_path, model, override, error=DataError)
    assert "2 of 12 utterances cannot be used" in message
    assert f"{manifest}:2: the transcript is empty" in message
    result = run_training(
        settings_for(tmp_path, override, "model.train_ds.unusable=drop", "trainer.max_steps=1"),
        model=model,
        reporter=QUIET,
    )
    assert result.card["data"]["utterances"] == 10


def test_durations_are_limited_by_the_models_own_setting(tmp_path: Path) -> None:
    model = small_model()
    model.config = {"train_ds": {"max_duration": 1.21, "min_duration": None}}
    nemo = ["model.adapter.adapter_state_dict_name=null", "exp_manager.create_checkpoint_callback=false"]
    result = run_training(settings_for(tmp_path, "trainer.max_steps=1", *nemo), model=model, reporter=QUIET)
    assert result.card["data"]["utterances"] == 7
    assert "left out 0 utterances shorter than min_duration and 5 longer" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.accelerator=gpu", "there is no GPU"),
        ("trainer.accelerator=tpu", "trainer: "),
        ("trainer.accelerator=mps", "trainer: "),
        ("trainer.precision=64", "trainer.precision: '64' is not supported"),
        ("model.train_ds.sample_rate=8000", "8000 Hz is not the model's"),
        ("exp_manager.resume_if_exists=true", "to go on from"),
        ("exp_manager.resume_from_checkpoint=absent.ckpt", "absent.ckpt does not exist"),
        ("model.train_ds.max_duration=0.1", "no utterance is between"),
        ("model.train_ds.manifest_filepath=absent.json", "absent.json"),
        ("trainer.limit_train_batches=0", "no batch is left"),
        ("model.optim.sched.name=StepLR", "step_size: has to be given"),
        ("model.optim.sched.name=Staircase", "unknown schedule"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, model: AsrModel, override: str, message: str) -> None:
    present = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if present.get(override.removeprefix("trainer.accelerator=")):
        pytest.skip("there is a GPU")
    assert message in fails(tmp_path, model, override)


@pytest.mark.parametrize("devices", ["3", "[0,2]"])
def test_more_gpus_than_there_are(
    tmp_path: Path, model: AsrModel, monkeypatch: pytest.MonkeyPatch, devices: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = fails(tmp_path, model, f"trainer.devices={devices}", error=ConfigError)
    assert "asks for more than the 2 GPUs here" in message


def test_wandb_without_its_package(tmp_path: Path, model: AsrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overtone.training.run_folder.find_spec", lambda name: None)
    message = fails(tmp_path, model, "exp_manager.create_wandb_logger=true", error=ConfigError)
    assert "pip install overtone[wandb]" in message


def test_another_run_is_not_overwritten(tmp_path: Path, model: AsrModel) -> None:
    result = run_training(settings_for(tmp_path, "trainer.max_steps=1"), model=model, reporter=QUIET)
    written = (result.best / "adapter.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="holds a run already"):
        run_training(settings_for(tmp_path, "model.adapter.adapter_name=other"), model=model, reporter=QUIET)
    assert (result.best / "adapter.safetensors").read_bytes() == written
    assert model.adapters.names == ["mine"]


def test_a_folder_that_cannot_be_made(tmp_path: Path, model: AsrModel) -> None:
    (tmp_path / "file").write_text("")
    override = f"exp_manager.explicit_log_dir={tmp_path / 'file/run'}"
    assert re.search(r"Cannot write .*file/run.*: Not a directory", fails(tmp_path, model, override))


def test_a_full_disk(tmp_path: Path, model: AsrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error; what was written before stays whole, and nothing half written is left."""
    whole = Trainer.save_checkpoint

    def save(self: Trainer, path: Path, *arguments: object, **options: object) -> None:
        if self.global_step <= 2:
            return whole(self, path, *arguments, **options)
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    with pytest.raises(OvertoneError, match=r"No space left on device\. Free some space there"):
        run_training(settings_for(tmp_path, "trainer.val_check_interval=2"), model=model, reporter=QUIET)
    assert model.adapters.names == []
    checkpoints = tmp_path / "run/checkpoints"
    assert small_model().adapters.load(checkpoints / "mine-last").name == "mine"
    assert torch.load(checkpoints / "ASR-Adapter-last.ckpt", weights_only=True)["overtone"]["step"] == 2
    assert [path.name for path in checkpoints.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_recording(tmp_path: Path, model: AsrModel, workers: int) -> None:
    """Found where it is read, if nothing was looked at before."""
    overrides = [f"model.train_ds.num_workers={workers}", "model.train_ds.check_audio=none", "trainer.max_steps=3"]
    settings = settings_for(tmp_path, *overrides)
    (tmp_path / "train5.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError) as caught:
        run_training(settings, model=model, reporter=QUIET)
    assert str(caught.value).startswith(f"{tmp_path / 'train.json'}:6: ")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("name", ["train", "valid"])
def test_recordings_are_looked_at_before_the_training(tmp_path: Path, model: AsrModel, name: str) -> None:
    settings_for(tmp_path)
    key = {"train": "train_ds", "valid": "validation_ds"}[name]
    (tmp_path / f"{name}1.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / f"{name}2.wav", np.zeros(4000, np.float32), 16_000)
    message = fails(tmp_path, model, error=DataError)
    assert f"{name}.json:2: {tmp_path / name}1.wav: cannot be read as audio" in message
    assert f"{name}.json:3: the manifest says " in message
    assert message.endswith(f"leave them out with model.{key}.unusable=drop.")
    overrides = [f"model.{key}.unusable=drop", "trainer.max_steps=1"]
    result = run_training(settings_for(tmp_path, *overrides), model=model, reporter=QUIET)
    assert (result.card["data"]["utterances"], result.card["validation"][0]["utterances"]) == {
        "train": (10, 3),
        "valid": (12, 1),
    }[name]


def test_every_sample_is_looked_at_if_asked_for(tmp_path: Path, model: AsrModel) -> None:
    settings_for(tmp_path)
    samples, rate = soundfile.read(tmp_path / "train4.wav", dtype="float32")
    samples[77] = np.nan
    soundfile.write(tmp_path / "train4.wav", samples, rate, subtype="FLOAT")
    message = fails(tmp_path, model, "model.train_ds.check_audio=full", error=DataError)
    assert "1 of 12 utterances cannot be used" in message
    assert "train.json:5: " in message
    assert "NaN" in message


def test_a_reading_process_that_is_killed(tmp_path: Path, model: AsrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when memory runs out: one message, told between two steps, and the last adapter is kept."""
    settings = settings_for(tmp_path, "model.train_ds.num_workers=1", "trainer.max_steps=90", validation=False)
    begin = TrainingCallback.on_train_batch_start

    def kill(self: TrainingCallback, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        if self.progress.batches == 2:
            for process in multiprocessing.active_children():
                if process.name != PROCESS_NAME:
                    process.kill()

    monkeypatch.setattr(TrainingCallback, "on_train_batch_start", kill)
    with pytest.raises(DataError, match=r"reads model\.train_ds was killed.*model\.train_ds\.num_workers=0"):
        run_training(settings, model=model, reporter=QUIET)
    assert model.adapters.names == []
    last = small_model().adapters.load(tmp_path / "run/checkpoints/mine-last")
    assert last.card["steps"] >= 3
    assert f"Ended at step {last.card['steps']}. Written: " in (tmp_path / "run/log.txt").read_text()


def test_a_batch_whose_sender_is_gone() -> None:
    """A batch that was sent already cannot be unpacked when the process that holds its memory has been killed."""

    class Gone:
        def detach(self) -> int:
            raise ConnectionRefusedError("nobody listens")

    with (
        pytest.raises(DataError, match=r"reads model\.train_ds was killed"),
        explain_worker_death(lambda: "model.train_ds"),
    ):
        reductions.rebuild_storage_fd(torch.UntypedStorage, Gone(), 4)
    with pytest.raises(ConnectionRefusedError), explain_worker_death(lambda: "model.train_ds"):
        Gone().detach()


def test_the_set_that_was_read_is_named(tmp_path: Path, model: AsrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    load = SpeechDataset.load

    def die(self: SpeechDataset, index: int) -> Any:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, index)

    monkeypatch.setattr(SpeechDataset, "load", die)
    with pytest.raises(DataError, match=r"reads model\.validation_ds was killed"):
        run_training(settings_for(tmp_path, "model.validation_ds.num_workers=1"), model=model, reporter=QUIET)


def test_a_loss_that_is_no_number(tmp_path: Path, model: AsrModel) -> None:
    overrides = ["model.optim.lr=1e30", "model.optim.sched=null", "trainer.max_steps=9"]
    with pytest.raises(OvertoneError, match=r"The loss is (nan|inf) in batch \d"):
        run_training(settings_for(tmp_path, *overrides, validation=False), model=model, reporter=QUIET)
    assert model.adapters.names == []


@pytest.mark.parametrize("validation", [True, False])
def test_weights_that_are_no_numbers_are_never_the_best(
    tmp_path: Path, model: AsrModel, monkeypatch: pytest.MonkeyPatch, validation: bool
) -> None:
    """The last step ruins them, after which only the validation could notice."""
    end = TrainingCallback.on_train_batch_end

    def ruin(self: TrainingCallback, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == 2:
            with torch.no_grad():
                next(model.adapters["mine"].parameters()).fill_(torch.nan)
        end(self, trainer, *arguments)

    monkeypatch.setattr(TrainingCallback, "on_train_batch_end", ruin)
    overrides = ["trainer.max_steps=2", "trainer.val_check_interval=1"]
    with pytest.raises(OvertoneError, match=r"(loss on a validation set is nan|no finite numbers) after step 2"):
        run_training(settings_for(tmp_path, *overrides, validation=validation), model=model, reporter=QUIET)
    best = tmp_path / "run/checkpoints/mine-best"
    assert not best.exists() or small_model().adapters.load(best).card["steps"] == 1
    assert best.exists() == validation


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C during the second step."""
    begin = TrainingCallback.on_train_batch_start

    def interrupt(self: TrainingCallback, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        if self.progress.batches == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingCallback, "on_train_batch_start", interrupt)
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("interrupting")
def test_ctrl_c_keeps_the_last_adapter(tmp_path: Path, model: AsrModel) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_training(settings_for(tmp_path), model=model, reporter=QUIET)
    assert (tmp_path / "run/checkpoints/ASR-Adapter-last.ckpt").exists()
    kept = small_model().adapters.load(tmp_path / "run/checkpoints/mine-last")
    assert kept.card["steps"] == 2
    assert all(torch.equal(x, model.adapters["mine"].tensors()[name]) for name, x in kept.tensors().items())
    assert "Interrupted at step 2" in (tmp_path / "run/log.txt").read_text()


def test_a_recording_shorter_than_its_manifest_says_is_refused(tmp_path: Path) -> None:
    """Otherwise a transcript could look as if it fitted, and train nothing."""
    soundfile.write(tmp_path / "short.wav", np.full(8000, 0.1, np.float32), 16_000)
    utterance = Utterance(
        audio_path=tmp_path / "short.wav", duration=15.0, text="hello", line=3, manifest=tmp_path / "m.json"
    )
    dataset = SpeechDataset([utterance], [[1]], sample_rate=16_000)
    problem = dataset[0]
    assert isinstance(problem, DataError)
    assert re.search(r"m\.json:3: the manifest says 15 s.*holds 0\.5 s", str(problem))


@pytest.mark.parametrize("override", ["model.optim.lr=nan", "model.optim.betas=[2,2]"])
def test_an_optimiser_that_torch_refuses_is_one_message(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.optim"):
        run_training(settings_for(tmp_path, override), model=small_model(), reporter=QUIET)
