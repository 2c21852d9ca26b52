"""The fit itself: Lightning's Trainer around the steps, the best and the last weights kept."""

from __future__ import annotations

import logging
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from overtone.config import Settings
from overtone.config.compose import quoted
from overtone.data.batching import Draws, Place, StepSampler
from overtone.data.dataset import make_loader
from overtone.errors import ConfigError, DataError
from overtone.training.callback import Watch
from overtone.training.console import LiveLine, Pace, Reporter
from overtone.training.data import SpeechSet, validation_batches, worker_count
from overtone.training.flat_start import FlatStart
from overtone.training.forward import make_augmentation, make_inner_losses, make_recogniser
from overtone.training.module import Steps
from overtone.training.optim import Schedule, make_schedule
from overtone.training.prefix_cache.forward import Prefix, make_prefix
from overtone.training.prefix_cache.loader import turns
from overtone.training.result import TrainingResult
from overtone.training.row_parallel.processes import RowProcesses
from overtone.training.run import Run
from overtone.training.run_folder import LOG_FILE, create_folder, make_loggers, process_rank, writing
from overtone.training.summary import early_end, introduce, make_card, result_of
from overtone.training.trainer import trainer_options
from overtone.training.validation import Score
from overtone.training.weights import Keeper, remove
from overtone.training.workers import deaths_told

PLAIN_PATH = re.compile(r"[\w./~-]+")
"""What stands in an override as it is, with no marks around it."""


def fit(run: Run, processes: RowProcesses | None = None) -> TrainingResult:
    """Train to the end, validate there in any case, and leave the best weights in the model.

    processes: what computes the rows of every batch, if anything beside this process does.
    """
    settings, folder, state = run.settings, run.folder, run.state
    leads = process_rank() == 0
    with writing(folder.path), quiet():
        prefix = prefix_of(run)
        steps = make_steps(run, prefix, processes)
        watch = make_watch(run, steps)
        trainer = make_trainer(run, watch)
        if leads:  # from here on files are written
            create_folder(folder, settings, resuming=state is not None)
            run.reporter.log_file = folder.path / LOG_FILE
        introduce(run, [*watch.keeper.notes, *([prefix.note] if prefix is not None else [])])
        if state is not None and run.resumption is not None:
            watch.resume(state, run.resumption, leads=leads)
        held = held_out(run, prefix)
        with watch.line, watch.stop.heard(), interruption_kept(run, watch, leads=leads):
            if state is None and held and settings.model.init is None:
                watch.wer_before = score_base(trainer, steps, held, run.reporter)
            trainer.fit(
                steps,
                train_dataloaders=training_loader(run, state, prefix),
                val_dataloaders=held or None,
                ckpt_path=run.resumption,
                weights_only=True,
            )
            if ended := early_end(settings.exp_manager, trainer):
                run.reporter.say(ended)
            if held and watch.validated_step != trainer.global_step:
                trainer.validate(steps, dataloaders=held, verbose=False)
        if leads:
            if not held:
                watch.keeper.keep_unscored(trainer.global_step)
            watch.keeper.finish()
            if settings.delete_ckpt_after_train and ended is None:
                remove(folder.resume_file)
    return result_of(run, watch, trainer.global_step)


# Parts


def make_trainer(run: Run, watch: Watch) -> Any:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer

    settings = run.settings
    try:
        return Trainer(
            **trainer_options(settings, run.machine, run.length),
            default_root_dir=run.folder.path,
            logger=make_loggers(settings.exp_manager, run.folder) or False,
            callbacks=[*early_stopping(settings), watch],  # a checkpoint holds what was counted before it
        )
    except (ValueError, RuntimeError, TypeError, ImportError, MisconfigurationException) as error:  # do not fit
        raise ConfigError(f"trainer: {error}") from error


def prefix_of(run: Run) -> Prefix | None:
    """What computes the part below the adapter once for each utterance, if anything does."""
    plan, chosen = run.prefix, run.settings.model
    if plan is None:
        return None
    return make_prefix(
        run.model,
        plan,
        chosen.prefix_cache,
        augment=make_augmentation(chosen.spec_augment),
        training=run.training,
        validation=run.validation,
        reporter=run.reporter,
    )


def make_steps(run: Run, prefix: Prefix | None, processes: RowProcesses | None = None) -> Steps:
    settings = run.settings
    return Steps(
        processes.recogniser if processes is not None else make_recogniser(run),
        optim=settings.model.optim,
        schedule=make_rates(run),
        inner=make_inner_losses(run.model, settings.model.interctc),
        flat_start=FlatStart.of(run.model, settings.model.flat_start),
        compute_dtype=settings.compute_dtype,
        seed=settings.seed,
        validation_sets=len(run.validation),
        prefix=prefix,
        processes=processes,
        tell_prediction=run.reporter.say if settings.model.log_prediction else None,
        tell_every=settings.trainer.log_every_n_steps,
    )


def make_rates(run: Run) -> Schedule:
    """The learning rate over the steps; without a schedule it is constant."""
    optim = run.settings.model.optim
    sched = optim.sched
    if sched is None:
        return make_schedule("constant", learning_rate=optim.lr, max_steps=run.length.steps)
    options = ("constant_steps", "constant_ratio", "hold_steps", "hold_ratio", "decay_rate", "power", "d_model")
    given = {name: getattr(sched, name) for name in options}
    if sched.name == "NoamAnnealing" and sched.d_model is None:
        given["d_model"] = run.model.setting("encoder", "width")
    return make_schedule(
        sched.name,
        learning_rate=optim.lr,
        max_steps=sched.max_steps if sched.max_steps and sched.max_steps > 0 else run.length.steps,
        warmup_steps=sched.warmup_steps,
        warmup_ratio=sched.warmup_ratio,
        min_lr=min(sched.min_lr, optim.lr),
        options=given,
    )


