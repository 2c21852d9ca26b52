"""A search whose settings Optuna chooses, trial by trial, and whose unpromising trainings end early.

The study is one file in the folder of the search, a journal of JSON lines. One process leads it; the trainings' own
processes add the results of their validations.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from overtone.config import Settings, general_manifests
from overtone.config.sweeper import (
    Numbers,
    Parameter,
    PrunerSettings,
    SampledSearch,
    SamplerSettings,
    corners,
    write_number,
)
from overtone.errors import ConfigError
from overtone.search.processes import GO_ON, read_result
from overtone.search.trials import SHARED, Outcome, Trial, find_folder, folder_names, share_one
from overtone.training.plan import Prune, Validation
from overtone.training.run_folder import RESULT_FILE, RunFolder, RunLock, explain_write_errors

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

STUDY_FILE = "study.log"
STUDY_NAME = "search"
PRUNED = "pruned"
"""Attribute of a trial whose training was ended early: the step."""
ABOUT = "overtone"
"""Attribute of a study: what its trainings need to know of it."""

LoadSettings = Callable[[Sequence[str]], Settings]


def check_optuna() -> None:
    """Raises ConfigError where Optuna is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "hydra/sweeper=optuna: the package 'optuna' is not installed. Install it with "
            "'pip install overtone[search]', or count values up without it."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class StudySearch:
    """A study and its trainings. Used in a `with` block: no other search may lead it meanwhile."""

    def __init__(self, search: SampledSearch, load: LoadSettings) -> None:
        """load: makes settings of overrides. Every value of a list and both ends of every interval are checked.

        Raises ConfigError for settings that are wrong, and where there is nothing to choose the best by.
        """
        check_optuna()
        self.search, self.load = search, load
        settings = [load_chosen(load, search.overrides, choice) for choice in corners(search.space)]
        if not settings[0].model.validation_ds.manifest_filepath:
            raise ConfigError("hydra/sweeper=optuna: give model.validation_ds.manifest_filepath, which decides.")
        self.folder = common_folder(settings)
        self.file, self.shared = self.folder / STUDY_FILE, self.folder / SHARED
        self.resumes = settings[0].exp_manager.resume_if_exists
        self.by_score = bool(general_manifests(settings[0].model)) and settings[0].model.train != "everything"
        self.lock = RunLock(
            RunFolder(path=self.folder, checkpoints=self.folder, exp_dir=self.folder, name="", version=""), leads=True
        )
        self.distributions = {each.key: make_distribution(each) for each in search.space}

    def __enter__(self) -> Self:
        """Open the study. Raises ConfigError for one that is there already unless it is to go on, or is led already."""
        file = self.file
        if file.exists() and not self.resumes:
            raise ConfigError(
                f"{file} is the study of another search. Choose another folder or exp_manager.name, or go on with it: "
                "exp_manager.resume_if_exists=true."
            )
        self.lock.take_all()
        try:
            sweeper = self.search.sweeper
            with explain_write_errors(file):
                drop_torn_line(file)
                self.study = open_study(
                    file,
                    study_name=sweeper.study_name or STUDY_NAME,
                    direction="maximize" if self.by_score else "minimize",
                )
                about = {"pruner": vars(sweeper.pruner), "by_score": self.by_score}
                before = self.study.user_attrs.get(ABOUT, about)
                if before["by_score"] != self.by_score:
                    raise ConfigError(
                        f"{file} was begun {'with' if before['by_score'] else 'without'} model.general_manifest; give "
                        "the same settings, or begin a new search."
                    )
                self.study.set_user_attr(ABOUT, about)
        except BaseException:
            self.lock.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.__exit__()

    # Trials

    def finished(self) -> list[Outcome]:
        """Outcomes of the trainings that were complete when the search was cut off."""
        return [done for each in self.study.get_trials(deepcopy=False) if (done := self.outcome_of(each)) is not None]

    def trials(self) -> Iterator[Trial]:
        """Yield the trainings: first those that were cut off, then new ones, chosen when they are asked for."""
        from optuna.trial import TrialState

        yield from map(self.trial_of, self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]))
        sweeper = self.search.sweeper
        while len(self.study.get_trials(deepcopy=False)) < sweeper.n_trials:
            self.study.sampler = make_sampler(sweeper.sampler, len(self.study.get_trials(deepcopy=False)))
            number = self.study.ask(self.distributions).number
            trial = self.frozen(number)
            same = [
                each.value
                for each in self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
                if each.params == trial.params
            ]
            if same:  # a training does not depend on chance: it would find the same
                self.study.tell(number, same[0])
            else:
                yield self.trial_of(trial)

    def frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def trial_of(self, frozen: FrozenTrial) -> Trial:
        """Make the training of a trial; in its folder it goes on from its checkpoint where there is one."""
        params = [(each, frozen.params[each.key]) for each in self.search.space]
        chosen = {each.key: write_value(each, value) for each, value in params}
        shown = [f"{each.key}={show_value(each, value)}" for each, value in params]
        settings = load_chosen(self.load, self.search.overrides, chosen)
        experiment = replace(
            settings.exp_manager,
            explicit_log_dir=str(self.folder / f"{frozen.number}_{folder_names([shown])[0]}"),
            resume_if_exists=True,
            resume_ignore_no_checkpoint=True,
        )
        trial = Trial(
            chosen=tuple(shown),
            settings=replace(settings, exp_manager=experiment),
            overrides=(*self.search.overrides, *overrides_of(chosen), *GO_ON),
            options=(f"--pruned-by={frozen.number}:{self.file}",),
            prune=make_prune(self.file, frozen.number),
            number=frozen.number,
        )
        return share_one(trial, self.shared)

    def tell(self, outcome: Outcome) -> Outcome:
        """Take the outcome of a training into the study; return it with its score, and whether it was pruned."""
        from optuna.trial import TrialState

        number = outcome.trial.number
        outcome = self.judge(outcome)
        value = outcome.score if self.by_score else outcome.wer
        with explain_write_errors(self.file):
            if outcome.pruned:
                self.study.tell(number, state=TrialState.PRUNED)
            elif outcome.result is None or value is None:
                self.study.tell(number, state=TrialState.FAIL)
            else:
                self.study.tell(number, value)
        return outcome

    def judge(self, outcome: Outcome) -> Outcome:
        """Return the outcome with its score, and whether it was pruned."""
        pruned = outcome.result is not None and PRUNED in self.frozen(outcome.trial.number).user_attrs
        score = outcome.result.score if self.by_score and outcome.result is not None and not pruned else None
        return replace(outcome, pruned=pruned, score=score)

    def outcome_of(self, frozen: FrozenTrial) -> Outcome | None:
        """The outcome of a trial that an earlier part of the search has finished; None where nothing is left of it."""
        trial = self.trial_of(frozen)
        folder = find_folder(trial.settings).path
        if not frozen.state.is_finished() or not (folder / RESULT_FILE).is_file():
            return None
        return self.judge(Outcome(trial=trial, result=read_result(folder)))


