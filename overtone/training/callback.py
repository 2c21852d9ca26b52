"""The Lightning callback of a training: progress, checkpoints, best weights, and the end when one is asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from overtone.data.batching import BatchPlan, Place, place_of
from overtone.files import replace_path, system_error
from overtone.training.console import Progress, ProgressLine, Reporter
from overtone.training.interruption import StopRequest
from overtone.training.module import TrainingModule
from overtone.training.plan import Prune, Validation
from overtone.training.run_folder import explain_write_errors
from overtone.training.weights import WeightsStore

CHECKPOINT_SECONDS = 600.0
"""Longest time between two checkpoints, however far apart validations are."""


class TrainingCallback(Callback):
    """Follows a training: after every validation the weights are judged and kept, and a checkpoint is written."""

    def __init__(
        self,
        *,
        module: TrainingModule,
        plan: BatchPlan,
        weights: WeightsStore,
        progress: Progress,
        line: ProgressLine,
        reporter: Reporter,
        identity: dict[str, Any],
        checkpoint: Path | None,
        checkpoint_every: int | None = None,
        line_every: int = 10,
        restarts_timer: bool = False,
        prune: Prune | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.sample_rate = module.model.sample_rate
        self.plan = plan
        self.weights = weights
        self.progress = progress
        self.line = line
        self.reporter = reporter
        self.identity = identity
        """Settings and data that must not change between the parts of a run."""
        self.checkpoint = checkpoint
        """File of the checkpoint; None writes none."""
        self.checkpoint_every = checkpoint_every
        """Steps between two checkpoints, beside those after validations."""
        self.line_every = line_every
        """Steps between two lines of the log."""
        self.restarts_timer = restarts_timer
        """A limit of time is that of each part of a run, not of the whole."""
        self.prune = prune
        self.pruned = False
        self.place = Place()
        """The epoch of the last batch."""
        self.validated_step = -1
        self.checkpoint_due = False
        self.stop = StopRequest()
        self.interrupted = False
        self.set_being_read = "model.train_ds"
        """The set that was being read when the run ended early."""
        self.has_checkpoint = False
        self.step_began = 0.0
        self.written_at = time.monotonic()
        self.written_batches = 0
        """Batches of the last checkpoint."""

    def resume(self, state: Mapping[str, Any], checkpoint: Path, *, leads: bool) -> None:
        """Go back to the state that the checkpoint holds."""
        progress = self.progress
        progress.batches = self.written_batches = state["batches"]
        self.place = Place(*state["place"])
        self.validated_step = state["validated_step"]
        progress.wer_before = state["wer_before"]
        progress.first_step = progress.step = state["step"]
        progress.wer, progress.loss = state["wer"], state["loss"]
        progress.curve = [(step, wer, seconds) for step, wer, seconds in state.get("curve", ())]
        progress.seconds_before = state.get("seconds", 0.0)
        self.weights.restore(state["keeper"], checkpoint, leads=leads)
        self.has_checkpoint = self.checkpoint is not None and self.checkpoint.is_file()
        self.reporter.say(f"Going on from step {progress.step}")

    # Training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop.wait_for_steps()  # Lightning has taken SIGTERM, and would end in the middle of a validation

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.step_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        progress = self.progress
        progress.batches = batch_idx + 1
        progress.advance(
            step=trainer.global_step,
            epoch=self.find_epoch(trainer),
            loss=self.module.last_loss,
            learning_rate=self.module.learning_rate,
            audio=float(batch.lengths.sum()) / self.sample_rate * trainer.world_size,
            took=time.perf_counter() - self.step_began,
        )
        if self.is_due(trainer):
            self.checkpoint_due = True
        if not self.is_between_steps(trainer):
            return
        if progress.step % self.line_every == 0 or progress.step == progress.total_steps:
            self.line.log()
        # Every process takes part in a checkpoint: what one of them wants, all do.
        if not anywhere(trainer, self.checkpoint_due or self.stop.requested) or self.validates_now(trainer):
            return  # where a validation follows, the checkpoint is written after it: a resumed run does not repeat it
        self.write_checkpoint(trainer)
        self.stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint; a run that ended early, for want of time, goes on from its last whole step."""
        progress = self.progress
        if not self.is_between_steps(trainer):
            progress.batches -= progress.batches % trainer.accumulate_grad_batches
            self.place = Place()
            self.find_epoch(trainer)
        if progress.batches != self.written_batches:
            self.write_checkpoint(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        if trainer.validating:
            self.set_being_read = "model.validation_ds"

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop.take_signals()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the weights; those of the base alone are not judged."""
        if self.module.base_alone or trainer.sanity_checking:
            return
        self.judge(trainer)
        if trainer.state.fn == "fit":
            self.checkpoint_due = True
            if self.is_between_steps(trainer):
                self.write_checkpoint(trainer)
        elif trainer.is_global_zero:
            self.complete_checkpoint()
        self.stop_if_asked(trainer)

    def judge(self, trainer: Trainer) -> None:
        """Take the last validation's metrics as those of the current step."""
        step = trainer.global_step
        if step == self.validated_step:
            return
        self.validated_step = step
        first = self.module.counts[0].metrics()
        metrics = {f"val_{name}": value for name, value in first.items()}
        self.progress.wer = metrics["val_wer"]
        self.progress.note_validation(step)
        best = False
        if trainer.is_global_zero:
            best = self.weights.consider(step=step, epoch=self.find_epoch(trainer), metrics=metrics)
        self.reporter.say(
            f"step {step}: WER {metrics['val_wer']:.2%}  CER {metrics['val_cer']:.2%}  "
            f"loss {metrics['val_loss']:.4g}" + ("  (best so far)" if best else "")
        )
        if self.prune is not None and step < self.progress.total_steps:
            self.pruned = self.prune(Validation(step, metrics["val_wer"], self.progress.wer_before))
            trainer.should_stop = trainer.should_stop or self.pruned

    def set_base_wer(self, wer: float, trainer: Trainer) -> None:
        """Note the WER of the base, 0..1, as that of step 0."""
        self.progress.wer_before = wer
        for logger in trainer.loggers:
            logger.log_metrics({"val_wer": wer}, step=0)
        self.reporter.say(f"step 0: WER {wer:.2%}  (the base)")

    # Position in the run

    def find_epoch(self, trainer: Trainer) -> int:
        """Return the epoch of the last batch, counted from zero."""
        last = max(0, self.progress.batches - 1)
        self.place = place_of(self.plan, last, processes=trainer.world_size, near=self.place)
        return self.place.epoch

    def is_between_steps(self, trainer: Trainer) -> bool:
        """Return whether no gradient is waiting for further batches."""
        every = trainer.accumulate_grad_batches
        return self.progress.batches % every == 0 or self.progress.batches == trainer.num_training_batches

    def validates_now(self, trainer: Trainer) -> bool:
        """Return whether a validation follows this batch (and writes the checkpoint itself)."""
        interval = trainer.val_check_batch
        return bool(
            trainer.enable_validation
            and isinstance(interval, int)
            and interval > 0
            and self.progress.batches % interval == 0
        )

    def is_due(self, trainer: Trainer) -> bool:
        """Return whether a checkpoint belongs after this batch, validations left out."""
        return (
            (self.checkpoint_every is not None and trainer.global_step % self.checkpoint_every == 0)
            or time.monotonic() - self.written_at > CHECKPOINT_SECONDS
            or self.progress.batches == trainer.num_training_batches
        )

    # Checkpoints

    def write_checkpoint(self, trainer: Trainer) -> None:
        """Replace the checkpoint by one of this step, whole or not at all."""
        self.checkpoint_due = False
        self.written_at = time.monotonic()
        self.written_batches = self.progress.batches
        if self.checkpoint is None:
            return
        with replace_checkpoint(self.checkpoint, leads=trainer.is_global_zero) as fresh:
            for logger in trainer.loggers:
                logger.save()  # what a logger holds back would be missing from a run that is killed and resumed here
            trainer.save_checkpoint(fresh, weights_only=False)
        self.has_checkpoint = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the state between two batches, whatever Lightning is in the middle of."""
        checkpoint["loops"]["fit_loop"] = make_loop_state(
            checkpoint["loops"]["fit_loop"],
            batches=self.progress.batches,
            steps=trainer.global_step,
            validated=self.validates_now(trainer),
        )
        checkpoint["overtone"] = {
            "identity": self.identity,
            "wer_before": self.progress.wer_before,
            "batches": self.progress.batches,
            "place": list(self.place),
            "step": trainer.global_step,
            "loss": self.progress.loss,
            **self.validation_state(),
        }

    def validation_state(self) -> dict[str, Any]:
        """Return what the validations so far have found, as a checkpoint holds it."""
        return {
            "validated_step": self.validated_step,
            "wer": self.progress.wer,
            "curve": [list(point) for point in self.progress.curve],
            "seconds": self.progress.seconds,
            "keeper": self.weights.state(),
        }

    def complete_checkpoint(self) -> None:
        """Add what the last validation found to the checkpoint of the last step, which was written before it."""
        if self.checkpoint is None or not self.has_checkpoint:
            return
        content = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        content["overtone"] |= self.validation_state()
        with replace_checkpoint(self.checkpoint, leads=True) as fresh:
            torch.save(content, fresh)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take a limit of time and a patience from the settings of this part of the run."""
        callbacks = checkpoint["callbacks"]
        if self.restarts_timer:
            callbacks.pop("Timer", None)
        stopping = trainer.early_stopping_callback
        for name, state in callbacks.items():
            if stopping is not None and name.startswith(type(stopping).__name__):
                state["patience"] = stopping.patience
                state.pop("stopping_reason", None)

    def stop_if_asked(self, trainer: Trainer) -> None:
        """Raises KeyboardInterrupt in every process where one was asked to stop."""
        if anywhere(trainer, self.stop.requested):
            raise KeyboardInterrupt


class CheckpointFile(CheckpointIO):
    """Writes checkpoints where Lightning is told to, and nowhere else: a killed process leaves nothing in /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint. Raises OSError, also where torch has an error of its own over the system's."""
        try:
            torch.save(checkpoint, path)
        except RuntimeError as error:
            if (number := system_error(error)) is None:
                raise
            raise OSError(number, os.strerror(number), str(path)) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint, which holds plain values and tensors."""
        return torch.load(path, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


@contextmanager
def replace_checkpoint(path: Path, *, leads: bool) -> Iterator[Path]:
    """Give a path to write to; what the process that leads writes there takes the file's place, whole or not at all."""
    with explain_write_errors(path), replace_path(path) if leads else nullcontext(path) as fresh:
        yield fresh


def anywhere(trainer: Trainer, wanted: bool) -> bool:
    """Return whether any process wants it; all of them have to ask at the same place."""
    return bool(trainer.strategy.reduce_boolean_decision(wanted, all=False))


def make_loop_state(state: dict[str, Any], *, batches: int, steps: int, validated: bool) -> dict[str, Any]:
    """Make Lightning's counters as they are between two batches of its one long epoch.

    validated: whether a validation stands after the last batch. Lightning then begins by passing over it, which
    counts the logged step once more.
    """

    def count(number: int, *names: str) -> dict[str, int]:
        return dict.fromkeys(names, number)

    whole = ("ready", "completed", "started", "processed")
    inside = {"total": count(1, "ready", "started"), "current": count(1, "ready", "started")}
    for part in inside.values():
        part.update(processed=0, completed=0)
    fresh = dict(state)
    fresh["epoch_progress"] = inside
    fresh["epoch_loop.batch_progress"] = {
        "total": count(batches, *whole),
        "current": count(batches, *whole),
        "is_last_batch": False,
    }
    fresh["epoch_loop.val_loop.batch_progress"] = {
        "total": count(0, *whole),
        "current": count(0, *whole),
        "is_last_batch": False,
    }
    both = ("ready", "completed")
    fresh["epoch_loop.scheduler_progress"] = {"total": count(steps, *both), "current": count(steps, *both)}
    fresh["epoch_loop.automatic_optimization.optim_progress"] = {
        "optimizer": {
            "step": {"total": count(steps, *both), "current": count(steps, *both)},
            "zero_grad": {
                "total": count(steps, *both, "started"),
                "current": count(steps, *both, "started"),
            },
        }
    }
    fresh["epoch_loop.state_dict"] = {"_batches_that_stepped": steps - validated}
    return fresh
