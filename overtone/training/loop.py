"""The fit of a training: Lightning's Trainer around the steps, the best and the last weights kept."""

from __future__ import annotations

import logging
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from overtone.config import ExperimentSettings, quoted
from overtone.data.batching import Draws, Place, StepSampler
from overtone.data.dataset import make_loader
from overtone.errors import ConfigError, DataError
from overtone.files import clean_leftovers
from overtone.training.callback import CheckpointFile, TrainingCallback
from overtone.training.console import Progress, ProgressLine
from overtone.training.data import SpeechSet, validation_batches, worker_count
from overtone.training.flat_start import FlatStart
from overtone.training.forward import make_augmentation, make_forward
from overtone.training.general import measure_general
from overtone.training.interruption import explain_worker_death
from overtone.training.model import check_base_stays
from overtone.training.module import TrainingModule
from overtone.training.optim.schedules import choose_schedule
from overtone.training.prefix_cache.forward import PrefixForward
from overtone.training.prefix_cache.loader import cycle_variants
from overtone.training.retention import keep_general_speech
from overtone.training.row_processes import RowProcesses
from overtone.training.run import Run, TrainingResult
from overtone.training.run_folder import (
    LOG_FILE,
    check_folder_is_free,
    create_folder,
    explain_write_errors,
    make_loggers,
    process_rank,
)
from overtone.training.summary import (
    conclude,
    describe_early_end,
    introduce,
    log_search_metrics,
    make_card,
    was_cut_off,
)
from overtone.training.trainer import trainer_options
from overtone.training.validation import ValidationCounts, add_words
from overtone.training.weights import WeightsStore, check_finite, remove

PLAIN_PATH = re.compile(r"[\w./~-]+")
"""A path that is an override's value as it is, without quotes around it."""


def fit(run: Run, processes: RowProcesses | None = None) -> TrainingResult:
    """Train to the end, validate there in any case, and leave the best weights in the model.

    processes: compute parts of every batch beside this process; None computes all of it here.
    """
    plan, folder, state = run.plan, run.folder, run.state
    leads = process_rank() == 0
    with explain_write_errors(folder.path), quiet_lightning():
        prefix = make_prefix(run)
        module = make_module(run, prefix, processes)
        callback = make_callback(run, module)
        weights = callback.weights
        trainer = make_trainer(run, callback)
        if leads:  # from here on files are written
            claim_folder(run)
            files = plan.experiment.files_to_copy or ()
            create_folder(folder, plan.record, files=files, resuming=state is not None)
            run.reporter.log_to(folder.path / LOG_FILE)
        introduce(run, [*weights.notes, *([prefix.note] if prefix is not None else [])])
        if state is not None and run.checkpoint is not None:
            callback.resume(state, run.checkpoint, leads=leads)
        loaders = make_validation_loaders(run, prefix)
        with (
            callback.line,
            callback.stop.listen(),
            keep_last_weights(run, callback, leads=leads),
            compute_base(run, trainer.strategy.root_device, processes),
        ):
            if state is None and loaders and not plan.starts_fresh:
                callback.set_base_wer(score_base(run, trainer, module, loaders, processes), trainer)
            trainer.fit(
                module,
                train_dataloaders=make_training_loader(run, state, prefix),
                val_dataloaders=loaders or None,
                ckpt_path=run.checkpoint,
                weights_only=True,
            )
            cut_off = was_cut_off(trainer, pruned=callback.pruned)
            if early_end := describe_early_end(plan.experiment, trainer, pruned=callback.pruned):
                run.reporter.say(early_end)
            if loaders and callback.validated_step != trainer.global_step:
                trainer.validate(module, dataloaders=loaders, verbose=False)
        if not loaders:
            check_finite(run.model, trainer.global_step)
        if leads:
            if not loaders:
                weights.keep_last(trainer.global_step)
            weights.finish()
            if not callback.pruned:  # it is measured no further
                add_words(run, weights.best_path, weights.nemo_path)
                keep_general_speech(run, weights)
            if plan.delete_checkpoint and early_end is None:
                remove(folder.checkpoint)
            if run.adapter is not None and run.general and not callback.pruned:
                note_general(run, weights)
    result = conclude(run, weights, callback.progress, trainer.global_step, ended_early=early_end, cut_off=cut_off)
    if leads:
        log_search_metrics(run, result, trainer.loggers)
    return result


def note_general(run: Run, weights: WeightsStore) -> None:
    """Measure the best adapter and the base on general speech, and write that into the card of the best adapter."""
    assert run.adapter is not None
    adapter = run.model.adapters[run.adapter]
    found = measure_general(
        run.model, run.adapter, run.general, compute_dtype=run.plan.compute_dtype, shared=run.base_errors
    )
    adapter.card = {**adapter.card, "general": found}
    run.model.adapters.save(run.adapter, weights.best_path, overwrite=True)
    for entry in found:
        run.reporter.say(f"General WER {entry['wer_before']:.2%} → {entry['wer_after']:.2%} ({entry['manifest']})")


