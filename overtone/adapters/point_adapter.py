"""The parameters of one adapter at one point, and how they are held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor, nn

from overtone.adapters.kinds.kinds import Kind, Tensors
from overtone.adapters.points import Point


class PointAdapter(nn.Module):
    """The parameters of one adapter at one point."""

    def __init__(self, kind: Kind, point: Point, values: Tensors | None = None) -> None:
        """values: parameters to be taken over, in which nothing is learnt; fresh ones unless given."""
        super().__init__()
        self.kind = kind
        self.point = point
        self.kept: tuple[torch.dtype, list[int], Tensors] | None = None
        """What `ready` gave for which dtype, and the stamp of the parameters then."""
        if values is None:
            for name, part in kind.parts(point).items():
                setattr(self, name, part)
        else:  # under their whole names, as if in the parts' modules: to make those takes longer than all the rest
            self.training = False
            self._parameters.update((name, nn.Parameter(own, requires_grad=False)) for name, own in values.items())

    def train(self, mode: bool = True) -> Self:
        """Between training and inference what was derived is forgotten: not every write leaves a trace to see."""
        if mode != self.training:
            self.kept = None
        return super().train(mode)

    def tensors(self) -> dict[str, Tensor]:
        """What `named_parameters` gives, without its search: this is asked at every point of every forward."""
        found: dict[str, Tensor] = {name: own for name, own in self._parameters.items() if own is not None}
        for part, module in self._modules.items():
            assert module is not None
            found.update((f"{part}.{name}", own) for name, own in module._parameters.items() if own is not None)
        return found

    def stamp(self) -> list[int]:
        """What changes when a parameter does, quick to take; empty where nothing would tell."""
        found: list[int] = []
        for module in (self, *self._modules.values()):
            assert module is not None
            for own in module._parameters.values():
                if own is not None:
                    if own.is_inference():
                        return []
                    found += (own.data_ptr(), own._version)
        return found

    def ready(self, dtype: torch.dtype) -> Tensors:
        """The parameters for a forward in which nothing is learnt, for a stream in `dtype`.

        In a narrower dtype than their own they are derived, once for what the parameters are now.
        """
        kept, stamp = self.kept, self.stamp()
        if kept is not None and kept[0] is dtype and kept[1] == stamp:
            return kept[2]
        tensors: Tensors = self.tensors()
        if all(own.dtype.itemsize > dtype.itemsize for own in tensors.values()):
            with torch.no_grad():
                tensors = self.kind.ready(tensors, dtype)
            self.keep(dtype, tensors)
        return tensors

    def keep(self, dtype: torch.dtype, tensors: Tensors) -> None:
        """Let `ready` give these for what the parameters are now, where it could tell that they have changed."""
        stamp = self.stamp()
        if stamp:
            self.kept = (dtype, stamp, tensors)


@lru_cache(maxsize=4096)
def parameter_shapes(kind: Kind, point: Point) -> Mapping[str, torch.Size]:
    """What a kind has at a point, by name."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in PointAdapter(kind, point).tensors().items()}


def stack_rows(rows: Sequence[Tensors]) -> dict[str, Tensor]:
    """The parameters of one kind, those of another adapter for each row: B times […] -> [B, …]."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def unstacked(tensors: Tensors) -> list[dict[str, Tensor]]:
    """The other way: each [N, …] -> N times […]."""
    each = [tensor.unbind() for tensor in tensors.values()]
    return [dict(zip(tensors, one, strict=True)) for one in zip(*each, strict=True)]
