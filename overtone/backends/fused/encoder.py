"""The fused encoder: a private copy for frozen weights, in another dtype, with folded norms and fused products.

Its taps are the encoder's own. Its weights are derived from the base's and never written back; a copy notices when the
base has changed or moved, and derives them anew.
Legend: B batch, T mel frames, T' encoder frames, F mel bins, D width.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from overtone.backends.fused.attention import FORBIDDEN, AttentionPart, attends_wide
from overtone.backends.fused.parts import (
    ConvolutionPart,
    FeedForwardPart,
    Norm,
    NormPart,
    PartChain,
    SharedContext,
    add_part,
    cast_product,
    draw_mask,
    run_part,
)
from overtone.backends.fused.subsampling import CastSubsampling, FusedSubsampling
from overtone.nets.conformer import ConformerEncoder, ConformerLayer, ConvolutionModule
from overtone.nets.layers import run_checkpointed
from overtone.nets.subsampling import ConvSubsampling
from overtone.nets.taps import Tap

STREAM_DTYPE: torch.dtype | None = None
"""Dtype of the stream between the parts; None is that of the products."""
SHORTEST_ENCODINGS = 512
"""Encoder frames for which the encodings of distances are computed at once."""


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the machine is quick at it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "mps":
        return torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


class FusedEncoder:
    """mel [B, F, T] float32, lengths [B] -> x [B, T', D] float32, lengths [B], computed in `dtype`.

    The same function as the encoder it is made from, for frozen weights: gradients flow to what is plugged into
    the taps and through to the input of the first tap that acts, never to a weight. Dropout is active where the
    encoder's own modules have it active; batch norms always use their stored statistics.
    """

    def __init__(self, encoder: ConformerEncoder, dtype: torch.dtype) -> None:
        self.encoder = encoder
        self.dtype = dtype
        self.stream = STREAM_DTYPE or dtype
        self.lock = threading.Lock()
        """Held while the copy changes: several threads may compute with it."""
        self.state: list[tuple[int, int | None]] | None = None
        self.holders: list[Mapping[str, Tensor | None]] = []
        """The dictionaries of tensors of the encoder's modules: to find them takes longer than to read them."""
        self.layers: list[FusedLayer] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(copy.deepcopy(self.encoder, memo), self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.encoder, self.dtype)  # a pickle has no copy: it is derived anew

    def __call__(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        self.refresh()
        with torch.autocast(mel.device.type, enabled=False):
            x, lengths, shared = self.embed(mel, lengths)
            return self.project(self.run_layers(x, shared)), lengths

    def refresh(self) -> None:
        """Derive the weights anew where the base has changed since. Of several threads one does it."""
        if self.is_fresh():
            return
        with self.lock:
            if self.is_fresh():
                return
            modules = list(self.encoder.modules())
            self.holders = [held for module in modules for held in (module._parameters, module._buffers) if held]
            state = self.base_state()
            with torch.inference_mode(False), torch.no_grad():
                self.derive()
            self.state = state

    def forget(self) -> None:
        """Derive the weights anew at the next forward, also where no write to the base has been noticed."""
        self.state = None

    def is_fresh(self) -> bool:
        """True if the weights are derived from the base as it is now."""
        return self.state is not None and self.state == self.base_state()

    def base_state(self) -> list[tuple[int, int | None]]:
        """For each tensor of the base its address, and how often it has been written to; before these, whether the
        attention is local.
        """
        return [(int(self.encoder.window is not None), None)] + [
            (tensor.data_ptr(), None if tensor.is_inference() else tensor._version)
            for held in self.holders
            for tensor in held.values()
            if tensor is not None
        ]

    def derive(self) -> None:
        """Make all parts from the weights of the base."""
        encoder = self.encoder
        self.pre_encode: FusedSubsampling | CastSubsampling
        if isinstance(encoder.pre_encode, ConvSubsampling):
            self.pre_encode = FusedSubsampling(encoder.pre_encode, self.dtype, encoder.scale)
        else:
            self.pre_encode = CastSubsampling(encoder.pre_encode, self.dtype, encoder.scale)
        layers = [module for module in encoder.layers if isinstance(module, ConformerLayer)]
        self.layers = [FusedLayer(layer, self.dtype, local=encoder.window is not None) for layer in layers]
        self.longest = 0
        self.out_proj = None if encoder.out_proj is None else cast_product(encoder.out_proj, self.dtype)

    def below(self, mel: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """The same as `Encoder.below`: mel [B, F, T], lengths [B] -> x [B, T', D] in the stream's dtype."""
        self.refresh()
        with torch.autocast(mel.device.type, enabled=False):
            x, lengths = self.subsample(mel, lengths)
            if cut == 0:
                return x, lengths
            positions, shared = self.surroundings(lengths, x.size(1))
            return self.run_layers(self.enter(x, positions), shared, last=cut), lengths

    def above(self, x: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """The same as `Encoder.above`: x [B, T', D], lengths [B] -> the encoder's output [B, T', D], lengths [B]."""
        self.refresh()
        with torch.autocast(x.device.type, enabled=False):
            positions, shared = self.surroundings(lengths, x.size(1))
            x = self.enter(x, positions) if cut == 0 else self.layers[cut - 1].layer.after_block(x, x, shared.taps)
            return self.project(self.run_layers(x, shared, first=cut)), lengths

    def within(self, mel: Tensor, lengths: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """The same as `ConformerEncoder.within`: mel [B, F, T], lengths [B] -> [B, T', D] float32 each, lengths [B]."""
        self.refresh()
        with torch.autocast(mel.device.type, enabled=False):
            x, lengths, shared = self.embed(mel, lengths)
            found, done = [], 0
            for end in (*(layer + 1 for layer in layers), len(self.layers)):
                x, done = self.run_layers(x, shared, done, end), end
                found.append(self.project(x))
            return found, lengths

    def embed(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, SharedContext]:
        """Everything below the first layer: mel [B, F, T], lengths [B] -> x [B, T', D], lengths [B], shared context."""
        x, lengths = self.subsample(mel, lengths)
        positions, shared = self.surroundings(lengths, x.size(1))
        return self.enter(x, positions), lengths, shared

    def subsample(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """mel [B, F, T], lengths [B] -> x [B, T', D] in the stream's dtype, lengths [B]."""
        x, lengths = self.pre_encode(mel.transpose(1, 2), lengths)
        return x.to(self.stream), lengths

    def surroundings(self, lengths: Tensor, frames: int) -> tuple[Tensor, SharedContext]:
        """lengths [B] -> position encodings [1, 2T'-1 or T', D], and the context that the layers share."""
        encoder = self.encoder
        positions = encoder.encodings(frames, lengths.device)
        mask = draw_mask(encoder.dropout_emb, positions)
        if mask is not None:
            positions = positions * mask
        elif encoder.relative and encoder.window is None:
            self.encode_distances(frames, lengths.device)
        context = encoder.tap_context(lengths, frames, positions if encoder.relative else None)
        keep = context.valid.unsqueeze(-1).to(self.dtype) if int(lengths.min()) < frames else None
        limited = context.attention is not None and encoder.attention_context != (-1, -1)
        return positions, SharedContext(
            taps=context,
            keep=keep,
            marks=None if keep is None else (1.0 - keep.squeeze(-1)) * FORBIDDEN,
            forbidden=~context.attention.squeeze(1) if context.attention is not None and limited else None,
            positions=positions if mask is not None and encoder.relative else None,
            attends_wide=attends_wide(len(lengths), frames, lengths.device),
        )

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        """The output of the subsampling [B, T', D] -> the input of the first layer [B, T', D]."""
        encoder = self.encoder
        if not encoder.relative:
            x = x + positions.to(x.dtype)
        mask = draw_mask(encoder.dropout_pre_encoder, x)
        return x if mask is None else x * mask

    def project(self, x: Tensor) -> Tensor:
        """The last layer's output [B, T', D] -> the encoder's, float32."""
        if self.out_proj is not None:
            x = self.out_proj(x.to(self.dtype))
        return x.float()

    def encode_distances(self, frames: int, device: torch.device) -> None:
        """Compute every layer's encodings of distances, once for the longest input so far."""
        if frames <= self.longest:
            return
        with self.lock:
            if frames <= self.longest:
                return
            longest = max(SHORTEST_ENCODINGS, 1 << (frames - 1).bit_length())
            with torch.inference_mode(False), torch.no_grad():
                positions = self.encoder.positions(longest, device)
                for layer in self.layers:
                    layer.attention.core.prepare(positions)
            self.longest = longest

    def run_layers(self, x: Tensor, shared: SharedContext, first: int = 0, last: int | None = None) -> Tensor:
        """x [B, T', D] through the layers first … last-1."""
        for layer in self.layers[first:last]:
            recompute = self.encoder.gradient_checkpointing and torch.is_grad_enabled()
            x = run_checkpointed(layer, x, shared) if recompute else layer(x, shared)
        return x


class FusedLayer:
    """x [B, T, D] -> [B, T, D].

    The layer is one node of the autograd graph unless a tap inside it acts; then each part without such a tap is one.
    """

    def __init__(self, layer: ConformerLayer, dtype: torch.dtype, *, local: bool = False) -> None:
        """local: the attention sees neighbours alone, and is computed by the layer's own module in float32."""
        self.layer = layer
        self.feed_forward1 = FeedForwardPart(layer.norm_feed_forward1, layer.feed_forward1, layer.dropout, dtype)
        self.feed_forward2 = FeedForwardPart(layer.norm_feed_forward2, layer.feed_forward2, layer.dropout, dtype)
        self.attention = AttentionPart(layer.norm_self_att, layer.self_attn, layer.dropout, dtype)
        convolution = ConvolutionPart if isinstance(layer.conv.batch_norm, nn.BatchNorm2d) else CastConvolution
        self.convolution = convolution(layer.norm_conv, layer.conv, layer.dropout, dtype)
        self.norm_out = Norm(layer.norm_out, dtype)
        self.local = local
        self.whole: PartChain | None = None
        if isinstance(self.convolution, ConvolutionPart) and not local:
            self.whole = PartChain(
                self.feed_forward1, self.attention, self.convolution, self.feed_forward2, NormPart(self.norm_out)
            )
        taps = [module for module in layer.modules() if isinstance(module, Tap)]
        self.inner_taps = [tap for tap in taps if tap is not layer.after_block]

    def __call__(self, block_input: Tensor, shared: SharedContext) -> Tensor:
        layer, context = self.layer, shared.taps
        if self.whole is not None and not any(tap.acts() for tap in self.inner_taps):
            y = run_part(self.whole, block_input, shared)
        else:
            x = self.feed_forward1(block_input, shared)
            x = layer.after_attention(x, self.attend(x, shared), context)
            x = self.convolution(x, shared)
            y = self.norm_out(self.feed_forward2(x, shared))
        return layer.after_block.apply_in_place(block_input, y, context)

    def attend(self, x: Tensor, shared: SharedContext) -> Tensor:
        """x [B, T, D] -> x and what attention adds [B, T, D]."""
        if not self.local:
            return self.attention(x, shared)
        layer = self.layer
        part: Tensor = layer.self_attn(layer.norm_self_att(x.float()), shared.taps)
        part = part.to(x.dtype)
        return add_part(x, part, draw_mask(layer.dropout, part))


class CastConvolution:
    """x [B, T, D] -> x + convolution(norm(x)), a plain copy in another dtype, for norms that do not fold."""

    def __init__(self, norm: nn.LayerNorm, module: ConvolutionModule, dropout: nn.Dropout, dtype: torch.dtype) -> None:
        self.norm = Norm(norm, dtype)
        self.copy = copy.deepcopy(module).to(dtype).requires_grad_(False)
        self.dropout = dropout
        self.dtype = dtype

    def __call__(self, x: Tensor, shared: SharedContext) -> Tensor:
        part = self.copy(self.norm(x).to(self.dtype), shared.taps.valid)
        return add_part(x, part, draw_mask(self.dropout, part))
