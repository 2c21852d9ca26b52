"""The functional forms of adapters: what is computed at a point, with which parameters.

Each kind is a frozen dataclass of settings. `parts` creates the parameters for one point and `delta` computes
with them. `delta` takes every parameter either as it is, or with a leading row axis [B, …] that holds the
parameters of another adapter for each row of the batch: one formula serves one adapter and many.

Legend: B batch, T time, D width, R bottleneck, H heads, K head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.adapters.points import Point
from overtone.errors import AdapterError, did_you_mean
from overtone.nets.attention import attend, new_position_biases, relative_shift, split_heads
from overtone.nets.layers import Position, TapContext

Tensors = Mapping[str, Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": F.silu,
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "selu": F.selu,
    "hardtanh": F.hardtanh,
    "identity": lambda x: x,
}


LARGEST = 65_536
"""No size of an adapter is larger: a damaged file cannot ask for more memory than there is."""


class Kind(Protocol):
    """What `AdapterSet.add` takes."""

    name: ClassVar[str]

    def __hash__(self) -> int: ...

    def acts_at(self, point: Point) -> bool:
        """Whether this kind has a place at the point."""
        ...

    def parts(self, point: Point) -> dict[str, nn.Module | nn.Parameter]:
        """Fresh parameters for the point: identity at birth."""
        ...

    def delta(self, tensors: Tensors, x: Tensor, y: Tensor, context: TapContext, training: bool) -> Tensor:
        """What is added to `y` [B, T, out_width], given the input `x` [B, T, in_width] of the part before."""
        ...

    def ready(self, tensors: Tensors, dtype: torch.dtype) -> Tensors:
        """The same parameters as `delta` takes them where nothing is learnt and the stream is in a narrower `dtype`,
        those of one point or with a leading axis those of many."""
        ...


def rowwise(vector: Tensor) -> Tensor:
    """[D] as it is, [B, D] as [B, 1, D]: ready to meet [B, T, D]."""
    return vector if vector.dim() == 1 else vector.unsqueeze(1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [B, T, in] times weight [out, in] or [B, out, in] -> [B, T, out]."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    if bias is None:
        return x @ weight.transpose(1, 2)
    return torch.baddbmm(rowwise(bias), x, weight.transpose(1, 2))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.dim() == 1:
        return F.layer_norm(x, weight.shape, weight, bias)
    return torch.addcmul(rowwise(bias), F.layer_norm(x, weight.shape[1:]), rowwise(weight))


def check_size(kind: str, **values: object) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
            raise AdapterError(f"{kind} adapter: {name}={value!r} must be a whole number from 1 to {LARGEST}.")


def check_number(kind: str, **values: object) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise AdapterError(f"{kind} adapter: {name}={value!r} must be a number.")


def check_dropout(kind: str, dropout: object) -> None:
    if not isinstance(dropout, int | float) or not 0.0 <= dropout < 1.0:
        raise AdapterError(f"{kind} adapter: dropout={dropout} must lie in 0 … 1.")


@dataclass(frozen=True, kw_only=True)
class LinearAdapter:
    """LayerNorm, down to a bottleneck, activation, up again (Houlsby et al. 2019, arXiv:1902.00751)."""

    name: ClassVar[str] = "linear"
    dim: int = 32
    """Width of the bottleneck."""
    activation: str = "swish"
    """`swish`, `relu`, `gelu`, `selu`, `hardtanh` or `identity`."""
    norm_position: str = "pre"
    """LayerNorm before the bottleneck (`pre`) or after it (`post`)."""
    dropout: float = 0.0
    """On the delta, in training."""

    def __post_init__(self) -> None:
        check_size("linear", dim=self.dim)
        check_dropout("linear", self.dropout)
        if self.activation not in ACTIVATIONS:
            raise AdapterError(
                f"linear adapter: activation '{self.activation}' is unknown."
                f"{did_you_mean(self.activation, ACTIVATIONS)} Allowed: {', '.join(ACTIVATIONS)}."
            )
        if self.norm_position not in ("pre", "post"):
            raise AdapterError(f"linear adapter: norm_position '{self.norm_position}' must be 'pre' or 'post'.")

    def acts_at(self, point: Point) -> bool:
        return point.place in ("after_block", "input")

    def parts(self, point: Point) -> dict[str, nn.Module | nn.Parameter]:
        width = point.out_width
        norm = nn.LayerNorm(width)
        down = nn.Linear(width, self.dim, bias=False)
        up = nn.Linear(self.dim, width, bias=False)
        nn.init.zeros_(norm.weight if self.norm_position == "post" else up.weight)
        return {"norm": norm, "down": down, "up": up}

    def delta(self, tensors: Tensors, x: Tensor, y: Tensor, context: TapContext, training: bool) -> Tensor:
        delta = linear(self.inner(tensors, y), tensors["up.weight"])
        if self.norm_position == "post":
            delta = layer_norm(delta, tensors["norm.weight"], tensors["norm.bias"])
        return F.dropout(delta, self.dropout, training) if training else delta

    def inner(self, tensors: Tensors, y: Tensor) -> Tensor:
        """[B, T, R] behind the activation."""
        inner = y
        if "down.bias" in tensors:
            inner = F.layer_norm(inner, inner.shape[-1:])
        elif self.norm_position == "pre":
            inner = layer_norm(inner, tensors["norm.weight"], tensors["norm.bias"])
        return ACTIVATIONS[self.activation](linear(inner, tensors["down.weight"], tensors.get("down.bias")))

    def added(self, tensors: Tensors, y: Tensor, *, spare: bool) -> Tensor | None:
        """y + delta as one product, for parameters that `ready` gave; None where a norm stands between.

        spare: the sum takes the place of `y`.
        """
        if "down.bias" not in tensors or y.dtype is not tensors["up.weight"].dtype:
            return None
        inner, up = self.inner(tensors, y), tensors["up.weight"]
        if up.dim() == 3:
            return torch.baddbmm(y, inner, up.transpose(1, 2), out=y if spare else None)
        rows = y.flatten(0, 1)
        return torch.addmm(rows, inner.flatten(0, 1), up.t(), out=rows if spare else None).view_as(y)

    def ready(self, tensors: Tensors, dtype: torch.dtype) -> Tensors:
        """Products in the dtype of the stream; a norm before the bottleneck gives gain and bias to the projection."""
        if self.norm_position == "post":
            return {name: tensor.to(dtype) for name, tensor in tensors.items()}
        down = tensors["down.weight"]
        return {
            "down.weight": (down * tensors["norm.weight"].unsqueeze(-2)).to(dtype),
            "down.bias": (down * tensors["norm.bias"].unsqueeze(-2)).sum(-1).to(dtype),
            "up.weight": tensors["up.weight"].to(dtype),
        }


@dataclass(frozen=True, kw_only=True)
class TinyAttentionAdapter:
    """Self-attention with a few narrow heads (Zhao et al. 2022, arXiv:2211.01979)."""

    name: ClassVar[str] = "tiny_attn"
    heads: int = 1
    projection: int | None = -1
    """Width of the attention, a multiple of `heads`; -1 (or 0) is one per head, None the width of the model."""
    dropout: float = 0.0
    """On the attention weights, in training."""
    position: str = "auto"
    """`rel_pos`, `abs_pos` or `auto`: what the model's own attention uses."""

    def __post_init__(self) -> None:
        check_size("tiny_attn", heads=self.heads)
        check_dropout("tiny_attn", self.dropout)
        if self.position not in ("auto", "rel_pos", "abs_pos"):
            raise AdapterError(f"tiny_attn adapter: position '{self.position}' must be auto, rel_pos or abs_pos.")
        if self.projection is None:
            return
        check_number("tiny_attn", projection=self.projection)
        if self.projection > 0:
            check_size("tiny_attn", projection=self.projection)
            if self.projection % self.heads:
                raise AdapterError(
                    f"tiny_attn adapter: projection={self.projection} is no multiple of heads={self.heads}."
                )

    def acts_at(self, point: Point) -> bool:
        return point.place == "after_attention"

    def parts(self, point: Point) -> dict[str, nn.Module | nn.Parameter]:
        width, inner = point.out_width, self.inner_width(point)
        out = nn.Linear(inner, width)
        parts: dict[str, nn.Module | nn.Parameter] = {
            "norm": nn.LayerNorm(width),
            "query": nn.Linear(width, inner),
            "key": nn.Linear(width, inner),
            "value": nn.Linear(width, inner),
            "out": out,
        }
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        if self.position_at(point) == "rel_pos":
            parts["position"] = nn.Linear(width, inner, bias=False)
            parts["position_bias_u"], parts["position_bias_v"] = new_position_biases(inner, self.heads)
        return parts

    def inner_width(self, point: Point) -> int:
        if self.projection is None:
            if point.out_width % self.heads:
                raise AdapterError(f"tiny_attn adapter: width {point.out_width} is no multiple of heads={self.heads}.")
            return point.out_width
        return self.projection if self.projection > 0 else self.heads

    def position_at(self, point: Point) -> Position:
        if self.position == "rel_pos" and point.attention != "rel_pos":
            raise AdapterError(
                "tiny_attn adapter: position 'rel_pos' needs a model with relative positions; this one has "
                f"'{point.attention}'. Use position 'auto'."
            )
        return "rel_pos" if "rel_pos" in (self.position, point.attention) and self.position != "abs_pos" else "abs_pos"

    def delta(self, tensors: Tensors, x: Tensor, y: Tensor, context: TapContext, training: bool) -> Tensor:
        normed = layer_norm(y, tensors["norm.weight"], tensors["norm.bias"])
        query, key, value = (
            split_heads(linear(normed, tensors[f"{part}.weight"], tensors[f"{part}.bias"]), self.heads)
            for part in ("query", "key", "value")
        )  # each [B, H, T, K]
        bias = None
        if "position.weight" in tensors:
            assert context.positions is not None
            distance = split_heads(linear(context.positions.to(normed.dtype), tensors["position.weight"]), self.heads)
            bias_u, bias_v = (
                tensors["position_bias_u"].unsqueeze(-2),
                tensors["position_bias_v"].unsqueeze(-2),
            )
            bias = relative_shift((query + bias_v) @ distance.transpose(-2, -1))
            query = query + bias_u
        attended = attend(query, key, value, bias, context.attention, self.dropout if training else 0.0)
        return linear(attended, tensors["out.weight"], tensors["out.bias"])

    def ready(self, tensors: Tensors, dtype: torch.dtype) -> Tensors:
        return tensors


