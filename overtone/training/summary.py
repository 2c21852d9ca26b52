"""First and last lines of a training, the card of its weights, and its result."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import Trainer

from overtone.adapters.card import reached_rates, reached_step
from overtone.adapters.vocabulary import Vocabulary
from overtone.config import ExperimentSettings
from overtone.models.attention import attention_facts, attention_text
from overtone.models.vocabulary import WITH_TOKENS
from overtone.training.console import Progress
from overtone.training.plan import TrainingPlan
from overtone.training.run import Run, TrainingResult
from overtone.training.run_folder import RESULT_FILE, explain_write_errors, process_rank
from overtone.training.trainer import TRAINED_DTYPES, base_dtype, lightning_precision
from overtone.training.weights import WeightsStore
from overtone.version import __version__


def introduce(run: Run, notes: Sequence[str]) -> None:
    """Print the first lines: the trained parameters and their dtype, and the data; then the notes."""
    model, say = run.model, run.reporter.say
    base = sum(parameter.numel() for parameter in model.base_parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    dtype = TRAINED_DTYPES[lightning_precision(run.plan.trainer)]
    if run.adapter is None:
        say(describe_trained(run, dtype))
    else:
        frozen = base_dtype(run.plan, run.machine)
        say(f"Base '{model.name}': frozen, in {frozen}; adapter '{run.adapter}': trained, in {dtype}")
    if run.start_from is not None and run.adapter is not None:
        say(f"Adapter '{run.adapter}' goes on from '{run.start_from['name']}' ({run.start_from['digest'][:19]}…)")
    if run.adapter is not None and (vocabulary := model.adapters[run.adapter].vocabulary) is not None:
        say(describe_vocabulary(vocabulary))
    if attention := attention_text(model):
        say(f"The base has {attention}")
    total = base if run.adapter is None else base + trained
    say(f"Trainable parameters: {trained:,} of {total:,} ({trained / total:.2%})")
    chosen = run.plan.train_data
    batch = f"{chosen.batch_duration:g} s" if chosen.batch_duration else f"{chosen.batch_size} utterances"
    if run.machine.processes > 1:
        batch += f" for each of {run.machine.processes} processes"
    say(
        f"Training audio: {run.training.hours:.2f} h in {len(run.training.dataset)} utterances; "
        f"{run.length.steps} step{'' if run.length.steps == 1 else 's'} of {batch}, "
        f"{run.length.batches / run.length.batches_per_epoch:.1f} epochs"
    )
    say(f"Learning rate: {float(run.plan.optimiser.lr):g} ({rate_reason(run.plan)})")
    if run.adapter is not None:
        say(describe_words(run))
    for speech in run.validation:
        say(f"Validation audio: {speech.hours:.2f} h in {len(speech.dataset)} utterances ({speech.name})")
    if run.plan.refit_of is not None:
        say("Refit: nothing validates this training; errors above are those of the adapter before it.")
    elif not run.validation:
        say("No validation manifest: the last weights count as the best.")
    elif run.plan.refit:
        done = "its words are counted anew" if run.plan.refit == "words" else "it is trained anew"
        count = len(run.training.dataset) + len(run.validation[0].dataset)
        say(f"Refit: at the end {done} on training and validation data, {count} utterances (model.refit)")
    say(f"Run folder: {run.folder.path}")
    for note in notes:
        say(note)


def describe_trained(run: Run, dtype: str) -> str:
    """Say which parts of the base are trained, and which begin anew."""
    plan, model = run.plan, run.model
    trained = "every weight is"
    if plan.trained_parts:
        trained = f"{', '.join(plan.trained_parts)} {'is' if len(plan.trained_parts) == 1 else 'are'}"
    rest = "; everything else is frozen" if plan.trained_parts else ""
    said = f"Base '{model.name}': {trained} trained, in {dtype}{rest}"
    if plan.changes_vocabulary and not plan.starts_fresh:
        heads = " and ".join(part for part in WITH_TOKENS if part in model.parts)
        said += f"\nVocabulary changed: {model.tokenizer.size} tokens; {heads} begin anew, with random values"
    return said


def describe_vocabulary(vocabulary: Vocabulary) -> str:
    """Say which tokens the adapter writes, and what its heads begin with."""
    facts = vocabulary.describe()
    return (
        f"Vocabulary of its own: {facts['size']} tokens ({facts['kind']}, {str(facts['digest'])[:19]}…), "
        f"{facts['reused']} of them begin with the base's values; {facts['parameters']:,} parameters in new heads"
    )


def rate_reason(plan: TrainingPlan) -> str:
    """Say who chose the learning rate."""
    given = plan.record["model"]["optim"]["lr"]
    return "by kind, steps and width; model.optim.lr names another" if given == "auto" else "as the settings say"


def describe_words(run: Run) -> str:
    """Say whether the adapter will have a word part, and of what."""
    if run.words is None:
        return "Words: none (model.adapter.words=auto counts the transcripts)"
    ngram = run.words.ngram
    counted = "" if ngram is None else f"{len(ngram)} n-grams of up to {ngram.order} tokens"
    parts = [counted, f"{run.words.phrases} phrases" if run.words.phrases else ""]
    if run.plan.refit_of is not None:
        return f"Words: {', '.join(filter(None, parts))}; with the weights that validation chose"
    held = "its weights are chosen on the validation set" if run.validation else "with weights that nothing chose"
    return f"Words: {', '.join(filter(None, parts))}; {held} at the end (model.adapter.words=off: none)"


def describe_early_end(settings: ExperimentSettings, trainer: Trainer, *, pruned: bool) -> str | None:
    """Say why the steps ended before the last one; None where they did not."""
    if not trainer.should_stop or trainer.global_step >= trainer.max_steps:
        return None
    stopping = trainer.early_stopping_callback
    reason = None if stopping is None else stopping.stopping_reason.name
    if pruned:
        why = "other trainings of the search were better by then"
    elif reason is None or reason == "NOT_STOPPED":
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


def was_cut_off(trainer: Trainer, *, pruned: bool) -> bool:
    """The steps were ended by something other than their number and early stopping."""
    if not trainer.should_stop or trainer.global_step >= trainer.max_steps:
        return False
    stopping = trainer.early_stopping_callback
    return pruned or stopping is None or stopping.stopping_reason.name == "NOT_STOPPED"


def make_card(run: Run, step: int, metrics: Mapping[str, float], progress: Progress) -> dict[str, Any]:
    """Describe where the weights come from and what they reached, as plain data.

    metrics: of the validation of this step. The curve goes from the base, step 0, to this step.
    """
    plan, wer_before = run.plan, progress.wer_before
    start = [] if wer_before is None else [(0, round(wer_before, 6), 0.0)]
    curve = [*start, *(point for point in progress.curve if point[0] <= step)]
    reached = {name.removeprefix("val_"): round(value, 6) for name, value in metrics.items()}
    return {
        "trained": time.strftime("%Y-%m-%d %H:%M:%S"),
        "base": run.model.name,
        "data": run.training.describe(),
        "validation": [speech.describe() for speech in run.validation],
        "steps": step,
        "wer_before": None if wer_before is None else round(wer_before, 6),
        "wer_after": reached.get("wer"),
        "cer_after": reached.get("cer"),
        "loss_after": reached.get("loss"),
        "curve": [[at, wer] for at, wer, _ in curve],
        "training_seconds": curve[-1][2] if curve and curve[-1][0] == step else None,
        "dtypes": {
            "base": "trained" if run.adapter is None else base_dtype(plan, run.machine),
            "trained": TRAINED_DTYPES[lightning_precision(plan.trainer)],
        },
        "optimiser": {"name": plan.optimiser.name, "learning_rate": float(plan.optimiser.lr)},
        "seed": plan.seed,
        **({} if plan.refit_of is None else {"refit": dict(plan.refit_of)}),
        **({} if run.start_from is None else {"start_from": dict(run.start_from)}),
        **vocabulary_facts(run),
        **attention_facts(run.model),
        "versions": {
            "overtone": __version__,
            "torch": str(torch.__version__),
            "lightning": version("lightning"),
            "python": platform.python_version(),
        },
    }


def vocabulary_facts(run: Run) -> dict[str, Any]:
    """Return the adapter's own vocabulary for the card; nothing where it has the base's."""
    own = None if run.adapter is None else run.model.adapters[run.adapter].vocabulary
    return {} if own is None else {"vocabulary": own.describe()}


def later_parts(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a card about words, strength and general speech, where there are such."""
    return {key: card[key] for key in ("words", "retention", "general") if key in card}


