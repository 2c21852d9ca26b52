"""Optimisers and learning-rate schedules, by NeMo's names.

A schedule is a plain function from the number of finished steps to the learning rate of the next one, computed as in
NeMo (nemo/core/optim/lr_scheduler.py). Steps count from zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch

from overtone.config import OptimSettings
from overtone.errors import ConfigError, did_you_mean
from overtone.training.novograd import Novograd

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
}
WITHOUT_BETAS = ("adadelta", "adagrad", "rprop")
WITHOUT_EPS = ("sgd", "rprop")
MOMENTUM_OPTIMISERS = ("sgd", "rmsprop")
FUSED_OPTIMISERS = ("adamw", "adam")
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
    if settings.name == "rprop" and options.pop("weight_decay"):
        raise ConfigError("model.optim.weight_decay: rprop has none; leave it out, or choose another optimiser.")
    if settings.name == "novograd":
        options["grad_averaging"] = settings.grad_averaging
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


# Schedules

Schedule = Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Course:
    """Settings that all schedules share."""

    peak: float
    """The optimiser's learning rate."""
    max_steps: int
    """Steps of the whole training."""
    warmup: int
    """Steps of rising rate."""
    min_lr: float
    """The rate never falls below it."""

    def warmup_rate(self, step: int) -> float:
        return self.peak * (step + 1) / (self.warmup + 1)

    def is_warming(self, step: int) -> bool:
        return self.warmup > 0 and step <= self.warmup

    def after_warmup(self, step: int, value: Schedule) -> float:
        """Linear rise, then `value(step)`, then the smallest rate once the course is over."""
        if self.is_warming(step):
            return self.warmup_rate(step)
        return self.min_lr if step > self.max_steps else value(step)


def constant(course: Course) -> Schedule:
    """A linear rise to the peak, which then holds."""
    return lambda step: course.after_warmup(step, lambda _: course.peak)


def cosine(course: Course, *, constant_steps: int | None = None, constant_ratio: float | None = None) -> Schedule:
    """Half a cosine down to `min_lr`, on which it stays for the last `constant_steps`."""
    tail = _steps(constant_steps, constant_ratio, course.max_steps, "constant")
    if tail > 0:
        return lambda step: _cosine_with_tail(course, course.max_steps - course.warmup - tail, step)

    def annealed(step: int) -> float:
        share = _share(step - course.warmup, course.max_steps - course.warmup)
        return (course.peak - course.min_lr) * 0.5 * (1 + math.cos(math.pi * share)) + course.min_lr

    return lambda step: course.after_warmup(step, annealed)


def _cosine_with_tail(course: Course, decay: int, step: int) -> float:
    """The variant with a constant end also rises from zero."""
    if course.is_warming(step):
        return course.peak * step / course.warmup
    if step > course.warmup + decay:
        return course.min_lr
    share = _share(step - course.warmup, decay)
    return course.min_lr + 0.5 * (math.cos(math.pi * share) + 1) * (course.peak - course.min_lr)


def noam(course: Course, *, d_model: int | None = None) -> Schedule:
    """Vaswani et al. 2017: the rate is a factor, scaled by the model's width and the root of the step.

    Raises ConfigError without a width.
    """
    if d_model is None:
        raise ConfigError("model.optim.sched.d_model: has to be given with NoamAnnealing: the model's width.")
    scale = 1 / math.sqrt(d_model)

    def rate(step: int) -> float:
        step = max(1, step)
        rising = step * math.pow(course.warmup, -1.5) if course.warmup > 0 else math.inf
        value = course.peak * (scale * min(math.pow(step, -0.5), rising))
        return max(value, course.min_lr) if step > course.warmup else value

    return rate


def noam_hold(
    course: Course,
    *,
    hold_steps: int | None = None,
    hold_ratio: float | None = None,
    decay_rate: float = 0.5,
) -> Schedule:
    """Squeezeformer (Kim et al. 2022): rise, hold the peak, then fall with a power of the step.

    Raises ConfigError without steps of warmup.
    """
    if course.warmup == 0:
        raise ConfigError("model.optim.sched.warmup_steps: has to be at least 1 with NoamHoldAnnealing.")
    hold = _steps(hold_steps, hold_ratio, course.max_steps, "hold")

    def falling(step: int) -> float:
        start = max(1.0, math.pow(course.warmup, decay_rate))
        return max(course.peak * start / max(1.0, math.pow(step - hold, decay_rate)), course.min_lr)

    return _held(course, hold, falling)


def linear(course: Course) -> Schedule:
    """Rise, then a straight line down to `min_lr`."""

    def falling(step: int) -> float:
        share = _share(step - course.warmup, course.max_steps - course.warmup)
        return course.min_lr + (1 - share) * (course.peak - course.min_lr)

    return lambda step: course.after_warmup(step, falling)


def linear_after_hold(course: Course, *, hold_steps: int | None = None, hold_ratio: float | None = None) -> Schedule:
    """Rise, hold the peak, then a straight line down to `min_lr` (Hägele et al. 2024 compare such courses)."""
    hold = _steps(hold_steps, hold_ratio, course.max_steps, "hold")
    start = course.warmup + hold if hold else 0

    def falling(step: int) -> float:
        return course.peak - (course.peak - course.min_lr) * _share(step - start, course.max_steps - start)

    return _held(course, hold, falling)


