"""Train an adapter over a frozen model: settings as key=value, with NeMo's names.

Without --config-path and --config-name the shipped asr_adaptation.yaml is taken; it lists every setting."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from overtone.cli.arguments import CommandParser, number
from overtone.cli.cluster import add_ray
from overtone.cli.overrides import (
    add_configuration,
    check_overrides,
    configuration_words,
    load_settings,
    read_launcher,
    read_sampled,
    read_settings,
    read_trials,
)
from overtone.cli.screen import note
from overtone.clusters import check_ray
from overtone.errors import UsageError
from overtone.startup import TRAINING_CACHED_KERNELS, end_with_parent, fast_imports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from overtone.config import Settings
    from overtone.config.sweeper import SampledSearch
    from overtone.search.trials import Outcome, Trial, TrialResult
    from overtone.training.run import TrainingResult

    Runner = Callable[[Iterable[Trial], Callable[[Outcome], Outcome]], Iterator[Outcome]]

EXAMPLES = """examples:
  overtone train model.nemo_model=base.nemo model.adapter.adapter_name=medical \\
      model.train_ds.manifest_filepath=train.json model.validation_ds.manifest_filepath=valid.json
  overtone train --config-path="../conf/asr_adapters" --config-name="asr_adaptation.yaml" \\
      model.pretrained_model=fundamental model.adapter.adapter_name=medical trainer.max_steps=300 …
  overtone train --multirun model.optim.lr=0.001,0.0003 model.adapter.linear.dim=16,64 …
  overtone train --multirun hydra/sweeper=optuna hydra.sweeper.n_trials=30 \\
      'model.optim.lr=tag(log, interval(0.0003, 0.01))' model.adapter.linear.dim=8,16,32,64 …
  overtone train --fleet tenants.csv --jobs 4 model.nemo_model=base.nemo exp_manager.explicit_log_dir=fleet …

