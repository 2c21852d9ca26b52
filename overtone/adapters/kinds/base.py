"""The contract of a kind of adapter, and the functions that kinds compute with.

A kind is a frozen dataclass of settings: `parts` creates the parameters for one point, `delta` computes with them.
`delta` takes every parameter either as it is, or with a leading row axis [B, …] that holds the parameters of another
adapter for each row of the batch: one formula serves one adapter and many.

Legend: B batch, T time, D width, R bottleneck.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.adapters.points import Point
from overtone.config import KindSettings
from overtone.config.keys import Key
from overtone.errors import AdapterError
from overtone.nets.taps import Bottleneck, TapContext

Tensors = Mapping[str, Tensor]
"""Parameters by name, such as `down.weight`."""

LARGEST = 65_536
"""No size of an adapter is larger: a damaged file cannot ask for more memory than there is."""


@runtime_checkable
class Kind(Protocol):
    """The contract of a kind: `AdapterSet.add` takes its instances."""

    name: ClassVar[str]

    def __hash__(self) -> int: ...

    def acts_at(self, point: Point) -> bool:
        """True if this kind has a place at the point."""
        ...

    def parts(self, point: Point) -> dict[str, nn.Module | nn.Parameter]:
        """Fresh parameters for the point: identity at birth."""
        ...

    def delta(self, tensors: Tensors, x: Tensor, y: Tensor, context: TapContext, training: bool) -> Tensor:
        """x [B, T, in_width], y [B, T, out_width] -> the change of `y`, [B, T, out_width].

        x is the input and y the output of the part of the net that the point stands behind.
        """
        ...

    def prepare(self, tensors: Tensors, dtype: torch.dtype) -> Tensors:
        """The parameters as `delta` takes them where nothing is learnt and the stream is in a narrower `dtype`.

        They are those of one point or, with a leading axis, of many. `tensors` itself will do.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SectionForm:
    """A kind as a section of a run's configuration, `model.adapter.NAME`."""

    settings: type[KindSettings]
    targets: Mapping[str, Mapping[str, Any]]
    """`_target_` -> the settings of the kind that it stands for. The first that fits is the one that is written."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Keys of the section -> settings of the kind, where they differ."""
    width_keys: tuple[str, ...] = ()
    """Keys that hold the width of the model's layers."""


@dataclass(frozen=True, kw_only=True)
class NemoForm:
    """A kind as NeMo's checkpoints hold it."""

    targets: Mapping[str, Mapping[str, Any]]
    """`_target_` -> the settings of the kind that it stands for."""
    target_at: Callable[[Any, Point], str]
    """The `_target_` to write for an adapter of the kind, by its first point."""
    strategy_target: str
    keys: tuple[Key, ...]
    """NeMo's keys, and the settings of the kind that they become; among them `width_key`."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Further keys: what is written; when they are read, any value will do."""
    parts: Callable[[Any], Mapping[str, str]]
    """For an adapter of the kind: our names of its parts -> NeMo's."""
    last: Callable[[Any], tuple[str, ...]]
    """For an adapter of the kind: its parameters that make it identity where they are zero."""
    holds: Callable[[Point], bool] = lambda point: True
    """True if NeMo has this form at a point."""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Further keys with the only values that are supported; the first of each is written."""


@dataclass(frozen=True, kw_only=True)
class KnownKind:
    """A kind and what backends, caches and file formats may know of it; all but the kind is optional."""

    kind: type[Kind]
    added: Callable[[Any, Tensors, Tensor, bool], Tensor | None] | None = None
    """(kind, tensors, y, in_place) -> y + delta in fewer products, for parameters that `prepare` gave; or None."""
    bottleneck: Callable[[Any, Tensors, torch.dtype], Bottleneck | None] | None = None
    """(kind, tensors, dtype) -> the adapter for engines outside of PyTorch; or None."""
    reads_output_alone: bool = False
    """True if `delta` looks at `y` alone, never at `x`: what lies below `y` may then be cached."""
    proportional: Callable[[Any], tuple[str, ...]] | None = None
    """For an adapter of the kind: its parameters that `delta` is proportional to, all together; or None."""
    shown_in_parameters: tuple[str, ...] = ()
    """Settings that the names of the parameters show, so that a digest need not hold them."""
    section: SectionForm | None = None
    nemo: tuple[NemoForm, ...] = ()
    """Its forms in NeMo's checkpoints, each at points of its own."""

    @property
    def name(self) -> str:
        return self.kind.name


WIDTH = "width"
"""The width of the model's layers, which NeMo writes among the settings of an adapter."""


def width_key(name: str) -> Key:
    """NeMo's key for the width: the model knows it, and whatever stands there will do."""
    return Key(name, WIDTH, lambda value: value, None)


def rowwise(vector: Tensor) -> Tensor:
    """[D] as it is, [B, D] as [B, 1, D]: ready to meet [B, T, D]."""
    return vector if vector.dim() == 1 else vector.unsqueeze(1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [B, T, in], weight [out, in] or [B, out, in], bias [out] or [B, out] -> [B, T, out]."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    if bias is None:
        return x @ weight.transpose(1, 2)
    return torch.baddbmm(rowwise(bias), x, weight.transpose(1, 2))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [B, T, D], weight and bias [D] or [B, D] -> [B, T, D]."""
    if weight.dim() == 1:
        return F.layer_norm(x, weight.shape, weight, bias)
    return torch.addcmul(rowwise(bias), F.layer_norm(x, weight.shape[1:]), rowwise(weight))


def check_size(kind: str, **values: object) -> None:
    """Raises AdapterError for what is no whole number from 1 to LARGEST."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
            raise AdapterError(f"{kind} adapter: {name}={value!r} must be a whole number from 1 to {LARGEST}.")


def check_number(kind: str, **values: object) -> None:
    """Raises AdapterError for what is no finite number."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise AdapterError(f"{kind} adapter: {name}={value!r} must be a number.")


def check_dropout(kind: str, dropout: object) -> None:
    """Raises AdapterError for what is no probability below one."""
    if not isinstance(dropout, int | float) or not 0.0 <= dropout < 1.0:
        raise AdapterError(f"{kind} adapter: dropout={dropout} must lie in 0 … 1.")
