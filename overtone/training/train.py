"""Train an adapter on a frozen base (or every weight of a base), from settings to files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.registry import section_of
from overtone.adapters.points import Layers
from overtone.adapters.strategies import ResidualAdd
from overtone.config import (
    AdapterSettings,
    DatasetSettings,
    ExperimentSettings,
    OptimSettings,
    ScheduleSettings,
    Settings,
    check_settings,
)
from overtone.models.asr_model import AsrModel
from overtone.startup import garbage_search_paused
from overtone.training.console import Reporter
from overtone.training.data import read_training_set, read_validation_sets
from overtone.training.model import add_adapter, being_trained, restore
from overtone.training.prefix_cache.plan import plan_prefix
from overtone.training.reading_ahead import reading_ahead
from overtone.training.result import TrainingResult
from overtone.training.resumption import check_same_run, read_state
from overtone.training.row_parallel.setup import sharing_rows
from overtone.training.run import Run
from overtone.training.run_folder import check_free, check_loggers, find_resumption, plan_folder, process_rank
from overtone.training.trainer import machine_of, plan_length, precision_of

__all__ = ["TrainingResult", "run_training", "train"]


def run_training(
    settings: Settings, *, model: AsrModel | None = None, reporter: Reporter | None = None
) -> TrainingResult:
    """Carry out a training. `model` stands in for the one that the settings name.

    Nothing is written before everything is checked. Raises OvertoneError; KeyboardInterrupt after Ctrl-C, SystemExit
    after SIGTERM, when the last adapter and what a resumed run needs have been written.
    """
    reporter = reporter or Reporter()
    reporter.begin(leads=process_rank() == 0)
    check_settings(settings, purpose="train", model_given=model is not None)
    precision_of(settings.trainer)
    machine = machine_of(settings.trainer)
    check_loggers(settings.exp_manager)
    folder = plan_folder(settings.exp_manager, default_name=settings.name)
    resumption = find_resumption(settings.exp_manager, folder)
    state = None if resumption is None else read_state(resumption)
    check_free(settings.exp_manager, folder)
    with random_state_kept():
        model = model if model is not None else restore(settings.model, seed=settings.seed)
        training = read_training_set(model, settings, reporter)  # vocabulary check, data
        validation = read_validation_sets(model, settings, reporter)
        length = plan_length(settings.trainer, training.plan, processes=machine.processes, validates=bool(validation))
        with being_trained(model):
            adapter = add_adapter(model, settings) if settings.model.train == "adapter" else None
            if adapter is None:
                model.train_base(base_dropout=settings.model.base_dropout)
            kept = None if state is None else state["identity"].get("prefix_cache") is not None
            run = Run(
                settings=settings,
                model=model,
                adapter=adapter.name if adapter is not None else None,
                folder=folder,
                resumption=resumption,
                state=state,
                training=training,
                validation=tuple(validation),
                machine=machine,
                length=length,
                reporter=reporter,
                prefix=plan_prefix(settings, model, adapter, machine=machine, length=length, kept_before=kept),
            )
            if resumption is not None and state is not None:
                check_same_run(resumption, state["identity"], run.identity())
            with sharing_rows(run) as processes, reading_ahead(run):
                with garbage_search_paused():
                    from overtone.training.loop import fit  # Lightning, imported beside what the processes do first
                return fit(run, processes)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave torch's global generators as they were: every step seeds them."""
    state = torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


def train(
    model: AsrModel | str | Path,
    *,
    adapter_name: str,
    train_manifest: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    validation_manifest: str | Path | Sequence[str | Path] | None = None,
    kind: Kind | None = None,
    modules: str = "encoder",
    layers: Layers = "all",
    strategy: ResidualAdd | None = None,
    max_steps: int = 1000,
    max_epochs: int | None = None,
    learning_rate: float = 0.001,
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
    quiet: bool = False,
    settings: Settings | None = None,
) -> TrainingResult:
    """Train a new adapter and keep it in the model, with its best weights.

    model: an AsrModel, or what `load_model` takes. kind: `LinearAdapter(dim=32)` unless given.
    output_dir: the run folder; `checkpoints/NAME-best` and `NAME-last` in it are adapter folders.
    resume: go on where a run in that folder was cut off, if one was. save_nemo: also write adapted `.nemo` files.
    settings: everything else (augmentation, early stopping, …); the arguments above take precedence.
    """
    base = settings or Settings()
    chosen = replace(
        base.model,
        pretrained_model=None,
        nemo_model=None if isinstance(model, AsrModel) else str(model),
        adapter=_adapter(adapter_name, kind or LinearAdapter(), strategy or ResidualAdd(), modules, layers, save_nemo),
        base_dropout=base_dropout,
        vocabulary_check=vocabulary_check,
        train_ds=_dataset(base.model.train_ds, train_manifest, batch_size, num_workers),
        validation_ds=_dataset(base.model.validation_ds, validation_manifest, batch_size, num_workers),
        optim=_optimiser(base.model.optim, learning_rate, weight_decay, warmup_steps),
    )
    whole = replace(
        base,
        name=adapter_name,
        model=chosen,
        trainer=replace(base.trainer, max_steps=max_steps, max_epochs=max_epochs),
        exp_manager=_experiment(base.exp_manager, Path(output_dir), save_nemo=save_nemo, resume=resume),
        compute_dtype=compute_dtype,
        seed=seed,
    )
    given = model if isinstance(model, AsrModel) else None
    return run_training(whole, model=given, reporter=Reporter(quiet=quiet))


def _adapter(
    name: str, kind: Kind, strategy: ResidualAdd, modules: str, layers: Layers, save_nemo: bool
) -> AdapterSettings:
    return AdapterSettings(
        adapter_name=name,
        adapter_type="given",
        adapter_module_name=modules,
        adapter_state_dict_name="adapters.pt" if save_nemo else None,
        layers=layers if isinstance(layers, str | int) else tuple(layers),
        kinds={"given": section_of(kind, strategy)},
    )


def _optimiser(
    base: OptimSettings, learning_rate: float, weight_decay: float, warmup_steps: int | None
) -> OptimSettings:
    sched = base.sched if warmup_steps is None else replace(base.sched or ScheduleSettings(), warmup_steps=warmup_steps)
    return replace(base, lr=learning_rate, weight_decay=weight_decay, sched=sched)


def _dataset(
    base: DatasetSettings, manifests: str | Path | Sequence[str | Path] | None, batch_size: int, num_workers: int
) -> DatasetSettings:
    names = [] if manifests is None else [manifests] if isinstance(manifests, str | Path) else list(manifests)
    return replace(
        base,
        manifest_filepath=tuple(str(name) for name in names) or None,
        batch_size=batch_size,
        num_workers=num_workers,
    )


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
