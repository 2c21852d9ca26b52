"""Parts of a base that are trained: `decoder`, `encoder.layers.12-`; everything else stays frozen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from overtone.errors import ConfigError, did_you_mean
from overtone.models.asr_model import AsrModel

KEY = "model.train"
RANGE = re.compile(r"(?P<above>.+)\.(?P<first>\d+)(?P<dash>-)(?P<last>\d*)")
"""Numbered modules, such as `encoder.layers.12-` (to the last) and `encoder.layers.0-3`."""
NUMBERED = re.compile(r"(?P<above>.+)\.(?P<number>\d+)")


def train_parts(model: AsrModel, parts: Sequence[str], *, base_dropout: bool) -> None:
    """Make parts of the base trainable, or all of it where none is named, and enter training mode.

    Batch norms of what is frozen keep their statistics. Raises ConfigError for a part that the base does not have.
    """
    chosen = {id(parameter) for part in parts for parameter in parameters_of(model, part)}
    model.train_base(base_dropout=base_dropout)
    if parts:
        for parameter in model.base_parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        model.train()


def parameters_of(model: AsrModel, part: str) -> list[nn.Parameter]:
    """The parameters that a part means. Raises ConfigError where the base has none of that name."""
    names = set(module_names(model, part))
    found = [own for name in model.parts for own in named_below(name, getattr(model, name), names)]
    if not found:
        allowed = part_names(model)
        raise ConfigError(
            f"{KEY}: the base has no part '{part}' with parameters.{did_you_mean(part, allowed)} It has "
            f"{', '.join(allowed)}, and the modules inside of these; or give everything."
        )
    return found


def named_below(name: str, net: nn.Module, wanted: set[str]) -> Iterator[nn.Parameter]:
    """The parameters of a part of the model whose name begins with one of those that are wanted."""
    for key, parameter in net.named_parameters():
        whole = f"{name}.{key}"
        if any(whole == each or whole.startswith(f"{each}.") for each in wanted):
            yield parameter


def module_names(model: AsrModel, part: str) -> Iterator[str]:
    """The names of the modules that a part means: itself, or a range of numbered ones. Raises ConfigError."""
    several = RANGE.fullmatch(part)
    if several is None:
        yield part
        return
    above, count = several["above"], numbered(model).get(several["above"], 0)
    first, last = int(several["first"]), int(several["last"] or max(count - 1, 0))
    if not first <= last < count:
        raise ConfigError(f"{KEY}: '{part}' asks for numbers that are not there: {above} has 0 … {count - 1}.")
    yield from (f"{above}.{number}" for number in range(first, last + 1))


def numbered(model: AsrModel) -> dict[str, int]:
    """Lists of numbered modules of the base by name, with their lengths."""
    found: dict[str, int] = {}
    for name, _ in model.named_modules():
        match = NUMBERED.fullmatch(name)
        if match is not None and not name.startswith("adapters."):
            found[match["above"]] = max(found.get(match["above"], 0), int(match["number"]) + 1)
    return found


def part_names(model: AsrModel) -> list[str]:
    """The parts of the base that have parameters, and the range of the encoder's layers."""
    lists = {name: count for name, count in numbered(model).items() if name in ("encoder.layers", "encoder.encoder")}
    own = [part for part in model.parts if any(True for _ in getattr(model, part).parameters())]
    return [*own, *(f"{name}.0-{count - 1}" for name, count in lists.items())]
