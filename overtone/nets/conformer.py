"""The Conformer encoder; FastConformer is a configuration of it.

Gulati et al. 2020 (arXiv:2005.08100); Rekesh et al. 2023 (arXiv:2305.05084); module names are NeMo's.
Legend: B batch, T time, F mel bins, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.nets.attention import PositionTable, SelfAttention, new_position_biases
from overtone.nets.layers import (
    apply_dropout,
    normalise_image,
    pointwise_conv,
    run_checkpointed,
    time_conv,
    valid_frames,
)
from overtone.nets.local_attention import select_encodings
from overtone.nets.products import apply_linear
from overtone.nets.subsampling import Subsampling, build_subsampling
from overtone.nets.taps import LOCAL, Position, Tap, TapContext, Window

ContextStyle = Literal["regular", "chunked_limited"]
PADDING_BLIND_NORMS = ("batch_norm", "layer_norm")
"""Norms of the convolution whose outcome for a row does not depend on its padding."""


class FeedForward(nn.Module):
    """x [B, T, D] -> [B, T, D] through `expansion` times the width."""

    def __init__(self, width: int, inner: int, *, dropout: float, use_bias: bool) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, inner, bias=use_bias)
        self.linear2 = nn.Linear(inner, width, bias=use_bias)
        self.dropout = nn.Dropout(dropout)
        self.expand = Tap("linear", width, inner)
        self.contract = Tap("linear", inner, width)

    def forward(self, x: Tensor, context: TapContext) -> Tensor:
        inner = apply_dropout(F.silu(self.expand(x, apply_linear(self.linear1, x), context)), self.dropout)
        result: Tensor = self.contract(inner, apply_linear(self.linear2, inner), context)
        return result


class ConvolutionModule(nn.Module):
    """x [B, T, D] -> [B, T, D]: gate, depthwise convolution over time, norm, Swish, projection."""

    def __init__(self, width: int, kernel_size: int, norm: str, context: Sequence[int] | None, use_bias: bool) -> None:
        super().__init__()
        self.left, self.right = context or ((kernel_size - 1) // 2, (kernel_size - 1) // 2)
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1, bias=use_bias)
        self.depthwise_conv = nn.Conv1d(width, width, kernel_size, groups=width, bias=use_bias)
        self.batch_norm = build_norm(norm, width)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1, bias=use_bias)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return self.convolve(self.gate(x, valid), left=self.left, right=self.right)

    def gate(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [B, T, D], valid [B, T] bool -> the input of the convolution over time [B, T, D], zero on padding."""
        x = F.glu(pointwise_conv(x, self.pointwise_conv1.weight, self.pointwise_conv1.bias), dim=-1)
        return x.masked_fill(~valid.unsqueeze(-1), 0.0)

    def convolve(self, x: Tensor, *, left: int, right: int) -> Tensor:
        """The rest: x [B, T, D], filled up with zero frames left and right -> [B, left + T + right - K + 1, D]."""
        conv = self.depthwise_conv
        x = time_conv(x, conv.weight, conv.bias, left=left, right=right)
        x = self.batch_norm(x) if isinstance(self.batch_norm, nn.LayerNorm) else normalise_image(x, self.batch_norm)
        return pointwise_conv(F.silu(x), self.pointwise_conv2.weight, self.pointwise_conv2.bias)


def build_norm(name: str, width: int) -> nn.Module:
    """`batch_norm`, `layer_norm` or `group_normN` with N groups."""
    if name == "batch_norm":
        return nn.BatchNorm2d(width)
    if name == "layer_norm":
        return nn.LayerNorm(width)
    return nn.GroupNorm(int(name.removeprefix("group_norm")), width)


class ConformerLayer(nn.Module):
    """x [B, T, D] -> [B, T, D]; adapters may act after the attention and after the block."""

    def __init__(
        self,
        width: int,
        *,
        inner: int,
        attention: Callable[[], SelfAttention],
        convolution: Callable[[], ConvolutionModule],
        use_bias: bool,
        dropout: float,
    ) -> None:
        """inner: width of the feed-forward parts. attention, convolution: make these parts."""
        super().__init__()
        self.norm_feed_forward1 = nn.LayerNorm(width)
        self.feed_forward1 = FeedForward(width, inner, dropout=dropout, use_bias=use_bias)
        self.norm_conv = nn.LayerNorm(width)
        self.conv = convolution()
        self.norm_self_att = nn.LayerNorm(width)
        self.self_attn = attention()
        self.norm_feed_forward2 = nn.LayerNorm(width)
        self.feed_forward2 = FeedForward(width, inner, dropout=dropout, use_bias=use_bias)
        self.norm_out = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.after_attention = Tap("after_attention", width, attention=self.self_attn.position)
        self.after_block = Tap("after_block", width)

    def forward(self, block_input: Tensor, context: TapContext) -> Tensor:
        x = block_input
        x = x + 0.5 * apply_dropout(self.feed_forward1(self.norm_feed_forward1(x), context), self.dropout)
        attended = x + apply_dropout(self.self_attn(self.norm_self_att(x), context), self.dropout)
        x = self.after_attention(x, attended, context)
        x = x + apply_dropout(self.conv(self.norm_conv(x), context.valid), self.dropout)
        x = x + 0.5 * apply_dropout(self.feed_forward2(self.norm_feed_forward2(x), context), self.dropout)
        result: Tensor = self.after_block(block_input, self.norm_out(x), context)
        return result