# Settings


def overrides_of(chosen: Mapping[str, str]) -> list[str]:
    return [f"++{key.lstrip('+')}={value}" for key, value in chosen.items()]


def load_chosen(load: LoadSettings, overrides: Sequence[str], chosen: Mapping[str, str]) -> Settings:
    """Make the settings of a choice. Raises ConfigError, which begins with the choice."""
    try:
        return load([*overrides, *overrides_of(chosen)])
    except ConfigError as error:
        raise ConfigError(f"With {' '.join(f'{key}={value}' for key, value in chosen.items())}: {error}") from error


def common_folder(settings: Sequence[Settings]) -> Path:
    """The folder of the search: the run folder that all settings name; the one above where they name several."""
    version = find_folder(settings[0]).version or None
    chosen = [replace(each.exp_manager, version=each.exp_manager.version or version) for each in settings]
    paths = {find_folder(replace(each, exp_manager=own)).path for each, own in zip(settings, chosen, strict=True)}
    return paths.pop() if len(paths) == 1 else Path(os.path.commonpath(paths))


def write_value(parameter: Parameter, value: Any) -> str:
    """A chosen value as an override has it."""
    return write_number(value, whole=parameter.whole) if isinstance(parameter, Numbers) else str(value)


def show_value(parameter: Parameter, value: Any) -> str:
    """A chosen value as the table and the folder have it, rounded."""
    return f"{value:.4g}" if isinstance(parameter, Numbers) and not parameter.whole else str(value)