# Parts


def make_trainer(run: Run, callback: TrainingCallback) -> Any:
    """Make Lightning's Trainer. Raises ConfigError for options that it refuses."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer

    experiment = run.plan.experiment
    try:
        return Trainer(
            **trainer_options(run.plan, run.machine, run.length),
            default_root_dir=run.folder.path,
            plugins=[CheckpointFile()],
            logger=make_loggers(experiment, run.folder) or False,
            # a checkpoint holds what was counted before it
            callbacks=[*make_early_stopping(experiment), *run.plan.callbacks, callback],
        )
    except (ValueError, RuntimeError, TypeError, ImportError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {error}") from error


def make_early_stopping(experiment: ExperimentSettings) -> list[Any]:
    """Make the callback that ends a training early, where one is asked for."""
    if not experiment.create_early_stopping_callback:
        return []
    from lightning.pytorch.callbacks import EarlyStopping

    options = {**vars(experiment.early_stopping_callback_params), "verbose": False, "check_on_train_epoch_end": False}
    return [EarlyStopping(**options)]


def make_prefix(run: Run) -> PrefixForward | None:
    """Make the forward with a cached part below the adapter, if the run has one."""
    if run.prefix is None:
        return None
    return PrefixForward.for_sets(
        run.model,
        run.adapter,
        run.prefix,
        run.plan.prefix_cache,
        augment=make_augmentation(run.plan.spec_augment),
        training=run.training,
        validation=run.validation,
        reporter=run.reporter,
    )


def make_module(run: Run, prefix: PrefixForward | None, processes: RowProcesses | None) -> TrainingModule:
    """Make the steps around whatever computes the forward of a batch."""
    plan, model = run.plan, run.model
    return TrainingModule(
        model,
        run.adapter,
        batch_forward=prefix or processes or make_forward(run),
        optim=plan.optimiser,
        schedule=choose_schedule(plan.optimiser, max_steps=run.length.steps, width=model.encoder.width),
        inner_losses=run.inner_losses,
        flat_start=None if plan.flat_start is None else FlatStart.for_model(model, plan.flat_start),
        seed=plan.seed,
        validation_sets=len(run.validation),
        log_prediction=run.reporter.say if plan.log_prediction else None,
        log_every=plan.trainer.log_every_n_steps,
    )


def make_callback(run: Run, module: TrainingModule) -> TrainingCallback:
    """Make the callback, with the store of the weights that it judges."""
    trainer, experiment = run.plan.trainer, run.plan.experiment
    progress = Progress(total_steps=run.length.steps)
    weights = WeightsStore(
        model=run.model,
        adapter=run.adapter,
        folder=run.folder,
        settings=experiment.checkpoint_callback_params,
        make_card=lambda step, metrics: make_card(run, step, metrics, progress),
        keep_top=experiment.create_checkpoint_callback,
        adapters_file=run.plan.adapters_file,
        keeps_early=run.plan.retention is not None,
    )
    check_base_stays(run.plan, [weights.best_path, weights.last_path, weights.nemo_path])
    return TrainingCallback(
        module=module,
        plan=run.training.plan,
        weights=weights,
        progress=progress,
        line=ProgressLine(progress.line, run.reporter, enabled=trainer.enable_progress_bar),
        reporter=run.reporter,
        identity=run.identity(),
        checkpoint=run.folder.checkpoint if experiment.create_checkpoint_callback else None,
        checkpoint_every=experiment.checkpoint_callback_params.every_n_train_steps,
        line_every=trainer.log_every_n_steps,
        restarts_timer=experiment.max_time_per_run is not None,
        prune=run.plan.prune,
    )


# Loaders


def make_training_loader(run: Run, state: Mapping[str, Any] | None, prefix: PrefixForward | None) -> Any:
    """Make the loader of this process's batches of the run, from those of the state on."""
    chosen = run.plan.train_data
    sampler = StepSampler(
        run.training.plan,
        total=run.length.batches,
        start=int(state["batches"]) if state is not None else 0,
        near=Place(*state["place"]) if state is not None else Place(),
        rank=process_rank(run.machine.devices_each),
        processes=run.machine.processes,
    )
    if prefix is not None:
        batches = cycle_variants(sampler, prefix.plan.variants)
        return prefix.make_loader(run.training, batches, len(sampler), worker_count(chosen))
    draws = Draws(sampler) if chosen.augmentor is not None else sampler
    return make_loader(run.training.dataset, draws, workers=worker_count(chosen), pin_memory=chosen.pin_memory)


