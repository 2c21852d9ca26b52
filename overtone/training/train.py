"""Train an adapter on a frozen base (or every weight of a base), from settings to files."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from overtone.adapters.adapter import Adapter
from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.registry import find_kind, section_of
from overtone.adapters.points import Layers
from overtone.adapters.strategies import ResidualAdd
from overtone.config import (
    AdapterSettings,
    DatasetSettings,
    ExperimentSettings,
    OptimSettings,
    ScheduleSettings,
    Settings,
    VocabularySettings,
    WordsSettings,
    check_settings,
    manifest_paths,
    split_name,
)
from overtone.data.tables import Manifests, name_tables
from overtone.models.asr_model import AsrModel
from overtone.models.attention import choose_attention, keep_attention
from overtone.models.trained_parts import train_parts
from overtone.models.vocabulary import writing_with
from overtone.startup import pause_garbage_collection
from overtone.tokenizers import Tokenizer
from overtone.training.base_errors import BaseErrors
from overtone.training.console import Reporter
from overtone.training.data import read_ahead, read_training_set, read_validation_sets
from overtone.training.general import read_general
from overtone.training.model import (
    add_adapter,
    check_trained_base,
    find_vocabulary,
    give_back,
    load_base,
)
from overtone.training.optim import EVERYTHING, with_rate
from overtone.training.plan import AdapterPlan, BasePlan, Prune, TrainingPlan, plan_training
from overtone.training.prefix_cache.plan import plan_prefix
from overtone.training.refit import check_refit, choose_sets, refit
from overtone.training.retention import read_general_speech
from overtone.training.row_processes import start_row_processes
from overtone.training.run import Run, TrainingResult, check_same_run, describe_machine, read_state
from overtone.training.run_folder import (
    RunFolder,
    RunLock,
    check_folder_is_free,
    check_loggers,
    find_checkpoint,
    plan_folder,
    process_rank,
)
from overtone.training.trainer import Machine, RunLength, find_machine, lightning_precision, plan_length
from overtone.training.weights import EARLY, WHOLE

if TYPE_CHECKING:
    from lightning.pytorch import Callback

LEFT_BY_A_RUN = ("-best", "-last", WHOLE, EARLY, "-last.ckpt", "-adapters.pt", ".nemo", "-best.nemo", "-last.nemo")
"""Ends of names in a run's folder of checkpoints, after the adapter's name."""

__all__ = ["TrainingResult", "run_training", "train"]


def train(
    model: AsrModel | str | Path,
    *,
    adapter_name: str,
    train_manifest: Manifests | None,
    output_dir: str | Path,
    validation_manifest: Manifests | None = None,
    kind: Kind | str | None = None,
    start_from: str | Path | None = None,
    vocabulary: str | Path | Sequence[str] | None = None,
    modules: str = "encoder",
    layers: Layers = "all",
    strategy: ResidualAdd | None = None,
    max_steps: int = 1000,
    max_epochs: int | None = None,
    learning_rate: float | Literal["auto"] = 0.001,
    words: WordsSettings | Literal["auto", "off"] = "off",
    warmup_steps: int | None = None,
    weight_decay: float = 0.0,
    batch_size: int = 16,
    num_workers: int = 0,
    base_dropout: bool = True,
    vocabulary_check: Literal["refuse", "drop", "keep"] = "refuse",
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    seed: int = 0,
    save_nemo: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    settings: Settings | None = None,
) -> TrainingResult:
    """Train a new adapter and keep it in the model, with its best weights.

    model: an AsrModel, or what `load_model` takes. Manifests are paths, or tables as `read_table` takes them; None is
    those of `settings`. start_from: an adapter to go on from. vocabulary: its own, a tokenizer, or labels. output_dir:
    the run folder, with the adapter in `checkpoints/NAME-best`. overwrite: replace what has these names. resume: go on
    where a run was cut off. words: a word part too. save_nemo: also `.nemo` files. callbacks: of Lightning's.
    """
    own, source = (model, None) if isinstance(model, AsrModel) else (None, str(model))
    adapter = _plan_adapter(adapter_name, modules, kind, layers, strategy, start_from, vocabulary)
    base, tables = _with_data(settings or Settings(), train_manifest, validation_manifest, batch_size, num_workers)
    chosen = replace(
        base.model,
        pretrained_model=None,
        nemo_model=source,
        adapter=replace(_adapter(adapter, save_nemo=save_nemo), words=words),
        base_dropout=base_dropout,
        vocabulary_check=vocabulary_check,
        optim=_optimiser(base.model.optim, learning_rate, weight_decay, warmup_steps),
    )
    whole = replace(
        replace(base, name=adapter_name, compute_dtype=compute_dtype, seed=seed, model=chosen),
        trainer=replace(base.trainer, max_steps=max_steps, max_epochs=max_epochs),
        exp_manager=_experiment(base.exp_manager, Path(output_dir), save_nemo=save_nemo, resume=resume),
    )
    if overwrite:
        make_room(own, adapter_name, Path(output_dir))
    reporter = Reporter(quiet=quiet)
    return run_training(whole, model=own, reporter=reporter, adapter=adapter, callbacks=callbacks, tables=tables)


def leaving_out_unusable() -> Settings:
    """Settings with which utterances that are too short for their texts are left out, and do not end the training."""
    base = Settings()
    return replace(base, model=replace(base.model, train_ds=replace(base.model.train_ds, unusable="drop")))


def make_room(model: AsrModel | None, name: str, folder: Path) -> None:
    """Remove an adapter of that name, from the model and from a run's folder; other names' files stay."""
    own, _ = split_name(name, None)
    if model is not None and own in model.adapters:
        model.adapters.remove(own)
    for path in (folder / "checkpoints").glob(f"{glob.escape(own)}*"):
        if path.name.removeprefix(own) in LEFT_BY_A_RUN:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _plan_adapter(
    name: str,
    modules: str,
    kind: Kind | str | None,
    layers: Layers,
    strategy: ResidualAdd | None,
    start_from: str | Path | None,
    vocabulary: str | Path | Sequence[str] | None,
) -> AdapterPlan:
    name, modules = split_name(name, modules)
    return AdapterPlan(
        name=name,
        kind=find_kind(kind or LinearAdapter()),
        strategy=strategy or ResidualAdd(),
        modules=modules,
        layers=layers,
        start_from=None if start_from is None else str(start_from),
        vocabulary=_vocabulary(vocabulary),
        copies_form=start_from is not None and (kind, strategy, modules, layers) == (None, None, "encoder", "all"),
    )


def _vocabulary(given: str | Path | Sequence[str] | None) -> VocabularySettings | None:
    if given is None:
        return None
    if isinstance(given, str | Path):
        return VocabularySettings(tokenizer=str(given))
    return VocabularySettings(labels=tuple(given))


def _adapter(plan: AdapterPlan, *, save_nemo: bool) -> AdapterSettings:
    """Describe the adapter as a section of the settings, for the record in the run folder."""
    return AdapterSettings(
        adapter_name=plan.name,
        adapter_type="given",
        adapter_module_name=plan.modules,
        adapter_state_dict_name="adapters.pt" if save_nemo else None,
        layers=plan.layers if isinstance(plan.layers, str | int) else tuple(plan.layers),
        start_from=plan.start_from,
        vocabulary=plan.vocabulary,
        kinds={"given": section_of(plan.kind, plan.strategy)},
    )


def _optimiser(
    base: OptimSettings, learning_rate: float | Literal["auto"], weight_decay: float, warmup_steps: int | None
) -> OptimSettings:
    sched = base.sched if warmup_steps is None else replace(base.sched or ScheduleSettings(), warmup_steps=warmup_steps)
    return replace(base, lr=learning_rate, weight_decay=weight_decay, sched=sched)


def _with_data(
    base: Settings, training: Manifests, validation: Manifests, batch_size: int, num_workers: int
) -> tuple[Settings, dict[str, Any]]:
    """Return the settings with these manifests, and the tables among them by name."""
    train_names, train_tables = name_tables(training, "train")
    names, tables = name_tables(validation, "validation")
    model = replace(
        base.model,
        train_ds=_dataset(base.model.train_ds, train_names, batch_size, num_workers),
        validation_ds=_dataset(base.model.validation_ds, names, batch_size, num_workers),
    )
    return replace(base, model=model), train_tables | tables


def _dataset(base: DatasetSettings, manifests: Sequence[Any], batch_size: int, num_workers: int) -> DatasetSettings:
    names = tuple(manifests) or (None if base.inputs or base.cuts_path or base.shar_path else base.manifest_filepath)
    return replace(base, manifest_filepath=names, batch_size=batch_size, num_workers=num_workers)


def _experiment(base: ExperimentSettings, folder: Path, *, save_nemo: bool, resume: bool) -> ExperimentSettings:
    return replace(
        base,
        explicit_log_dir=str(folder),
        resume_if_exists=resume,
        resume_ignore_no_checkpoint=resume,
        checkpoint_callback_params=replace(
            base.checkpoint_callback_params,
            always_save_nemo=save_nemo,
            save_nemo_on_train_end=save_nemo,
            save_top_k=base.checkpoint_callback_params.save_top_k if save_nemo else 0,
        ),
    )


def run_training(
    settings: Settings,
    *,
    model: AsrModel | None = None,
    reporter: Reporter | None = None,
    adapter: AdapterPlan | None = None,
    callbacks: Sequence[Callback] = (),
    prune: Prune | None = None,
    tables: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Carry out the training that the settings describe.

    model, adapter: stand in for those that they name. prune: may end it early. tables: manifests in memory, by the
    names that the settings give them. Raises as `run_plan`.
    """
    check_settings(settings, purpose="train", model_given=model is not None)
    plan = plan_training(settings, model=model, adapter=adapter, callbacks=callbacks, prune=prune, tables=tables)
    return run_plan(plan, reporter or Reporter())


