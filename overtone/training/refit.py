"""The refit: once step, rate and word weights are chosen, the adapter is trained anew on training and validation data.

The second training has a folder of its own, and a checkpoint there: a run that was killed goes on in whichever of both
it was. Nothing validates it. What the card says of errors is of the adapter before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from overtone.adapters.words import WordPart
from overtone.config import list_sources
from overtone.data.vocabulary import apply_policy, check_vocabulary
from overtone.errors import ConfigError
from overtone.models.asr_model import AsrModel
from overtone.models.vocabulary import tokenizer_of
from overtone.training.console import Reporter
from overtone.training.data import SpeechSet, training_set
from overtone.training.model import make_word_part
from overtone.training.plan import TrainingPlan
from overtone.training.run import REFIT_STEP, TrainingResult, read_state
from overtone.training.run_folder import plan_folder, process_rank
from overtone.training.summary import write_result
from overtone.training.trainer import Machine
from overtone.training.weights import remove

REFIT = "refit"
"""The folder of the second training, in that of the first."""


def check_refit(plan: TrainingPlan, machine: Machine) -> None:
    """Raises ConfigError where a refit is asked for and the training has several processes."""
    if plan.refit is True and machine.processes > 1:
        raise ConfigError(
            f"model.refit: is for a training in one process, and this one has {machine.processes}. Leave it out, or "
            "train with trainer.devices=1."
        )


def join_validation(
    model: AsrModel, plan: TrainingPlan, training: SpeechSet, validation: SpeechSet, reporter: Reporter
) -> SpeechSet:
    """Make one training set of the training and the validation utterances.

    Raises DataError for validation transcripts that the model cannot write or learn from, unless the plan allows for
    that.
    """
    own = list(validation.dataset.utterances)
    own = apply_policy(check_vocabulary(tokenizer_of(model), own), own, plan.vocabulary_check)
    utterances = [*training.dataset.utterances, *own]
    listed, limit = list_sources(plan.train_data, key="model.train_ds"), plan.trainer.limit_train_batches
    return training_set(model, plan.train_data, listed, utterances, reporter, seed=plan.seed, limit=limit)


def choose_sets(
    model: AsrModel, plan: TrainingPlan, training: SpeechSet, validation: list[SpeechSet], reporter: Reporter
) -> tuple[SpeechSet, list[SpeechSet], WordPart | None, WordPart | None]:
    """Return the sets for training and validation, the words, and those that take their place once they are weighed.

    Raises DataError as `join_validation`, before the work of the first training begins.
    """
    if not plan.refit and plan.refit_of is None:
        return training, validation, make_word_part(plan, model, training, reporter), None
    joined = join_validation(model, plan, training, validation[0], reporter)
    if plan.refit_of is not None:
        counted = make_word_part(plan, model, joined, reporter)
        return joined, [], with_chosen_weights(counted, plan.refit_of.get("words")), None
    later = make_word_part(plan, model, joined, reporter) if plan.refit == "words" else None
    return training, validation, make_word_part(plan, model, training, reporter), later


def with_chosen_weights(part: WordPart | None, facts: dict[str, Any] | None) -> WordPart | None:
    """The part with the weights that the first training chose. facts: of its card; None: it chose no words."""
    if part is None or facts is None:
        return None
    return part.weighted(facts["weight"], facts["token_bonus"], prior_share=facts.get("prior_share", 0.0))


def refit(
    plan: TrainingPlan, first: TrainingResult, reporter: Reporter, train: Callable[[TrainingPlan], TrainingResult]
) -> TrainingResult:
    """Train anew after the first training, and return the result of both. train: carries out a plan.

    A training that its time limit or a search ended has none: early stopping alone ends one that has. Raises as
    `train`.
    """
    if first.was_cut_off or plan.adapter is None:
        reporter.say("No refit: the training was cut off before its end, and may go on.")
        return keep(first)
    later = plan_refit(plan, first)
    if process_rank() == 0 and (first.is_new or not is_of(later, first.best_step)):
        shutil.rmtree(first.folder / REFIT, ignore_errors=True)
    if limit := time_limit(plan):
        reporter.say(f"The refit has no time limit of its own: {limit} was that of the first training.")
    if isinstance(plan.base, AsrModel):
        plan.base.adapters.remove(plan.adapter.name)
    second = train(later)
    if plan.delete_checkpoint and first.checkpoint is not None:
        remove(first.checkpoint)
    return keep(
        replace(
            second,
            folder=first.folder,
            checkpoint=first.checkpoint if first.checkpoint is not None and first.checkpoint.exists() else None,
            best_step=first.best_step,
            wer_before=first.wer_before,
            wer_after=first.wer_after,
            wer_words=first.wer_words,
            wer_last=first.wer_last,
        )
    )


def is_of(plan: TrainingPlan, step: int) -> bool:
    """A refit's checkpoint, if there is one, is of a training of so many steps. Raises CheckpointError."""
    checkpoint = plan_folder(plan.experiment, default_name=plan.name).checkpoint
    return not checkpoint.is_file() or bool(read_state(checkpoint)["identity"].get(REFIT_STEP) == step)


def time_limit(plan: TrainingPlan) -> str | None:
    """The setting that limits the time of the first training."""
    if plan.experiment.max_time_per_run is not None:
        return "exp_manager.max_time_per_run"
    return None if plan.trainer.max_time is None else "trainer.max_time"


def keep(result: TrainingResult) -> TrainingResult:
    """Write the result that stands at the end of both trainings, and return it."""
    if process_rank() == 0:
        write_result(result)
    return result


def plan_refit(plan: TrainingPlan, first: TrainingResult) -> TrainingPlan:
    """Plan the second training: as many steps as were best, of the same rate and seed, without validation.

    The schedule is that of so many steps: it rises and falls within them. Nothing prunes a refit.
    """
    experiment = plan.experiment
    return replace(
        plan,
        refit=False,
        refit_of=refit_facts(first),
        prune=None,
        optimiser=replace(plan.optimiser, lr=first.card["optimiser"]["learning_rate"]),
        trainer=replace(plan.trainer, max_steps=first.best_step, max_epochs=None, max_time=None),
        experiment=replace(
            experiment,
            explicit_log_dir=str(first.folder / REFIT),
            name=experiment.name or plan.name,
            resume_if_exists=True,
            resume_ignore_no_checkpoint=True,
            resume_from_checkpoint=None,
            max_time_per_run=None,
            create_early_stopping_callback=False,
            files_to_copy=None,
            checkpoint_callback_params=replace(experiment.checkpoint_callback_params, dirpath=None),
        ),
    )


def refit_facts(first: TrainingResult) -> dict[str, Any]:
    """The part of the card about the refit: what the adapter before it was chosen by."""
    card = first.card
    return {
        "step": first.best_step,
        "validation": card["validation"][0],
        "wer_before": card["wer_before"],
        "wer_after": card["wer_after"],
        **({"words": card["words"]} if "words" in card else {}),
    }
