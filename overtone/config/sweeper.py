"""Settings of a search with a sampler: its keys `hydra.sweeper.…`, and the values that each setting may take.

Keys and words are those of Hydra's sweeper for Optuna, so far as they mean something here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from overtone.config.compose import MAX_RUNS, SAMPLED, file_search, find_file, parse, read_yaml
from overtone.config.fields import Findings, bounded, build, only, section
from overtone.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

SWEEPER = "hydra/sweeper"
PREFIX = "hydra.sweeper."
NAMED = ("sampler", "pruner")
"""Keys whose value may be a name alone."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """The choice of the next settings."""

    name: Literal["tpe", "random", "gp"] = "tpe"
    """Tree-structured Parzen estimators, chance alone, or a Gaussian process."""
    seed: int | None = bounded(0, at_least=0)
    """null: other settings every time."""
    n_startup_trials: int = bounded(10, at_least=0)
    """Trainings whose settings are chosen by chance, before the others tell anything."""


@dataclass(frozen=True, kw_only=True)
class PrunerSettings:
    """The end of a training that promises little, after one of its validations."""

    name: Literal["median", "halving", "hyperband", "none"] = "median"
    """median: worse than half of the others at the same step; halving, hyperband: the best half, third… goes on."""
    n_startup_trials: int = bounded(5, at_least=0)
    """Complete trainings before the median ends one."""
    n_warmup_steps: int = bounded(0, at_least=0)
    """Steps before the median ends a training."""


@dataclass(frozen=True, kw_only=True)
class SweeperSettings:
    """A search whose settings are drawn by a sampler."""

    n_trials: int = bounded(20, at_least=1, at_most=MAX_RUNS)
    """Trainings, pruned and failed ones included."""
    n_jobs: int = bounded(1, at_least=1)
    """Trainings at once; --jobs has the last word."""
    sampler: SamplerSettings = section(SamplerSettings)
    pruner: PrunerSettings = section(PrunerSettings)
    direction: Literal["minimize", "maximize"] | None = None
    """Without effect: a WER is made small, a score large."""
    study_name: str | None = None
    """Name of the study in its file; unset: search."""
    storage: str | None = only(None, instead="leave it out: the study lies in the folder of the search")
    max_failure_rate: float = bounded(0.0, at_least=0, at_most=1)
    """Without effect: a training that fails does not end the search."""


class Choices(NamedTuple):
    """A setting that takes one of several values."""

    key: str
    values: tuple[str, ...]
    """As they are written in an override."""


class Numbers(NamedTuple):
    """A setting that takes a number of an interval."""

    key: str
    low: float
    high: float
    step: float | None
    whole: bool
    """It takes whole numbers alone."""
    log: bool
    """The logarithm is what is spread evenly."""


Parameter = Choices | Numbers


@dataclass(frozen=True, kw_only=True)
class SampledSearch:
    """A search with a sampler: its settings, what it chooses, and the overrides of every training."""

    sweeper: SweeperSettings
    space: tuple[Parameter, ...]
    overrides: tuple[str, ...] = field(default=())


def read_search(
    overrides: Sequence[str], *, config_path: str | None = None, config_name: str = "asr_adaptation"
) -> SampledSearch | None:
    """Read the search that a command line and its file describe; None for one that counts up its values.

    Raises ConfigError for keys and values that make no sense, and where nothing is searched over.
    """
    words = parse(overrides)
    file = read_yaml(find_file(config_path, config_name))
    in_file, params = file_search(file)
    given = {word.key_or_group: word.value() for word in words if word.key_or_group.startswith("hydra")}
    keys = merge(in_file, given)
    if given.get(SWEEPER, sweeper_of(file)) != "optuna":
        for key in (key for key in keys if key in SAMPLED):
            raise ConfigError(f"{PREFIX}{key} is for a search with Optuna; give hydra/sweeper=optuna too.")
        return None
    findings = Findings()
    sweeper = build(SweeperSettings, keys, findings, path="hydra.sweeper")
    findings.raise_if_any()
    own = {word.key_or_group for word in words}
    words = [word for word in parse(params) if word.key_or_group not in own] + words
    space = tuple(read_parameter(word) for word in words if word.is_sweep_override())
    if not space:
        raise ConfigError(
            "hydra/sweeper=optuna: nothing is searched over. Give a setting several values, such as "
            "'model.optim.lr=tag(log, interval(0.0003, 0.01))' or model.adapter.linear.dim=8,16,32."
        )
    rest = [
        str(word.input_line)
        for word in words
        if not word.is_sweep_override() and not word.key_or_group.startswith("hydra")
    ]
    return SampledSearch(sweeper=sweeper, space=space, overrides=tuple(rest))


def sweeper_of(file: dict[Any, Any]) -> str | None:
    """The sweeper that the defaults of a file name."""
    for entry in file.get("defaults") or ():
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if str(key).split()[-1] == SWEEPER:
                return str(value)
    return None


def merge(in_file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The keys of the sweeper: those of the file, over them those of the command line; a name alone is a section."""
    keys = dict(in_file)
    for key, value in given.items():
        words = key.replace("/", ".").removeprefix(PREFIX).split(".")
        if not key.replace("/", ".").startswith(PREFIX) or words[0] == "params":
            continue
        node = keys
        for word in words[:-1]:
            before = node.get(word)
            node[word] = dict(before) if isinstance(before, dict) else {} if before is None else {"name": before}
            node = node[word]
        same = words[-1] in NAMED and isinstance(node.get(words[-1]), dict) and isinstance(value, str)
        node[words[-1]] = {**node[words[-1]], "name": value} if same else value
    for key in NAMED:
        if isinstance(keys.get(key), str):
            keys[key] = {"name": keys[key]}
    return keys