def run_plan(plan: TrainingPlan, reporter: Reporter) -> TrainingResult:
    """Carry out a training.

    Nothing is written before everything is checked. Raises OvertoneError; KeyboardInterrupt after Ctrl-C, SystemExit
    after SIGTERM, when the last adapter and what a resumed run needs have been written.
    """
    reporter.begin(leads=process_rank() == 0)
    lightning_precision(plan.trainer)
    machine = find_machine(plan.trainer, row_processes=plan.compute_processes)
    check_refit(plan, machine)
    check_loggers(plan.experiment)
    folder = plan_folder(plan.experiment, default_name=plan.name)
    with RunLock(folder, leads=process_rank() == 0) as lock:
        if plan.refit is not True:
            return run_in_folder(plan, machine, folder, lock, reporter)
        first = run_in_folder(replace(plan, delete_checkpoint=False), machine, folder, lock, reporter)
        return refit(plan, first, reporter, train=lambda second: run_plan(second, reporter))


def run_in_folder(
    plan: TrainingPlan, machine: Machine, folder: RunFolder, lock: RunLock, reporter: Reporter
) -> TrainingResult:
    """Carry out a training in a folder that this process holds, or will hold once it exists. Raises as `run_plan`."""
    checkpoint = find_checkpoint(plan.experiment, folder)
    state = None if checkpoint is None else read_state(checkpoint)
    check_folder_is_free(plan.experiment, folder)
    with keep_random_state():
        model = load_base(plan.base, seed=plan.seed) if isinstance(plan.base, BasePlan) else plan.base
        tokenizer = find_vocabulary(model, plan)
        with writing_with(model, tokenizer):
            training = read_training_set(model, plan, reporter)
            validation = read_validation_sets(model, plan, reporter)
            training, validation, words, refitted_words = choose_sets(model, plan, training, validation, reporter)
        general = read_general(plan.general)
        retained = (
            ()
            if plan.retention is None
            else read_general_speech(manifest_paths(DatasetSettings(manifest_filepath=plan.retention.manifest)))
        )
        length = plan_length(plan.trainer, training.plan, processes=machine.processes, validates=bool(validation))
        plan = choose_rate(plan, length, model)
        with give_back(model), keep_attention(model):
            choose_attention(model, plan.att_context_size, plan.attention)
            adapter = choose_trained(model, plan, tokenizer)
            cached = None if state is None else state["identity"].get("prefix_cache") is not None
            run = Run(
                plan=plan,
                model=model,
                adapter=None if adapter is None else adapter.name,
                folder=folder,
                lock=lock,
                checkpoint=checkpoint,
                state=state,
                training=training,
                validation=tuple(validation),
                machine=machine,
                length=length,
                reporter=reporter,
                words=words,
                refitted_words=refitted_words,
                general=general,
                base_errors=BaseErrors(plan.base_errors),
                retained=retained,
                start_from=None if adapter is None else adapter.card.get("start_from"),
                prefix=plan_prefix(plan, model, adapter, machine=machine, length=length, cached_before=cached),
            )
            if checkpoint is not None and state is not None:
                check_same_run(checkpoint, state["identity"], run.identity())
                if differs := describe_machine(state["identity"], run.identity()):
                    reporter.say(differs)
            several = machine.row_processes > 1
            with (
                start_row_processes(run) if several else nullcontext() as processes,
                read_ahead(run.first_utterances()),
            ):
                with pause_garbage_collection():
                    from overtone.training.loop import fit  # Lightning, imported beside the processes' first work
                return fit(run, processes)


def choose_trained(model: AsrModel, plan: TrainingPlan, tokenizer: Tokenizer | None) -> Adapter | None:
    """Add the adapter that is trained, or make the base trainable. tokenizer: of the adapter's own vocabulary."""
    if plan.adapter is None:
        check_trained_base(model, plan)
        train_parts(model, plan.trained_parts, base_dropout=plan.base_dropout)
        return None
    seed, dropout = plan.seed, plan.base_dropout
    return add_adapter(model, plan.adapter, seed=seed, base_dropout=dropout, tokenizer=tokenizer)


def choose_rate(plan: TrainingPlan, length: RunLength, model: AsrModel) -> TrainingPlan:
    """The plan with a learning rate where the settings leave it open."""
    kind = plan.adapter.kind.name if plan.adapter is not None else "" if plan.starts_fresh else EVERYTHING
    return replace(plan, optimiser=with_rate(plan.optimiser, kind=kind, steps=length.steps, width=model.encoder.width))


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Leave torch's global generators as they were: every step seeds them."""
    state = torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)
