"""Learning-rate schedules, by NeMo's names.

A schedule is a plain function from the number of finished steps to the learning rate of the next one, computed as in
NeMo (nemo/core/optim/lr_scheduler.py). Steps count from zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from overtone.config import OptimSettings
from overtone.errors import ConfigError, did_you_mean

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


def hold(course: Course, *, hold_steps: int | None = None, hold_ratio: float | None = None) -> Schedule:
    """A linear rise to the peak, which then holds."""
    return _held(course, _steps(hold_steps, hold_ratio, course.max_steps, "hold"), lambda _: course.peak)


def square_root_after_hold(
    course: Course, *, hold_steps: int | None = None, hold_ratio: float | None = None
) -> Schedule:
    """Rise, hold the peak, then fall by the root of what is done (Hägele et al. 2024)."""
    held = _steps(hold_steps, hold_ratio, course.max_steps, "hold")
    start = course.warmup + held if held else 0

    def falling(step: int) -> float:
        return max(course.min_lr, course.peak * (1 - math.sqrt(_share(step - start, course.max_steps - start))))

    return _held(course, held, falling)


def polynomial_after_hold(
    course: Course,
    *,
    hold_steps: int | None = None,
    hold_ratio: float | None = None,
    power: float = 1.0,
    cycle: bool = False,
) -> Schedule:
    """Rise, hold the peak, then fall with a power of what is left. cycle: without effect within the course."""
    held = _steps(hold_steps, hold_ratio, course.max_steps, "hold")
    start = course.warmup + held if held else 0

    def falling(step: int) -> float:
        left = 1 - _share(step - start, course.max_steps - max(course.warmup, start))
        return (course.peak - course.min_lr) * math.pow(left, power) + course.min_lr

    return _held(course, held, falling)


def inverse_square_root_of_t5(
    course: Course, *, constant_steps: int | None = None, constant_ratio: float | None = None
) -> Schedule:
    """Raffel et al. 2020: the inverse root of the step, whatever the learning rate says; constant at first.

    Raises ConfigError without constant steps.
    """
    first = _steps(constant_steps, constant_ratio, course.max_steps, "constant")
    if first < 1:
        raise ConfigError("model.optim.sched.constant_steps: has to be at least 1 with T5InverseSquareRootAnnealing.")

    def rate(step: int) -> float:
        return course.min_lr if step > max(course.max_steps, first) else 1 / math.sqrt(max(step, first))

    return rate


def stairs(course: Course, *, step_size: int | None = None, gamma: float = 0.1) -> Schedule:
    """PyTorch's StepLR: times gamma every so many steps. Raises ConfigError without their number."""
    if step_size is None:
        raise ConfigError("model.optim.sched.step_size: has to be given with StepLR, in steps.")
    width = step_size
    return lambda step: course.peak * gamma ** (step // width)


def cyclic(
    course: Course,
    *,
    base_lr: float | None = None,
    max_lr: float | None = None,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
) -> Schedule:
    """PyTorch's CyclicLR (Smith 2017): up and down between two rates, the upper one falling by the mode.

    Raises ConfigError without the two.
    """
    if base_lr is None or max_lr is None:
        raise ConfigError("model.optim.sched.base_lr, model.optim.sched.max_lr: have to be given with CyclicLR.")
    low, high, up = base_lr, max_lr, step_size_up
    length = up + (up if step_size_down is None else step_size_down)

    def rate(step: int) -> float:
        cycle, place = divmod(step, length)
        height = place / up if place <= up else (length - place) / (length - up)
        scale = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": gamma**step}[mode]
        return low + (high - low) * height * scale

    return rate


def polynomial(course: Course, *, power: float = 1.0, cycle: bool = False) -> Schedule:
    """Rise, then fall with a power of what is left. cycle: without effect within the course."""

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
    "PolynomialHoldDecayAnnealing": polynomial_after_hold,
    "WarmupHoldPolicy": hold,
    "WarmupHoldAnnealOneMinusSquareRoot": square_root_after_hold,
    "T5InverseSquareRootAnnealing": inverse_square_root_of_t5,
    "StepLR": stairs,
    "CyclicLR": cyclic,
    "constant": constant,
}
"""NeMo's names, and `constant`."""

OPTIONS = tuple(
    dict.fromkeys(name for schedule in SCHEDULES.values() for name in list(signature(schedule).parameters)[1:])
)
"""Keys that some schedule takes."""

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


def choose_schedule(settings: OptimSettings, *, max_steps: int, width: int) -> Schedule:
    """Make the schedule that the settings describe; without one the learning rate is constant.

    max_steps: length of the training. width: the model's, for NoamAnnealing. Raises ConfigError as `make_schedule`.
    """
    sched, rate = settings.sched, float(settings.lr)
    if sched is None:
        return make_schedule("constant", learning_rate=rate, max_steps=max_steps)
    given = {name: getattr(sched, name) for name in OPTIONS}
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
