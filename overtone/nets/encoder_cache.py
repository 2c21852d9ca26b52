"""Cache-aware streaming: a Conformer encoder that computes each chunk of a stream once, with a state per stream.

Noroozi et al. 2023 (arXiv:2312.17279), by the rules of NeMo's own loop. The encoder is one that was trained for it:
its attention sees a limited context, its convolutions over time only the past. The state holds the latest inputs of
every layer's attention and of its convolution.
Legend: B streams, F mel bins, T frames of a step, C frames of the cache, D width, K kernel, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from overtone.errors import AdapterError, UsageError
from overtone.nets.conformer import ConformerEncoder, ConformerLayer
from overtone.nets.encoder import Encoder
from overtone.nets.layers import valid_frames
from overtone.nets.subsampling import ConvSubsampling
from overtone.nets.taps import TapContext

UNLIMITED = 10_000
"""Frames that the cache grows to where the context on the left has no limit."""

ATTENTION_ADAPTER = (
    "An adapter in use acts after the attention and looks at other frames, of which a step of cache-aware streaming "
    "has few: it was trained on whole recordings. Use a linear or LoRA adapter, or buffered streaming."
)


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """Sizes of the steps of an encoder under one attention context."""

    first: int
    """Mel frames of the first step."""
    later: int
    """New mel frames of a later step."""
    first_shift: int
    """Mel frames from the begin of the first step to the begin of the second."""
    shift: int
    """Mel frames from one later step to the next; fewer than `later` where the frames on the right come again."""
    front: int
    """Mel frames before those of a later step that are computed again with it."""
    skip: int
    """Encoder frames that these become, and that are dropped."""
    drop: int
    """Encoder frames on the right of a step that are computed again by the next."""
    keep: int
    """Encoder frames that a step gives."""
    frames: int
    """Encoder frames C of the cache, at most."""


def step_sizes(encoder: Encoder, context: Sequence[int] | None = None) -> StepSizes:
    """The sizes under one of the encoder's attention contexts, its present one unless given.

    Raises UsageError for an encoder or a context that cannot be computed step by step.
    """
    conformer = check_encoder(encoder, context)
    left, right = context or encoder.attention_context
    chunked = conformer.attention_context_style == "chunked_limited"
    factor = encoder.subsampling_factor
    look = right if chunked else right * len(conformer.layers)
    drop = 0 if chunked else look
    shift = factor * (1 + look - drop)
    return StepSizes(
        first=1 + factor * look,
        later=factor * (1 + look),
        first_shift=1 + factor * (look - drop),
        shift=shift,
        front=factor + 1,
        skip=2,
        drop=drop,
        keep=shift // factor,
        frames=left if left >= 0 else UNLIMITED,
    )


def check_encoder(encoder: Encoder, context: Sequence[int] | None = None) -> ConformerEncoder:
    """The encoder, as the one family that can be computed step by step, under a context, its present one unless given.

    Raises UsageError for others.
    """
    reasons = ["it is no Conformer"]
    if isinstance(encoder, ConformerEncoder):
        left, right = context or encoder.attention_context
        reasons = reasons_against(encoder, left, right)
        if not reasons:
            return encoder
    raise UsageError(
        f"This model was not trained for cache-aware streaming: {'; '.join(reasons)}. Buffered streaming takes any."
    )


def reasons_against(encoder: ConformerEncoder, left: int, right: int) -> list[str]:
    """The reasons why an encoder cannot be computed step by step under an attention context [left, right], if any."""
    reasons = []
    if (left, right) not in encoder.attention_contexts:
        allowed = ", ".join(str(list(each)) for each in encoder.attention_contexts)
        reasons.append(f"not with the attention context [{left}, {right}], but with {allowed}")
    if right < 0:
        reasons.append(f"its attention context [{left}, {right}] has no limit on the right")
    elif encoder.attention_context_style == "chunked_limited" and left % (right + 1) and left >= 0:
        reasons.append(f"its attention context [{left}, {right}] does not consist of whole chunks")
    if any(layer.conv.right for layer in conformer_layers(encoder)):
        reasons.append("its convolutions see later frames")
    if not isinstance(encoder.pre_encode, ConvSubsampling) or encoder.pre_encode.before == encoder.pre_encode.after:
        reasons.append("its subsampling is not causal")
    if encoder.window is not None:
        reasons.append("its attention is local")
    if not encoder.relative:
        reasons.append("its positions are absolute")
    return reasons


def is_made_for_streams(encoder: Encoder) -> bool:
    """True for an encoder that computes every frame of a stream once: it was trained with chunked attention."""
    return (
        isinstance(encoder, ConformerEncoder)
        and encoder.attention_context_style == "chunked_limited"
        and encoder.attention_context[0] >= 0
        and not reasons_against(encoder, *encoder.attention_context)
    )


def conformer_layers(encoder: ConformerEncoder) -> list[ConformerLayer]:
    return [layer for layer in encoder.layers if isinstance(layer, ConformerLayer)]


@dataclass(frozen=True, kw_only=True)
class EncoderCache:
    """The state of B streams between two steps; a step makes a new one and leaves this one as it is."""

    inputs: Tensor
    """[L, B, C, D] latest inputs of every layer's attention, zeros where there are none yet."""
    columns: Tensor
    """[L, B, K-1, D] latest inputs of every layer's convolution over time."""
    lengths: Tensor
    """[B] int64: frames of `inputs` that are of the stream, the last ones."""
    started: bool = False
    """True where a step has frames in front that it computes again: after the first, or from a padded one on."""


