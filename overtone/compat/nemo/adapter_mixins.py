"""Configurations of adapters, and of encoders with adapters, with NeMo's names, fields and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from overtone.checkpoints.nemo.config import ENCODERS
from overtone.config.targets import (
    ABSOLUTE_ATTENTION_TARGETS,
    ATTENTION_RESIDUAL_TARGETS,
    NEMO_LINEAR_TARGETS,
    RELATIVE_ATTENTION_TARGETS,
    RESIDUAL_TARGETS,
)
from overtone.errors import UsageError


@dataclass
class ResidualAddAdapterStrategyConfig:
    """The adapter's change is added to its input."""

    stochastic_depth: float = 0.0
    l2_lambda: float = 0.0
    _target_: str = RESIDUAL_TARGETS[0]


@dataclass
class MHAResidualAddAdapterStrategyConfig:
    """The same for attention adapters."""

    stochastic_depth: float = 0.0
    l2_lambda: float = 0.0
    _target_: str = ATTENTION_RESIDUAL_TARGETS[0]


@dataclass
class LinearAdapterConfig:
    """A linear adapter (Houlsby et al. 2019)."""

    in_features: int
    dim: int
    activation: str = "swish"
    norm_position: str = "pre"
    dropout: float = 0.0
    adapter_strategy: Any = field(default_factory=ResidualAddAdapterStrategyConfig)
    _target_: str = NEMO_LINEAR_TARGETS[0]


@dataclass
class MultiHeadAttentionAdapterConfig:
    """An attention adapter for models with absolute positions (Zhao et al. 2022)."""

    n_head: int
    n_feat: int
    dropout_rate: float = 0.0
    proj_dim: int | None = None
    adapter_strategy: Any = field(default_factory=MHAResidualAddAdapterStrategyConfig)
    use_pytorch_sdpa: bool = False
    use_pytorch_sdpa_backends: list[Any] | None = None
    _target_: str = ABSOLUTE_ATTENTION_TARGETS[0]


@dataclass
class RelPositionMultiHeadAttentionAdapterConfig:
    """An attention adapter for models with relative positions."""

    n_head: int
    n_feat: int
    dropout_rate: float = 0.0
    proj_dim: int | None = None
    adapter_strategy: Any = field(default_factory=MHAResidualAddAdapterStrategyConfig)
    use_pytorch_sdpa: bool = False
    use_pytorch_sdpa_backends: list[Any] | None = None
    _target_: str = RELATIVE_ATTENTION_TARGETS[0]


@dataclass(frozen=True)
class AdapterRegistryInfo:
    """NeMo's classes of one encoder, by their import paths."""

    base_class_path: str
    """The encoder without adapters."""
    adapter_class_path: str
    """The encoder with adapters."""


def get_registered_adapter(target: str) -> AdapterRegistryInfo | None:
    """The classes of an encoder by the `_target_` of its configuration; None for one without adapters in NeMo."""
    for known in ENCODERS.values():
        if target in known.classes:
            return AdapterRegistryInfo(base_class_path=known.classes[0], adapter_class_path=known.adaptable)
    return None


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration as plain data: a dataclass of this module, a DictConfig or a mapping.

    Raises UsageError for anything else.
    """
    from omegaconf import DictConfig, OmegaConf

    if isinstance(config, DictConfig):
        content = OmegaConf.to_container(config, resolve=True)
        assert isinstance(content, dict)
        return {str(key): value for key, value in content.items()}
    if is_dataclass(config) and not isinstance(config, type):
        values = {item.name: getattr(config, item.name) for item in fields(config)}
    elif isinstance(config, dict):
        values = dict(config)
    else:
        raise UsageError(
            f"{config!r} is no configuration. Allowed: a dataclass such as LinearAdapterConfig, a DictConfig, a dict."
        )
    return {
        str(key): plain_config(value) if is_dataclass(value) or isinstance(value, dict | DictConfig) else value
        for key, value in values.items()
    }
