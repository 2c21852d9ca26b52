"""Parts of a model, and the plain settings that build them.

A part's setting `kind` names its class where there are several; without it the first of its row is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from overtone.audio.features import LogMel
from overtone.errors import ConfigError
from overtone.nets.conformer import ConformerEncoder
from overtone.nets.ctc import CtcProjection
from overtone.nets.transducer import Joint, RecurrentPrediction, StatelessPrediction

Settings = Mapping[str, Mapping[str, Any]]
"""Plain keyword arguments of the parts that a model has, by part."""

PARTS: dict[str, dict[str, type[nn.Module]]] = {
    "preprocessor": {"log_mel": LogMel},
    "encoder": {"conformer": ConformerEncoder},
    "decoder": {"ctc": CtcProjection, "rnnt": RecurrentPrediction, "stateless": StatelessPrediction},
    "joint": {"joint": Joint},
    "ctc_decoder": {"ctc": CtcProjection},
}
"""Every part that a model may have, in order, and the classes of each by `kind`."""


def class_of(part: str, settings: Mapping[str, Any]) -> type[nn.Module]:
    """The class that a part's settings ask for. Raises ConfigError for an unknown kind."""
    kinds = PARTS[part]
    kind = settings.get("kind", next(iter(kinds)))
    if kind not in kinds:
        raise ConfigError(f"{part}.kind is {kind!r}. Allowed: {', '.join(kinds)}.")
    return kinds[kind]


def build_part(part: str, settings: Mapping[str, Any]) -> nn.Module:
    """A part with fresh weights. Raises ConfigError for settings that cannot be honoured."""
    arguments = {name: value for name, value in settings.items() if name != "kind"}
    return class_of(part, settings)(**arguments)


def complete(part: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a part with its defaults filled in. Raises ConfigError for an unknown kind."""
    parameters = inspect.signature(class_of(part, settings)).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {**defaults, **settings}


def parts_of(settings: Settings) -> list[str]:
    """The parts that a model with these settings has, in order."""
    return [part for part in PARTS if part in settings]
