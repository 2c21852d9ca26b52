"""Optimisers, by NeMo's names, and the learning rate where the settings leave it open."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from overtone.config import OptimSettings
from overtone.errors import ConfigError
from overtone.training.optim.adafactor import Adafactor
from overtone.training.optim.adan import BETAS, Adan
from overtone.training.optim.novograd import Novograd

USUAL_RATE = 0.001
"""NeMo's learning rate for adapters, and for fresh weights."""
FINE_TUNING_RATE = 0.0003
"""The rate for every weight of a trained model."""
EVERYTHING = "everything"
SHORT_RATES = {"linear": 0.003, "lora": 0.003, "tiny_attn": 0.01}
"""The best rates of short trainings on small models, by the kind of adapter."""
SHORT = 1000
"""Steps up to which a training is short; the rates of longer ones fall with the square root of their steps."""
NARROW = 256
"""Width of the layers up to which a model is small; with wider ones the rates fall likewise."""

# Optimisers

OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "sgd": torch.optim.SGD,
    "novograd": Novograd,
    "adafactor": Adafactor,
    "adan": Adan,
    "fused_adam": torch.optim.AdamW,
}
"""NeMo's names. Its fused_adam, of Apex, computes AdamW."""
OWN_OPTIONS = {
    "adamw": ("amsgrad",),
    "adam": ("amsgrad",),
    "adadelta": ("rho",),
    "adagrad": ("lr_decay", "initial_accumulator_value"),
    "rmsprop": ("alpha", "centered"),
    "rprop": ("etas", "step_sizes"),
    "sgd": ("dampening",),
    "adafactor": ("beta1", "clip_threshold", "decay_rate", "scale_parameter"),
    "adan": ("max_grad_norm", "no_prox"),
}
"""Settings that some optimisers have and others have not."""
WITHOUT_BETAS = ("adadelta", "adagrad", "rprop", "adafactor")
WITHOUT_EPS = ("sgd", "rprop")
MOMENTUM_OPTIMISERS = ("sgd", "rmsprop")
FUSED_OPTIMISERS = ("adamw", "adam", "fused_adam")
"""With a single call for all parameters; Lightning clips no gradients of these beside mixed precision."""


def make_optimiser(
    settings: OptimSettings, parameters: list[torch.nn.Parameter], *, fused: bool
) -> torch.optim.Optimizer:
    """Make the optimiser by its NeMo name.

    fused: updates all parameters in a single call where the optimiser can. Raises ConfigError for values that the
    optimiser refuses.
    """
    options: dict[str, Any] = {"lr": float(settings.lr), "weight_decay": settings.weight_decay}
    if settings.name in MOMENTUM_OPTIMISERS:
        options["momentum"] = settings.momentum or 0.0
        if settings.name == "sgd":
            options["nesterov"] = bool(settings.nesterov)
    elif settings.name not in WITHOUT_BETAS:
        options["betas"] = tuple(settings.betas)
    if settings.name == "adan" and settings.betas == OptimSettings().betas:
        options["betas"] = BETAS
    if settings.name == "rprop" and options.pop("weight_decay"):
        raise ConfigError("model.optim.weight_decay: rprop has none; leave it out, or choose another optimiser.")
    if settings.name == "novograd":
        options["grad_averaging"] = settings.grad_averaging
    options |= own_options(settings)
    if fused and settings.name in FUSED_OPTIMISERS:
        options["fused"] = True
    if settings.eps is not None and settings.name not in WITHOUT_EPS:
        options["eps"] = settings.eps
    try:
        optimiser = OPTIMISERS[settings.name](parameters, **options)
    except (TypeError, ValueError) as error:  # PyTorch's answer to values that do not fit
        raise ConfigError(f"model.optim: {error}") from error
    # A fused step writes without a trace, and what is derived from the parameters would stay as it was.
    optimiser.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(parameters))
    return optimiser


def own_options(settings: OptimSettings) -> dict[str, Any]:
    """The settings that this optimiser has and others have not. Raises ConfigError for one that it has not."""
    taken = OWN_OPTIONS.get(settings.name, ())
    every = dict.fromkeys(name for names in OWN_OPTIONS.values() for name in names)
    given = {name: value for name in every if (value := getattr(settings, name)) is not None}
    for name in given:
        if name not in taken:
            owners = ", ".join(owner for owner, names in OWN_OPTIONS.items() if name in names)
            raise ConfigError(f"model.optim.{name}: {settings.name} does not take it; it is for {owners}.")
    return given


def with_rate(settings: OptimSettings, *, kind: str, steps: int, width: int) -> OptimSettings:
    """The settings with a learning rate in place of `auto`: by what is trained, for how long, and the width.

    kind: of the adapter, or `everything`. Raises ConfigError where the schedule takes a factor instead of a rate.
    """
    if settings.lr != "auto":
        return settings
    if settings.sched is not None and settings.sched.name == "NoamAnnealing":
        raise ConfigError("model.optim.lr: NoamAnnealing takes a factor, not a rate; give it, such as 1.0.")
    if kind not in SHORT_RATES:
        return replace(settings, lr=FINE_TUNING_RATE if kind == EVERYTHING else USUAL_RATE)
    rate = SHORT_RATES[kind] * min(1.0, math.sqrt(SHORT / steps)) * min(1.0, math.sqrt(NARROW / width))
    return replace(settings, lr=round(max(rate, USUAL_RATE), 5))
