"""Sections of NeMo's configurations as checked settings, and what a model lets be overridden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from overtone.compat.nemo.adapter_mixins import plain_config
from overtone.config import DatasetSettings, OptimSettings, SpecAugmentSettings, to_plain
from overtone.config.fields import Findings, build
from overtone.config.settings import Settings
from overtone.errors import ConfigError

T = TypeVar("T")

LIVE_SECTIONS = ("train_ds", "validation_ds", "test_ds", "optim", "spec_augment")
"""Sections that a script changes before it trains; the parts of the net are what the weights are for."""
OPEN_KEYS = {"target", "nemo_version", "adapters", "decoding", *LIVE_SECTIONS}
"""Keys of a configuration that may differ from the checkpoint's."""


def read_settings(kind: type[T], section: Any, path: str) -> T:
    """Checked settings of a section: a DictConfig, mapping or dataclass. Raises ConfigError with all mistakes."""
    try:
        plain = plain_config(section)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error}") from error
    if kind is DatasetSettings:
        plain.pop("labels", None)  # of the model, which has its own
        plain.pop("use_start_end_token", None)
    findings = Findings()
    found = build(kind, plain, findings, path=path)
    findings.raise_if_any()
    return found


def live_config(config: Mapping[str, Any]) -> DictConfig:
    """A checkpoint's configuration for scripts to change, with every section that they expect."""
    usual = Settings().model
    sections = {
        "train_ds": to_plain(usual.train_ds),
        "validation_ds": to_plain(usual.validation_ds),
        "test_ds": to_plain(usual.test_ds),
        "optim": to_plain(usual.optim),
        "spec_augment": to_plain(usual.spec_augment),
    }
    own = {key: value for key, value in config.items() if value is not None}
    for key, usually in sections.items():
        if isinstance(own.get(key), Mapping):
            own[key] = {**usually, **own[key]}
    live = OmegaConf.create({**sections, **own})
    assert isinstance(live, DictConfig)
    return live


def check_override(config: Mapping[str, Any], override: DictConfig | str | Path) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration that takes a checkpoint's place, and the choice of attention in it, as `load_model` takes it.

    Raises ConfigError for another net than the checkpoint's, by key.
    """
    given = override if isinstance(override, DictConfig) else OmegaConf.load(override)
    assert isinstance(given, DictConfig)
    own, new = plain_config(live_config(config)), plain_config(given)
    attention: dict[str, Any] = {}
    for path, before, now in differences(own, new):
        match path:
            case ["encoder", "self_attention_model"]:
                attention["attention"] = now
            case ["encoder", "att_context_size"]:
                attention["att_context_size"] = now
            case [*_, "_target_"] | ["encoder", "_target_"]:
                continue
            case [first, *_] if first in OPEN_KEYS:
                continue
            case _:
                raise ConfigError(
                    f"override_config_path: {'.'.join(path)} is {now!r}, the checkpoint's is {before!r}. Its weights "
                    f"are for the latter; allowed are changes of {', '.join(sorted(OPEN_KEYS))} and of the attention."
                )
    return given, attention


def differences(before: Any, now: Any, path: Sequence[str] = ()) -> list[tuple[list[str], Any, Any]]:
    """Path, old and new value of everything that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [found for key in keys for found in differences(before.get(key), now.get(key), [*path, str(key)])]
    return [] if before == now else [(list(path), before, now)]


def optimiser_settings(section: Any) -> OptimSettings:
    """The optimiser of a section `optim`. Raises ConfigError."""
    return read_settings(OptimSettings, section, "model.optim")


def mask_settings(section: Any) -> SpecAugmentSettings:
    """The masks of a section `spec_augment`. Raises ConfigError."""
    return read_settings(SpecAugmentSettings, section, "model.spec_augment")
