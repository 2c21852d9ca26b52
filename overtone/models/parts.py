"""Parts of a model, and the plain settings that build them.

A part's setting `kind` names its class where there are several; without it the first of its row is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from overtone.audio.features import LogMel
from overtone.errors import ConfigError
from overtone.nets.conformer import ConformerEncoder
from overtone.nets.ctc import CtcProjection
from overtone.nets.jasper import JasperBlock, JasperEncoder
from overtone.nets.prompt import PromptKernel
from overtone.nets.transducer import Joint, RecurrentPrediction, StatelessPrediction
from overtone.nets.transformer import TransformerDecoder, TransformerEncoder

Settings = Mapping[str, Mapping[str, Any]]
"""Plain keyword arguments of the parts that a model has, by part."""

PARTS: dict[str, dict[str, type[nn.Module]]] = {
    "preprocessor": {"log_mel": LogMel},
    "encoder": {"conformer": ConformerEncoder, "jasper": JasperEncoder},
    "decoder": {"ctc": CtcProjection, "rnnt": RecurrentPrediction, "stateless": StatelessPrediction},
    "joint": {"joint": Joint},
    "ctc_decoder": {"ctc": CtcProjection},
    "prompt_kernel": {"prompt": PromptKernel},
    "transf_encoder": {"transformer": TransformerEncoder},
    "transf_decoder": {"transformer": TransformerDecoder},
}
"""Every part that a model may have, in order, and the classes of each by `kind`."""
NESTED: dict[str, type[nn.Module]] = {"blocks": JasperBlock}
"""Settings that are lists of keyword arguments of a class of their own."""


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


class UnsetWeights(TorchFunctionMode):
    """While it is entered, new nets draw no random weights: their memory is untouched until values are loaded."""

    DRAWING = frozenset(("uniform_", "normal_", "kaiming_uniform_"))
    """The functions by which the nets here, and those of torch that they are made of, draw."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def complete(part: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a part with its defaults filled in. Raises ConfigError for an unknown kind."""
    full = {**defaults_of(class_of(part, settings)), **settings}
    for name in NESTED.keys() & full.keys():
        defaults = {
            key: value for key, value in defaults_of(NESTED[name]).items() if value is not inspect.Parameter.empty
        }
        full[name] = [{**defaults, **each} for each in full[name]]
    return full


def defaults_of(part: type[nn.Module]) -> dict[str, Any]:
    """The arguments of a class with their defaults; `inspect.Parameter.empty` for those that have none."""
    return {name: parameter.default for name, parameter in inspect.signature(part).parameters.items()}


def parts_of(settings: Settings) -> list[str]:
    """The parts that a model with these settings has, in order."""
    return [part for part in PARTS if part in settings]
