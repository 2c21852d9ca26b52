"""From mel frames to encoder frames: fewer, wider.

`striding` (Dong et al. 2018), `dw_striding` (FastConformer, Rekesh et al. 2023, arXiv:2305.05084) and
`stacking`, with NeMo's masking of padding before every convolution.
Legend: B batch, T mel frames, T' encoder frames, F mel bins, C channels, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.nets.layers import channels_last_is_safe, pointwise_conv, valid_frames
from overtone.nets.products import linear

Subsampling = Literal["striding", "dw_striding", "stacking", "stacking_norm"]
KERNEL = 3
STRIDE = 2
CACHE_BYTES = 1 << 23
"""Rows are subsampled together as long as the largest activation stays below."""
LONG_BYTES = 1 << 28
"""A recording whose largest activation would be larger is subsampled in pieces."""
HALO = 2
"""Encoder frames on each side of a piece that are computed for its edges."""
Subsample = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""mel [B, T, F], lengths [B] -> x [B, T', D], lengths [B]."""


class ConvSubsampling(nn.Module):
    """mel [B, T, F], lengths [B] -> x [B, T', D], lengths [B]; each stage halves time and frequency.

    The convolutions sit in `conv` under NeMo's indices. Activations are channels-last throughout: the first
    convolution is a matrix product of unfolded patches, the pointwise ones are products as they stand.
    """

    def __init__(
        self,
        features: int,
        width: int,
        *,
        factor: int,
        channels: int,
        depthwise: bool,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.stages = int(math.log2(factor))
        self.channels = channels
        self.depthwise = depthwise
        self.before, self.after = (KERNEL - 1, STRIDE - 1) if causal else (1, 1)
        parts: list[nn.Module] = [nn.Conv2d(1, channels, KERNEL, STRIDE), nn.ReLU()]
        for _ in range(self.stages - 1):
            groups = channels if depthwise else 1
            parts.append(nn.Conv2d(channels, channels, KERNEL, STRIDE, groups=groups))
            if depthwise:
                parts.append(nn.Conv2d(channels, channels, 1))
            parts.append(nn.ReLU())
        self.conv = nn.Sequential(*parts)
        bins = features
        for _ in range(self.stages):
            bins = self.halved(bins)
        self.out = nn.Linear(channels * bins, width)

    def halved(self, size: int) -> int:
        """The size after one stage."""
        return (size + self.before + self.after - KERNEL) // STRIDE + 1

    def halved_lengths(self, lengths: Tensor) -> Tensor:
        """lengths [B] -> those after one stage [B]."""
        return torch.div(lengths + self.before + self.after - KERNEL, STRIDE, rounding_mode="floor") + 1

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return subsample_in_pieces(self, mel, lengths, self.subsample_rows)

    def subsample_rows(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """mel [B, T, F], lengths [B] -> x [B, T', D], lengths [B], as many rows at once as a cache has room for."""
        rows = self.rows_at_once(mel)
        parts = [self.subsample(*part) for part in zip(mel.split(rows), lengths.split(rows), strict=True)]
        outputs, counts = zip(*parts, strict=True)
        return torch.cat(outputs), torch.cat(counts)

    def rows_at_once(self, mel: Tensor) -> int:
        """The number of rows of mel [B, T, F] that a processor's cache has room for."""
        if mel.device.type != "cpu":
            return mel.size(0)
        largest = mel[0].numel() // STRIDE**2 * self.channels * mel.element_size()  # behind the first stage
        return max(1, CACHE_BYTES // max(1, largest))

    def subsample(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """mel [B, T, F], lengths [B] -> x [B, T', D], lengths [B], for rows that are computed together."""
        x = mel.masked_fill(~valid_frames(lengths, mel.size(1)).unsqueeze(-1), 0.0)
        x = self.first_stage(x)
        lengths = self.halved_lengths(lengths)
        x = self.masked(x, lengths)
        step = 3 if self.depthwise else 2
        for stage in range(self.stages - 1):
            x = self.later_stage(x, 2 + stage * step, self.halved_lengths(lengths))
            lengths = self.halved_lengths(lengths)
        return self.flatten(x), lengths

    def first_stage(self, x: Tensor) -> Tensor:
        """[B, T, F] -> [B, T/2, F/2, C]: 3×3 patches times the kernels, then ReLU."""
        conv = self.conv[0]
        assert isinstance(conv, nn.Conv2d)
        x = F.pad(x, (self.before, self.after, self.before, self.after))
        patches = x.unfold(1, KERNEL, STRIDE).unfold(2, KERNEL, STRIDE)  # [B, T/2, F/2, 3, 3]
        return F.relu(linear(patches.flatten(3), conv.weight.flatten(1), conv.bias))

    def later_stage(self, x: Tensor, index: int, lengths: Tensor) -> Tensor:
        """[B, T, F, C] -> [B, T/2, F/2, C], masked past `lengths`."""
        conv = self.conv[index]
        assert isinstance(conv, nn.Conv2d)
        x = self.strided(x.permute(0, 3, 1, 2), conv).permute(0, 2, 3, 1)
        if self.depthwise:
            pointwise = self.conv[index + 1]
            assert isinstance(pointwise, nn.Conv2d)
            x = pointwise_conv(self.masked(x, lengths), pointwise.weight, pointwise.bias)
        return self.masked(F.relu(x), lengths)

    def strided(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """[B, C, T, F] -> [B, C, T/2, F/2], channels last in memory."""
        if conv.groups > 1 and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # as in layers.time_conv
                return self.strided(x.float(), conv)
        if self.before != self.after:
            x = F.pad(x, (self.before, self.after, self.before, self.after))
        padding = self.before if self.before == self.after else 0
        weight = conv.weight
        if conv.groups == 1 or channels_last_is_safe(x.dtype, x.size(1)):
            weight = weight.contiguous(memory_format=torch.channels_last)
        else:
            x = x.contiguous()
        return F.conv2d(x, weight, conv.bias, STRIDE, padding, groups=conv.groups)

    def masked(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, F, C] with zeros past `lengths`; contiguous, as masked_fill would make any other order."""
        return x.masked_fill(~valid_frames(lengths, x.size(1))[:, :, None, None], 0.0)

    def flatten(self, x: Tensor) -> Tensor:
        """[B, T', F', C] -> [B, T', D]: the weight is turned to the activations' order, being the smaller."""
        channels, bins = x.size(3), x.size(2)
        weight = self.out.weight.unflatten(1, (channels, bins)).transpose(1, 2).flatten(1)
        return linear(x.flatten(2), weight, self.out.bias)


def subsample_in_pieces(
    module: ConvSubsampling, mel: Tensor, lengths: Tensor, subsample: Subsample
) -> tuple[Tensor, Tensor]:
    """mel [B, T, F], lengths [B] -> x [B, T', D], lengths [B], a long recording in pieces.

    subsample: computes a piece. Frames at its edges that another piece knows better are left out.
    """
    largest = mel[0].numel() // STRIDE**2 * module.channels * mel.element_size()  # behind the first stage
    if largest <= LONG_BYTES:
        return subsample(mel, lengths)
    factor, whole, counts = STRIDE**module.stages, mel.size(1), lengths
    frames = max(HALO, whole * LONG_BYTES // largest // factor)
    for _ in range(module.stages):
        whole, counts = module.halved(whole), module.halved_lengths(counts)
    found = []
    for first in range(0, whole, frames):
        begin = max(0, first - HALO) * factor
        piece = mel[:, begin : (first + frames + HALO) * factor]
        x, _ = subsample(piece, (lengths - begin).clamp(max=piece.size(1)))
        skipped = first - begin // factor
        found.append(x[:, skipped : skipped + frames])
    return torch.cat(found, dim=1), counts


class StackingSubsampling(nn.Module):
    """mel [B, T, F], lengths [B] -> x [B, T', D], lengths [B]: `factor` frames side by side, one product.

    As in NeMo, the mel frames that are left over at a row's end count as one more only if they are at least T modulo
    `factor`, and not at all where T is a multiple of it: the length depends on the padding, the frames do not. NeMo's
    models of this kind were trained and scored so, and the numbers here are theirs.
    """

    def __init__(self, features: int, width: int, *, factor: int, norm: bool) -> None:
        super().__init__()
        self.factor = factor
        self.pre_norm = nn.LayerNorm(features) if norm else None
        self.proj_out = nn.Linear(factor * features, width)

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        missing = -mel.size(1) % self.factor
        x = F.pad(mel, (0, 0, 0, missing))
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = self.proj_out(x.unflatten(1, (-1, self.factor)).flatten(2))
        return x, torch.div(lengths + missing, self.factor, rounding_mode="floor")


def build_subsampling(
    kind: Subsampling, features: int, width: int, *, factor: int, channels: int, causal: bool
) -> nn.Module:
    """The subsampling of that kind: mel [B, T, F], lengths [B] -> x [B, T', D], lengths [B]."""
    if kind in ("stacking", "stacking_norm"):
        return StackingSubsampling(features, width, factor=factor, norm=kind == "stacking_norm")
    return ConvSubsampling(
        features, width, factor=factor, channels=channels, depthwise=kind == "dw_striding", causal=causal
    )
