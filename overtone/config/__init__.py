"""The configuration of a run: YAML and overrides in, checked settings out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from overtone.config.augmentor import (
    AugmentorSettings,
    ColouredNoiseSettings,
    GainSettings,
    ImpulseSettings,
    NoiseSettings,
    ReverberationSettings,
    ShiftSettings,
    SpeedSettings,
    TelephoneSettings,
    WhiteNoiseSettings,
)
from overtone.config.compose import combinations, compose, quoted
from overtone.config.dataset import DatasetSettings
from overtone.config.dataset_checks import check_dataset
from overtone.config.experiment import (
    CheckpointSettings,
    EarlyStoppingSettings,
    ExperimentSettings,
    TrainerSettings,
)
from overtone.config.fields import Findings, build, to_plain
from overtone.config.own import (
    FlatStartSettings,
    InterCtcSettings,
    PrefixCacheSettings,
    RetentionSettings,
    VocabularySettings,
    WordsSettings,
)
from overtone.config.settings import (
    AdapterSettings,
    KindSettings,
    LinearSettings,
    LoraSettings,
    ModelSettings,
    OptimSettings,
    OwnKindSettings,
    ScheduleSettings,
    Settings,
    SpecAugmentSettings,
    StrategySettings,
    TinyAttentionSettings,
)
from overtone.config.sources import Source, SourceList, list_sources
from overtone.config.targets import DDP_TARGETS
from overtone.errors import did_you_mean

__all__ = [
    "AdapterSettings",
    "AugmentorSettings",
    "CheckpointSettings",
    "ColouredNoiseSettings",
    "DatasetSettings",
    "EarlyStoppingSettings",
    "ExperimentSettings",
    "FlatStartSettings",
    "GainSettings",
    "ImpulseSettings",
    "InterCtcSettings",
    "KindSettings",
    "LinearSettings",
    "LoraSettings",
    "ModelSettings",
    "NoiseSettings",
    "OptimSettings",
    "OwnKindSettings",
    "PrefixCacheSettings",
    "RetentionSettings",
    "ReverberationSettings",
    "ScheduleSettings",
    "Settings",
    "ShiftSettings",
    "Source",
    "SourceList",
    "SpecAugmentSettings",
    "SpeedSettings",
    "StrategySettings",
    "TelephoneSettings",
    "TinyAttentionSettings",
    "TrainerSettings",
    "VocabularySettings",
    "WordsSettings",
    "WhiteNoiseSettings",
    "check_settings",
    "combinations",
    "general_manifests",
    "list_sources",
    "load_settings",
    "manifest_paths",
    "quoted",
    "split_name",
    "to_plain",
]

Purpose = Literal["train", "evaluate"]

MONITORS = ("val_wer", "val_cer", "val_loss")
"""Metrics of a validation, those of the first validation set."""

SELECTING = ("max_utts", "min_duration", "max_duration", "augmentor")
"""Keys of a dataset that leave utterances out or change them."""

DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d")
"""Days, hours, minutes and seconds, as Lightning reads them."""

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
STRATEGY_OPTIONS = (
    "_target_",
    "gradient_as_bucket_view",
    "find_unused_parameters",
    "static_graph",
    "bucket_cap_mb",
    "process_group_backend",
)


def load_settings(
    overrides: Sequence[str] = (),
    *,
    config_path: str | None = None,
    config_name: str = "asr_adaptation",
    purpose: Purpose = "train",
) -> Settings:
    """Load the checked settings of a command line: YAML file and `key=value` overrides.

    Raises ConfigError, once, with every mistake in it.
    """
    data = compose(overrides, config_path=config_path, config_name=config_name)
    findings = Findings()
    settings = build(Settings, {key: value for key, value in data.items() if key != "hydra"}, findings)
    check_settings(settings, purpose=purpose, findings=findings)
    return settings


def check_settings(
    settings: Settings, *, purpose: Purpose, findings: Findings | None = None, model_given: bool = False
) -> None:
    """Raises ConfigError with all mistakes: settings that the purpose needs, and settings that contradict each other.

    model_given: whether a model object takes the place of the one that the settings name.
    """
    findings = findings if findings is not None else Findings()
    if not model_given:
        _check_source(settings.model, findings)
    _check_model(settings.model, findings)
    _check_strategy(settings.trainer.strategy, findings)
    _check_limits(settings, findings)
    if purpose == "train":
        _check_training(settings, findings)
    else:
        _check_evaluation(settings, findings)
    findings.raise_if_any()


def _check_source(model: ModelSettings, findings: Findings) -> None:
    given = [name for name in ("nemo_model", "pretrained_model", "init") if getattr(model, name)]
    if not given:
        findings.add("model.nemo_model", "has to be given (a path), or model.pretrained_model (a name).")
    elif len(given) > 1:
        findings.add(f"model.{given[0]}", f"is given beside model.{given[1]}; give one of the two.")


def _check_model(model: ModelSettings, findings: Findings) -> None:
    if model.init and not model.tokenizer:
        findings.add("model.tokenizer", "has to be given with model.init: the vocabulary of the new model.")
    if model.init and model.train != "everything":
        findings.add("model.train", "is 'everything' where model.init makes fresh weights.")
    if model.tokenizer and model.train == "adapter":
        findings.add(
            "model.tokenizer",
            "changes the vocabulary, which needs model.train=everything, or parts with the decoder; an adapter takes "
            "model.adapter.vocabulary.",
        )
    if model.train == ():
        findings.add("model.train", "names no part; give adapter, everything, or parts such as [decoder].")
    _check_new_base(model, findings)
    kinds = model.adapter.kinds
    if model.adapter.adapter_type not in kinds:
        findings.add(
            "model.adapter.adapter_type",
            f"there is no section 'model.adapter.{model.adapter.adapter_type}'; there are {', '.join(sorted(kinds))}.",
        )


def _check_vocabulary(model: ModelSettings, findings: Findings) -> None:
    """Check the vocabulary that an adapter is to own."""
    own = model.adapter.vocabulary
    if own is None:
        return
    if (own.tokenizer is None) == (own.labels is None):
        given = "neither" if own.tokenizer is None else "both"
        findings.add("model.adapter.vocabulary", f"has {given} of tokenizer and labels; give one of the two.")
    if model.train != "adapter":
        findings.add("model.adapter.vocabulary", "is an adapter's; a base that is trained takes model.tokenizer.")


def _check_new_base(model: ModelSettings, findings: Findings) -> None:
    """Check the settings that help a base that is trained as a whole."""
    inner_losses = model.interctc or InterCtcSettings()
    inner, weights = inner_losses.apply_at_layers, inner_losses.loss_weights
    for key, given in (("interctc.apply_at_layers", bool(inner)), ("flat_start.steps", model.flat_start.steps > 0)):
        if given and model.train == "adapter":
            findings.add(f"model.{key}", "is for model.train=everything; leave it out for an adapter.")
    if len(inner) != len(weights):
        findings.add("model.interctc.loss_weights", f"{len(weights)} weights for {len(inner)} layers; give one each.")
    elif any(weight < 0 for weight in weights) or sum(weights) >= 1:
        findings.add("model.interctc.loss_weights", f"{list(weights)}: each is at least 0, and their sum less than 1.")


def _check_strategy(strategy: str | Mapping[str, Any] | None, findings: Findings) -> None:
    """Check for a name or a `_target_` of our list, and for options that DDP has."""
    path = "trainer.strategy"
    if strategy is None:
        return
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            near = did_you_mean(strategy, STRATEGIES)
            findings.add(path, f"unknown '{strategy}'.{near} Known are {', '.join(STRATEGIES)}.")
        return
    if strategy.get("_target_") not in DDP_TARGETS:
        findings.add(f"{path}._target_", f"unknown '{strategy.get('_target_')}'; known is {DDP_TARGETS[0]}.")
    for key in strategy:
        if key not in STRATEGY_OPTIONS:
            findings.add(f"{path}.{key}", f"unknown key.{did_you_mean(key, STRATEGY_OPTIONS)}")


def _check_limits(settings: Settings, findings: Findings) -> None:
    """Check the limits of time and of the batches that are used."""
    trainer = settings.trainer
    times = {
        "trainer.max_time": trainer.max_time,
        "exp_manager.max_time_per_run": settings.exp_manager.max_time_per_run,
    }
    for key, time in times.items():
        if isinstance(time, str) and not DURATION.fullmatch(time.strip()):
            findings.add(key, f"'{time}' is no duration; four hours are 00:04:00:00 (DD:HH:MM:SS).")
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        limit = getattr(trainer, name)
        if isinstance(limit, float) and limit > 1.0:
            findings.add(f"trainer.{name}", f"{limit} is no share; 1.0 is all, a whole number a number of batches.")


def _check_training(settings: Settings, findings: Findings) -> None:
    model, trainer = settings.model, settings.trainer
    if not model.train_ds.names_files:
        findings.add("model.train_ds.manifest_filepath", "has to be given: what to train on.")
    if model.train == "adapter" and not model.adapter.adapter_name:
        findings.add("model.adapter.adapter_name", "has to be given: the name of the new adapter.")
    _check_vocabulary(model, findings)
    if model.general_manifest and model.train != "adapter":
        findings.add("model.general_manifest", "is for an adapter, which leaves the base as it was to be measured.")
    _check_retention(model, findings)
    _check_refit(settings, findings)
    if trainer.max_steps < 1 and (trainer.max_epochs or -1) < 1:
        findings.add("trainer.max_steps", "has to be at least 1, or trainer.max_epochs, or training never ends.")
    if settings.exp_manager.create_early_stopping_callback:
        key = "exp_manager.early_stopping_callback_params.monitor"
        _check_monitor(key, settings.exp_manager.early_stopping_callback_params.monitor, findings)
        if not model.validation_ds.names_files:
            findings.add("exp_manager.create_early_stopping_callback", "needs model.validation_ds.manifest_filepath.")
        elif trainer.limit_val_batches == 0:
            findings.add("exp_manager.create_early_stopping_callback", "needs more than trainer.limit_val_batches=0.")
    monitor = settings.exp_manager.checkpoint_callback_params.monitor
    _check_monitor("exp_manager.checkpoint_callback_params.monitor", monitor, findings)
    for name in ("train_ds", "validation_ds"):
        dataset: DatasetSettings = getattr(model, name)
        listed = list_sources(dataset, findings, key=f"model.{name}")
        check_dataset(dataset, listed, findings, key=f"model.{name}", trains=name == "train_ds")


def _check_retention(model: ModelSettings, findings: Findings) -> None:
    retention = model.adapter.retention
    if retention is not None and not retention.manifest:
        findings.add("model.adapter.retention.manifest", "has to be given: manifests of general speech.")
    if retention is not None and model.train != "adapter":
        findings.add("model.adapter.retention", "is for an adapter; leave it out with model.train=everything.")


def _check_refit(settings: Settings, findings: Findings) -> None:
    model, key = settings.model, "model.refit"
    if not model.refit:
        return
    if model.train != "adapter":
        findings.add(key, "is for an adapter; leave it out where the base is trained.")
    elif model.refit == "words" and model.adapter.words in ("off", False):
        findings.add(key, "words need model.adapter.words=auto.")
    if model.adapter.retention is not None:
        findings.add(key, "model.adapter.retention chooses the strength of the adapter before it; leave one out.")
    if not model.validation_ds.names_files or settings.trainer.limit_val_batches == 0:
        findings.add(key, "needs validation data, model.validation_ds.manifest_filepath.")
    for name in ("train_ds", "validation_ds"):
        chosen: DatasetSettings = getattr(model, name)
        if chosen.names_files and not chosen.has_plain_manifests:
            findings.add(key, f"is for manifests of single recordings without weights; model.{name} has others.")


def _check_evaluation(settings: Settings, findings: Findings) -> None:
    """Check that an evaluation counts every line of its manifests, with weights that exist."""
    model, limit = settings.model, settings.trainer.limit_test_batches
    if not model.test_ds.names_files:
        findings.add("model.test_ds.manifest_filepath", "has to be given: what to evaluate.")
    if "model.adapter.adapter_name" in findings.missing:
        findings.add("model.adapter.adapter_name", "has to be given; null is the base.")
    for key in ("init", "tokenizer"):
        if getattr(model, key):
            findings.add(f"model.{key}", "is for training; leave it out, and name a model that has been trained.")
    list_sources(model.test_ds, findings, key="model.test_ds")
    selecting = {f"model.test_ds.{key}": getattr(model.test_ds, key) for key in SELECTING}
    for key, given in {**selecting, "trainer.limit_test_batches": isinstance(limit, int) or limit != 1}.items():
        if given:
            findings.add(key, "an evaluation counts every line as it stands; leave it out, or give another manifest.")


def _check_monitor(key: str, name: str, findings: Findings) -> None:
    if name not in MONITORS:
        findings.add(key, f"there is no '{name}'.{did_you_mean(name, MONITORS)} Known are {', '.join(MONITORS)}.")


def manifest_paths(dataset: DatasetSettings) -> tuple[str, ...]:
    """Return the manifests of a dataset, in order, whichever way they are written."""

    def flat(value: object) -> list[str]:
        if value is None:
            return []
        if isinstance(value, list | tuple):
            return [path for entry in value for path in flat(entry)]
        if os.path.exists(os.path.expanduser(str(value))):  # noqa: PTH110, PTH111 (Path raises for long lists)
            return [str(value)]
        return [path.strip() for path in str(value).split(",") if path.strip()]

    return tuple(flat(dataset.manifest_filepath))


def general_manifests(model: ModelSettings) -> tuple[str, ...]:
    """Return the manifests of general speech, in order, whichever way they are written."""
    return manifest_paths(DatasetSettings(manifest_filepath=model.general_manifest))


def split_name(name: str, modules: str | None) -> tuple[str, str]:
    """Split `decoder:medical`, which carries its modules in the name as NeMo writes them, into name and modules."""
    before, colon, after = name.rpartition(":")
    return (after, before or "encoder") if colon else (name, modules or "encoder")
