"""Parts that every net is made of: points for adapters, frame masks, depthwise convolution, recomputation.

Legend: B batch, T time, D width.
"""

from __future__ import annotations

import contextvars
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Place = Literal["after_block", "after_attention", "linear", "input"]
Position = Literal["rel_pos", "abs_pos"]
recomputing: contextvars.ContextVar[bool] = contextvars.ContextVar("overtone_recomputing", default=False)
"""Whether a net runs for the second time, for a backward pass: what a forward notes down is noted already."""


@dataclass(frozen=True, kw_only=True)
class TapContext:
    """What a net knows at a point besides the tensors."""

    valid: Tensor
    """[B, T] bool, true on the frames that are speech, false on padding."""
    attention: Tensor | None = None
    """[B, 1, T, T] bool, true where a query frame (third axis) may look at a key frame (fourth)."""
    positions: Tensor | None = None
    """[1, 2T-1, D] encodings of the distances T-1 … -(T-1), where attention is relative."""

    def rows(self, index: Tensor) -> TapContext:
        """The same for the given rows of the batch only; `index` is [R] int64."""
        attention = self.attention if self.attention is None else self.attention[index]
        return replace(self, valid=self.valid[index], attention=attention)


class Plug(Protocol):
    """What can be plugged into a tap."""

    def __call__(self, x: Tensor, y: Tensor, context: TapContext) -> Tensor: ...


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


def valid_frames(lengths: Tensor, frames: int) -> Tensor:
    """[B] lengths -> [B, frames] bool, true below each row's length."""
    return torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, *, left: int, right: int) -> Tensor:
    """Convolution over time, one kernel a channel.

    x [B, T, D], weight [D, 1, K] with K = left + right + 1 -> [B, T, D]. Read as a channels-last image of
    height one, which needs no copies and is many times faster on CPUs than [B, D, T].
    """
    if torch.is_autocast_enabled(x.device.type):
        # Under autocast the weights are trained, and the reduced kernels' weight gradients are the slower ones.
        with torch.autocast(x.device.type, enabled=False):
            return depthwise_conv(x.float(), weight, bias, left=left, right=right)
    if left != right:
        x = F.pad(x, (0, 0, left, right))
        left = 0
    if not channels_last_is_safe(x.dtype, x.size(-1)):
        return F.conv1d(x.transpose(1, 2), weight, bias, padding=left, groups=x.size(-1)).transpose(1, 2)
    image = x.transpose(1, 2).unsqueeze(2)  # [B, D, 1, T], channels last in memory
    image = F.conv2d(image, weight.unsqueeze(2), bias, padding=(0, left), groups=x.size(-1))
    return image.squeeze(2).transpose(1, 2)


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution with kernels of one place: x [..., in], weight [out, in, 1, …] -> [..., out].

    The input is made contiguous because torch else chooses between kernels that round differently by whether the
    weight requires a gradient: freezing the base would change its output.
    """
    return F.linear(x.contiguous(), weight.flatten(1), bias)


def channels_last_is_safe(dtype: torch.dtype, channels: int) -> bool:
    """Whether depthwise kernels may run channels-last.

    The bfloat16 kernel of torch 2.13's CPU library never returns for some shapes when channels ≡ 16 (mod 64).
    """
    return not (dtype is torch.bfloat16 and channels % 64 == 16)


def checkpointed(part: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`part(*arguments)`; its activations are not kept but computed again in the backward pass.

    That happens later, perhaps on another thread: the second run gets the context variables of now.
    """
    context = contextvars.copy_context()
    earlier_runs = itertools.count()

    def run(*arguments: Any) -> Tensor:
        context.run(recomputing.set, next(earlier_runs) > 0)
        return context.run(part, *arguments)

    output: Tensor = checkpoint(run, *arguments, use_reentrant=False)
    return output
