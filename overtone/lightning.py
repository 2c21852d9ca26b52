"""An adapter as a LightningModule, for a Trainer, callbacks and loggers of one's own.

    model.adapters.add("medical", LinearAdapter(dim=32))
    module = AdapterModule(model, "medical", train="train.json", validation="valid.json")
    Trainer(max_epochs=5, callbacks=[…]).fit(module)

`overtone.train` does more: it keeps the best weights, resumes exactly and caches what does not change. Legend: B batch,
T' encoder frames, C channels of an emission.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import Sampler

from overtone.config import DatasetSettings, OptimSettings, SpecAugmentSettings
from overtone.data.batching import BatchPlan, Draw, step_seed
from overtone.data.dataset import Batch, make_loader
from overtone.errors import ConfigError, DataError, OvertoneError, UsageError
from overtone.models.asr_model import AsrModel
from overtone.models.vocabulary import writing_with
from overtone.training.console import Reporter
from overtone.training.data import SpeechSet, read_speech, validation_batches_of, worker_count
from overtone.training.forward import TrainingForward, make_augmentation
from overtone.training.module import require_batch, weigh_losses
from overtone.training.optim import make_optimiser, with_rate
from overtone.training.optim.schedules import choose_schedule
from overtone.training.validation import ValidationCounts

Manifests = str | Path | Sequence[str | Path] | DatasetSettings
"""One manifest, several, or a set with settings of its own."""


class EpochSampler(Sampler[list[Draw]]):
    """The batches of one epoch for one process, with a seed for every utterance; Lightning says which epoch it is."""

    def __init__(self, plan: BatchPlan, *, rank: int, processes: int) -> None:
        self.plan = plan
        self.rank = rank
        self.processes = processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plan.length(self.epoch, self.processes)

    def __iter__(self) -> Iterator[list[Draw]]:
        batches = self.plan.shares(self.epoch, self.processes)[self.rank]
        for step, batch in enumerate(batches):
            key = (self.plan.seed, self.epoch, step, self.rank)
            yield [Draw(index, (*key, place)) for place, index in enumerate(batch)]


class AdapterSteps:
    """Losses, errors and optimiser of a training with adapters, for any LightningModule that asks for them."""

    def __init__(self, model: AsrModel, *, optim: OptimSettings | None = None, seed: int = 0) -> None:
        self.model = model
        self.optim = optim or OptimSettings()
        self.spec_augment: SpecAugmentSettings | None = None
        """Masks on the features of training utterances."""
        self.seed = seed
        self.batches = 0
        """Training batches so far, over all epochs: what is random in a batch depends on its number."""
        self.counts: dict[int, ValidationCounts] = {}
        """Errors of the epoch of validation or test that is under way, by the number of its set."""

    def forward(self, batch: Batch, choice: str | None) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return emissions [B, T', C] of inner layers, then of the model, lengths [B], and the auxiliary loss.

        choice: the chain of adapters that act; None is the base.
        """
        inner = () if self.model.head.inner is None else tuple(self.model.inner_losses)
        augment = make_augmentation(self.spec_augment)
        forward = TrainingForward(model=self.model, adapter=choice, augment=augment, inner=inner)
        return forward.forward_batch(batch, base_alone=False)

    def training_loss(self, module: LightningModule, batch: Batch | DataError, choice: str | None) -> Tensor:
        """Return the scalar loss of a batch, and log it as `train_loss`.

        Raises OvertoneError for one that is no finite number, and the error that came in place of the batch.
        """
        batch = require_batch(batch)  # type: ignore[assignment]
        assert isinstance(batch, Batch)
        torch.manual_seed(step_seed(self.seed, self.batches, module.global_rank))
        self.batches += 1
        heads, lengths, auxiliary = self.forward(batch, choice)
        shares = {} if self.model.head.inner is None else self.model.inner_losses
        with self.model.adapters.use(choice) as selection:  # some heads have points of their own
            loss = weigh_losses(self.model, heads, lengths, batch, shares)
            loss = loss + auxiliary.to(loss.device) + selection.auxiliary_loss().to(loss.device)
        if not math.isfinite(float(loss.detach())) and module.trainer.precision != "16-mixed":
            raise OvertoneError(
                f"The loss is {float(loss.detach())} in batch {self.batches - 1} ({batch.ids[0]}, …); training cannot "
                "go on. Lower the learning rate, or clip gradients (Trainer(gradient_clip_val=1.0))."
            )
        module.log("train_loss", loss.detach(), batch_size=len(batch.texts))
        module.log("learning_rate", float(module.trainer.optimizers[0].param_groups[0]["lr"]), batch_size=1)
        return loss

    def count_errors(self, batch: Batch | DataError, choice: str | None, number: int) -> None:
        """Count the errors of a batch of the set of that number. Raises the error that came in place of the batch."""
        batch = require_batch(batch)  # type: ignore[assignment]
        assert isinstance(batch, Batch)
        (emissions,), lengths, _ = self.forward(batch, choice)
        with self.model.adapters.use(choice):
            self.counts.setdefault(number, ValidationCounts()).add(self.model.head, batch, emissions, lengths)

    def log_errors(self, module: LightningModule, prefix: str) -> None:
        """Log WER, CER and loss of every set: `val_wer` of the first, `val_wer_1` of the second, and so on."""
        for number, counts in sorted(self.counts.items()):
            if module.trainer.world_size > 1:
                reduced = module.trainer.strategy.reduce(counts.tensor().to(module.device), reduce_op="sum")
                assert isinstance(reduced, Tensor)
                counts = ValidationCounts.from_tensor(reduced.cpu())
            suffix = f"_{number}" if number else ""
            for name, value in counts.metrics().items():
                module.log(f"{prefix}_{name}{suffix}", value, batch_size=1)
        self.counts = {}

    def configure_optimizers(self, module: LightningModule) -> Any:
        """Make optimiser and schedule of what is trainable. Raises UsageError where nothing is, or without an end."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not trained:
            raise UsageError("Nothing is trainable. Add or enable an adapter, and unfreeze it.")
        steps = module.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise UsageError("The Trainer has neither max_steps nor max_epochs; the schedule needs an end.")
        plain = module.trainer.precision == "32-true" and all(x.device.type == "cpu" for x in trained)
        kinds = {own.kind.name for own in self.model.adapters if any(x.requires_grad for x in own.parameters())}
        width = self.model.encoder.width
        optim = with_rate(self.optim, kind="".join(kinds), steps=int(steps), width=width)
        optimiser = make_optimiser(optim, trained, fused=plain)
        schedule = choose_schedule(optim, max_steps=int(steps), width=width)
        peak = float(optim.lr) or 1.0
        curve = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step) / peak)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": curve, "interval": "step"}}

    def training_loader(self, speech: SpeechSet, chosen: DatasetSettings, module: LightningModule) -> Any:
        """Make the loader of one epoch after the other. Raises UsageError for a Trainer that would deal out again."""
        rank, processes = place_in(module)
        sampler = EpochSampler(speech.plan, rank=rank, processes=processes)
        return make_loader(speech.dataset, sampler, workers=worker_count(chosen), pin_memory=chosen.pin_memory)

    def validation_loaders(self, sets: Iterable[SpeechSet], chosen: DatasetSettings, module: LightningModule) -> Any:
        """Make a loader for every set, of this process's share. Raises as `training_loader`."""
        rank, processes = place_in(module)
        workers = worker_count(chosen)
        batches = [(speech, validation_batches_of(speech, chosen, rank=rank, processes=processes)) for speech in sets]
        return [make_loader(x.dataset, own, workers=workers, pin_memory=chosen.pin_memory) for x, own in batches]

    def trim_checkpoint(self, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave in a checkpoint what is trained, and the number of batches."""
        names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: x for name, x in checkpoint["state_dict"].items() if name in names}
        checkpoint["overtone_batches"] = self.batches

    def read_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on with the number of batches of a checkpoint."""
        self.batches = int(checkpoint.get("overtone_batches", 0))


def place_in(module: LightningModule) -> tuple[int, int]:
    """The number of this process and that of all. Raises UsageError for a Trainer that would deal batches out again."""
    trainer = module.trainer
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise UsageError("Batches are dealt out to the processes already: give Trainer(use_distributed_sampler=False).")
    return trainer.global_rank, trainer.world_size


class AdapterModule(LightningModule):
    """One adapter of a model, trained over the frozen base by whatever Trainer fits it.

    It logs `train_loss`, `learning_rate`, and after a validation `val_wer`, `val_cer` and `val_loss` of the first set,
    which callbacks may monitor. Checkpoints hold the adapter alone.
    """

    def __init__(
        self,
        model: AsrModel,
        adapter: str,
        *,
        train: Manifests | None = None,
        validation: Manifests | None = None,
        optim: OptimSettings | None = None,
        spec_augment: SpecAugmentSettings | None = None,
        base_dropout: bool = True,
        compute_dtype: str = "auto",
        seed: int = 0,
    ) -> None:
        """
        adapter: the name of one that the model has. train, validation: manifests; None leaves the loaders to `fit`.
        compute_dtype: of the frozen base, as `AsrModel.set_compute_dtype`.
        Raises AdapterError for an unknown adapter, DataError for manifests that cannot be used.
        """
        super().__init__()
        self.model = model
        self.adapter = model.adapters[adapter].name
        self.base_dropout = base_dropout
        self.compute_dtype = compute_dtype
        self.steps = AdapterSteps(model, optim=optim, seed=seed)
        self.steps.spec_augment = spec_augment
        self.strict_loading = False
        self.chosen = {"train_ds": dataset_of(train), "validation_ds": dataset_of(validation)}
        with writing_with(model, model.head_of(adapter).tokenizer):
            self.speech = {
                key: read_speech(model, chosen, key, Reporter(quiet=True), seed=seed) if chosen is not None else []
                for key, chosen in self.chosen.items()
            }
        """The sets of utterances."""
        self.before: tuple[str, Any] = (model.head_name, model.backend)
        """Head and backend outside of `fit`."""

    def setup(self, stage: str) -> None:
        """Freeze everything but the adapter, before a fit."""
        if stage == "fit":
            self.before = (self.model.head_name, self.model.backend)
            if self.model.head_name == "rnnt" and "hybrid" in self.model.heads:
                self.model.head_name = "hybrid"
            self.model.train_only(self.adapter, base_dropout=self.base_dropout)

    def on_train_start(self) -> None:
        self.model.set_compute_dtype(self.compute_dtype)

    def on_fit_end(self) -> None:
        """Leave the model ready for inference, as it was before."""
        self.model.head_name, self.model.backend = self.before
        self.model.eval()

    def training_step(self, batch: Batch | DataError, batch_idx: int) -> Tensor:
        return self.steps.training_loss(self, batch, self.adapter)

    def validation_step(self, batch: Batch | DataError, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.steps.count_errors(batch, self.adapter, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self.steps.log_errors(self, "val")

    def test_step(self, batch: Batch | DataError, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.steps.count_errors(batch, self.adapter, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self.steps.log_errors(self, "test")

    def configure_optimizers(self) -> Any:
        return self.steps.configure_optimizers(self)

    def train_dataloader(self) -> Any:
        """Raises UsageError where neither the module nor `fit` has data to train on."""
        chosen, sets = self.chosen["train_ds"], self.speech["train_ds"]
        if chosen is None:
            raise UsageError("There is nothing to train on. Give AdapterModule(…, train=MANIFEST), or fit(…, loader).")
        return self.steps.training_loader(sets[0], chosen, self)

    def val_dataloader(self) -> Any:
        chosen, sets = self.chosen["validation_ds"], self.speech["validation_ds"]
        return [] if chosen is None else self.steps.validation_loaders(sets, chosen, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps.trim_checkpoint(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps.read_checkpoint(checkpoint)


def dataset_of(manifests: Manifests | None) -> DatasetSettings | None:
    """The settings of a set; those given, or the usual ones with these manifests, read by this process.

    Raises ConfigError for a set without a manifest.
    """
    if manifests is None:
        return None
    if isinstance(manifests, DatasetSettings):
        if not manifests.manifest_filepath:
            raise ConfigError("manifest_filepath: has to be given: what to read.")
        return manifests
    names = [manifests] if isinstance(manifests, str | Path) else list(manifests)
    return replace(DatasetSettings(num_workers=0), manifest_filepath=tuple(str(name) for name in names))
