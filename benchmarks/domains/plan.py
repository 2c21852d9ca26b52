"""What is the same for every method of the table, and what may differ: its settings and its learning rate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from overtone.config import ScheduleSettings
from overtone.errors import UsageError, did_you_mean

ADAPTER = "domain"
"""Every adapter of the table has this name."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all methods share."""

    steps: int = 250
    batch_size: int = 16
    """Utterances."""
    validations: int = 5
    """So many times the validation part is scored, evenly over the steps."""
    dim: int = 32
    """Bottleneck of the linear adapters, ours and NeMo's."""
    seed: int = 0
    threads: int = 2

    @property
    def validate_every(self) -> int:
        return max(1, self.steps // self.validations)

    def described(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to adapt a base."""

    title: str
    learning_rate: float = 0.0
    """Peak of the schedule, unless `--tune` chose another or `--rates` says so; 0 where nothing is trained."""
    grid: tuple[float, ...] = ()
    """What `--tune` tries."""
    overrides: tuple[str, ...] = ()
    """Settings of `overtone train` beside the shared ones."""


WORDS = "model.adapter.words=auto"
"""The adapter gets a word part, counted from the training transcripts, with weights chosen on the validation part."""
PRIOR, TEXT = "prior", "text"
"""The methods that need no recording: words alone, of general English or of the training transcripts."""

METHODS = {
    "linear": Method(
        title="linear adapter",
        learning_rate=0.003,
        grid=(0.001, 0.003, 0.01),
        overrides=("model.adapter.adapter_type=linear",),
    ),
    "tiny_attn": Method(
        title="`tiny_attn` adapter",
        learning_rate=0.01,
        grid=(0.003, 0.01, 0.03),
        overrides=("model.adapter.adapter_type=tiny_attn",),
    ),
    "lora": Method(
        title="LoRA",
        learning_rate=0.003,
        grid=(0.001, 0.003, 0.01),
        overrides=("model.adapter.adapter_type=lora",),
    ),
    "everything": Method(
        title="full fine-tuning",
        learning_rate=0.0003,
        grid=(0.0001, 0.0003, 0.001),
        overrides=("model.train=everything",),
    ),
    "linear_words": Method(
        title="linear adapter with words",
        learning_rate=0.003,
        overrides=("model.adapter.adapter_type=linear", WORDS),
    ),
    "lora_words": Method(
        title="LoRA with words", learning_rate=0.003, overrides=("model.adapter.adapter_type=lora", WORDS)
    ),
    TEXT: Method(title="words from the text alone"),
    PRIOR: Method(title="base with its general prior"),
    "nemo": Method(title="linear adapter by NeMo", learning_rate=0.003, grid=(0.001, 0.003, 0.01)),
}


def chosen_rates(given: list[str] | None, tuned: dict[str, float]) -> dict[str, float]:
    """Learning rate by method: what the command line says, else what was tuned, else the default.

    NeMo's adapter is the same as our linear one, and so are adapters with words as those without: where nothing is said
    of them, they have the same rate.
    """
    told = dict(tuned)
    for name, values in read_numbers(given, "--rates").items():
        if len(values) != 1:
            raise UsageError(f"--rates {name}: one rate is needed, not {len(values)}.")
        told[name] = values[0]
    rates = {name: method.learning_rate for name, method in METHODS.items()} | told
    as_alone = {f"{name}_words": told.get(f"{name}_words", rates[name]) for name in ("linear", "lora")}
    return rates | as_alone | {"nemo": told.get("nemo", rates["linear"])}


def chosen_grid(given: list[str] | None) -> dict[str, tuple[float, ...]]:
    return {name: method.grid for name, method in METHODS.items() if method.grid} | read_numbers(given, "--grid")


def read_numbers(given: list[str] | None, option: str) -> dict[str, tuple[float, ...]]:
    """`["linear=0.001,0.003"]` -> {"linear": (0.001, 0.003)}. Raises UsageError."""
    numbers = {}
    for text in given or []:
        name, equals, values = text.partition("=")
        if name not in METHODS:
            raise UsageError(
                f"{option}: unknown method '{name}'.{did_you_mean(name, METHODS)} Known are {', '.join(METHODS)}."
            )
        try:
            numbers[name] = tuple(float(value) for value in values.split(","))
        except ValueError as error:
            raise UsageError(f"{option} {text}: learning rates are needed, such as {name}=0.001.") from error
        if METHODS[name].learning_rate == 0:
            raise UsageError(f"{option}: '{name}' trains nothing, so that it has no learning rate.")
        if not equals or any(not value > ScheduleSettings().min_lr for value in numbers[name]):
            raise UsageError(f"{option} {text}: rates above {ScheduleSettings().min_lr:g} are needed.")
    return numbers
