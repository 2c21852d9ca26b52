"""Convolutional encoders: Jasper, QuartzNet, Citrinet and ContextNet are configurations of one net.

Li et al. 2019 (arXiv:1904.03288); Kriman et al. 2019 (arXiv:1910.10261); Majumdar et al. 2021 (arXiv:2104.01721);
Han et al. 2020 (arXiv:2005.03191). Names of tensors are NeMo's.
Legend: B batch, T time, F mel bins, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.errors import ConfigError
from overtone.nets.layers import (
    apply_dropout,
    normalise_image,
    pointwise_conv,
    run_checkpointed,
    time_conv,
    valid_frames,
)
from overtone.nets.taps import Tap, TapContext, Window

Residual = Literal["add", "stride_add", "max"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "swish": F.silu,
    "silu": F.silu,
    "gelu": F.gelu,
    "selu": F.selu,
    "hardtanh": F.hardtanh,
    "identity": lambda x: x,
}
NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class Frames:
    """The frames of a batch at one place of the net."""

    lengths: Tensor
    """[B] int64."""
    valid: Tensor
    """[B, T] bool, true below each row's length."""

    def every(self, stride: int) -> Frames:
        """The first frame of each `stride`."""
        if stride == 1:
            return self
        return Frames(torch.div(self.lengths + stride - 1, stride, rounding_mode="floor"), self.valid[:, ::stride])

    def mask(self, x: Tensor) -> Tensor:
        """x [B, T, D] with zeros past each row's length."""
        return x * self.valid.unsqueeze(-1).to(x.dtype)  # three times as fast as masked_fill


class MaskedConv(nn.Module):
    """x [B, T, D] -> [B, T / stride, E]: a convolution over time that sees zeros past each row's length."""

    def __init__(
        self,
        width: int,
        output_width: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        future: int = -1,
    ) -> None:
        """kernel: an odd number. future: frames to the right that are seen; -1: as many as to the left."""
        super().__init__()
        self.conv = nn.Conv1d(width, output_width, kernel, groups=groups, bias=False)
        self.stride, self.dilation = stride, dilation
        self.spans_time, self.grouped = kernel > 1, groups > 1
        span = dilation * (kernel - 1)
        self.right = future if 0 <= future < kernel else span // 2
        self.left = span - self.right

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        # Without a kernel over time padding reaches padding alone; but norms that learn statistics count it, as zeros.
        if self.spans_time or self.training:
            x = frames.mask(x)
        if not self.spans_time and not self.grouped:
            return pointwise_conv(x[:, :: self.stride], self.conv.weight, None)
        return time_conv(
            x, self.conv.weight, None, left=self.left, right=self.right, stride=self.stride, dilation=self.dilation
        )


