"""The tiny attention adapter: self-attention with a few narrow heads.

Legend: B batch, T time, D width, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from overtone.adapters.kinds.base import (
    KnownKind,
    NemoForm,
    SectionForm,
    Tensors,
    check_dropout,
    check_number,
    check_size,
    layer_norm,
    linear,
    width_key,
)
from overtone.adapters.points import Point
from overtone.config import TinyAttentionSettings
from overtone.config.keys import Key, integer, number, optional
from overtone.config.targets import (
    ABSOLUTE_ATTENTION_TARGETS,
    ATTENTION_RESIDUAL_TARGETS,
    OWN_ATTENTION_TARGET,
    RELATIVE_ATTENTION_TARGETS,
    TRANSFORMER_ATTENTION_TARGETS,
)
from overtone.errors import AdapterError
from overtone.nets.attention import attend, new_position_biases, relative_shift, split_heads
from overtone.nets.taps import LOCAL, TRANSFORMER, Position, TapContext


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
        """Raises AdapterError for settings that are not allowed."""
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
        return point.place == "after_attention" and point.attention != LOCAL

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
        """Width of all heads together. Raises AdapterError where they do not divide the model's."""
        if self.projection is None:
            if point.out_width % self.heads:
                raise AdapterError(f"tiny_attn adapter: width {point.out_width} is no multiple of heads={self.heads}.")
            return point.out_width
        return self.projection if self.projection > 0 else self.heads

    def position_at(self, point: Point) -> Position:
        """Positions used at the point. Raises AdapterError for relative ones where the model has none."""
        if self.position == "rel_pos" and point.attention != "rel_pos":
            raise AdapterError(
                "tiny_attn adapter: position 'rel_pos' needs a model with relative positions; this one has "
                f"'{point.attention}'. Use position 'auto', in a configuration _target_: {OWN_ATTENTION_TARGET}."
            )
        return "rel_pos" if "rel_pos" in (self.position, point.attention) and self.position != "abs_pos" else "abs_pos"

    def delta(self, tensors: Tensors, x: Tensor, y: Tensor, context: TapContext, training: bool) -> Tensor:
        """x, y [B, T, D] -> the change of y [B, T, D]. Raises AdapterError where the model's attention is local."""
        if context.window is not None:
            raise AdapterError("A tiny_attn adapter does not act under local attention; use a linear or LoRA adapter.")
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

    def prepare(self, tensors: Tensors, dtype: torch.dtype) -> Tensors:
        return tensors


NEMO_PARTS = {
    "norm": "pre_norm",
    "query": "linear_q",
    "key": "linear_k",
    "value": "linear_v",
    "out": "linear_out",
    "position": "linear_pos",
    "position_bias_u": "pos_bias_u",
    "position_bias_v": "pos_bias_v",
}
"""Our parts -> NeMo's."""
TRANSFORMER_PARTS = {
    "norm": "pre_norm",
    "query": "query_net",
    "key": "key_net",
    "value": "value_net",
    "out": "out_projection",
}
"""The same in the layers of a transformer."""
NEMO_TARGETS = {
    **{target: {"position": "rel_pos"} for target in RELATIVE_ATTENTION_TARGETS},
    **{target: {"position": "abs_pos"} for target in ABSOLUTE_ATTENTION_TARGETS},
}
"""NeMo has one class for each kind of positions."""
FIRST_TARGETS: dict[Position, str] = {
    "rel_pos": RELATIVE_ATTENTION_TARGETS[0],
    "abs_pos": ABSOLUTE_ATTENTION_TARGETS[0],
}

TINY_ATTENTION = KnownKind(
    kind=TinyAttentionAdapter,
    proportional=lambda kind: ("out.weight", "out.bias"),
    shown_in_parameters=("position",),
    section=SectionForm(
        settings=TinyAttentionSettings,
        targets={
            **NEMO_TARGETS,
            **{target: {"position": "auto"} for target in (OWN_ATTENTION_TARGET, *TRANSFORMER_ATTENTION_TARGETS)},
        },
        names={"n_head": "heads", "proj_dim": "projection", "dropout_rate": "dropout"},
        width_keys=("n_feat",),
    ),
    nemo=(
        NemoForm(
            targets=NEMO_TARGETS,
            target_at=lambda kind, point: FIRST_TARGETS[kind.position_at(point)],
            strategy_target=ATTENTION_RESIDUAL_TARGETS[0],
            keys=(
                Key("n_head", "heads", integer()),
                width_key("n_feat"),
                Key("dropout_rate", "dropout", number(0.0, 1.0), 0.0),
                Key("proj_dim", "projection", optional(integer(-1_000_000)), None),
            ),
            constants={"use_pytorch_sdpa": False, "use_pytorch_sdpa_backends": None},
            parts=lambda kind: NEMO_PARTS,
            last=lambda kind: ("out.weight", "out.bias"),
            holds=lambda point: point.attention != TRANSFORMER,
        ),
        NemoForm(
            targets={target: {"position": "auto"} for target in TRANSFORMER_ATTENTION_TARGETS},
            target_at=lambda kind, point: TRANSFORMER_ATTENTION_TARGETS[0],
            strategy_target=ATTENTION_RESIDUAL_TARGETS[0],
            keys=(
                width_key("hidden_size"),
                Key("num_attention_heads", "heads", integer()),
                Key("attn_score_dropout", "dropout", number(0.0, 1.0), 0.0),
                Key("proj_dim", "projection", optional(integer(-1_000_000)), None),
            ),
            fixed={"attn_layer_dropout": (0.0,)},
            parts=lambda kind: TRANSFORMER_PARTS,
            last=lambda kind: ("out.weight", "out.bias"),
            holds=lambda point: point.attention == TRANSFORMER,
        ),
    ),
)
