"""An adapter under a Trainer of the user's own: callbacks, loggers, checkpoints, and a base that stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.config import DatasetSettings, OptimSettings
from overtone.errors import AdapterError, ConfigError, DataError, UsageError
from overtone.lightning import AdapterModule, EpochSampler
from overtone.models.asr_model import AsrModel
from overtone.training.console import Reporter
from overtone.training.data import read_speech
from support.small_models import small_model
from support.train_samples import write_corpus

FAST = OptimSettings(lr=0.05)


@pytest.fixture
def manifests(tmp_path: Path) -> tuple[Path, Path]:
    return write_corpus(tmp_path), write_corpus(tmp_path, count=3, name="valid")


def adapted() -> AsrModel:
    model = small_model()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name in ("mine", "other"):
            model.adapters.add(name, LinearAdapter(dim=4))
    return model


def trainer(folder: Path, **options: Any) -> Trainer:
    usual = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    usual |= {"enable_checkpointing": False, "enable_model_summary": False, "default_root_dir": folder}
    return Trainer(**{**usual, **options})  # type: ignore[arg-type]


class Seen(Callback):
    """A callback of the user's own."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(
    folder: Path, manifests: tuple[Path, Path], *, checkpoint: Path | None = None, **options: Any
) -> tuple[AsrModel, Seen]:
    model, seen = adapted(), Seen()
    train = DatasetSettings(manifest_filepath=str(manifests[0]), batch_size=4, num_workers=0)
    module = AdapterModule(
        model, "mine", train=train, validation=manifests[1], optim=FAST, compute_dtype="float32", seed=5
    )
    callbacks = [seen, *options.pop("callbacks", [])]
    trainer(folder, callbacks=callbacks, **options).fit(module, ckpt_path=checkpoint)
    return model, seen


def test_a_trainer_of_ones_own(tmp_path: Path, manifests: tuple[Path, Path]) -> None:
    """Only the adapter learns, the metrics are there for callbacks, and the model is given back for inference."""
    model, seen = fit(tmp_path, manifests)
    fresh = adapted()
    assert len(seen.losses) == 6
    assert {"val_wer", "val_cer", "val_loss", "train_loss", "learning_rate"} <= seen.metrics[-1].keys()
    assert model.fingerprint() == fresh.fingerprint()
    assert all(torch.equal(x, fresh.base_state_dict()[name]) for name, x in model.base_state_dict().items())
    assert model.adapters["other"].digest() == fresh.adapters["other"].digest()
    assert model.adapters["mine"].digest() != fresh.adapters["mine"].digest()
    assert not model.training
    assert model.backend is None


def test_a_run_that_was_cut_off_goes_on_exactly(tmp_path: Path, manifests: tuple[Path, Path]) -> None:
    whole, seen = fit(tmp_path, manifests, max_epochs=3)
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", save_last=True)
    options: dict[str, Any] = {"max_epochs": 3, "enable_checkpointing": True}

    class CutOff(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, manifests, callbacks=[keep, CutOff()], **options)
    again, rest = fit(tmp_path, manifests, checkpoint=tmp_path / "kept/last.ckpt", **options)
    assert rest.losses == seen.losses[6:]
    assert again.adapters["mine"].digest() == whole.adapters["mine"].digest()
    held = torch.load(tmp_path / "kept/last.ckpt", weights_only=False)["state_dict"]
    assert held.keys() == {f"model.adapters.held./mine.{name}" for name, _ in again.adapters["mine"].named_parameters()}


def test_every_epoch_has_all_utterances_in_an_order_of_its_own(manifests: tuple[Path, Path]) -> None:
    chosen = DatasetSettings(manifest_filepath=str(manifests[0]), batch_size=4, num_workers=0)
    (speech,) = read_speech(small_model(), chosen, "train_ds", Reporter(quiet=True), seed=1)
    shares = [EpochSampler(speech.plan, rank=rank, processes=3) for rank in range(3)]
    orders = []
    for epoch in range(2):
        for sampler in shares:
            sampler.set_epoch(epoch)
        orders.append([[draw.utterance for batch in sampler for draw in batch] for sampler in shares])
        assert sorted(index for share in orders[-1] for index in share) == list(range(12))
    assert orders[0] != orders[1]
    assert len({draw.key for sampler in shares for batch in sampler for draw in batch}) == 12


def test_mistakes(tmp_path: Path, manifests: tuple[Path, Path]) -> None:
    model = adapted()
    with pytest.raises(AdapterError, match="Did you mean 'mine'"):
        AdapterModule(model, "min")
    with pytest.raises(ConfigError, match="manifest_filepath"):
        AdapterModule(model, "mine", train=DatasetSettings())
    with pytest.raises(DataError, match="nothing"):
        AdapterModule(model, "mine", train=tmp_path / "nothing.json")
    with pytest.raises(UsageError, match="nothing to train on"):
        trainer(tmp_path).fit(AdapterModule(model, "mine"))
    with pytest.raises(UsageError, match="needs an end"):
        trainer(tmp_path, max_epochs=-1, max_steps=-1).fit(AdapterModule(model, "mine", train=manifests[0]))
