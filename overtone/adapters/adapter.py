"""One adapter: a kind at named points, and what is known about it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from overtone.adapters.kinds.kinds import Kind, Tensors
from overtone.adapters.point_adapter import PointAdapter, parameter_shapes, stack_rows, unstacked
from overtone.adapters.points import Layers, Point, parse_layers, parse_modules
from overtone.adapters.strategies import ResidualAdd
from overtone.errors import AdapterError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RESERVED = ("base", "none", "null")


class Adapter(nn.Module):
    """The parameters of one adapter at all its points."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        points: list[Point],
        *,
        modules: str,
        layers: Layers,
        strategy: ResidualAdd,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        """values: by the names of `tensors()`, parameters to be taken over by a sealed adapter; unless given they are
        fresh. Raises AdapterError where one is missing, left over or of another shape."""
        super().__init__()
        self.name = name
        self.kind = kind
        self.modules_text = modules
        self.layers = layers
        self.strategy = strategy
        self.card: dict[str, Any] = {}
        """What the adapter was trained on and what it reached."""
        self.nemo: dict[str, Any] | None = None
        """Its configuration as NeMo wrote it, kept for writing back."""
        self.sealed = False
        """Whether its parameters stay as they are for good."""
        self.packs: dict[tuple[torch.dtype, torch.device], Tensors | None] = {}
        """What `pack` gave."""
        if values is None:
            self.by_point = {point.name: PointAdapter(kind, point) for point in points}
        else:
            self.by_point = self.taken_over(points, values)
            self.sealed = True
        self.parts = nn.ModuleDict({key_of(name): part for name, part in self.by_point.items()})
        self.training = self.parts.training = values is None

    @property
    def points(self) -> list[str]:
        return list(self.by_point)

    def __contains__(self, point: str) -> bool:
        return point in self.by_point

    def at(self, point: str) -> PointAdapter:
        return self.by_point[point]

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter by `point.parameter`, such as `encoder.layers.0.after_block.down.weight`."""
        return {
            f"{point}.{name}": tensor.detach()
            for point in self.by_point
            for name, tensor in self.at(point).tensors().items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over the values of `tensors()`; every key and shape must be there, and no other."""
        if self.sealed:
            raise AdapterError(f"Adapter '{self.name}' is sealed: its parameters stay as they are.")
        own = self.tensors()
        self.check_shapes({name: tensor.shape for name, tensor in own.items()}, tensors)
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def taken_over(self, points: list[Point], values: Mapping[str, Tensor]) -> dict[str, PointAdapter]:
        shapes = {point: parameter_shapes(self.kind, point) for point in points}
        own = {f"{point.name}.{name}": size for point in points for name, size in shapes[point].items()}
        self.check_shapes(own, values)
        return {
            point.name: PointAdapter(
                self.kind, point, {name: values[f"{point.name}.{name}"].float() for name in shapes[point]}
            )
            for point in points
        }

    def check_shapes(self, own: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> None:
        """Raises AdapterError unless the tensors are those of the adapter's own names and shapes."""
        if own.keys() != tensors.keys():
            raise AdapterError(
                f"Adapter '{self.name}': the file's tensors are not the adapter's. "
                f"Missing: {shown(own.keys() - tensors.keys())}. Left over: {shown(tensors.keys() - own.keys())}."
            )
        for name, shape in own.items():
            if tensors[name].shape != shape:
                raise AdapterError(
                    f"Adapter '{self.name}': {name} has shape {list(tensors[name].shape)}, expected {list(shape)}."
                )

    def seal(self) -> None:
        """Promise that no parameter is written any more: forwards need not look whether one has been."""
        self.requires_grad_(False).eval()
        self.sealed = True

    def pack(self, dtype: torch.dtype, device: torch.device) -> Tensors | None:
        """The parameters of all L points as they are quickest for a stream in `dtype`: each [L, …], in their order.

        None where the adapter is not sealed, its points are not alike, or `dtype` is as wide as its parameters.
        """
        if not self.sealed:
            return None
        key = (dtype, device)
        if key not in self.packs:
            self.packs[key] = self.packed(dtype)
        return self.packs[key]

    def packed(self, dtype: torch.dtype) -> Tensors | None:
        parts = list(self.by_point.values())
        rows = [part.tensors() for part in parts]
        shapes = [{name: row.shape for name, row in each.items()} for each in rows]
        wide = all(row.dtype.itemsize > dtype.itemsize for each in rows for row in each.values())
        if not wide or any(each != shapes[0] for each in shapes):
            return None
        with torch.no_grad():
            packed = self.kind.ready(stack_rows(rows), dtype)
        for part, own in zip(parts, unstacked(packed), strict=True):  # kept once, not twice
            part.keep(dtype, own)
        return packed

    def digest(self) -> str:
        """What the adapter is, whatever it is called."""
        return digest_of(self.kind, self.strategy, parameters_digest(self.tensors()))

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def digest_of(kind: Kind, strategy: ResidualAdd, parameters: str) -> str:
    """SHA-256 over kind, settings, strategy and the digest of the parameters.

    Points and positions are told by the parameters' names: `auto` is what it came to be in this model.
    """
    settings = {name: value for name, value in asdict(kind).items() if name != "position"}  # type: ignore[call-overload]
    meaning = [kind.name, settings, asdict(strategy), parameters]
    return f"sha256:{hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()}"


def parameters_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.float().cpu().contiguous().numpy().astype("<f4", copy=False).reshape(-1).data)
    return f"sha256:{digest.hexdigest()}"


def key_of(point: str) -> str:
    """Module names hold no dots, names of points no slashes."""
    return point.replace(".", "/")


def shown(names: set[str]) -> str:
    listed = sorted(names)
    return "none" if not listed else ", ".join(listed[:5]) + (f" … {len(listed)} in all" if len(listed) > 5 else "")


def check_name(name: str) -> str:
    if not NAME.fullmatch(name) or name in RESERVED:
        raise AdapterError(
            f"'{name}' cannot be an adapter's name. Allowed: letters, digits, '.', '_' and '-', "
            f"beginning with a letter or digit; not {', '.join(RESERVED)}."
        )
    return name


def choose_points(points: list[Point], kind: Kind, *, modules: str, layers: Layers) -> list[Point]:
    """The points of the named modules and layers where the kind acts; every module must have one."""
    wanted = parse_modules(modules, {point.module for point in points})
    numbers = [point.layer for point in points if point.layer is not None]
    chosen_layers = parse_layers(layers, max(numbers, default=-1) + 1)
    chosen = [
        point
        for point in points
        if point.module in wanted and kind.acts_at(point) and (point.layer is None or point.layer in chosen_layers)
    ]
    for module in wanted:
        if not any(point.module == module for point in chosen):
            places = sorted({point.place for point in points if point.module == module})
            raise AdapterError(
                f"A {kind.name} adapter lands nowhere in the {module}: its points are {', '.join(places)}. "
                "Choose another kind or module."
            )
    return chosen