def join_caches(caches: Sequence[EncoderCache]) -> EncoderCache:
    """The state of streams together, all before their first step or all after it."""
    if len(caches) == 1:
        return caches[0]
    held = max(cache.inputs.size(2) for cache in caches)
    padded = [F.pad(cache.inputs, (0, 0, held - cache.inputs.size(2), 0)) for cache in caches]
    return EncoderCache(
        inputs=torch.cat(padded, dim=1),
        columns=torch.cat([cache.columns for cache in caches], dim=1),
        lengths=torch.cat([cache.lengths for cache in caches]),
        started=caches[0].started,
    )


def split_cache(cache: EncoderCache) -> list[EncoderCache]:
    """The state of each stream, a copy of its own."""
    return [
        EncoderCache(
            inputs=cache.inputs[:, row : row + 1].clone(),
            columns=cache.columns[:, row : row + 1].clone(),
            lengths=cache.lengths[row : row + 1].clone(),
            started=cache.started,
        )
        for row in range(len(cache.lengths))
    ]


class CachedEncoder:
    """The steps of an encoder under one attention context, in the dtype of its weights; the taps are its own."""

    def __init__(self, encoder: Encoder, context: Sequence[int] | None = None) -> None:
        """context: one that the encoder was trained with; its present one unless given.

        Raises UsageError for an encoder or a context that cannot be computed step by step.
        """
        self.encoder = check_encoder(encoder, context)
        self.sizes = step_sizes(encoder, context)
        left, right = context or encoder.attention_context
        self.context = (left, right)
        self.layers = conformer_layers(self.encoder)
        self.dtype = self.layers[0].norm_out.weight.dtype

    def begin(self, streams: int = 1, *, padded: bool = False) -> EncoderCache:
        """The state of so many streams before their first step.

        padded: the first step is like the later ones, with zeros in front, as NeMo's `pad_and_drop_preencoded` has it.
        """
        weight = self.layers[0].norm_out.weight
        width, kernel = weight.numel(), self.layers[0].conv.left + 1
        held = self.sizes.frames if self.context[0] >= 0 else 0
        return EncoderCache(
            inputs=weight.new_zeros(len(self.layers), streams, held, width),
            columns=weight.new_zeros(len(self.layers), streams, kernel - 1, width),
            lengths=torch.zeros(streams, dtype=torch.int64, device=weight.device),
            started=padded,
        )

    def step(
        self, mel: Tensor, lengths: Tensor, cache: EncoderCache, *, last: bool = False
    ) -> tuple[Tensor, Tensor, EncoderCache]:
        """mel [B, F, T of mel frames], lengths [B] -> x [B, T, D] float32, lengths [B], the state after it.

        mel: `sizes.first` frames, or `sizes.front` frames again and `sizes.later` new ones; at the end of a stream
        fewer, or as many of which `lengths` counts the valid ones. last: nothing follows, so that no frame waits for
        another step. Raises AdapterError where an adapter in use looks at other frames.
        """
        self.check_adapters()
        sizes, encoder = self.sizes, self.encoder
        with torch.no_grad():
            x, lengths = encoder.subsample(mel.to(self.dtype), lengths)
            if cache.started:
                x, lengths = x[:, sizes.skip :], (lengths - sizes.skip).clamp(min=0)
            context = self.surroundings(lengths, x.size(1), cache)
            inputs, columns = [], []
            for number, layer in enumerate(self.layers):
                x, source, column = self.step_layer(layer, x, cache.inputs[number], cache.columns[number], context)
                inputs.append(source)
                columns.append(column)
            kept = x.size(1) - sizes.drop
            after = EncoderCache(
                inputs=torch.stack(inputs),
                columns=torch.stack(columns),
                lengths=(cache.lengths + kept).clamp(min=0, max=sizes.frames),
                started=True,
            )
            x = encoder.project(x).float()
            if not last:
                x, lengths = x[:, : sizes.keep], lengths.clamp(max=sizes.keep)
            return x, lengths, after

    def step_layer(
        self, layer: ConformerLayer, block_input: Tensor, inputs: Tensor, columns: Tensor, context: TapContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """block_input [B, T, D], inputs [B, C, D], columns [B, K-1, D] -> the layer's output [B, T, D], and the next
        inputs [B, C, D] and columns [B, K-1, D].
        """
        sizes = self.sizes
        x = block_input + 0.5 * layer.feed_forward1(layer.norm_feed_forward1(block_input), context)
        query = layer.norm_self_att(x)
        x = x + layer.self_attn.look(query, torch.cat((inputs, query), dim=1), context)
        gated = layer.conv.gate(layer.norm_conv(x), context.valid)
        wide = torch.cat((columns, gated), dim=1)  # [B, K-1 + T, D]
        x = x + layer.conv.convolve(wide, left=0, right=0)
        x = x + 0.5 * layer.feed_forward2(layer.norm_feed_forward2(x), context)
        y: Tensor = layer.after_block(block_input, layer.norm_out(x), context)
        return (
            y,
            shift_in(inputs, query, sizes.drop, sizes.frames),
            shift_in(columns, gated, sizes.drop, columns.size(1)),
        )

    def surroundings(self, lengths: Tensor, frames: int, cache: EncoderCache) -> TapContext:
        """lengths [B] of T frames after the cache -> masks [B, T] and [B, 1, T, C+T], positions [1, C+2T-1, D]."""
        held = cache.inputs.size(2)
        whole = held + frames
        valid = valid_frames(lengths, frames)
        known = ~valid_frames(held - cache.lengths, held)
        keys = torch.cat((known, valid), dim=1)  # [B, C+T]
        visible = self.encoder.visible(whole, lengths.device, self.context)[held:]
        allowed = valid.unsqueeze(2) & keys.unsqueeze(1) & visible
        positions = self.encoder.positions(whole, lengths.device)[:, : whole + frames - 1].to(self.dtype)
        return TapContext(valid=valid, attention=allowed.unsqueeze(1), positions=positions)

    def check_adapters(self) -> None:
        """Raises AdapterError where an adapter in use looks at other frames."""
        if any(layer.after_attention.acts() for layer in self.layers):
            raise AdapterError(ATTENTION_ADAPTER)


def shift_in(held: Tensor, new: Tensor, drop: int, most: int) -> Tensor:
    """held [B, N, D], new [B, T, D] -> the last `most` frames of both together, without the last `drop`."""
    whole = torch.cat((held, new), dim=1)
    end = whole.size(1) - drop
    return whole[:, max(0, end - most) : end]


@dataclass(frozen=True, kw_only=True)
class MelChunk:
    """The mel frames of one step."""

    mel: Tensor
    """[B, F, T]"""
    lengths: Tensor
    """[B] frames of these that are valid, the ones computed again included."""
    last: bool
    """True if nothing follows."""


def mel_chunks(mel: Tensor, lengths: Tensor, sizes: StepSizes, *, padded: bool = False) -> Iterator[MelChunk]:
    """Cut whole recordings, mel [B, F, T] and lengths [B], into the chunks of steps, as NeMo's loop does.

    padded: as the state that the steps begin with.
    A rest of fewer frames than make an encoder frame is left out. Shorter recordings go on with a length of 0.
    """
    begin, total = 0, mel.size(2)
    while begin < total:
        size, shift, least = sizes.later, sizes.shift, sizes.front - 1
        if begin == 0:
            size, shift, least = (size, shift, 1) if padded else (sizes.first, sizes.first_shift, 1)
        chunk = mel[:, :, begin : begin + size]
        if chunk.size(2) < least:
            return
        before = mel[:, :, max(0, begin - sizes.front) : begin]
        if padded or begin > 0:
            before = F.pad(before, (sizes.front - before.size(2), 0))
        chunk = torch.cat((before, chunk), dim=2)
        valid = (lengths - begin + before.size(2)).clamp(min=0, max=chunk.size(2))
        begin += shift
        yield MelChunk(mel=chunk, lengths=valid, last=begin >= total)
