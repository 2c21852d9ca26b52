"""Training and validation steps as a LightningModule around a model.

Legend: B batch, S samples, F mel bins, T mel frames, T' encoder frames, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from overtone.config import OptimSettings
from overtone.data.batching import step_seed
from overtone.data.dataset import Batch
from overtone.errors import DataError, OutputError, OvertoneError
from overtone.models.asr_model import AsrModel
from overtone.training.flat_start import FlatStart
from overtone.training.forward import BatchForward
from overtone.training.optim import make_optimiser
from overtone.training.optim.schedules import Schedule
from overtone.training.prefix_cache.loader import PrefixBatch
from overtone.training.validation import ValidationCounts

AnyBatch = Batch | PrefixBatch


class TrainingModule(LightningModule):
    """Training and validation steps of one adapter, or of the whole base where `adapter` is None."""

    def __init__(
        self,
        model: AsrModel,
        adapter: str | None,
        *,
        batch_forward: BatchForward,
        optim: OptimSettings,
        schedule: Schedule,
        inner_losses: Mapping[int, float],
        flat_start: FlatStart | None,
        seed: int,
        validation_sets: int,
        log_prediction: Callable[[str], None] | None = None,
        log_every: int = 10,
    ) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter
        self.batch_forward = batch_forward
        self.optim = optim
        self.schedule = schedule
        self.inner_losses = inner_losses
        """Share of the inner head's loss on the output of an inner layer, by the layer's index."""
        self.flat_start = flat_start
        self.seed = seed
        self.base_alone = False
        """Validation scores the base instead of the adapter."""
        self.counts = [ValidationCounts() for _ in range(validation_sets)]
        """Errors of the last validation, by set."""
        self.log_prediction = log_prediction
        """Writes a reference and its hypothesis now and then; None writes none."""
        self.log_every = log_every
        """Steps between two of them."""
        self.last_loss = math.nan
        self.strict_loading = False

    # Training

    def training_step(self, batch: AnyBatch | DataError, batch_idx: int) -> Tensor:
        """Return the scalar loss of one batch; all randomness depends on seed and batch number alone.

        Raises OvertoneError for a loss that is no finite number, and the error that came in place of the batch.
        """
        batch = require_batch(batch)
        torch.manual_seed(step_seed(self.seed, batch_idx, self.global_rank))
        heads, lengths, auxiliary = self.batch_forward.forward_batch(batch, base_alone=False)
        own = heads[-1]
        # Some heads have points of their own, and some are told the languages.
        with self.model.speaking(batch.languages or None), self.model.adapters.use(self.adapter) as selection:
            loss = self.compute_loss(heads, lengths, batch)
            loss = loss + auxiliary.to(own.device) + selection.auxiliary_loss().to(own.device)
        self.last_loss = float(loss.detach())
        if not math.isfinite(self.last_loss):
            self.refuse_loss(f"The loss is {self.last_loss} in batch {batch_idx} ({batch.ids[0]}, …)")
        if self.log_prediction is not None and (self.global_step + 1) % self.log_every == 0:
            self.log_prediction(self.describe_prediction(batch, own, lengths))
        self.log("step", self.global_step + 1.0)  # Lightning would number the steps from zero
        self.log("train_loss", loss.detach(), batch_size=len(batch.texts))
        self.log("learning_rate", self.learning_rate, batch_size=1)
        return loss

    def refuse_loss(self, fault: str) -> None:
        """Raises OvertoneError for a loss that is no number, except where float16 may overflow now and then."""
        if self.trainer.precision != "16-mixed":
            advice = "Lower model.optim.lr, or set trainer.gradient_clip_val=1.0."
            raise OvertoneError(f"{fault}; training cannot go on. {advice}")

    def describe_prediction(self, batch: AnyBatch, emissions: Tensor, lengths: Tensor) -> str:
        """Return the first transcript of the batch and what the model recognises in it.

        emissions [B, T', C], lengths [B].
        """
        with self.model.speaking(batch.languages[:1] or None), self.model.adapters.use(self.adapter):
            head = self.model.head
            found = head.read(head.align(emissions[:1], lengths[:1])[0])
        return f"reference: {batch.texts[0]}\nhypothesis: {found.text}"

    def compute_loss(self, emissions: Sequence[Tensor], lengths: Tensor, batch: AnyBatch) -> Tensor:
        """Return the scalar loss of the model's own emissions, those of inner layers beside it by their shares.

        emissions: [B, T', C] each; of inner layers those of the inner head. lengths [B].
        """
        whole = weigh_losses(self.model, emissions, lengths, batch, self.inner_losses)
        if self.flat_start is None:
            return whole
        assert isinstance(batch, Batch), "a flat start trains the whole base, of which nothing is cached"
        return self.flat_start.mix(whole, [each.float() for each in emissions], lengths, batch, self.global_step)

    @property
    def learning_rate(self) -> float:
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        plain = self.trainer.precision == "32-true" and all(parameter.device.type == "cpu" for parameter in trained)
        optimiser = make_optimiser(self.optim, trained, fused=plain)
        peak = float(self.optim.lr) or 1.0
        curve = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: self.schedule(step) / peak)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": curve, "interval": "step"}}

    # Validation

    @property
    def has_base_tokens(self) -> bool:
        """True unless the adapter has a vocabulary of its own."""
        return self.adapter is None or self.model.adapters[self.adapter].vocabulary is None

    @contextmanager
    def score_base(self) -> Iterator[None]:
        """Validate the base instead of the adapter inside the block."""
        self.base_alone = True
        try:
            yield
        finally:
            self.base_alone = False

    def on_validation_epoch_start(self) -> None:
        self.counts = [ValidationCounts() for _ in self.counts]

    def validation_step(self, batch: AnyBatch | DataError, batch_idx: int, dataloader_idx: int = 0) -> None:
        batch = require_batch(batch)
        (emissions,), lengths, _ = self.batch_forward.forward_batch(batch, base_alone=self.base_alone)
        adapter = None if self.base_alone else self.adapter
        try:
            with self.model.speaking(batch.languages or None), self.model.adapters.use(adapter):
                counts, same = self.counts[dataloader_idx], not self.base_alone or self.has_base_tokens
                counts.add(self.model.head, batch, emissions, lengths, same_tokens=same)
        except OutputError:
            self.refuse_loss(f"The loss on a validation set is nan after step {self.global_step}")
            raise

    def on_validation_epoch_end(self) -> None:
        """Log `val_wer`, `val_cer`, `val_loss` of the first set, and of the others with their number.

        Raises OvertoneError where a loss is no number.
        """
        self.counts = [self.sum_over_processes(counts) for counts in self.counts]
        for number, counts in enumerate(self.counts):
            suffix = "" if number == 0 else f"_{number}"
            if not self.base_alone:
                if math.isnan(counts.loss):
                    self.refuse_loss(f"The loss on a validation set is {counts.loss} after step {self.global_step}")
                self.log("step", float(self.global_step))
                for name, value in counts.metrics().items():
                    self.log(f"val_{name}{suffix}", value, batch_size=1)

    def sum_over_processes(self, counts: ValidationCounts) -> ValidationCounts:
        if self.trainer.world_size == 1:
            return counts
        reduced = self.trainer.strategy.reduce(counts.tensor().to(self.device), reduce_op="sum")
        return ValidationCounts.from_tensor(cast(Tensor, reduced).cpu())

    # Checkpoints

    def checkpoint_names(self) -> set[str]:
        """Return the tensors of a checkpoint: the adapter's parameters, or the whole base with its statistics."""
        if self.adapter is None:
            return {name for name in self.state_dict() if not name.startswith("model.adapters.")}
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        names = self.checkpoint_names()
        checkpoint["state_dict"] = {name: x for name, x in checkpoint["state_dict"].items() if name in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises OvertoneError for a checkpoint of other parameters than this run's."""
        own = self.state_dict()
        if {name: x.shape for name, x in checkpoint["state_dict"].items()} != {
            name: own[name].shape for name in self.checkpoint_names()
        }:
            raise OvertoneError("The checkpoint holds other parameters than this run trains; begin a new run.")


def weigh_losses(
    model: AsrModel, emissions: Sequence[Tensor], lengths: Tensor, batch: AnyBatch, inner_losses: Mapping[int, float]
) -> Tensor:
    """Return the scalar sum of the losses of the emissions [B, T', C], inner layers first, by their shares.

    lengths [B]. inner_losses: share of the inner head's loss on the output of an inner layer, by the layer's index.
    """
    head = model.head
    heads = [*(head.inner or head for _ in emissions[1:]), head]
    losses = [
        each.loss(found, lengths, batch.targets, batch.target_lengths)
        for each, found in zip(heads, emissions, strict=True)
    ]
    shares = (*inner_losses.values(), 1.0 - sum(inner_losses.values()))
    return torch.stack([share * loss for share, loss in zip(shares, losses, strict=True)]).sum()


def require_batch(batch: AnyBatch | DataError) -> AnyBatch:
    """Return the batch, or raise the error that came in its place."""
    if isinstance(batch, DataError):
        raise batch
    return batch