def write_result(result: TrainingResult) -> None:
    """Write the result into the run folder, where a search finds it. Raises OvertoneError where that fails."""
    content = {
        "adapter": result.adapter,
        "best": str(result.best),
        "last": str(result.last),
        "steps": result.steps,
        "best_step": result.best_step,
        "wer_before": result.wer_before,
        "wer_after": result.wer_after,
        "wer_last": result.wer_last,
        **later_parts(result.card),
        # the rates above are of the adapter before the refit, and none of them of `best`
        **({"refit": result.card["refit"]} if "refit" in result.card else {}),
    }
    with explain_write_errors(result.folder):
        (result.folder / RESULT_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def log_search_metrics(run: Run, result: TrainingResult, loggers: Sequence[Any]) -> None:
    """Show settings and rates among TensorBoard's hyperparameters."""
    from lightning.pytorch.loggers import TensorBoardLogger

    rates = reached_rates(result.card)
    metrics = {f"hp/wer_{name}": rate for name, rate in rates._asdict().items() if rate is not None}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and metrics:
            logger.log_hyperparams(search_settings(run.plan.record), metrics)
            logger.finalize("success")


def search_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that a search is usually about, by dotted name."""
    model, trainer = record["model"], record["trainer"]
    kind = str(model["adapter"]["adapter_type"])
    sections = {
        "adapter_type": kind,
        "layers": str(model["adapter"]["layers"]),
        **{f"{kind}.{key}": value for key, value in flatten(model["adapter"].get(kind) or {})},
        **{f"optim.{key}": value for key, value in flatten(model["optim"])},
        **{f"spec_augment.{key}": value for key, value in flatten(model["spec_augment"] or {})},
        "train_ds.batch_size": model["train_ds"]["batch_size"],
        "base_dropout": model["base_dropout"],
        "max_steps": trainer["max_steps"],
        "max_epochs": trainer["max_epochs"],
        "seed": record["seed"],
    }
    plain = (bool, int, float, str)
    return {key: value for key, value in sections.items() if isinstance(value, plain) and not key.endswith("_target_")}


def flatten(node: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return dotted names and values of nested settings; lists are texts."""
    if isinstance(node, Mapping):
        return [pair for key, value in node.items() for pair in flatten(value, f"{path}.{key}" if path else str(key))]
    return [(path, str(node) if isinstance(node, list | tuple) else node)]


def conclude(
    run: Run,
    weights: WeightsStore,
    progress: Progress,
    steps: int,
    *,
    ended_early: str | None = None,
    cut_off: bool = False,
) -> TrainingResult:
    """Make the result of a training of so many steps, and print the last lines."""
    best = weights.best
    metrics = best.metrics if best is not None else {}
    later = {} if run.adapter is None else later_parts(run.model.adapters[run.adapter].card)
    result = TrainingResult(
        adapter=run.adapter,
        folder=run.folder.path,
        best=weights.best_path,
        last=weights.last_path,
        nemo=weights.nemo_path if weights.nemo_path.exists() else None,
        adapters_file=weights.adapters_path if weights.adapters_path and weights.adapters_path.exists() else None,
        checkpoint=run.folder.checkpoint if run.folder.checkpoint.exists() else None,
        steps=steps,
        best_step=best.step if best is not None else steps,
        ended_early=ended_early,
        was_cut_off=cut_off,
        is_new=run.state is None,
        wer_before=progress.wer_before,
        wer_after=metrics.get("val_wer"),
        wer_last=progress.wer,
        wer_words=later["words"]["wer"]["together"] if "words" in later else None,
        hours=run.training.hours,
        card={
            **make_card(run, best.step if best is not None else steps, metrics, progress),
            **later,
        },
    )
    if process_rank() == 0 and run.plan.refit is not True:  # a refit writes that of both
        write_result(result)
    before, after = reached_rates(result.card)
    if before is not None and after is not None:
        run.reporter.say(f"WER {before:.2%} → {after:.2%} (step {reached_step(result.card)})")
    if run.plan.refit_of is None:
        run.reporter.say(f"Best: {result.best}\nLast: {result.last}")
    else:
        run.reporter.say(f"Trained on training and validation data: {result.best}")
    if result.nemo is not None:
        run.reporter.say(f"Adapted model: {result.nemo}")
    return result