class ConformerEncoder(nn.Module):
    """mel [B, F, T], lengths [B] -> x [B, T', D], lengths [B]; T' = T / subsampling_factor, rounded up."""

    gradient_checkpointing = False
    """Compute every layer's activations again in the backward pass: less memory, a third more time."""
    attention_context: tuple[int, int]
    """The frames to the left and to the right that a frame sees; -1: all."""
    attention_contexts: tuple[tuple[int, int], ...]
    """The contexts that the encoder was trained with."""
    window: Window | None
    """The window of local attention; None: attention as `attention_context` says."""

    def __init__(
        self,
        *,
        features: int = 80,
        width: int,
        layers: int,
        heads: int,
        feed_forward_expansion: int = 4,
        kernel_size: int = 31,
        subsampling: Subsampling = "striding",
        subsampling_factor: int = 4,
        subsampling_channels: int | None = None,
        causal_downsampling: bool = False,
        position: Position = "rel_pos",
        scale_input: bool = True,
        untie_biases: bool = True,
        use_bias: bool = True,
        conv_norm: str = "batch_norm",
        conv_context: Sequence[int] | None = None,
        attention_context: Sequence[int] = (-1, -1),
        attention_contexts: Sequence[Sequence[int]] = (),
        attention_context_style: ContextStyle = "regular",
        global_attention: Mapping[str, Any] | None = None,
        output_width: int | None = None,
        dropout: float = 0.1,
        dropout_pre_encoder: float = 0.1,
        dropout_emb: float = 0.0,
        dropout_att: float = 0.0,
        position_max_len: int = 5000,
    ) -> None:
        super().__init__()
        self.subsampling_factor = subsampling_factor
        self.width, self.output_width, self.depth = width, output_width or width, layers
        self.sizes = f"{heads} heads ({position}), kernel {kernel_size}"
        self.subsampling, self.conv_norm = subsampling, conv_norm
        self.dropout_rate = max(dropout, dropout_pre_encoder, dropout_emb, dropout_att)
        self.scale = math.sqrt(width) if scale_input else 1.0
        self.relative = position != "abs_pos"
        tokens = {"tokens": 0, "spacing": 1, "separate": False, **(global_attention or {})}
        separate = tokens.pop("separate")
        self.window = None
        if position == LOCAL:
            self.window = Window(left=attention_context[0], right=attention_context[1], **tokens)
        self.attention_context = (attention_context[0], attention_context[1])
        self.attention_contexts = tuple((left, right) for left, right in attention_contexts or [attention_context])
        self.attention_context_style = attention_context_style
        channels = subsampling_channels or width
        self.pre_encode = build_subsampling(
            subsampling, features, width, factor=subsampling_factor, channels=channels, causal=causal_downsampling
        )
        self.positions = PositionTable(width, position)
        self.dropout_pre_encoder = nn.Dropout(dropout if position == LOCAL else dropout_pre_encoder)
        self.dropout_emb = nn.Dropout(dropout_emb if self.relative else 0.0)
        shared = None if untie_biases or position != "rel_pos" else new_position_biases(width, heads)
        options: dict[str, Any] = {"use_bias": use_bias, "position_biases": shared, "separate": separate}
        attention = partial(SelfAttention, width, heads, position=position, dropout=dropout_att, **options)
        convolution = partial(ConvolutionModule, width, kernel_size, conv_norm, conv_context, use_bias)
        layer = partial(ConformerLayer, width, inner=width * feed_forward_expansion, use_bias=use_bias, dropout=dropout)
        self.layers = nn.ModuleList(layer(attention=attention, convolution=convolution) for _ in range(layers))
        self.out_proj = None if output_width in (None, width) else nn.Linear(width, self.output_width)

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths, context = self.embed(mel, lengths)
        return self.project(self.run_layers(x, context)), lengths

    def describe(self) -> tuple[str, str]:
        """The name of the architecture, and its sizes in words."""
        fast = self.subsampling == "dw_striding" and self.subsampling_factor == 8
        return (
            "FastConformer" if fast else "Conformer",
            f"{self.depth} layers of width {self.width}, {self.sizes}, {self.subsampling} subsampling "
            f"{self.subsampling_factor}×",
        )

    @property
    def inner_layers(self) -> Sequence[int]:
        return range(self.depth - 1)

    @property
    def rows_are_independent(self) -> bool:
        return self.conv_norm in PADDING_BLIND_NORMS

    @property
    def uncut(self) -> str:
        """The part, as a clause, that gives an utterance other values or another length by its padding; else empty."""
        part = "" if self.rows_are_independent else "group norm"
        part = part or ("stacking subsampling" if self.subsampling.startswith("stacking") else "")
        return part and f"the {part} of this base gives an utterance other values in every batch, by its padding"

    def stem(self) -> str:
        return "subsampling"

    def size_at(self, cut: int) -> tuple[int, int]:
        """Width and mel frames of one frame of the input of the layer `cut`: those of every layer."""
        return self.width, self.subsampling_factor

    def project(self, x: Tensor) -> Tensor:
        """A layer's output [B, T', D] -> the encoder's, which may have another width."""
        return x if self.out_proj is None else apply_linear(self.out_proj, x)

    def within(self, mel: Tensor, lengths: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """mel [B, F, T], lengths [B] -> the outputs [B, T', D] of inner layers, in rising order, then the encoder's
        own; lengths [B].
        """
        x, lengths, context = self.embed(mel, lengths)
        found, done = [], 0
        for end in (*(layer + 1 for layer in layers), self.depth):
            x, done = self.run_layers(x, context, done, end), end
            found.append(self.project(x))
        return found, lengths

    def embed(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, TapContext]:
        """Everything below the first layer: x [B, T', D], lengths [B] and the context of every tap."""
        x, lengths = self.subsample(mel, lengths)
        positions, context = self.surroundings(lengths, x.size(1))
        return self.enter(x, positions), lengths, context

    def subsample(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """mel [B, F, T] -> x [B, T', D], lengths [B]: without positions, and before any dropout."""
        x, lengths = self.pre_encode(mel.transpose(1, 2), lengths)
        return x * self.scale, lengths

    def surroundings(self, lengths: Tensor, frames: int) -> tuple[Tensor, TapContext]:
        """lengths [B] -> position encodings [1, 2T'-1 or T', D], and the context of every tap."""
        positions = apply_dropout(self.encodings(frames, lengths.device), self.dropout_emb)
        return positions, self.tap_context(lengths, frames, positions if self.relative else None)

    def encodings(self, frames: int, device: torch.device) -> Tensor:
        """Position encodings [1, 2T'-1 or T', D] of so many frames; under local attention [1, N, D] of its window."""
        if self.window is None:
            encodings: Tensor = self.positions(frames, device)
            return encodings
        return select_encodings(self.positions(1 + max(self.window.left, self.window.right), device), self.window)

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        """The output of the subsampling [B, T', D] -> the input of the first layer [B, T', D]."""
        return apply_dropout(x if self.relative else x + positions, self.dropout_pre_encoder)

    def below(self, mel: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """mel [B, F, T], lengths [B] -> the input x [B, T', D] of the layer `cut`, lengths [B].

        For the first layer x is the output of `subsample`.
        """
        x, lengths = self.subsample(mel, lengths)
        if cut == 0:
            return x, lengths
        positions, context = self.surroundings(lengths, x.size(1))
        return self.run_layers(self.enter(x, positions), context, last=cut), lengths

    def above(self, x: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """The rest of the encoder: above(*below(mel, lengths, cut), cut) is the output x [B, T', D] and lengths [B].

        x [B, T', D], lengths [B]: of `below`. Adapters behind the layer before the cut act here: they must look at
        that layer's output alone.
        """
        positions, context = self.surroundings(lengths, x.size(1))
        x = self.enter(x, positions) if cut == 0 else self.layers[cut - 1].get_submodule("after_block")(x, x, context)
        return self.project(self.run_layers(x, context, first=cut)), lengths

    def run_layers(self, x: Tensor, context: TapContext, first: int = 0, last: int | None = None) -> Tensor:
        """x [B, T', D] -> [B, T', D] through the layers first … last-1."""
        for layer in self.layers[first:last]:
            recompute = self.gradient_checkpointing and torch.is_grad_enabled()
            x = run_checkpointed(layer, x, context) if recompute else layer(x, context)
        return x

    def tap_context(self, lengths: Tensor, frames: int, positions: Tensor | None) -> TapContext:
        """lengths [B], positions [1, 2T'-1, D] -> masks and positions for every tap."""
        valid = valid_frames(lengths, frames)
        if self.window is not None:
            return TapContext(valid=valid, positions=positions, window=self.window)
        allowed = valid.unsqueeze(2) & valid.unsqueeze(1) & self.visible(frames, lengths.device)
        return TapContext(valid=valid, attention=allowed.unsqueeze(1), positions=positions)

    def visible(self, frames: int, device: torch.device, context: tuple[int, int] | None = None) -> Tensor:
        """[T, T] bool: which frames (second axis) a frame (first axis) sees under the limited context.

        context: the encoder's own `attention_context` unless given.
        """
        left, right = context or self.attention_context
        steps = torch.arange(frames, device=device)
        if self.attention_context_style == "chunked_limited" and right >= 0:
            chunk = steps // (right + 1)
            distance = chunk.unsqueeze(1) - chunk.unsqueeze(0)
            return (distance >= 0) & (distance <= (left // (right + 1) if left >= 0 else frames))
        distance = steps.unsqueeze(1) - steps.unsqueeze(0)
        seen = torch.ones_like(distance, dtype=torch.bool)
        if left >= 0:
            seen &= distance <= left
        if right >= 0 and self.attention_context_style == "regular":
            seen &= -distance <= right
        return seen
