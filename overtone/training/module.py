"""What happens in one step, told to Lightning: a thin wrapper around a model, of which it owns nothing.

Legend: B batch, S samples, F mel bins, T mel frames, T' encoder frames, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from overtone.config import OptimSettings
from overtone.data.batching import step_seed
from overtone.errors import ConfigError, DataError, OvertoneError
from overtone.training.flat_start import FlatStart
from overtone.training.forward import Recogniser
from overtone.training.optim import Schedule
from overtone.training.prefix_cache.forward import Prefix
from overtone.training.prefix_cache.loader import PrefixBatch
from overtone.training.row_parallel.processes import RowProcesses
from overtone.training.validation import AnyBatch, Score, usable

OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
MOMENTUM_OPTIMISERS = ("sgd", "rmsprop")
FUSED_OPTIMISERS = ("adamw", "adam")
"""With a single call for all parameters; Lightning clips no gradients of these beside mixed precision."""


class Steps(LightningModule):
    """Training and validation steps of one adapter, or of the whole base where `adapter` is None."""

    def __init__(
        self,
        recogniser: Recogniser,
        *,
        optim: OptimSettings,
        schedule: Schedule,
        inner: Mapping[int, float],
        flat_start: FlatStart | None,
        compute_dtype: str,
        seed: int,
        validation_sets: int,
        prefix: Prefix | None = None,
        processes: RowProcesses | None = None,
        tell_prediction: Callable[[str], None] | None = None,
        tell_every: int = 10,
    ) -> None:
        super().__init__()
        self.recogniser = recogniser
        self.processes = processes
        """What the recogniser computes in its place, in several processes."""
        self.model = recogniser.model
        self.adapter = recogniser.adapter
        self.optim = optim
        self.schedule = schedule
        self.inner = inner
        """Layer -> share of the CTC loss of its output."""
        self.flat_start = flat_start
        self.prefix = prefix
        """What computes the frozen part below the adapter; None: every step does."""
        self.wanted_dtype = compute_dtype
        self.prepared_on = None if processes is None else self.model.device
        """Where the base has its arithmetic."""
        self.seed = seed
        self.base_alone = False
        """Whether validation scores the base instead of the adapter."""
        self.scores = [Score() for _ in range(validation_sets)]
        self.tell_prediction = tell_prediction
        """Where a reference and its hypothesis are told now and then; None tells none."""
        self.tell_every = tell_every
        """Steps between two of them."""
        self.batches_done = 0
        """Batches of the run so far, those before a resumption included; a checkpoint holds it."""
        self.last_loss = math.nan
        self.strict_loading = False

    # Training

    def training_step(self, batch: AnyBatch | DataError, batch_idx: int) -> Tensor:
        """The loss of one batch, a scalar; all randomness depends on seed and batch number alone."""
        batch = usable(batch)
        torch.manual_seed(step_seed(self.seed, batch_idx, self.global_rank))
        heads, lengths, auxiliary = self.recognise(batch)
        own = heads[-1]
        loss = self.loss(heads, lengths, batch) + auxiliary.to(own.device)
        self.last_loss = float(loss.detach())
        if not math.isfinite(self.last_loss) and self.trainer.precision != "16-mixed":
            raise OvertoneError(
                f"The loss is {self.last_loss} in batch {batch_idx} ({batch.ids[0]}, …); training cannot go on. "
                "Lower model.optim.lr, or set trainer.gradient_clip_val=1.0."
            )
        self.tell(batch, own, lengths)
        self.log("train_loss", loss.detach(), batch_size=len(batch.texts))
        self.log("learning_rate", self.learning_rate, batch_size=1)
        return loss

    def tell(self, batch: AnyBatch, emissions: Tensor, lengths: Tensor) -> None:
        """The first transcript of the batch and what the model makes of it, as often as the log is written."""
        if self.tell_prediction is None or (self.global_step + 1) % self.tell_every:
            return
        head = self.model.head
        found = head.read(head.align(emissions[:1], lengths[:1])[0])
        self.tell_prediction(f"reference: {batch.texts[0]}\nhypothesis: {found.text}")

    def recognise(self, batch: AnyBatch) -> tuple[list[Tensor], Tensor, Tensor]:
        """emissions [B, T', C] (of inner layers, then the model's own), lengths [B], the adapters' auxiliary loss."""
        if isinstance(batch, PrefixBatch):
            assert self.prefix is not None
            with self.model.adapters.use(None if self.base_alone else self.adapter) as selection:
                emissions, lengths = self.prefix.recognise(batch)
            return [emissions], lengths, selection.auxiliary_loss()
        if self.processes is not None:
            heads, lengths = self.processes(batch.waveforms, batch.lengths, base_alone=self.base_alone)
            return heads, lengths, torch.zeros(())
        return self.recogniser(batch.waveforms, batch.lengths, base_alone=self.base_alone)

    def loss(self, emissions: Sequence[Tensor], lengths: Tensor, batch: AnyBatch) -> Tensor:
        """Of the model's own emissions, those of inner layers beside it by their shares."""
        head = self.model.head
        losses = [head.loss(each, lengths, batch.targets, batch.target_lengths) for each in emissions]
        shares = (*self.inner.values(), 1.0 - sum(self.inner.values()))
        whole = torch.stack([share * loss for share, loss in zip(shares, losses, strict=True)]).sum()
        if self.flat_start is None or isinstance(batch, PrefixBatch):
            return whole
        return self.flat_start.mixed(whole, [each.float() for each in emissions], lengths, batch, self.global_step)

    @property
    def learning_rate(self) -> float:
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        plain = self.trainer.precision == "32-true" and all(parameter.device.type == "cpu" for parameter in trained)
        optimiser = make_optimiser(self.optim, trained, fused=plain)
        peak = self.optim.lr or 1.0
        curve = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: self.schedule(step) / peak)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": curve, "interval": "step"}}

    # Validation

    def on_validation_epoch_start(self) -> None:
        self.scores = [Score() for _ in self.scores]

    def validation_step(self, batch: AnyBatch | DataError, batch_idx: int, dataloader_idx: int = 0) -> None:
        batch = usable(batch)
        (emissions,), lengths, _ = self.recognise(batch)
        self.scores[dataloader_idx].add(self.model.head, batch, emissions, lengths)

    def on_validation_epoch_end(self) -> None:
        """Logs `val_wer`, `val_cer`, `val_loss` of the first set, and of the others with their number."""
        self.scores = [self.summed(score) for score in self.scores]
        for number, score in enumerate(self.scores):
            suffix = "" if number == 0 else f"_{number}"
            if not self.base_alone:
                for name, value in score.metrics().items():
                    self.log(f"val_{name}{suffix}", value, batch_size=1)

    def summed(self, score: Score) -> Score:
        """The score over all processes."""
        if self.trainer.world_size == 1:
            return score
        reduced = self.trainer.strategy.reduce(score.tensor().to(self.device), reduce_op="sum")
        return Score.from_tensor(cast(Tensor, reduced).cpu())

    # Device and state

    def on_fit_start(self) -> None:
        self.prepare()

    def on_validation_start(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        """Give the base its arithmetic, once it lies on its device."""
        if self.adapter is not None and self.prepared_on != self.device:
            self.model.set_compute_dtype(self.wanted_dtype)
            self.prepared_on = self.device

    def kept_names(self) -> set[str]:
        """What a checkpoint holds: the adapter's parameters, or the whole base with its statistics."""
        if self.adapter is None:
            return {name for name in self.state_dict() if not name.startswith("model.adapters.")}
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = self.kept_names()
        checkpoint["state_dict"] = {name: x for name, x in checkpoint["state_dict"].items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = self.state_dict()
        if {name: x.shape for name, x in checkpoint["state_dict"].items()} != {
            name: own[name].shape for name in self.kept_names()
        }:
            raise OvertoneError("The checkpoint holds other parameters than this run trains; begin a new run.")


def make_optimiser(
    settings: OptimSettings, parameters: list[torch.nn.Parameter], *, fused: bool
) -> torch.optim.Optimizer:
    """The optimiser of torch.optim by its NeMo name, as a single call where `fused` and there is one."""
    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.name in MOMENTUM_OPTIMISERS:
        options["momentum"] = settings.momentum or 0.0
        if settings.name == "sgd":
            options["nesterov"] = bool(settings.nesterov)
    elif settings.name != "adagrad":
        options["betas"] = tuple(settings.betas)
    if fused and settings.name in FUSED_OPTIMISERS:
        options["fused"] = True
    if settings.eps is not None and settings.name != "sgd":
        options["eps"] = settings.eps
    try:
        optimiser = OPTIMISERS[settings.name](parameters, **options)
    except (TypeError, ValueError) as error:  # what torch says of values that do not fit
        raise ConfigError(f"model.optim: {error}") from error
    # A fused step writes without a trace, and what is derived from the parameters would stay as it was.
    optimiser.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(parameters))
    return optimiser