def read_parameter(word: Override) -> Parameter:
    """Read `1,2`, `choice(…)`, `range(…)`, `interval(…)`, `int(interval(…))`, each in `tag(log, …)` or not.

    A range ends before its last number, as in a search that counts up. Raises ConfigError.
    """
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    key, value = str(word.get_key_element()), word.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        return check_numbers(
            Numbers(key, float(value.start or 0), float(value.end or 0), None, whole, "log" in value.tags), word
        )
    try:
        values = tuple(word.sweep_string_iterator())
    except HydraException as error:
        raise ConfigError(f"'{word.input_line}' cannot be searched over: {error}.") from error
    if isinstance(value, RangeSweep) and not value.shuffle and values:
        whole, log = all(each.lstrip("-").isdigit() for each in values), "log" in value.tags
        if log and value.step != 1:
            raise ConfigError(f"'{word.input_line}': a range with the tag log goes in steps of 1; use an interval.")
        numbers = [float(each) for each in values]
        step = None if log else float(value.step or 1)
        return check_numbers(Numbers(key, min(numbers), max(numbers), step and abs(step), whole, log), word)
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"'{word.input_line}': give values that differ, at least one.")
    return Choices(key, values)


def check_numbers(found: Numbers, word: Override) -> Numbers:
    """Raises ConfigError for an interval without numbers in it, and for a logarithm of none."""
    if not found.low <= found.high:
        raise ConfigError(f"'{word.input_line}': the interval ends before it begins.")
    if found.log and not found.low > 0:
        raise ConfigError(f"'{word.input_line}': with the tag log an interval begins above 0.")
    return found


def corners(space: Sequence[Parameter]) -> list[dict[str, str]]:
    """Choices that together take every value of every list, and both ends of every interval."""
    ends = {parameter.key: values_to_check(parameter) for parameter in space}
    first = {key: values[0] for key, values in ends.items()}
    return [first, *({**first, key: value} for key, values in ends.items() for value in values[1:])]


def values_to_check(parameter: Parameter) -> tuple[str, ...]:
    """Return every value of a list, both ends of an interval."""
    if isinstance(parameter, Choices):
        return parameter.values
    return tuple(dict.fromkeys(write_number(end, whole=parameter.whole) for end in (parameter.low, parameter.high)))


def write_number(value: float, *, whole: bool) -> str:
    """A number as an override has it, so that reading gives the same one."""
    return str(int(value)) if whole else repr(float(value))