LORA_TAPS = {
    "q": ("q",),
    "k": ("k",),
    "v": ("v",),
    "out": ("out",),
    "feed_forward": ("expand", "contract"),
}
"""What a LoRA's `targets` are called, and the taps that each stands for."""


@dataclass(frozen=True, kw_only=True)
class LoraAdapter:
    """A low-rank product beside a Linear (Hu et al. 2021, arXiv:2106.09685)."""

    name: ClassVar[str] = "lora"
    rank: int = 8
    alpha: float = 16.0
    """The product is scaled by alpha / rank."""
    dropout: float = 0.0
    """On the input, in training."""
    targets: tuple[str, ...] = ("q", "k", "v", "out", "feed_forward")
    """Which Linears: `q`, `k`, `v`, `out` of the attention, `feed_forward` for all four of the feed-forwards."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        check_size("lora", rank=self.rank)
        check_number("lora", alpha=self.alpha)
        check_dropout("lora", self.dropout)
        for target in self.targets:
            if target not in LORA_TAPS:
                raise AdapterError(
                    f"lora adapter: target '{target}' is unknown.{did_you_mean(target, LORA_TAPS)} "
                    f"Allowed: {', '.join(LORA_TAPS)}."
                )

    def acts_at(self, point: Point) -> bool:
        taps = {tap for target in self.targets for tap in LORA_TAPS[target]}
        return point.place == "linear" and point.name.rpartition(".")[2] in taps

    def parts(self, point: Point) -> dict[str, nn.Module | nn.Parameter]:
        down = nn.Linear(point.in_width, self.rank, bias=False)
        up = nn.Linear(self.rank, point.out_width, bias=False)
        nn.init.zeros_(up.weight)
        return {"down": down, "up": up}

    def delta(self, tensors: Tensors, x: Tensor, y: Tensor, context: TapContext, training: bool) -> Tensor:
        x = F.dropout(x.to(tensors["down.weight"].dtype), self.dropout, training)
        inner = linear(x, tensors["down.weight"])  # [B, T, R]
        return linear(inner, tensors["up.weight"]) * (self.alpha / self.rank)

    def ready(self, tensors: Tensors, dtype: torch.dtype) -> Tensors:
        return tensors


KINDS: dict[str, type[LinearAdapter] | type[TinyAttentionAdapter] | type[LoraAdapter]] = {
    kind.name: kind for kind in (LinearAdapter, TinyAttentionAdapter, LoraAdapter)
}
