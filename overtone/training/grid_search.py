"""Grid search: a training for each combination of settings, one after the other, each in a folder of its own."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from overtone.config import Settings
from overtone.errors import OvertoneError, UsageError
from overtone.text_table import columns
from overtone.training.run import TrainingResult
from overtone.training.run_folder import RunFolder, plan_folder
from overtone.training.train import run_training
from overtone.training.trainer import find_machine


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a search."""

    chosen: tuple[str, ...]
    """The settings that tell it from the others, as `key=value`."""
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of a trial: a result, or an error."""

    trial: Trial
    result: TrainingResult | None = None
    error: str | None = None

    @property
    def wer(self) -> float | None:
        """WER of the best step, 0..1."""
        return None if self.result is None else self.result.wer_after


def separate(trials: Sequence[Trial]) -> list[Trial]:
    """Give the trials folders of their own: those that they name, or numbered ones below it where they name the same.

    Raises UsageError for checkpoints that would share a folder, and for trainings of several processes.
    """
    if any(find_machine(trial.settings.trainer).processes > 1 for trial in trials):
        raise UsageError("A search trains in one process: give trainer.devices=1, or start each training by itself.")
    if len({folder_settings(trial.settings) for trial in trials}) < len(trials):
        version = find_folder(trials[0].settings).version
        trials = [number_folder(trial, number, version) for number, trial in enumerate(trials)]
    if len({find_folder(trial.settings).checkpoints for trial in trials}) < len(trials):
        raise UsageError(
            "exp_manager.checkpoint_callback_params.dirpath: all trainings would write there; leave it out, and each "
            "writes into its own run folder."
        )
    return list(trials)


def folder_settings(settings: Settings) -> tuple[str | None, ...]:
    """Return the settings that decide the run folder."""
    chosen = settings.exp_manager
    return chosen.explicit_log_dir, chosen.exp_dir, chosen.name or settings.name, chosen.version


def find_folder(settings: Settings) -> RunFolder:
    return plan_folder(settings.exp_manager, default_name=settings.name)


def number_folder(trial: Trial, number: int, version: str) -> Trial:
    """Put the trial into the folder `number` below its run folder, which has that version unless it names one."""
    settings, chosen = trial.settings, trial.settings.exp_manager
    above = replace(settings, exp_manager=replace(chosen, version=chosen.version or version))
    inner = replace(chosen, explicit_log_dir=str(find_folder(above).path / str(number)))
    return replace(trial, settings=replace(settings, exp_manager=inner))


def run_trials(trials: Sequence[Trial]) -> Iterator[Outcome]:
    """Train them one after the other; one that fails is an outcome too. KeyboardInterrupt ends the search."""
    for trial in trials:
        try:
            yield Outcome(trial=trial, result=run_training(trial.settings))
        except OvertoneError as error:
            yield Outcome(trial=trial, error=str(error))
        except Exception as error:  # a lack of memory, say: the other trainings may have enough of it
            traceback.print_exc()
            yield Outcome(trial=trial, error=f"{type(error).__name__}: {error}")


def make_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return one line for each training: its settings, its WER, and its folder."""
    rows = [["", "WER", "step", "settings", "folder"]]
    best = find_best(outcomes)
    for number, outcome in enumerate(outcomes):
        wer = "–" if outcome.wer is None else f"{outcome.wer:.2%}"
        chosen = " ".join(outcome.trial.chosen) or "–"
        if outcome.result is None:
            rows.append([str(number), wer, "–", chosen, "failed"])
        else:
            mark = "best" if outcome is best else str(number)
            rows.append([mark, wer, str(outcome.result.best_step), chosen, str(outcome.result.folder)])
    return columns(rows, right=(1, 2))


def find_best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the outcome with the fewest errors; None where nothing was validated."""
    scored = [outcome for outcome in outcomes if outcome.wer is not None]
    return min(scored, key=lambda outcome: outcome.wer or 0.0, default=None)