def square(course: Course) -> Schedule:
    """Rise, then fall with the square of what is left."""

    def falling(step: int) -> float:
        left = 1 - _share(step - course.warmup, course.max_steps - course.warmup)
        return max(course.peak * left**2, course.min_lr)

    return lambda step: course.after_warmup(step, falling)


def square_root(course: Course) -> Schedule:
    """Rise, then fall with the root of what is left."""

    def falling(step: int) -> float:
        return max(course.peak * math.sqrt(1 - _share(step, course.max_steps)), course.min_lr)

    return lambda step: course.after_warmup(step, falling)


def inverse_square_root(course: Course) -> Schedule:
    """Rise, then fall with the root of the step."""

    def falling(step: int) -> float:
        return course.peak / math.sqrt((step + 1) / (course.warmup + 1))

    return lambda step: course.after_warmup(step, falling)


def polynomial(course: Course, *, power: float = 1.0) -> Schedule:
    """Rise, then fall with a power of what is left."""

    def falling(step: int) -> float:
        left = 1 - _share(step - course.warmup, course.max_steps - course.warmup)
        return (course.peak - course.min_lr) * math.pow(left, power) + course.min_lr

    return lambda step: course.after_warmup(step, falling)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "CosineAnnealing": cosine,
    "NoamAnnealing": noam,
    "NoamHoldAnnealing": noam_hold,
    "WarmupAnnealing": linear,
    "WarmupPolicy": constant,
    "WarmupHoldAnnealLinear": linear_after_hold,
    "SquareAnnealing": square,
    "SquareRootAnnealing": square_root,
    "InverseSquareRootAnnealing": inverse_square_root,
    "PolynomialDecayAnnealing": polynomial,
    "constant": constant,
}
"""NeMo's names, and `constant`."""

_MIN_LR: dict[str, float] = {"SquareAnnealing": 1e-5}
"""Smallest rates where the settings give none; otherwise zero."""


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    max_steps: int,
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    min_lr: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Schedule:
    """Make the learning rate as a function of the finished steps.

    `warmup_steps` wins over `warmup_ratio`, a share of `max_steps`. Options that are None count as not given.
    Raises ConfigError for an unknown name, an option that the schedule does not take, and limits that contradict.
    """
    if name not in SCHEDULES:
        raise ConfigError(
            f"model.optim.sched.name: unknown schedule '{name}'.{did_you_mean(name, SCHEDULES)} "
            f"Known are {', '.join(SCHEDULES)}."
        )
    given = {key: value for key, value in (options or {}).items() if value is not None}
    taken = set(signature(SCHEDULES[name]).parameters) - {"course"}
    for key in sorted(set(given) - taken):
        raise ConfigError(
            f"model.optim.sched.{key}: {name} does not take it.{did_you_mean(key, taken)} "
            f"It takes {', '.join(sorted({'warmup_steps', 'warmup_ratio', 'min_lr'} | taken))}."
        )
    smallest = _MIN_LR.get(name, 0.0) if min_lr is None else min_lr
    if learning_rate < smallest:
        raise ConfigError(
            f"model.optim.sched.min_lr: {smallest} is larger than the learning rate, {learning_rate}; lower it."
        )
    course = Course(
        peak=learning_rate,
        max_steps=max_steps,
        warmup=_steps(warmup_steps, warmup_ratio, max_steps, "warmup"),
        min_lr=smallest,
    )
    return SCHEDULES[name](course, **given)


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


def choose_schedule(settings: OptimSettings, *, max_steps: int, width: int) -> Schedule:
    """Make the schedule that the settings describe; without one the learning rate is constant.

    max_steps: length of the training. width: the model's, for NoamAnnealing. Raises ConfigError as `make_schedule`.
    """
    sched, rate = settings.sched, float(settings.lr)
    if sched is None:
        return make_schedule("constant", learning_rate=rate, max_steps=max_steps)
    options = ("constant_steps", "constant_ratio", "hold_steps", "hold_ratio", "decay_rate", "power", "d_model")
    given = {name: getattr(sched, name) for name in options}
    if sched.name == "NoamAnnealing" and sched.d_model is None:
        given["d_model"] = width
    return make_schedule(
        sched.name,
        learning_rate=rate,
        max_steps=sched.max_steps if sched.max_steps and sched.max_steps > 0 else max_steps,
        warmup_steps=sched.warmup_steps,
        warmup_ratio=sched.warmup_ratio,
        min_lr=min(sched.min_lr, rate),
        options=given,
    )


def _steps(steps: int | None, ratio: float | None, max_steps: int, name: str) -> int:
    """Return a number of steps, given as such or as a share of all. Raises ConfigError for more than all."""
    count = steps if steps is not None else int(ratio * max_steps) if ratio is not None else 0
    if count > max_steps and name != "warmup":
        raise ConfigError(f"model.optim.sched.{name}_steps: {count} is more than the {max_steps} steps in all.")
    return count


def _share(done: int, whole: int) -> float:
    """Return the part of a stretch of steps that is done, from 0 to 1."""
    return min(1.0, max(0.0, done / whole)) if whole > 0 else 1.0


def _held(course: Course, hold: int, falling: Schedule) -> Schedule:
    """Rise, hold the peak for so many steps, then `falling(step)`."""

    def rate(step: int) -> float:
        if course.is_warming(step):
            return course.warmup_rate(step)
        if hold and step < course.warmup + hold:
            return course.peak
        return course.min_lr if step > course.max_steps else falling(step)

    return rate