# Optuna's parts


def make_distribution(parameter: Parameter) -> BaseDistribution:
    """Make what Optuna draws a setting's values from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(parameter, Numbers):
        return CategoricalDistribution(parameter.values)
    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.whole:
        return IntDistribution(int(low), int(high), log=parameter.log, step=int(step or 1))
    return FloatDistribution(low, high, log=parameter.log, step=step)


def make_sampler(chosen: SamplerSettings, number: int) -> BaseSampler:
    """Make the sampler of a trial: its draws are the same whether the search was cut off before it or not."""
    from optuna.samplers import GPSampler, RandomSampler, TPESampler

    seed = None if chosen.seed is None else chosen.seed + number
    if chosen.name == "random":
        return RandomSampler(seed=seed)
    kind = TPESampler if chosen.name == "tpe" else GPSampler
    return kind(seed=seed, n_startup_trials=chosen.n_startup_trials)


def make_pruner(chosen: PrunerSettings) -> BasePruner:
    """Make the pruner that the settings name."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

    if chosen.name == "median":
        return MedianPruner(n_startup_trials=chosen.n_startup_trials, n_warmup_steps=chosen.n_warmup_steps)
    if chosen.name == "none":
        return NopPruner()
    return HyperbandPruner() if chosen.name == "hyperband" else SuccessiveHalvingPruner()


def open_study(file: Path, **creation: Any) -> Study:
    """Open the study of a file; create it where name and direction are given. Raises ConfigError for other files."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
        if creation:
            return optuna.create_study(storage=storage, load_if_exists=True, **creation)
        return optuna.load_study(study_name=None, storage=storage)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is no study, or damaged: {error}. Begin a new search in another folder.") from error


def drop_torn_line(file: Path) -> None:
    """Remove the rest of a line that a process was writing when it was killed; a study would not be read with it."""
    if not file.exists():
        return
    with file.open("r+b") as journal:
        whole = journal.read()
        if not whole.endswith(b"\n"):
            journal.truncate(whole.rfind(b"\n") + 1)


def make_prune(file: Path, number: int) -> Prune:
    """Make what reports each validation of a trial to the study of a file, and asks whether it is to go on."""

    def prune(found: Validation) -> bool:
        check_optuna()
        study = open_study(file)
        about = study.user_attrs[ABOUT]
        study.pruner = make_pruner(PrunerSettings(**about["pruner"]))
        trial = study.get_trials(deepcopy=False)[number]
        value = gain(found) if about["by_score"] else found.wer
        if found.step not in trial.intermediate_values:
            study._storage.set_trial_intermediate_value(trial._trial_id, found.step, value)
        hopeless = study.pruner.prune(study, study.get_trials(deepcopy=True)[number])
        if hopeless:
            study._storage.set_trial_user_attr(trial._trial_id, PRUNED, found.step)
        return hopeless

    return prune


def gain(found: Validation) -> float:
    """Share of the base's errors that are gone: the score of an adapter that damages nothing."""
    return (found.wer_before - found.wer) / found.wer_before if found.wer_before else 0.0


def read_prune(text: str) -> Prune:
    """Read `NUMBER:FILE`, the trial of a study. Raises ConfigError."""
    number, _, file = text.partition(":")
    if not number.isdigit() or not Path(file).is_file():
        raise ConfigError(f"--pruned-by: '{text}' is no NUMBER:FILE of a trial and the file of its study.")
    return make_prune(Path(file), int(number))