class SqueezeExcite(nn.Module):
    """x [B, T, D] -> [B, T, D]: each channel scaled by what the mean over all valid frames asks for.

    Where a model was trained with a limited context, NeMo draws a random segment to take the mean of, in training
    only; here the mean is over the whole row always, as in NeMo's inference.
    """

    def __init__(self, width: int, *, reduction: int, activation: str) -> None:
        super().__init__()
        self.fc = nn.ModuleDict(
            {
                "0": nn.Linear(width, width // reduction, bias=False),
                "2": nn.Linear(width // reduction, width, bias=False),
            }
        )
        self.activation = activation

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        x = frames.mask(x)
        with torch.autocast(x.device.type, enabled=False):
            counts = frames.lengths.clamp(min=1).unsqueeze(-1)
            squeezed = x.sum(dim=1, dtype=torch.float32) / counts  # [B, D]
            weight = cast(Tensor, self.fc["0"].weight)
            excited = self.fc["2"](ACTIVATIONS[self.activation](self.fc["0"](squeezed.to(weight.dtype))))
            return x * torch.sigmoid(excited).unsqueeze(1).to(x.dtype)


class JasperBlock(nn.Module):
    """x [B, T, D] -> [B, T', filters]: convolutions, each with norm and activation, and a residual around them.

    Adapters may act behind the block.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        activation: str,
        *,
        filters: int,
        repeat: int = 1,
        kernel: int = 11,
        stride: int = 1,
        dilation: int = 1,
        dropout: float = 0.0,
        residual: bool = True,
        dense: bool = False,
        residual_mode: Residual = "add",
        groups: int = 1,
        separable: bool = False,
        squeeze_excite: bool = False,
        reduction: int = 8,
        stride_last: bool = False,
        future: int = -1,
    ) -> None:
        """inputs: widths of the block's input, and before it of the inputs of all dense blocks that lead to it.

        repeat: number of convolutions. stride_last: only the last of them strides. dense: all inputs are added, and
        this block's is handed on. separable: each is one over time and one over channels. reduction: of the squeeze.
        """
        super().__init__()
        self.dense = residual and dense
        self.groups, self.residual_mode = groups, residual_mode
        self.activation, self.kernel, self.width = activation, kernel, filters
        self.subsampling_factor = stride if stride_last else stride**repeat
        self.units: list[tuple[list[str], str]] = []
        """Places in `mconv` of each repetition's convolutions, and of its norm."""
        self.mconv = nn.ModuleDict()
        width, place = inputs[-1], 0
        for number in range(repeat):
            steps = 1 if stride_last and number < repeat - 1 else stride
            over_time = {"kernel": kernel, "stride": steps, "dilation": dilation, "future": future}
            convs = make_convs(width, filters, separable=separable, groups=groups, **over_time)
            names = [str(place + step) for step in range(len(convs))]
            place += len(convs)
            self.mconv.update(dict(zip(names, convs, strict=True)))
            self.mconv[str(place)] = nn.BatchNorm2d(filters, eps=NORM_EPSILON)
            self.units.append((names, str(place)))
            # NeMo numbers the shuffle of groups, the activation and the dropout too, which have no tensors.
            place += 1 + (groups > 1) + 2 * (number < repeat - 1)
            width = filters
        self.squeeze = str(place) if squeeze_excite else ""
        if squeeze_excite:
            self.mconv[self.squeeze] = SqueezeExcite(filters, reduction=reduction, activation=activation)
        steps = stride if residual_mode == "stride_add" else 1
        added = (inputs if dense else inputs[-1:]) if residual else ()
        self.res = nn.ModuleList(
            nn.ModuleList([MaskedConv(width, filters, stride=steps), nn.BatchNorm2d(filters, eps=NORM_EPSILON)])
            for width in added
        )
        self.dropout = nn.Dropout(dropout)
        self.after_block = Tap("after_block", filters)

    def forward(self, inputs: list[Tensor], frames: Frames) -> Tensor:
        """Inputs [B, T, D] of the dense blocks before, the block's own last -> [B, T', filters]."""
        x, before = inputs[-1], frames
        for number, (convs, norm) in enumerate(self.units):
            if number:
                x = self.activate(x)
            for name in convs:
                conv = cast(MaskedConv, self.mconv[name])
                x, frames = conv(x, frames), frames.every(conv.stride)
            x = shuffle_channels(normalise_image(x, self.mconv[norm]), self.groups)
        if self.squeeze:
            x = self.mconv[self.squeeze](x, frames)
        for branch, source in zip(self.res, inputs[-len(self.res) :], strict=False):
            project, normalise = cast(nn.ModuleList, branch)
            added = normalise_image(project(source, before), normalise)
            x = torch.maximum(x, added) if self.residual_mode == "max" else x + added
        x = self.activate(x)
        result: Tensor = self.after_block(x, x, TapContext(valid=frames.valid))
        return result

    def activate(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]"""
        return apply_dropout(ACTIVATIONS[self.activation](x), self.dropout)


def make_convs(width: int, filters: int, *, separable: bool, groups: int, **over_time: int) -> list[MaskedConv]:
    """A convolution over time, or one over time and one over channels. over_time: arguments of MaskedConv."""
    if separable:
        return [MaskedConv(width, width, groups=width, **over_time), MaskedConv(width, filters, groups=groups)]
    return [MaskedConv(width, filters, groups=groups, **over_time)]


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """x [B, T, D] -> [B, T, D]: the first channel of each group, the second of each, …"""
    return x if groups == 1 else x.unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2)


class JasperEncoder(nn.Module):
    """mel [B, F, T], lengths [B] -> x [B, T', D], lengths [B]; T' = T / subsampling_factor, rounded up."""

    gradient_checkpointing = False
    """Compute every block's activations again in the backward pass: less memory, a third more time."""
    rows_are_independent = True
    attention_contexts: Sequence[tuple[int, int]] = ()
    attention_context = (-1, -1)
    window: Window | None = None
    relative = False

    def __init__(self, *, features: int = 80, blocks: Sequence[Mapping[str, Any]], activation: str = "relu") -> None:
        """blocks: keyword arguments of JasperBlock. Raises ConfigError where they do not fit together."""
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation '{activation}' is unknown. Allowed: {', '.join(ACTIVATIONS)}.")
        if not blocks:
            raise ConfigError("encoder.blocks is empty; at least one block is needed.")
        self.features = features
        made: list[JasperBlock] = []
        widths = [features]
        for number, settings in enumerate(blocks):
            if fault := find_fault(widths, settings):
                raise ConfigError(f"encoder.blocks[{number}]: {fault}.")
            block = JasperBlock(widths, activation, **settings)
            widths = [*widths, block.width] if block.dense else [block.width]
            made.append(block)
        self.encoder = nn.ModuleList(made)
        self.depth = len(made)
        self.width = self.output_width = made[-1].width
        self.subsampling_factor = self.size_at(self.depth)[1]
        self.dropout_rate = max(block.dropout.p for block in made)
        dense = any(block.dense for block in made)
        self.uncut = "its dense residuals join the blocks on both sides of every cut" if dense else ""
        own = self.output_width, self.subsampling_factor
        self.inner_layers: Sequence[int] = [layer for layer in range(self.depth - 1) if self.size_at(layer + 1) == own]

    @property
    def blocks(self) -> Sequence[JasperBlock]:
        return cast(Sequence[JasperBlock], self.encoder)

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        (x,), lengths = self.within(mel, lengths, ())
        return x, lengths

    def describe(self) -> tuple[str, str]:
        """The name of the architecture, and its sizes in words."""
        squeezes = any(block.squeeze for block in self.blocks)
        kernels = {block.kernel for block in self.blocks}
        separable = any(len(convs) > 1 for block in self.blocks for convs, _ in block.units)
        widths = sorted({block.width for block in self.blocks})
        count = sum(len(block.units) for block in self.blocks)
        return (
            ("Citrinet" if len(kernels) > 1 else "ContextNet") if squeezes else "QuartzNet" if separable else "Jasper",
            f"{self.depth} blocks of {count} convolutions, widths {widths[0]} to {widths[-1]}, "
            f"subsampling {self.subsampling_factor}×",
        )

    def within(self, mel: Tensor, lengths: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """mel [B, F, T], lengths [B] -> the outputs [B, T', D] of blocks among `inner_layers`, then the last;
        lengths [B].
        """
        x = mel.transpose(1, 2)
        found, frames = self.run_blocks(x, frames_of(lengths, x), {*layers, self.depth - 1})
        return found, frames.lengths

    def run_blocks(
        self, x: Tensor, frames: Frames, wanted: set[int], first: int = 0, last: int | None = None
    ) -> tuple[list[Tensor], Frames]:
        """x [B, T, D] through the blocks first … last-1: the outputs [B, T', D] of those wanted, the last's frames."""
        inputs, found = [x], []
        for number, block in enumerate(self.blocks[first:last], first):
            recompute = self.gradient_checkpointing and torch.is_grad_enabled()
            x = run_checkpointed(block, inputs, frames) if recompute else block(inputs, frames)
            frames = frames.every(block.subsampling_factor)
            inputs = [*inputs, x] if block.dense else [x]
            if number in wanted:
                found.append(x)
        return found, frames

    def stem(self) -> str:
        return ""

    def size_at(self, cut: int) -> tuple[int, int]:
        """Width and mel frames of one frame of the input of the block `cut`."""
        factor = 1
        for block in self.blocks[:cut]:
            factor *= block.subsampling_factor
        return self.blocks[cut - 1].width if cut else self.features, factor

    def below(self, mel: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """mel [B, F, T], lengths [B] -> the input [B, frames, width] of the block `cut`, lengths [B]."""
        x = mel.transpose(1, 2)
        if cut == 0:
            return x, lengths
        (x,), frames = self.run_blocks(x, frames_of(lengths, x), {cut - 1}, last=cut)
        return x, frames.lengths

    def above(self, x: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """The input x [B, frames, width] of the block `cut`, lengths [B] -> the output [B, T', D], lengths [B].

        Adapters behind the block before the cut act here.
        """
        frames = frames_of(lengths, x)
        if cut:
            x = self.blocks[cut - 1].after_block(x, x, TapContext(valid=frames.valid))
        if cut == self.depth:
            return x, lengths
        (x,), frames = self.run_blocks(x, frames, {self.depth - 1}, first=cut)
        return x, frames.lengths


def frames_of(lengths: Tensor, x: Tensor) -> Frames:
    """lengths [B] of the rows of x [B, T, D]."""
    return Frames(lengths, valid_frames(lengths, x.size(1)))


def find_fault(inputs: Sequence[int], settings: Mapping[str, Any]) -> str:
    """The reason why a block on inputs of these widths cannot be; empty where it can."""
    filters, kernel, stride = settings["filters"], settings.get("kernel", 11), settings.get("stride", 1)
    dilation, groups = settings.get("dilation", 1), settings.get("groups", 1)
    residual, dense = settings.get("residual", True), settings.get("dense", False)
    several = settings.get("repeat", 1) > 1 and not settings.get("stride_last", False)
    reduction = settings.get("reduction", 8) if settings.get("squeeze_excite") else 1
    faults = {
        f"the kernel {kernel} is no odd number": kernel % 2 == 0,
        "stride and dilation are both above 1": stride > 1 < dilation,
        "a limited future needs the dilation 1": dilation > 1 and 0 <= settings.get("future", -1) < kernel,
        f"{groups} groups do not divide {inputs[-1]} and {filters} channels": bool(
            inputs[-1] % groups or filters % groups
        ),
        f"a squeeze of {filters} channels by {reduction} leaves none": filters < reduction,
        "a residual around a stride needs the mode stride_add": residual
        and stride > 1
        and settings.get("residual_mode", "add") != "stride_add",
        "a residual around several strides needs stride_last": residual and stride > 1 and several,
        "a dense residual cannot stride": residual and dense and stride > 1,
        "a plain residual cannot follow dense ones": residual and not dense and len(inputs) > 1,
    }
    return next((fault for fault, holds in faults.items() if holds), "")
