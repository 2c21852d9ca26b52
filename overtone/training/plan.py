"""The plan of a training: plain objects, made once from checked settings; nothing is read or written for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.registry import SECTIONS, kind_of
from overtone.adapters.points import Layers
from overtone.adapters.strategies import ResidualAdd
from overtone.config import (
    AdapterSettings,
    DatasetSettings,
    ExperimentSettings,
    FlatStartSettings,
    InterCtcSettings,
    KindSettings,
    ModelSettings,
    OptimSettings,
    PrefixCacheSettings,
    RetentionSettings,
    Settings,
    SpecAugmentSettings,
    TrainerSettings,
    VocabularySettings,
    WordsSettings,
    general_manifests,
    split_name,
    to_plain,
)
from overtone.errors import ConfigError
from overtone.models.asr_model import AsrModel

if TYPE_CHECKING:
    from lightning.pytorch import Callback


class Validation(NamedTuple):
    """Result of a validation during a training."""

    step: int
    wer: float
    """0..1"""
    wer_before: float | None
    """WER of the base, 0..1; None where it was not measured."""


Prune = Callable[[Validation], bool]
"""Decides after a validation whether the training promises too little to go on."""


@dataclass(frozen=True, kw_only=True)
class BasePlan:
    """Source of the base: a checkpoint, or a NeMo configuration that is built with fresh weights."""

    checkpoint: str | None
    """Path of a checkpoint or name of a shipped model, as `load_model` takes it."""
    config: Path | None
    """YAML file of a model with fresh weights."""
    tokenizer: Path | None
    """File of another vocabulary than the checkpoint's."""


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """The new adapter: what it computes, and where."""

    name: str
    kind: Kind
    strategy: ResidualAdd = ResidualAdd()
    modules: str = "encoder"
    layers: Layers = "all"
    widths: Mapping[str, int] = field(default_factory=dict)
    """Widths of the model's layers that the settings name, by the setting's key."""
    nemo: Mapping[str, bool] = field(default_factory=lambda: asdict(AdapterSettings().global_settings))
    """NeMo's switches for its own checks, kept for the files that NeMo reads."""
    start_from: str | None = None
    """The adapter whose parameters it begins with: a name in the model, or a path; None: identity at birth."""
    vocabulary: VocabularySettings | None = None
    """Tokens of its own; None: those of `start_from`, or the base's."""
    copies_form: bool = False
    """Kind, modules, layers and strategy are those of `start_from`: the settings say no more than the defaults."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Everything that a training is asked to do."""

    name: str
    """Name of the experiment, unless `experiment` gives one."""
    base: AsrModel | BasePlan
    adapter: AdapterPlan | None
    """The adapter to train; None trains the base."""
    trained_parts: tuple[str, ...] = ()
    """Parts of the base that are trained where no adapter is; none trains all of it."""
    att_context_size: tuple[int, ...] | None
    """The attention context of the base; None: the one that acts."""
    attention: str | None
    """The kind of the base's attention by NeMo's name; None: as it is."""
    base_dropout: bool
    vocabulary_check: Literal["refuse", "drop", "keep"]
    train_data: DatasetSettings
    validation_data: DatasetSettings
    general: tuple[str, ...]
    """Manifests of general speech, which the best adapter is measured on."""
    spec_augment: SpecAugmentSettings | None
    """Masks on the features of training utterances."""
    inner_losses: Mapping[int, float] | None
    """Share of the CTC loss on the output of an inner layer, by the layer's index; None: those of the checkpoint."""
    flat_start: FlatStartSettings | None
    prefix_cache: PrefixCacheSettings
    words: WordsSettings | None
    """The word part of the adapter: the transcripts are counted, and what the settings name; None: no such part."""
    retention: RetentionSettings | None
    """Points that general speech may lose; None: the adapter is as strong as it was trained."""
    refit: Literal["words"] | bool = False
    """Afterwards the adapter is trained anew, on training and validation data together; or its words are counted so."""
    refit_of: Mapping[str, Any] | None = None
    """This is such a second training: what its card says of the first one."""
    optimiser: OptimSettings
    trainer: TrainerSettings
    experiment: ExperimentSettings
    adapters_file: str | None
    """Name of the file in NeMo's format that the best adapter is written to."""
    log_prediction: bool
    compute_dtype: Literal["auto", "float32", "bfloat16"]
    compute_processes: Literal["auto"] | int
    seed: int
    delete_checkpoint: bool
    """The checkpoint is removed once the training is complete."""
    record: Mapping[str, Any]
    """The settings as they are written into the run folder."""
    tables: Mapping[str, Any] = field(default_factory=dict)
    """Manifests in memory, by the names that the settings give them."""
    callbacks: tuple[Callback, ...] = ()
    """Callbacks of Lightning's that the caller adds."""
    base_errors: Path | None = None
    """Folder in which the errors of the base are kept for other trainings; None keeps them in none."""
    prune: Prune | None = None
    """Asked after every validation but the last one."""

    @property
    def changes_vocabulary(self) -> bool:
        """The base gets another vocabulary, and its heads begin anew."""
        return isinstance(self.base, BasePlan) and self.base.tokenizer is not None

    @property
    def starts_fresh(self) -> bool:
        """The base has no weights of a checkpoint, so that its WER says nothing."""
        return isinstance(self.base, BasePlan) and self.base.config is not None

    def inner_losses_of(self, model: AsrModel) -> Mapping[int, float]:
        """Share of the loss on the output of an inner layer, by its index: the settings', else the checkpoint's.

        A transducer alone has no head for them, and ignores what its checkpoint says, as NeMo does.
        """
        if self.inner_losses is not None:
            return self.inner_losses
        return {} if model.head.inner is None else model.inner_losses


