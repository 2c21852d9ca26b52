"""Taps: the named points of a net where adapters may act, and the contract of what is plugged in there.

Legend: B batch, T time, D width, R bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

Place = Literal["after_block", "after_attention", "linear", "input"]
Position = Literal["rel_pos", "abs_pos", "rel_pos_local_attn", "transf_abs"]
LOCAL: Position = "rel_pos_local_attn"
"""Relative positions, and attention to neighbours alone."""
TRANSFORMER: Position = "transf_abs"
"""A transformer's, whose layers see no positions."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """The frames that a frame sees under local attention."""

    left: int
    right: int
    tokens: int = 0
    """Number of global frames, which see all and are seen by all."""
    spacing: int = 1
    """Frames from one global frame to the next; the first is the first frame."""


@dataclass(frozen=True, kw_only=True)
class TapContext:
    """Masks and positions that a net passes to its taps besides the tensors."""

    valid: Tensor
    """[B, T] bool, true on the frames that are speech, false on padding."""
    attention: Tensor | None = None
    """[B, 1, T, T] bool, true where a query frame (third axis) may look at a key frame (fourth)."""
    positions: Tensor | None = None
    """[1, 2T-1, D] encodings of the distances T-1 … -(T-1), where attention is relative; [1, N, D] of a window's N."""
    window: Window | None = None
    """The window of local attention, which has no `attention`."""

    def rows(self, index: Tensor) -> TapContext:
        """The same for the given rows of the batch only; `index` is [rows] int64."""
        attention = self.attention if self.attention is None else self.attention[index]
        return replace(self, valid=self.valid[index], attention=attention)


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """An adapter as y + up · activation(down · norm(y) + bias), which any engine can compute.

    The norm is a layer norm over D, epsilon 1e-5, without gain and bias of its own.
    """

    down: Tensor
    """[R, D]."""
    bias: Tensor
    """[R]."""
    up: Tensor
    """[D, R]."""
    activation: str
    """Name of the function between the projections, such as `swish`."""


class PluggedAdapter(Protocol):
    """One adapter at one point, for an engine that computes it outside of PyTorch."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> object:
        """Settings of the adapter, for messages."""
        ...

    training: bool

    def bottleneck(self, dtype: torch.dtype) -> Bottleneck | None:
        """The adapter as tensors in `dtype`, None for a kind that has no such form."""
        ...


@dataclass(frozen=True, kw_only=True)
class Chains:
    """The adapters that act at a point during one forward."""

    by_row: tuple[tuple[PluggedAdapter, ...], ...]
    """The adapters of each row of the batch, in the order in which they act; one entry where all rows share it."""
    observed: bool
    """True if somebody is shown every delta."""


NO_CHAINS = Chains(by_row=((),), observed=False)
"""No adapter on any row."""


class Plug(Protocol):
    """The contract of what is plugged into a tap."""

    def __call__(self, x: Tensor, y: Tensor, context: TapContext, *, in_place: bool = False) -> Tensor:
        """x [B, T, in_width], y [B, T, out_width] -> `y` with what is added [B, T, out_width].

        in_place: nobody else holds `y`; where nothing is learnt, the sum may take its place.
        """
        ...

    def acts(self) -> bool:
        """True if a call now may change anything: fast paths fuse parts around a tap that does not act."""
        ...

    def chains(self, rows: int) -> Chains:
        """The adapters of a batch of so many rows. Raises AdapterError where the choice is for another number."""
        ...


class Tap(nn.Module):
    """A named point, free of parameters: `y` goes through unchanged until something is plugged in.

    A net calls it with the input `x` [B, T, in_width] and the output `y` [B, T, out_width] of the part
    that the point stands behind. The qualified name of the module is the name of the point.
    """

    def __init__(
        self, place: Place, in_width: int, out_width: int | None = None, *, attention: Position | None = None
    ) -> None:
        super().__init__()
        self.place: Place = place
        self.in_width = in_width
        self.out_width = out_width or in_width
        self.attention = attention
        self.plug: Plug | None = None

    def forward(self, x: Tensor, y: Tensor, context: TapContext) -> Tensor:
        return y if self.plug is None else self.plug(x, y, context)

    def apply_in_place(self, x: Tensor, y: Tensor, context: TapContext) -> Tensor:
        """The same for a `y` [B, T, out_width] that nobody else holds: what is plugged in may write to it."""
        return y if self.plug is None else self.plug(x, y, context, in_place=True)

    def acts(self) -> bool:
        """True if a call now may change anything."""
        return self.plug is not None and self.plug.acts()

    def chains(self, rows: int) -> Chains:
        """The adapters that act here on a batch of so many rows. Raises AdapterError for a choice of other rows."""
        return NO_CHAINS if self.plug is None else self.plug.chains(rows)
