"""A kind of adapter as a user writes one in a file of her own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from overtone.adapters.kinds.base import Kind, Tensors, rowwise
from overtone.adapters.kinds.registry import KINDS, register_kind
from overtone.adapters.points import Point
from overtone.nets.taps import TapContext


@dataclass(frozen=True, kw_only=True)
class ScaleAdapter:
    """y · scale + shift · strength: a gain for each channel, and what the layer's input adds."""

    name: ClassVar[str] = "scale"
    strength: float = 0.5
    places: tuple[str, ...] = ("after_block",)

    def acts_at(self, point: Point) -> bool:
        return point.place in self.places

    def parts(self, point: Point) -> dict[str, nn.Module | nn.Parameter]:
        shift = nn.Linear(point.in_width, point.out_width)
        nn.init.zeros_(shift.weight)
        nn.init.zeros_(shift.bias)
        return {"scale": nn.Parameter(torch.zeros(point.out_width)), "shift": shift}

    def delta(self, tensors: Tensors, x: Tensor, y: Tensor, context: TapContext, training: bool) -> Tensor:
        shift = x.to(y.dtype) @ tensors["shift.weight"].mT + rowwise(tensors["shift.bias"])
        return y * rowwise(tensors["scale"]) + self.strength * shift

    def prepare(self, tensors: Tensors, dtype: torch.dtype) -> Tensors:
        return tensors


@contextmanager
def registered(kind: type[Kind]) -> Iterator[None]:
    """The kind is known inside the block, and no longer behind it."""
    register_kind(kind)
    try:
        yield
    finally:
        del KINDS[kind.name]
