"""The linear adapter: norm, down to a bottleneck, activation, up again.

Legend: B batch, T time, D width, R bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.adapters.kinds.base import (
    KnownKind,
    NemoForm,
    SectionForm,
    Tensors,
    check_dropout,
    check_size,
    layer_norm,
    linear,
    width_key,
)
from overtone.adapters.points import Point
from overtone.config import LinearSettings
from overtone.config.keys import Key, integer, number, one_of
from overtone.config.targets import LINEAR_TARGETS, NEMO_LINEAR_TARGETS, RESIDUAL_TARGETS
from overtone.errors import AdapterError, did_you_mean
from overtone.nets.taps import Bottleneck, TapContext

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": F.silu,
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "selu": F.selu,
    "hardtanh": F.hardtanh,
    "identity": lambda x: x,
}


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
        """Raises AdapterError for settings that are not allowed."""
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
        """x, y [B, T, D] -> the change of y [B, T, D]."""
        delta = linear(self.inner(tensors, y), tensors["up.weight"])
        if self.norm_position == "post":
            delta = layer_norm(delta, tensors["norm.weight"], tensors["norm.bias"])
        return F.dropout(delta, self.dropout, training) if training else delta

    def inner(self, tensors: Tensors, y: Tensor) -> Tensor:
        """y [B, T, D] -> the bottleneck behind the activation [B, T, R]."""
        inner = y
        if "down.bias" in tensors:
            inner = F.layer_norm(inner, inner.shape[-1:])
        elif self.norm_position == "pre":
            inner = layer_norm(inner, tensors["norm.weight"], tensors["norm.bias"])
        return ACTIVATIONS[self.activation](linear(inner, tensors["down.weight"], tensors.get("down.bias")))

    def added(self, tensors: Tensors, y: Tensor, in_place: bool) -> Tensor | None:
        """y [B, T, D] -> y + delta [B, T, D] as one product, for parameters that `prepare` gave.

        None where a norm stands between, or the dtypes differ. in_place: the sum takes the place of `y`.
        """
        if "down.bias" not in tensors or y.dtype is not tensors["up.weight"].dtype:
            return None
        inner, up = self.inner(tensors, y), tensors["up.weight"]
        if up.dim() == 3:
            return torch.baddbmm(y, inner, up.transpose(1, 2), out=y if in_place else None)
        rows = y.flatten(0, 1)
        return torch.addmm(rows, inner.flatten(0, 1), up.t(), out=rows if in_place else None).view_as(y)

    def prepare(self, tensors: Tensors, dtype: torch.dtype) -> Tensors:
        """Products in the dtype of the stream; a norm before the bottleneck gives gain and bias to the projection."""
        if self.norm_position == "post":
            return {name: tensor.to(dtype) for name, tensor in tensors.items()}
        down = tensors["down.weight"]
        return {
            "down.weight": (down * tensors["norm.weight"].unsqueeze(-2)).to(dtype),
            "down.bias": (down * tensors["norm.bias"].unsqueeze(-2)).sum(-1).to(dtype),
            "up.weight": tensors["up.weight"].to(dtype),
        }

    def bottleneck(self, tensors: Tensors, dtype: torch.dtype) -> Bottleneck | None:
        """The adapter for engines outside of PyTorch; None where its norm stands behind the projections."""
        if self.norm_position == "post":
            return None
        if "down.bias" not in tensors:
            tensors = self.prepare(tensors, dtype)
        return Bottleneck(
            down=tensors["down.weight"].detach(),
            bias=tensors["down.bias"].detach(),
            up=tensors["up.weight"].detach(),
            activation=self.activation,
        )


NEMO_PARTS = {
    "pre": {"norm": "module.0", "down": "module.1", "up": "module.3"},
    "post": {"down": "module.0", "up": "module.2", "norm": "module.3"},
}
"""Our parts -> NeMo's, by the position of the norm."""
LAST = {"pre": ("up.weight",), "post": ("norm.weight", "norm.bias")}
"""Parameters that are zero at birth, by the position of the norm."""

LINEAR = KnownKind(
    kind=LinearAdapter,
    added=LinearAdapter.added,
    bottleneck=LinearAdapter.bottleneck,
    reads_output_alone=True,
    proportional=lambda kind: LAST[kind.norm_position],
    section=SectionForm(
        settings=LinearSettings, targets={target: {} for target in LINEAR_TARGETS}, width_keys=("in_features",)
    ),
    nemo=(
        NemoForm(
            targets={target: {} for target in NEMO_LINEAR_TARGETS},
            target_at=lambda kind, point: NEMO_LINEAR_TARGETS[0],
            strategy_target=RESIDUAL_TARGETS[0],
            keys=(
                width_key("in_features"),
                Key("dim", "dim", integer()),
                Key("activation", "activation", str, "swish"),
                Key("norm_position", "norm_position", one_of("pre", "post"), "pre"),
                Key("dropout", "dropout", number(0.0, 1.0), 0.0),
            ),
            parts=lambda kind: NEMO_PARTS[kind.norm_position],
            last=lambda kind: LAST[kind.norm_position],
        ),
    ),
)