def plan_training(
    settings: Settings,
    *,
    model: AsrModel | None = None,
    adapter: AdapterPlan | None = None,
    callbacks: Sequence[Callback] = (),
    prune: Prune | None = None,
    tables: Mapping[str, Any] | None = None,
) -> TrainingPlan:
    """Turn checked settings into a plan.

    model: stands in for the model that the settings name. adapter: stands in for the adapter that they describe.
    tables: manifests in memory by the names that the settings give them.
    Raises ConfigError for an adapter of a kind without the dimension that the settings give.
    """
    chosen = settings.model
    if chosen.train != "adapter":
        adapter = None
    elif adapter is None:
        adapter = plan_adapter(chosen.adapter)
    flat_start = chosen.flat_start
    return TrainingPlan(
        name=settings.name,
        base=model if model is not None else plan_base(chosen),
        adapter=adapter,
        trained_parts=() if chosen.train in ("adapter", "everything") else tuple(chosen.train),
        att_context_size=chosen.encoder.att_context_size,
        attention=chosen.encoder.self_attention_model,
        base_dropout=chosen.base_dropout,
        vocabulary_check=chosen.vocabulary_check,
        train_data=chosen.train_ds,
        validation_data=chosen.validation_ds,
        general=general_manifests(chosen),
        spec_augment=chosen.spec_augment,
        inner_losses=plan_inner_losses(chosen.interctc),
        flat_start=flat_start if flat_start.steps > 0 and flat_start.weight > 0 else None,
        prefix_cache=chosen.prefix_cache,
        words=plan_words(chosen.adapter.words) if adapter is not None else None,
        retention=chosen.adapter.retention if adapter is not None else None,
        refit=chosen.refit,
        optimiser=chosen.optim,
        trainer=settings.trainer,
        experiment=settings.exp_manager,
        adapters_file=chosen.adapter.adapter_state_dict_name if adapter is not None else None,
        log_prediction=chosen.log_prediction,
        compute_dtype=settings.compute_dtype,
        compute_processes=settings.compute_processes,
        seed=settings.seed,
        delete_checkpoint=settings.delete_ckpt_after_train,
        callbacks=tuple(callbacks),
        tables=tables or {},
        base_errors=Path(chosen.base_errors).expanduser() if chosen.base_errors else None,
        prune=prune,
        record=to_plain(settings),
    )


def plan_inner_losses(chosen: InterCtcSettings | None) -> Mapping[int, float] | None:
    """Take the shares of inner losses from the settings: none for null, None where the settings say nothing."""
    if chosen is None:
        return {}
    return dict(sorted(zip(chosen.apply_at_layers, chosen.loss_weights, strict=True))) or None


def plan_words(chosen: WordsSettings | str | bool) -> WordsSettings | None:
    """Take the word part from the settings: its defaults for `auto`, None for `off`, which YAML also reads as false."""
    if isinstance(chosen, WordsSettings):
        return chosen
    return WordsSettings() if chosen in ("auto", True) else None


def plan_base(chosen: ModelSettings) -> BasePlan:
    """Take the source of the base from the settings."""
    return BasePlan(
        checkpoint=chosen.nemo_model or chosen.pretrained_model,
        config=Path(chosen.init).expanduser() if chosen.init is not None else None,
        tokenizer=Path(chosen.tokenizer).expanduser() if chosen.tokenizer else None,
    )


# Adapters


def plan_adapter(chosen: AdapterSettings) -> AdapterPlan:
    """Turn the section of the adapter's type into a kind. Raises ConfigError for a `dim` where the kind has none."""
    assert chosen.adapter_name is not None, "the configuration is checked"
    section = section_with_dim(chosen)
    name, modules = split_name(chosen.adapter_name, chosen.adapter_module_name)
    kind = kind_of(section)
    strategy = ResidualAdd(
        stochastic_depth=section.adapter_strategy.stochastic_depth,
        l2_lambda=section.adapter_strategy.l2_lambda,
    )
    usual = AdapterPlan(name=name, kind=LinearAdapter())
    as_usual = (kind, strategy, modules, chosen.layers) == (usual.kind, usual.strategy, usual.modules, usual.layers)
    return AdapterPlan(
        name=name,
        kind=kind,
        strategy=strategy,
        modules=modules,
        layers=chosen.layers,
        widths=named_widths(chosen, section),
        nemo=asdict(chosen.global_settings),
        start_from=chosen.start_from,
        vocabulary=chosen.vocabulary,
        copies_form=chosen.start_from is not None and as_usual,
    )


def section_with_dim(chosen: AdapterSettings) -> KindSettings:
    """Return the section of the adapter's type, with `model.adapter.dim` in it where that is given.

    Raises ConfigError where the section has no such key.
    """
    section = chosen.kinds[chosen.adapter_type]
    if chosen.dim is None:
        return section
    if "dim" not in vars(section):
        raise ConfigError(f"model.adapter.dim: an adapter of type {chosen.adapter_type} has none; leave it out.")
    return type(section)(**{**vars(section), "dim": chosen.dim})


def named_widths(chosen: AdapterSettings, section: KindSettings) -> dict[str, int]:
    """Return the widths of the model's layers that the settings name, by the setting's key."""
    widths: dict[str, int | None] = {"model.adapter.in_features": chosen.in_features}
    form = SECTIONS[type(section)].section if type(section) in SECTIONS else None
    for key in () if form is None else form.width_keys:
        widths[f"model.adapter.{chosen.adapter_type}.{key}"] = getattr(section, key)
    return {key: width for key, width in widths.items() if width is not None}
