"""What a training says at its beginning and end, and what it writes down about its weights."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import Trainer

from overtone.config import ExperimentSettings
from overtone.training.callback import Watch
from overtone.training.result import TrainingResult
from overtone.training.run import Run
from overtone.training.trainer import TRAINED_DTYPES, base_dtype, precision_of
from overtone.version import __version__


def introduce(run: Run, notes: Sequence[str]) -> None:
    """The first lines: what is trained in which arithmetic, and on what; then the notes."""
    model, say = run.model, run.reporter.say
    base = sum(parameter.numel() for parameter in model.base_parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    arithmetic = TRAINED_DTYPES[precision_of(run.settings.trainer)]
    if run.adapter is None:
        say(f"Base '{model.name}': every weight is trained, in {arithmetic}")
    else:
        frozen = base_dtype(run.settings, run.machine)
        say(f"Base '{model.name}': frozen, in {frozen}; adapter '{run.adapter}': trained, in {arithmetic}")
    total = base if run.adapter is None else base + trained
    say(f"Trainable parameters: {trained:,} of {total:,} ({trained / total:.2%})")
    chosen = run.settings.model.train_ds
    batch = f"{chosen.batch_duration:g} s" if chosen.batch_duration else f"{chosen.batch_size} utterances"
    if run.machine.processes > 1:
        batch += f" for each of {run.machine.processes} processes"
    say(
        f"Training audio: {run.training.hours:.2f} h in {len(run.training.dataset)} utterances; "
        f"{run.length.steps} steps of {batch}, "
        f"{run.length.batches / run.length.batches_per_epoch:.1f} epochs"
    )
    for held in run.validation:
        say(f"Validation audio: {held.hours:.2f} h in {len(held.dataset)} utterances ({held.name})")
    if not run.validation:
        say("No validation manifest: the last weights count as the best.")
    say(f"Run folder: {run.folder.path}")
    for note in notes:
        say(note)


def early_end(settings: ExperimentSettings, trainer: Trainer) -> str | None:
    """Why the steps ended before the last one; None where they did not."""
    if not trainer.should_stop or trainer.global_step >= trainer.max_steps:
        return None
    stopping = trainer.early_stopping_callback
    reason = None if stopping is None else stopping.stopping_reason.name
    if reason is None or reason == "NOT_STOPPED":
        key = "trainer.max_time" if settings.max_time_per_run is None else "exp_manager.max_time_per_run"
        why = f"the time of {key} is up"
    else:
        chosen = settings.early_stopping_callback_params
        why = {
            "PATIENCE_EXHAUSTED": f"no better {chosen.monitor} in {chosen.patience} validations",
            "STOPPING_THRESHOLD": f"{chosen.monitor} has reached stopping_threshold, {chosen.stopping_threshold}",
            "DIVERGENCE_THRESHOLD": f"{chosen.monitor} has passed divergence_threshold, {chosen.divergence_threshold}",
            "NON_FINITE_METRIC": f"{chosen.monitor} is not a finite number",
        }[reason]
    return f"Ended early, at step {trainer.global_step} of {trainer.max_steps}: {why}."


def make_card(run: Run, step: int, metrics: Mapping[str, float], wer_before: float | None) -> dict[str, Any]:
    """Where the weights come from and what they reached, as plain data."""
    settings = run.settings
    reached = {name.removeprefix("val_"): round(value, 6) for name, value in metrics.items()}
    return {
        "trained": time.strftime("%Y-%m-%d %H:%M:%S"),
        "base": run.model.name,
        "data": run.training.described(),
        "validation": [held.described() for held in run.validation],
        "steps": step,
        "wer_before": None if wer_before is None else round(wer_before, 6),
        "wer_after": reached.get("wer"),
        "cer_after": reached.get("cer"),
        "loss_after": reached.get("loss"),
        "dtypes": {
            "base": "trained" if run.adapter is None else base_dtype(run.settings, run.machine),
            "trained": TRAINED_DTYPES[precision_of(settings.trainer)],
        },
        "optimiser": {"name": settings.model.optim.name, "learning_rate": settings.model.optim.lr},
        "seed": settings.seed,
        "versions": {
            "overtone": __version__,
            "torch": str(torch.__version__),
            "lightning": version("lightning"),
            "python": platform.python_version(),
        },
    }


def result_of(run: Run, watch: Watch, steps: int) -> TrainingResult:
    """The result, and the last lines."""
    keeper = watch.keeper
    best = keeper.best
    metrics = best.metrics if best is not None else {}
    result = TrainingResult(
        adapter=run.adapter,
        folder=run.folder.path,
        best=keeper.best_path,
        last=keeper.last_path,
        nemo=keeper.nemo_path if keeper.nemo_path.exists() else None,
        adapters_file=keeper.adapters_path if keeper.adapters_path and keeper.adapters_path.exists() else None,
        checkpoint=run.folder.resume_file if run.folder.resume_file.exists() else None,
        steps=steps,
        best_step=best.step if best is not None else steps,
        wer_before=watch.wer_before,
        wer_after=metrics.get("val_wer"),
        wer_last=watch.pace.wer,
        hours=run.training.hours,
        card=make_card(run, best.step if best is not None else steps, metrics, watch.wer_before),
    )
    if result.wer_after is not None and result.wer_before is not None:
        run.reporter.say(f"WER {result.wer_before:.2%} → {result.wer_after:.2%} (step {result.best_step})")
    run.reporter.say(f"Best: {result.best}\nLast: {result.last}")
    if result.nemo is not None:
        run.reporter.say(f"Adapted model: {result.nemo}")
    return result
