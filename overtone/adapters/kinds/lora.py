"""LoRA: a low-rank product beside a Linear of the net.

Legend: B batch, T time, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.adapters.kinds.base import (
    KnownKind,
    SectionForm,
    Tensors,
    check_dropout,
    check_number,
    check_size,
    linear,
)
from overtone.adapters.points import Point
from overtone.config import LoraSettings
from overtone.config.targets import LORA_TARGETS
from overtone.errors import AdapterError, did_you_mean
from overtone.nets.taps import TapContext

LORA_TAPS = {
    "q": ("q",),
    "k": ("k",),
    "v": ("v",),
    "out": ("out",),
    "feed_forward": ("expand", "contract"),
}
"""Names of a LoRA's `targets`, and the taps that each stands for."""


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
    """The projections: `q`, `k`, `v`, `out` of the attention, `feed_forward` for all four of the feed-forwards."""

    def __post_init__(self) -> None:
        """Raises AdapterError for settings that are not allowed."""
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
        """x [B, T, in_width], y [B, T, out_width] -> the change of y [B, T, out_width]."""
        x = F.dropout(x.to(tensors["down.weight"].dtype), self.dropout, training)
        inner = linear(x, tensors["down.weight"])  # [B, T, R]
        return linear(inner, tensors["up.weight"]) * (self.alpha / self.rank)

    def prepare(self, tensors: Tensors, dtype: torch.dtype) -> Tensors:
        return tensors


LORA = KnownKind(
    kind=LoraAdapter,
    proportional=lambda kind: ("up.weight",),
    section=SectionForm(settings=LoraSettings, targets={target: {} for target in LORA_TARGETS}),
)
