"""What happens between the steps of a training, as one Lightning callback: keep, resume, show, stop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from overtone.data.batching import BatchPlan, Place, place_of
from overtone.training.console import LiveLine, Pace, Reporter
from overtone.training.module import Steps
from overtone.training.run_folder import writing
from overtone.training.signals import StopRequest
from overtone.training.weights import Keeper

CHECKPOINT_SECONDS = 600.0
"""Longest time between two checkpoints, however far apart validations are."""


class Watch(Callback):
    """Follows a training: after every validation the weights are judged and kept, and a checkpoint is written."""

    def __init__(
        self,
        *,
        steps: Steps,
        plan: BatchPlan,
        resume_file: Path | None,
        every: int | None,
        pace: Pace,
        line: LiveLine,
        reporter: Reporter,
        identity: dict[str, Any],
        timed_anew: bool = False,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.plan = plan
        self.keeper: Keeper
        """What writes the weights; given once it can be made."""
        self.resume_file = resume_file
        """Where the checkpoint goes; None writes none."""
        self.every = every
        """Steps between two checkpoints, beside those after validations."""
        self.pace = pace
        self.line = line
        self.reporter = reporter
        self.identity = identity
        """What must not change between the parts of a run."""
        self.timed_anew = timed_anew
        """Whether a limit of time is that of each part of a run, and not of the whole."""
        self.wer_before: float | None = None
        """Of the base."""
        self.place = Place()
        """The epoch of the last batch."""
        self.validated_step = -1
        self.checkpoint_due = False
        self.stop = StopRequest()
        self.interrupted = False
        self.reading = "model.train_ds"
        """What was being read when the run ended early."""
        self.has_checkpoint = False
        self.began = 0.0
        self.written_at = time.monotonic()
        self.written_batches = 0
        """Batches of the last checkpoint."""

    def resume(self, state: Mapping[str, Any], checkpoint: Path, *, leads: bool) -> None:
        """Stand where that checkpoint was written, which says so much of it."""
        self.steps.batches_done = self.written_batches = state["batches"]
        self.place = Place(*state["place"])
        self.validated_step = state["validated_step"]
        self.wer_before = state["wer_before"]
        self.pace.first_step = self.pace.step = state["step"]
        self.pace.wer, self.pace.loss = state["wer"], state["loss"]
        self.keeper.restore(state["keeper"], checkpoint, leads=leads)
        self.has_checkpoint = self.resume_file is not None and self.resume_file.is_file()
        self.reporter.say(f"Going on from step {self.pace.step}")

    # Training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop.at_once = False
        self.stop.listen()  # Lightning has taken SIGTERM, and would end in the middle of a validation

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps.batches_done = batch_idx + 1
        rate = trainer.world_size / self.steps.model.sample_rate
        self.pace.advance(
            step=trainer.global_step,
            epoch=self.epoch(trainer),
            loss=self.steps.last_loss,
            learning_rate=self.steps.learning_rate,
            audio=float(batch.lengths.sum()) * rate if hasattr(batch, "lengths") else 0.0,
            took=time.perf_counter() - self.began,
        )
        if self.is_due(trainer):
            self.checkpoint_due = True
        if not self.at_step(trainer):
            return
        self.line.show(self.pace)
        # Every process takes part in a checkpoint: what one of them wants, all do.
        if not anywhere(trainer, self.checkpoint_due or self.stop.made) or self.validates_now(trainer):
            return  # where a validation follows, the checkpoint is written after it: a resumed run does not repeat it
        self.write_checkpoint(trainer)
        self.stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that ended early, for want of time, goes on from its last whole step."""
        if not self.at_step(trainer):
            self.steps.batches_done -= self.steps.batches_done % trainer.accumulate_grad_batches
            self.place = Place()
            self.epoch(trainer)
        if self.steps.batches_done != self.written_batches:
            self.write_checkpoint(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        if trainer.validating:
            self.reading = "model.validation_ds"

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop.listen()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the weights; those of the base alone are not judged."""
        if self.steps.base_alone or trainer.sanity_checking:
            return
        self.judge(trainer)
        if trainer.state.fn == "fit":
            self.checkpoint_due = True
            if self.at_step(trainer):
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
        first = self.steps.scores[0].metrics()
        metrics = {f"val_{name}": value for name, value in first.items()}
        self.pace.wer = metrics["val_wer"]
        best = False
        if trainer.is_global_zero:
            best = self.keeper.consider(step=step, epoch=self.epoch(trainer), metrics=metrics)
        self.reporter.say(
            f"step {step}: WER {metrics['val_wer']:.2%}  CER {metrics['val_cer']:.2%}  "
            f"loss {metrics['val_loss']:.4g}" + ("  (best so far)" if best else "")
        )

    # State

    def epoch(self, trainer: Trainer) -> int:
        """Passes over the data that were begun, from zero."""
        last = max(0, self.steps.batches_done - 1)
        self.place = place_of(self.plan, last, processes=trainer.world_size, near=self.place)
        return self.place.epoch

    def at_step(self, trainer: Trainer) -> bool:
        """Whether no gradient is waiting for further batches."""
        every = trainer.accumulate_grad_batches
        return self.steps.batches_done % every == 0 or self.steps.batches_done == trainer.num_training_batches

    def validates_now(self, trainer: Trainer) -> bool:
        """Whether a validation follows this batch (and writes the checkpoint itself)."""
        interval = trainer.val_check_batch
        return bool(
            trainer.enable_validation
            and isinstance(interval, int)
            and interval > 0
            and self.steps.batches_done % interval == 0
        )

    def is_due(self, trainer: Trainer) -> bool:
        """Whether a checkpoint belongs after this batch, validations left out."""
        return (
            (self.every is not None and trainer.global_step % self.every == 0)
            or time.monotonic() - self.written_at > CHECKPOINT_SECONDS
            or self.steps.batches_done == trainer.num_training_batches
        )

    def write_checkpoint(self, trainer: Trainer) -> None:
        """Replace the checkpoint by one of this step, whole or not at all."""
        self.checkpoint_due = False
        self.written_at = time.monotonic()
        self.written_batches = self.steps.batches_done
        if self.resume_file is None:
            return
        with replacing(self.resume_file, leads=trainer.is_global_zero) as fresh:
            for logger in trainer.loggers:
                logger.save()  # what a logger holds back would be missing from a run that is killed and resumed here
            trainer.save_checkpoint(fresh, weights_only=False)
        self.has_checkpoint = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The state between two steps, whatever Lightning is in the middle of: so many batches, nothing half done."""
        checkpoint["loops"]["fit_loop"] = loop_state(
            checkpoint["loops"]["fit_loop"],
            batches=self.steps.batches_done,
            steps=trainer.global_step,
            validated=self.validates_now(trainer),
        )
        checkpoint["overtone"] = {
            "identity": self.identity,
            "wer_before": self.wer_before,
            "batches": self.steps.batches_done,
            "place": list(self.place),
            "step": trainer.global_step,
            "loss": self.pace.loss,
            **self.judged(),
        }

    def judged(self) -> dict[str, Any]:
        """What the validations so far have found, as a checkpoint holds it."""
        return {"validated_step": self.validated_step, "wer": self.pace.wer, "keeper": self.keeper.state()}

    def complete_checkpoint(self) -> None:
        """The last step's checkpoint is older than its validation, which came after everything: add what it found."""
        if self.resume_file is None or not self.has_checkpoint:
            return
        content = torch.load(self.resume_file, map_location="cpu", weights_only=True)
        content["overtone"] |= self.judged()
        with replacing(self.resume_file, leads=True) as fresh:
            torch.save(content, fresh)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A limit of time and a patience are what is asked for now."""
        callbacks = checkpoint["callbacks"]
        if self.timed_anew:
            callbacks.pop("Timer", None)
        stopping = trainer.early_stopping_callback
        for name, state in callbacks.items():
            if stopping is not None and name.startswith(type(stopping).__name__):
                state["patience"] = stopping.patience
                state.pop("stopping_reason", None)

    def stop_if_asked(self, trainer: Trainer) -> None:
        """Raises KeyboardInterrupt in every process where one was asked to stop."""
        if anywhere(trainer, self.stop.made):
            raise KeyboardInterrupt


@contextmanager
def replacing(path: Path, *, leads: bool) -> Iterator[Path]:
    """Where to write what takes the file's place, whole or not at all; the process that leads puts it there."""
    fresh = path.with_name(f".{path.name}.new")
    with writing(path):
        try:
            yield fresh
            if leads:
                fresh.replace(path)
        finally:
            if leads:
                fresh.unlink(missing_ok=True)


def anywhere(trainer: Trainer, wanted: bool) -> bool:
    """Whether any process wants it; all of them have to ask at the same place."""
    return bool(trainer.strategy.reduce_boolean_decision(wanted, all=False))


def loop_state(state: dict[str, Any], *, batches: int, steps: int, validated: bool) -> dict[str, Any]:
    """Lightning's counters as they are between two batches of its one long epoch.

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