def make_watch(run: Run, steps: Steps) -> Watch:
    """The callback that keeps and shows."""
    settings = run.settings.exp_manager
    watch = Watch(
        steps=steps,
        plan=run.training.plan,
        resume_file=run.folder.resume_file if settings.create_checkpoint_callback else None,
        every=settings.checkpoint_callback_params.every_n_train_steps,
        pace=Pace(total_steps=run.length.steps),
        line=LiveLine(
            run.reporter,
            every=run.settings.trainer.log_every_n_steps,
            enabled=run.settings.trainer.enable_progress_bar,
        ),
        reporter=run.reporter,
        identity=run.identity(),
        timed_anew=settings.max_time_per_run is not None,
    )
    watch.keeper = Keeper(
        model=run.model,
        adapter=run.adapter,
        folder=run.folder,
        settings=settings.checkpoint_callback_params,
        card=lambda step, metrics: make_card(run, step, metrics, watch.wer_before),
        keep_top=settings.create_checkpoint_callback,
        adapters_file=run.settings.model.adapter.adapter_state_dict_name if run.adapter else None,
    )
    return watch


def early_stopping(settings: Settings) -> list[Any]:
    chosen = settings.exp_manager
    if not chosen.create_early_stopping_callback:
        return []
    from lightning.pytorch.callbacks import EarlyStopping

    options = {**vars(chosen.early_stopping_callback_params), "verbose": False, "check_on_train_epoch_end": False}
    return [EarlyStopping(**options)]


def training_loader(run: Run, state: Mapping[str, Any] | None, prefix: Prefix | None) -> Any:
    """This process's batches of the whole run, from where it stands."""
    chosen = run.settings.model.train_ds
    sampler = StepSampler(
        run.training.plan,
        total=run.length.batches,
        start=int(state["batches"]) if state is not None else 0,
        near=Place(*state["place"]) if state is not None else Place(),
        rank=process_rank(run.machine.devices_each),
        processes=run.machine.processes,
    )
    if prefix is not None:
        return prefix.loader(run.training, turns(sampler, prefix.plan.variants), len(sampler), worker_count(chosen))
    draws = Draws(sampler) if chosen.augmentor is not None else sampler
    return make_loader(run.training.dataset, draws, workers=worker_count(chosen), pin_memory=chosen.pin_memory)


def held_out(run: Run, prefix: Prefix | None) -> list[Any]:
    """This process's batches of every validation set."""
    chosen, rank = run.settings.model.validation_ds, process_rank(run.machine.devices_each)
    workers = worker_count(chosen)

    def loader(held: SpeechSet) -> Any:
        batches = validation_batches(held, run.settings, rank=rank, processes=run.machine.processes)
        if prefix is not None:
            return prefix.loader(held, batches, len(batches), workers)
        return make_loader(held.dataset, batches, workers=workers, pin_memory=chosen.pin_memory)

    return [loader(held) for held in run.validation]


def score_base(trainer: Any, steps: Steps, held: list[Any], reporter: Reporter) -> float:
    """Word error rate of the base on the first validation set."""
    if steps.processes is not None and steps.processes.errand is not None:
        score: Score = steps.processes.errand_done()
    else:
        steps.base_alone = True
        trainer.validate(steps, dataloaders=held, verbose=False)
        steps.base_alone = False
        score = steps.scores[0]
    wer = score.words.rate
    reporter.say(f"step 0: WER {wer:.2%}  (the base)")
    return wer


@contextmanager
def interruption_kept(run: Run, watch: Watch, *, leads: bool) -> Iterator[None]:
    """After Ctrl-C, SIGTERM, or audio that cannot be read, the last adapter is written before the run ends.

    Lightning's exit becomes a KeyboardInterrupt again, or the exit of a SIGTERM.
    """
    try:
        with deaths_told(lambda: watch.reading):
            yield
    except DataError:
        if written := last_kept(watch, leads=leads):
            watch.reporter.say(f"Ended at step {watch.pace.step}. {written}")
        if watch.stop.made:  # a SIGTERM to all processes ended one that reads, too
            raise watch.stop.end() from None
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not watch.interrupted:
            raise
        said = [f"Interrupted at step {watch.pace.step}.", last_kept(watch, leads=leads)]
        if watch.has_checkpoint:
            said.append(f"Go on with {going_on(run)}")
        watch.reporter.say(" ".join(filter(None, said)))
        raise watch.stop.end() from None


def last_kept(watch: Watch, *, leads: bool) -> str:
    """Write the adapter as it is now, and say where; nothing where no step was made."""
    keeper, pace = watch.keeper, watch.pace
    if pace.step == pace.first_step:
        return ""
    if leads and watch.validated_step != pace.step:  # a validation keeps the weights, with what it found
        keeper.write(keeper.last_path, pace.step, {})
    return f"Written: {keeper.last_path}."


def going_on(run: Run) -> str:
    """What to add to the command line, so that the run goes on in its folder."""
    path = run.folder.path
    value = str(path) if PLAIN_PATH.fullmatch(str(path)) else quoted(path)
    words = [shlex.quote(f"exp_manager.explicit_log_dir={value}"), "exp_manager.resume_if_exists=true"]
    if run.settings.exp_manager.resume_from_checkpoint:
        words.append("exp_manager.resume_from_checkpoint=null")
    return " ".join(words)


@contextmanager
def quiet() -> Iterator[None]:
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
