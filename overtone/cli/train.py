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
from overtone.cli.overrides import (
    add_configuration,
    configuration_words,
    load_settings,
    read_launcher,
    read_sampled,
    read_settings,
    read_trials,
)
from overtone.cli.screen import note
from overtone.errors import UsageError
from overtone.startup import TRAINING_CACHED_KERNELS, fast_imports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from overtone.config import Settings
    from overtone.config.sweeper import SampledSearch
    from overtone.search.processes import Slot
    from overtone.search.trials import Outcome, Trial, TrialResult
    from overtone.training.run import TrainingResult

EXAMPLES = """examples:
  overtone train model.nemo_model=base.nemo model.adapter.adapter_name=medical \\
      model.train_ds.manifest_filepath=train.json model.validation_ds.manifest_filepath=valid.json
  overtone train --config-path="../conf/asr_adapters" --config-name="asr_adaptation.yaml" \\
      model.pretrained_model=fundamental model.adapter.adapter_name=medical trainer.max_steps=300 …
  overtone train --multirun model.optim.lr=0.001,0.0003 model.adapter.linear.dim=16,64 …
  overtone train --multirun hydra/sweeper=optuna hydra.sweeper.n_trials=30 \\
      'model.optim.lr=tag(log, interval(0.0003, 0.01))' model.adapter.linear.dim=8,16,32,64 …

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
        help="with --multirun: trainings at once (default: hydra.launcher.jobs_per_gpu on each GPU; 1 on processors)",
    )
    parser.add_argument("--pruned-by", help=argparse.SUPPRESS)  # of a search: the trial that this training is
    parser.hints = {option: f" Settings are written key=value: {key}=…." for option, key in SETTINGS_OF_OPTIONS.items()}


def run(arguments: argparse.Namespace) -> int:
    """Train once, or search. Raises UsageError for `--jobs` without a search."""
    if arguments.multirun:
        return search(arguments)
    if arguments.jobs is not None:
        raise UsageError("--jobs is for a search; give --multirun too.")
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
        from overtone.search.processes import plan_slots
        from overtone.search.trials import share, shared_folder

    sampled = read_sampled(arguments, arguments.settings)
    if sampled is not None:
        return search_sampled(arguments, sampled)
    trials = read_trials(arguments, arguments.settings)
    slots = plan_slots(arguments.jobs, read_launcher(arguments))
    quiet_libraries()
    shared = shared_folder(trials)
    return run_search(arguments, trials if shared is None else share(trials, shared), len(trials), slots, shared=shared)


def search_sampled(arguments: argparse.Namespace, sampled: SampledSearch) -> int:
    """Train as often as the sampler may choose; what an earlier part of the search has found stands in the table."""
    from overtone.cli.models import quiet_libraries
    from overtone.search.processes import plan_slots
    from overtone.search.study import StudySearch

    at_once = sampled.sweeper.n_jobs
    slots = plan_slots(arguments.jobs or (at_once if at_once > 1 else None), read_launcher(arguments))
    study = StudySearch(sampled, lambda words: load_settings(words, arguments))
    quiet_libraries()
    with study:
        note(f"Study: {study.file}")
        count = sampled.sweeper.n_trials
        return run_search(
            arguments, study.trials(), count, slots, before=study.finished(), tell=study.tell, shared=study.shared
        )


def run_search(
    arguments: argparse.Namespace,
    trials: Iterable[Trial],
    count: int,
    slots: Sequence[Slot],
    *,
    before: Sequence[Outcome] = (),
    tell: Callable[[Outcome], Outcome] = lambda outcome: outcome,
    shared: Path | None = None,
) -> int:
    """Train the trials, so many; a table at the end, also after an interruption.

    before: outcomes for the table that are there already. tell: hears of every outcome, and may add to it.
    shared: the folder of what the trainings share, which is emptied when all of them are over.
    """
    from overtone.search.processes import run_at_once
    from overtone.search.trials import find_best, make_table, remove_prefixes, run_trials

    several = len(slots) > 1 and count > 1
    if several:
        note(f"{count} trainings, {min(len(slots), count)} at once; each writes log.txt in its folder.")
    outcomes = list(before)
    words = configuration_words(arguments)
    try:
        for outcome in run_at_once(trials, slots, words, tell) if several else run_trials(trials, tell):
            outcomes.append(outcome)
            if outcome.repeated is not None:
                note(f"overtone: {outcome.repeated} It was repeated.")
            if outcome.error is not None:
                note(f"overtone: error: {outcome.error}")
            elif several and outcome.result is not None:
                wer = "" if outcome.wer is None else f" WER {outcome.wer:.2%}"
                pruned = " (pruned)" if outcome.pruned else ""
                note(f"{len(outcomes)} of {count}:{wer} {' '.join(outcome.trial.chosen)}{pruned}")
    finally:
        if outcomes:
            print("\n".join(["", *make_table(outcomes)]))
    if shared is not None:
        remove_prefixes(shared)
    best = find_best(outcomes)
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