With --multirun every combination of values is trained, one after the other or --jobs at once, each in a folder of its
own that its settings name; a table follows. One that fails does not stop the others; the exit code is then 1.
With hydra/sweeper=optuna values are chosen by what the trainings before have found, and the hopeless end early."""


SETTINGS_OF_OPTIONS = {
    "--model": "model.nemo_model",
    "--adapter": "model.adapter.adapter_name",
    "--output": "exp_manager.exp_dir",
    "-o": "exp_manager.exp_dir",
    "--dtype": "compute_dtype",
    "--device": "trainer.accelerator",
    "--train": "model.train_ds.manifest_filepath",
    "--manifest": "model.train_ds.manifest_filepath",
    "--steps": "trainer.max_steps",
    "--seed": "seed",
}
"""Options as other commands have them -> the settings that say the same."""


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="such as model.nemo_model=base.nemo")
    add_configuration(parser)
    parser.add_argument(
        "--jobs",
        type=lambda text: int(number(at_least=1)(text)),
        metavar="N",
        help="with --multirun or --fleet: trainings at once (default: hydra.launcher.jobs_per_gpu on each GPU; 1 on "
        "processors; what a cluster has room for)",
    )
    parser.add_argument(
        "--fleet",
        metavar="TABLE",
        help="train an adapter for each row of a CSV file or of JSON lines, whose columns are settings",
    )
    group = add_ray(parser, "with --multirun or --fleet: train on the Ray cluster of this address")
    group.add_argument("--job-cpus", type=number(above=0), metavar="N", help="cores of a training (default: 1)")
    group.add_argument(
        "--job-gpus", type=number(at_least=0), metavar="N", help="GPUs of a training; 0.5: two share one (default: 0)"
    )
    parser.add_argument("--pruned-by", help=argparse.SUPPRESS)  # of a search: the trial that this training is
    parser.hints = {option: f" Settings are written key=value: {key}=…." for option, key in SETTINGS_OF_OPTIONS.items()}


def run(arguments: argparse.Namespace) -> int:
    """Train once, search, or train a fleet. Raises UsageError for options of several trainings without them."""
    end_with_parent()
    if arguments.multirun and arguments.fleet is not None:
        raise UsageError("--multirun and --fleet are two things; search for the settings first, with one row's data.")
    for option in ("job_cpus", "job_gpus"):
        if getattr(arguments, option) is not None and arguments.ray is None:
            raise UsageError(f"--{option.replace('_', '-')} is for a cluster; give --ray too.")
    if arguments.fleet is not None:
        return train_fleet(arguments)
    if arguments.multirun:
        return search(arguments)
    for option in ("jobs", "ray"):
        if getattr(arguments, option) is not None:
            raise UsageError(f"--{option} is for a search; give --multirun too, or --fleet.")
    prune = None
    if arguments.pruned_by is not None:
        from overtone.search.study import read_prune

        prune = read_prune(arguments.pruned_by)
    settings = read_settings(arguments, arguments.settings, "train")
    with fast_imports(kernels=TRAINING_CACHED_KERNELS):
        from overtone.cli.models import quiet_libraries
        from overtone.training.train import run_training

    quiet_libraries()
    result = run_training(settings, prune=prune)
    if result.adapter is not None:
        print(next_command(settings, result))
    return 0


def search(arguments: argparse.Namespace) -> int:
    """Train once for each choice of values: all of them, or those that a sampler chooses."""
    with fast_imports(kernels=TRAINING_CACHED_KERNELS):
        from overtone.cli.models import quiet_libraries
        from overtone.search.trials import share, shared_folder

    sampled = read_sampled(arguments, arguments.settings)
    if sampled is not None:
        return search_sampled(arguments, sampled)
    trials = read_trials(arguments, arguments.settings)
    runner = choose_runner(arguments, len(trials))
    quiet_libraries()
    shared = shared_folder(trials)
    return run_search(trials if shared is None else share(trials, shared), len(trials), runner, shared=shared)


def search_sampled(arguments: argparse.Namespace, sampled: SampledSearch) -> int:
    """Train as often as the sampler may choose; what an earlier part of the search has found stands in the table."""
    from overtone.cli.models import quiet_libraries
    from overtone.search.study import StudySearch

    count, at_once = sampled.sweeper.n_trials, sampled.sweeper.n_jobs
    arguments.jobs = arguments.jobs or (at_once if at_once > 1 else None)
    runner = choose_runner(arguments, count)
    study = StudySearch(sampled, lambda words: load_settings(words, arguments))
    quiet_libraries()
    with study:
        note(f"Study: {study.file}")
        before = study.finished()
        return run_search(study.trials(), count, runner, before=before, tell=study.tell, shared=study.shared)


def train_fleet(arguments: argparse.Namespace) -> int:
    """Train an adapter for each row of a table; what an earlier command has completed is not done again."""
    with fast_imports(kernels=TRAINING_CACHED_KERNELS):
        from overtone.cli.models import quiet_libraries
        from overtone.search.fleet import plan_fleet

    check_overrides(arguments.settings)
    fleet = plan_fleet(Path(arguments.fleet), arguments.settings, lambda words: load_settings(words, arguments))
    count = len(fleet.trials) + len(fleet.finished)
    runner = choose_runner(arguments, count)
    quiet_libraries()
    outcomes = list(fleet.finished)

    def keep(outcome: Outcome) -> Outcome:
        outcomes.append(fleet.keep(outcome))
        fleet.write_table(outcomes)
        return outcome

    code = run_search(fleet.trials, count, runner, before=fleet.finished, tell=keep, names_best=False)
    print(f"Adapters: {fleet.adapters}\nTable: {fleet.write_table(outcomes)}")
    return code


def choose_runner(arguments: argparse.Namespace, count: int) -> Runner:
    """Choose how so many trainings are carried out: on a cluster, several at once, or one after the other here."""
    from overtone.search.processes import plan_slots, run_at_once
    from overtone.search.trials import run_trials

    words = configuration_words(arguments)
    if arguments.ray is not None:
        from overtone.search.cluster import ClusterPlan, run_on_cluster

        check_ray()
        cpus, gpus = arguments.job_cpus or 1.0, arguments.job_gpus or 0.0
        plan = ClusterPlan(address=arguments.ray, cpus=cpus, gpus=gpus, jobs=arguments.jobs)
        note(f"{count} trainings on the Ray cluster; each writes log.txt in its folder.")
        return lambda trials, tell: run_on_cluster(trials, plan, words, tell)
    slots = plan_slots(arguments.jobs, read_launcher(arguments))
    if len(slots) == 1 or count == 1:
        return run_trials
    note(f"{count} trainings, {min(len(slots), count)} at once; each writes log.txt in its folder.")
    return lambda trials, tell: run_at_once(trials, slots, words, tell)


def run_search(
    trials: Iterable[Trial],
    count: int,
    runner: Runner,
    *,
    before: Sequence[Outcome] = (),
    tell: Callable[[Outcome], Outcome] = lambda outcome: outcome,
    shared: Path | None = None,
    names_best: bool = True,
) -> int:
    """Train the trials, so many; a table at the end, also after an interruption.

    before: outcomes for the table that are there already. tell: hears of every outcome, and may add to it.
    shared: the folder of what the trainings share, which is emptied when all of them are over.
    """
    from overtone.search.trials import find_best, make_table, remove_prefixes, run_trials

    outcomes = list(before)
    try:
        for outcome in runner(trials, tell):
            outcomes.append(outcome)
            if outcome.repeated is not None:
                note(f"overtone: {outcome.repeated} It was repeated.")
            if outcome.error is not None:
                note(f"overtone: error: {outcome.error}")
            elif runner is not run_trials and outcome.result is not None:
                wer = "" if outcome.wer is None else f" WER {outcome.wer:.2%}"
                pruned = " (pruned)" if outcome.pruned else ""
                note(f"{len(outcomes)} of {count}:{wer} {' '.join(outcome.trial.chosen)}{pruned}")
    finally:
        if outcomes:
            print("\n".join(["", *make_table(outcomes, names_best=names_best)]))
    if shared is not None:
        remove_prefixes(shared)
    best = find_best(outcomes) if names_best else None
    if best is not None and best.result is not None and best.result.adapter is not None:
        print(next_command(best.trial.settings, best.result))
    failed = sum(outcome.result is None for outcome in outcomes)
    if failed:
        note(f"{failed} of {count} trainings failed.")
    return 1 if failed else 0


def next_command(settings: Settings, result: TrainingResult | TrialResult) -> str:
    """Return the command that measures the adapter."""
    model = str(settings.model.nemo_model or settings.model.pretrained_model)
    words = ["overtone", "evaluate", model, "TEST_MANIFEST", "--adapter", "null", "--adapter", str(result.best)]
    if context := settings.model.encoder.att_context_size:
        words += ["--att-context-size", ",".join(map(str, context))]
    if kind := settings.model.encoder.self_attention_model:
        words += ["--attention", "local" if kind == "rel_pos_local_attn" else "full"]
    return f"Next: {shlex.join([*program(), *words[1:]])}"


def program() -> list[str]:
    """The words that start this program: its name, or the way it was called where no shell finds that."""
    called = Path(sys.argv[0])
    if shutil.which("overtone") is None and called.name == "overtone":
        return [sys.argv[0]]
    if shutil.which("overtone") is None and called.parts[-2:] == ("overtone", "__main__.py"):
        return [sys.executable, "-m", "overtone"]
    return ["overtone"]
