"""Grid search: a training for each combination of settings, each in a folder of its own, one or several at a time."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overtone.adapters.card import reached_rates, reached_step
from overtone.config import Settings, quoted
from overtone.errors import OvertoneError, UsageError
from overtone.evaluation.scores import constrained_score, general_rates
from overtone.text_table import columns
from overtone.training.plan import Prune
from overtone.training.run import TrainingResult
from overtone.training.run_folder import RunFolder, plan_folder
from overtone.training.train import run_training
from overtone.training.trainer import find_machine

SHARED = "shared"
"""Folder, in that of a search, of what its trainings share."""
PREFIX = "prefix_cache"

LONGEST_NAME = 120
"""Characters of a folder's name; longer ones end in a digest."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a search."""

    chosen: tuple[str, ...]
    """The settings that tell it from the others, as `key=value`."""
    settings: Settings
    overrides: tuple[str, ...] = ()
    """All overrides of the command line, for a process that trains it."""
    options: tuple[str, ...] = ()
    """Options of the command that such a process needs besides."""
    number: int = 0
    """Its number in a study."""
    prune: Prune | None = None
    """Ends the training early where it promises little; for one in this process."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """The part of a training's result that a search shows."""

    adapter: str | None
    folder: Path
    best: Path
    best_step: int
    """Step of the parameters in `best`: the one with the fewest errors, or an earlier one for general speech."""
    wer: float | None
    """WER of what lies in `best`, 0..1."""
    wer_before: float | None = None
    """WER of the base, 0..1."""
    score: float | None = None
    """The constrained score, 0..1, where it was measured on general speech."""

    @classmethod
    def of(cls, result: TrainingResult) -> TrialResult:
        (before, after), step = reached_rates(result.card), reached_step(result.card)
        return cls(
            adapter=result.adapter,
            folder=result.folder,
            best=result.best,
            best_step=result.best_step if step is None else step,
            wer=after,
            wer_before=before,
            score=score_of(before, after, result.card.get("general")),
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of a trial: a result, or an error."""

    trial: Trial
    result: TrialResult | None = None
    error: str | None = None
    died: bool = False
    """Its process was ended by a signal."""
    repeated: str | None = None
    """Error of the first attempt, where there were two."""
    pruned: bool = False
    """The training was ended early, because others were better by then."""
    score: float | None = None
    """The constrained score, 0..1, where a search is for that."""

    @property
    def wer(self) -> float | None:
        """WER of the best step, 0..1."""
        return None if self.result is None else self.result.wer


def score_of(
    wer_before: float | None, wer_after: float | None, general: Sequence[Mapping[str, Any]] | None
) -> float | None:
    """The constrained score of a training, 0..1; None where something was not measured."""
    rates = general_rates(general or ())
    if wer_before is None or wer_after is None or rates is None:
        return None
    before, after = rates
    return constrained_score(wer_before=wer_before, wer_after=wer_after, general_before=before, general_after=after)


def separate(trials: Sequence[Trial]) -> list[Trial]:
    """Give the trials folders of their own: those that they name, or below it, named by the settings that differ.

    Raises UsageError for checkpoints that would share a folder, and for trainings of several processes.
    """
    if any(find_machine(trial.settings.trainer).processes > 1 for trial in trials):
        raise UsageError("A search trains in one process: give trainer.devices=1, or start each training by itself.")
    if len({folder_settings(trial.settings) for trial in trials}) < len(trials):
        version = find_folder(trials[0].settings).version
        names = folder_names([trial.chosen for trial in trials])
        trials = [name_folder(trial, name, version) for trial, name in zip(trials, names, strict=True)]
    if len({find_folder(trial.settings).checkpoints for trial in trials}) < len(trials):
        raise UsageError(
            "exp_manager.checkpoint_callback_params.dirpath: all trainings would write there; leave it out, and each "
            "writes into its own run folder."
        )
    return list(trials)


def share(trials: Sequence[Trial], folder: Path) -> list[Trial]:
    """Let trainings share, in a folder, what they would all compute: errors of the base, and a prefix cache.

    What the settings say themselves stays.
    """
    return [share_one(trial, folder) for trial in trials]


def share_one(trial: Trial, folder: Path, *, prefix: bool = True) -> Trial:
    """Give a trial the shared folders, in its settings and in the overrides for a process of its own.

    prefix: trainings have utterances in common, so that a prefix cache is shared too.
    """
    model, added = trial.settings.model, []
    if model.base_errors is None:
        model = replace(model, base_errors=str(folder / "base"))
        added.append(f"++model.base_errors={quoted(folder / 'base')}")
    if prefix and model.prefix_cache.enabled is not False and model.prefix_cache.folder is None:
        model = replace(model, prefix_cache=replace(model.prefix_cache, folder=str(folder / PREFIX)))
        added.append(f"++model.prefix_cache.folder={quoted(folder / PREFIX)}")
    settings = replace(trial.settings, model=model)
    return replace(trial, settings=settings, overrides=(*trial.overrides, *added))


def shared_folder(trials: Sequence[Trial]) -> Path | None:
    """The folder for what the trainings share, beside their run folders; None where these have no place in common."""
    folders = [find_folder(trial.settings) for trial in trials]
    if len(folders) < 2 or len({folder.exp_dir.absolute() for folder in folders}) > 1:
        return None
    return Path(os.path.commonpath([folder.path.absolute() for folder in folders])) / SHARED


def remove_prefixes(folder: Path) -> None:
    """Remove the prefix cache of a search that is over; the errors of the base stay, they are small."""
    shutil.rmtree(folder / PREFIX, ignore_errors=True)


def folder_settings(settings: Settings) -> tuple[str | None, ...]:
    """Return the settings that decide the run folder."""
    chosen = settings.exp_manager
    return chosen.explicit_log_dir, chosen.exp_dir, chosen.name or settings.name, chosen.version


def find_folder(settings: Settings) -> RunFolder:
    return plan_folder(settings.exp_manager, default_name=settings.name)


def folder_names(chosen: Sequence[Sequence[str]]) -> list[str]:
    """Name a folder for each choice of settings: `lr=0.001_dim=16`; with a number where two would be called the same.

    A key is its last word, and whole where that means two keys.
    """
    keys = {word.partition("=")[0].lstrip("+") for words in chosen for word in words}
    lasts = [key.rpartition(".")[2] for key in keys]

    def name(words: Sequence[str]) -> str:
        parts = []
        for word in words:
            key, _, value = word.partition("=")
            key = key.lstrip("+")
            last = key.rpartition(".")[2]
            parts.append(f"{last if lasts.count(last) == 1 else key}={value}")
        plain = re.sub(r"[^A-Za-z0-9._=+-]+", "-", "_".join(parts)).strip(".-")
        if len(plain) <= LONGEST_NAME:
            return plain
        return f"{plain[: LONGEST_NAME - 9]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"

    names = [name(words) for words in chosen]
    unique = len(set(names)) == len(names) and all(names)
    return names if unique else [f"{number}_{each}".rstrip("_") for number, each in enumerate(names)]


def name_folder(trial: Trial, name: str, version: str) -> Trial:
    """Put the trial into a folder below its run folder, which has that version unless it names one."""
    settings, chosen = trial.settings, trial.settings.exp_manager
    above = replace(settings, exp_manager=replace(chosen, version=chosen.version or version))
    inner = replace(chosen, explicit_log_dir=str(find_folder(above).path / name))
    return replace(trial, settings=replace(settings, exp_manager=inner))


def run_trials(trials: Iterable[Trial], tell: Callable[[Outcome], Outcome] = lambda it: it) -> Iterator[Outcome]:
    """Train them one after the other; one that fails is an outcome too. KeyboardInterrupt ends the search.

    tell: hears of every outcome before the next trial is asked for, and may add to it.
    """
    for trial in trials:
        try:
            outcome = Outcome(trial=trial, result=TrialResult.of(run_training(trial.settings, prune=trial.prune)))
        except OvertoneError as error:
            outcome = Outcome(trial=trial, error=str(error))
        except Exception as error:  # a lack of memory, say: the other trainings may have enough of it
            traceback.print_exc()
            outcome = Outcome(trial=trial, error=f"{type(error).__name__}: {error}")
        yield tell(outcome)


def make_table(outcomes: Sequence[Outcome], *, names_best: bool = True) -> list[str]:
    """Return one line for each training: its settings, its WER, its score where there is one, and its folder."""
    scored = any(outcome.score is not None for outcome in outcomes)
    rows = [["", *(["score"] if scored else []), "WER", "step", "settings", "folder"]]
    best = find_best(outcomes) if names_best else None
    for number, outcome in enumerate(outcomes):
        wer = "–" if outcome.wer is None else f"{outcome.wer:.2%}"
        score = "–" if outcome.score is None else f"{outcome.score:.4f}"
        mark = "best" if outcome is best else "pruned" if outcome.pruned else str(number)
        chosen = " ".join(outcome.trial.chosen) or "–"
        result = outcome.result
        step, folder = ("–", "failed") if result is None else (str(result.best_step), str(result.folder))
        rows.append([mark, *([score] if scored else []), wer, step, chosen, folder])
    return columns(rows, right=(1, 2, 3) if scored else (1, 2))


def find_best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the outcome with the best score, else with the fewest errors; None where nothing was validated."""
    scored = [outcome for outcome in outcomes if outcome.wer is not None and not outcome.pruned]
    return min(scored, key=lambda outcome: (-(outcome.score or 0.0), outcome.wer or 0.0), default=None)
