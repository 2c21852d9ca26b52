"""The subsampling of a frozen encoder, in another dtype and with its weights in the order of the activations.

Legend: B batch, T mel frames, T' encoder frames, F mel bins, C channels, D width, G bins of one group.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.backends.fused.parts import Product
from overtone.nets.layers import channels_last_is_safe
from overtone.nets.subsampling import KERNEL, STRIDE, ConvSubsampling, subsample_in_pieces

GROUPS = (4, 2, 1)
"""Numbers of neighbouring output bins that the first convolution may compute from one patch."""
CHUNK_BYTES = 1 << 23
"""Rows are subsampled together as long as the largest activation stays below: it remains in the cache, and the
memory it lies in is used again instead of being asked from the system anew."""


class CastSubsampling:
    """mel [B, T, F], lengths [B] -> x [B, T', D] by a plain copy in another dtype, for kinds that take little time."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, scale: float) -> None:
        self.copy = copy.deepcopy(module).to(dtype).requires_grad_(False)
        self.dtype = dtype
        self.scale = scale

    def __call__(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.copy(mel.to(self.dtype), lengths)
        return x * self.scale, lengths


class FusedSubsampling:
    """mel [B, T, F], lengths [B] -> x [B, T', D] times `scale`, lengths [B]; activations [B, T, F, C] throughout.

    The first convolution is a matrix product: each row of patches covers several neighbouring output bins, which
    makes the product longer and the copying of patches shorter.
    """

    def __init__(self, module: ConvSubsampling, dtype: torch.dtype, scale: float) -> None:
        self.module = module
        self.dtype = dtype
        self.before, self.after = module.before, module.after
        first = convolution(module, 0)
        self.channels = first.out_channels
        assert first.bias is not None
        bias = first.bias.detach()
        self.first = {
            group: Product(grouped_kernel(first.weight.detach(), group).to(dtype), bias.repeat(group).to(dtype))
            for group in GROUPS
        }
        self.stages = [Stage(module, stage, dtype) for stage in range(module.stages - 1)]
        out = module.out
        weight = out.weight.detach().unflatten(1, (self.channels, -1)).transpose(1, 2).flatten(1)
        out_bias = (out.bias.detach().double() * scale).to(dtype)
        self.out = Product((weight.double() * scale).to(dtype).contiguous(), out_bias)

    def __call__(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return subsample_in_pieces(self.module, mel, lengths, self.subsample_rows)

    def subsample_rows(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """mel [B, T, F], lengths [B] -> x [B, T', D], lengths [B], as many rows at once as a cache has room for."""
        chunk = mel.size(0)
        if mel.device.type == "cpu":
            row_bytes = mel[0].numel() // STRIDE**2 * self.channels * self.dtype.itemsize
            chunk = max(1, CHUNK_BYTES // max(row_bytes, 1))
        halves = [lengths]
        for _ in range(1 + len(self.stages)):
            halves.append(self.module.halved_lengths(halves[-1]))
        counts = torch.stack(halves, dim=1).clamp(min=0).tolist()  # [B][stages + 1]
        rows = mel.to(self.dtype, copy=True).split(chunk)
        x = torch.cat([self.subsample(part, counts[chunk * i : chunk * (i + 1)]) for i, part in enumerate(rows)])
        return self.out(x), halves[-1]

    def subsample(self, mel: Tensor, counts: list[list[int]]) -> Tensor:
        """mel [B, T, F] and the frames of each row before and after every stage -> [B, T', F'·C]."""
        before, first, *rest = zip(*counts, strict=True)
        x = zero_tail(self.first_stage(zero_tail(mel, before)), first)  # [B, T/2, F/2, C]
        for stage, count in zip(self.stages, rest, strict=True):
            x = stage(x, count)
        return x.flatten(2)

    def first_stage(self, x: Tensor) -> Tensor:
        """x [B, T, F] -> [B, T/2, F/2, C]."""
        bins = self.module.halved(x.size(2))
        group = next(size for size in GROUPS if bins % size == 0)
        x = F.pad(x, (self.before, self.after, self.before, self.after))
        patches = x.unfold(1, KERNEL, STRIDE).unfold(2, STRIDE * (group - 1) + KERNEL, STRIDE * group)
        x = self.first[group].rectified(patches.flatten(3))  # [B, T/2, F/2/G, G·C]
        bins_apart: Tensor = x.unflatten(-1, (group, self.channels))
        return bins_apart.flatten(2, 3)


class Stage:
    """x [B, T, F, C] -> [B, T/2, F/2, C], zero past the lengths."""

    def __init__(self, module: ConvSubsampling, stage: int, dtype: torch.dtype) -> None:
        self.before, self.after = module.before, module.after
        index = 2 + stage * (3 if module.depthwise else 2)
        conv = convolution(module, index)
        self.groups = conv.groups
        self.channels_last = conv.groups == 1 or channels_last_is_safe(dtype, conv.out_channels)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        self.weight = conv.weight.detach().to(dtype).contiguous(memory_format=layout)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.pointwise: Product | None = None
        if module.depthwise:
            pointwise = convolution(module, index + 1)
            bias = None if pointwise.bias is None else pointwise.bias.detach().to(dtype)
            self.pointwise = Product(pointwise.weight.detach().flatten(1).to(dtype), bias)

    def __call__(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        image = x.permute(0, 3, 1, 2)
        padding = self.before
        if self.before != self.after:
            image = F.pad(image, (self.before, self.after, self.before, self.after))
            padding = 0
        if not self.channels_last:
            image = image.contiguous()
        x = F.conv2d(image, self.weight, self.bias, STRIDE, padding, groups=self.groups).permute(0, 2, 3, 1)
        x = F.relu_(x) if self.pointwise is None else self.pointwise.rectified(zero_tail(x, lengths))
        return zero_tail(x, lengths).contiguous()


def convolution(module: ConvSubsampling, index: int) -> nn.Conv2d:
    """The convolution of that index."""
    conv = module.conv[index]
    assert isinstance(conv, nn.Conv2d)
    return conv


def grouped_kernel(kernel: Tensor, group: int) -> Tensor:
    """[C, 1, 3, 3] -> [G·C, 3·(2G+1)]: the kernel once for each of G neighbouring output bins."""
    channels = kernel.size(0)
    grouped = kernel.new_zeros(group, channels, KERNEL, STRIDE * (group - 1) + KERNEL)
    for position in range(group):
        grouped[position, ..., STRIDE * position : STRIDE * position + KERNEL] = kernel[:, 0]
    return grouped.flatten(0, 1).flatten(1)


def zero_tail(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """[B, T, …] with zeros past the lengths, in place: only the padding is written."""
    for row, length in zip(x, lengths, strict=True):
        if length < x.size(1):
            row[length:].zero_()
    return x