def make_validation_loaders(run: Run, prefix: PrefixForward | None) -> list[Any]:
    """Make a loader of this process's batches for every validation set."""
    chosen, rank = run.plan.validation_data, process_rank(run.machine.devices_each)
    workers = worker_count(chosen)

    def loader(speech: SpeechSet) -> Any:
        batches = validation_batches(speech, run.plan, rank=rank, processes=run.machine.processes)
        if prefix is not None:
            return prefix.make_loader(speech, batches, len(batches), workers)
        return make_loader(speech.dataset, batches, workers=workers, pin_memory=chosen.pin_memory)

    return [loader(speech) for speech in run.validation]


# Around the steps


def claim_folder(run: Run) -> None:
    """Hold the run folder. Raises ConfigError where another training does, or did since this one was planned."""
    run.lock.take_all()
    experiment = run.plan.experiment
    check_folder_is_free(experiment, run.folder)
    clean_leftovers(run.folder.checkpoints)
    if run.checkpoint is None and experiment.resume_if_exists and run.folder.checkpoint.is_file():
        raise ConfigError(
            f"Another training has written into {run.folder.path} meanwhile. Start again to go on with it."
        )


@contextmanager
def compute_base(run: Run, device: torch.device, processes: RowProcesses | None) -> Iterator[None]:
    """Compute with the base on the device, in its dtype, inside the block; row processes began with that themselves."""
    run.model.to(device)
    dtype = "float32" if run.adapter is None else run.plan.compute_dtype
    with run.model.computing_in(dtype if processes is None else None):
        yield


def score_base(
    run: Run, trainer: Any, module: TrainingModule, loaders: list[Any], processes: RowProcesses | None
) -> float:
    """Return the WER of the base on the first validation set, 0..1.

    Another process of this training may have found it already, or another training that shares its folder.
    """

    def count() -> list[float]:
        with module.score_base():
            trainer.validate(module, dataloaders=loaders, verbose=False)
        found: list[float] = module.counts[0].tensor().tolist()
        return found

    if processes is not None and processes.has_first_task:
        counts: ValidationCounts = processes.first_result()
        if run.shares_base:
            run.base_errors.keep(run.base_identity(), counts.tensor().tolist())
        return counts.words.rate
    found = run.base_errors.measure(run.base_identity(), count) if run.shares_base else count()
    return ValidationCounts.from_tensor(torch.tensor(found, dtype=torch.float64)).words.rate


@contextmanager
def keep_last_weights(run: Run, callback: TrainingCallback, *, leads: bool) -> Iterator[None]:
    """Write the last adapter after Ctrl-C, SIGTERM, or audio that cannot be read, before the run ends.

    Lightning's exit becomes a KeyboardInterrupt again, or the exit of a SIGTERM.
    """
    progress = callback.progress
    try:
        with explain_worker_death(lambda: callback.set_being_read):
            yield
    except DataError:
        if written := write_last(callback, leads=leads):
            callback.reporter.say(f"Ended at step {progress.step}. {written}")
        if callback.stop.requested:  # a SIGTERM to all processes ended one that reads, too
            raise callback.stop.make_error() from None
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not callback.interrupted:
            raise
        lines = [f"Interrupted at step {progress.step}.", write_last(callback, leads=leads)]
        if callback.has_checkpoint:
            lines.append(f"Go on with {resume_overrides(run)}")
        callback.reporter.say(" ".join(filter(None, lines)))
        raise callback.stop.make_error() from None


def write_last(callback: TrainingCallback, *, leads: bool) -> str:
    """Write the adapter as it is now, and say where; nothing where no step was made."""
    weights, progress = callback.weights, callback.progress
    if progress.step == progress.first_step:
        return ""
    if leads and callback.validated_step != progress.step:  # a validation writes the weights, with its metrics
        weights.write(weights.last_path, progress.step, {})
    return f"Written: {weights.last_path}."


def resume_overrides(run: Run) -> str:
    """Return the words to add to the command line, so that the run goes on in its folder."""
    path = run.folder.path
    value = str(path) if PLAIN_PATH.fullmatch(str(path)) else quoted(path)
    words = [shlex.quote(f"exp_manager.explicit_log_dir={value}"), "exp_manager.resume_if_exists=true"]
    if run.plan.experiment.resume_from_checkpoint:
        words.append("exp_manager.resume_from_checkpoint=null")
    return " ".join(words)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Leave out Lightning's advice, which is about choices that are made here."""
    names = ("lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*lightning.*|.*`Trainer|.*lr_scheduler\.step\(\).*")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
