"""Points: the taps of a model by name, and the words that choose among them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from overtone.errors import AdapterError, did_you_mean
from overtone.nets.taps import Place, Position, Tap

MODULES = ("encoder", "transf_encoder", "decoder", "transf_decoder", "joint", "ctc_decoder")
LAYER = re.compile(r"^encoder\.(?:layers|encoder)\.(\d+)\.")

Layers = str | int | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One tap of a model."""

    name: str
    """The qualified name of the tap, such as `encoder.layers.3.after_block`."""
    module: str
    """One of MODULES."""
    place: Place
    """`after_block`, `after_attention`, `linear` (around a Linear) or `input` (of a head)."""
    layer: int | None
    """The number of the layer it belongs to, None outside the layers."""
    in_width: int
    out_width: int
    attention: Position | None
    """The positions that the attention before it uses, None elsewhere."""


def collect_points(model: nn.Module) -> dict[str, tuple[Point, Tap]]:
    """Every tap of the model in the order of its modules, by name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Tap):
            layer = LAYER.match(name)
            point = Point(
                name=name,
                module=name.split(".")[0],
                place=module.place,
                layer=int(layer[1]) if layer else None,
                in_width=module.in_width,
                out_width=module.out_width,
                attention=module.attention,
            )
            found[name] = (point, module)
    return found


def parse_modules(modules: str, present: Iterable[str]) -> tuple[str, ...]:
    """`encoder`, `decoder`, `joint` or several with `+` between -> their names; an empty string is the encoder.

    present: the modules of the model that have points. Raises AdapterError for others.
    """
    names = tuple(modules.split("+")) if modules else ("encoder",)
    allowed = [name for name in MODULES if name in set(present)]
    for name in names:
        if name not in allowed:
            raise AdapterError(
                f"'{name}' in '{modules}' is no module of this model that takes adapters."
                f"{did_you_mean(name, allowed)} Allowed: {', '.join(allowed)}, or several joined by '+'."
            )
    if len(set(names)) != len(names):
        raise AdapterError(f"'{modules}' names a module twice; name each once.")
    return names


def parse_layers(layers: Layers, count: int) -> frozenset[int]:
    """The numbers meant by `all`, `last:8`, `first:2`, `3`, `0,3,5` or a list, among `count` layers.

    Raises AdapterError for other words, and for layers that do not exist.
    """
    try:
        chosen = layer_numbers(layers, count)
    except (TypeError, ValueError) as error:
        raise AdapterError(
            f"layers={layers!r} is not understood. Allowed: all, last:N, first:N, or numbers such as [0,3,5]."
        ) from error
    wrong = [number for number in chosen if not 0 <= number < count]
    if wrong or not chosen:
        raise AdapterError(f"layers={layers!r} asks for layers that do not exist: the model has 0 … {count - 1}.")
    return frozenset(chosen)


def layer_numbers(layers: Layers, count: int) -> list[int]:
    """The numbers, not yet held against the count of layers. Raises TypeError or ValueError for other words."""
    if not isinstance(layers, str):
        numbers = [layers] if isinstance(layers, int) else list(layers)
        if any(isinstance(number, bool | float) for number in numbers):
            raise ValueError("no whole numbers")
        return [int(number) for number in numbers]
    if layers == "all":
        return list(range(count))
    if layers.startswith("last:"):
        return list(range(max(count - int(layers.removeprefix("last:")), -1), count))
    if layers.startswith("first:"):
        return list(range(min(int(layers.removeprefix("first:")), count + 1)))
    return [int(number) for number in layers.strip("[] ").split(",")]
