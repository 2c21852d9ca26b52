"""Transformer encoder and decoder (Vaswani et al. 2017, arXiv:1706.03762) of attention encoder-decoder models.

Legend: B batch, T encoder frames, U tokens, N keys, D width, H heads, K = D / H, V rows of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.errors import ConfigError
from overtone.nets.attention import split_heads
from overtone.nets.layers import drop, valid_frames
from overtone.nets.taps import TRANSFORMER, Tap, TapContext

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class KeyValues(NamedTuple):
    """Keys and values of an attention, each [B, H, N, K]."""

    keys: Tensor
    values: Tensor

    def append(self, later: KeyValues) -> KeyValues:
        """These, followed by later ones."""
        return KeyValues(torch.cat((self.keys, later.keys), dim=2), torch.cat((self.values, later.values), dim=2))


@dataclass(frozen=True, kw_only=True)
class DecoderMemory:
    """All that a decoder keeps of the recording and of the tokens so far."""

    frames: tuple[KeyValues, ...]
    """Encoder frames as each layer attends to them."""
    audible: Tensor
    """[B, 1, 1, T] bool, true on frames that are speech."""
    valid: Tensor
    """[B, T] bool, the same."""
    tokens: tuple[KeyValues, ...] = ()
    """Tokens so far, for each layer; none before the first."""
    seen: Tensor
    """[B, N] bool, true on tokens, false on padding between them."""

    def select(self, rows: Tensor) -> DecoderMemory:
        """The memory of the given rows, [rows] int64; a row may come several times."""
        frames = tuple(KeyValues(each.keys[rows], each.values[rows]) for each in self.frames)
        return replace(self.reorder(rows), frames=frames, audible=self.audible[rows], valid=self.valid[rows])

    def reorder(self, rows: Tensor) -> DecoderMemory:
        """The same with the tokens of other rows of the same recordings, [rows] int64."""
        tokens = tuple(KeyValues(each.keys[rows], each.values[rows]) for each in self.tokens)
        return replace(self, tokens=tokens, seen=self.seen[rows])

    @staticmethod
    def interleave(parts: Sequence[DecoderMemory]) -> DecoderMemory:
        """The memories of as many rows each as one: the first rows of all, then the second ones, and so on."""

        def join(tensors: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(tensors), dim=1).flatten(0, 1)

        def join_all(held: Sequence[tuple[KeyValues, ...]]) -> tuple[KeyValues, ...]:
            layers = zip(*held, strict=True)
            return tuple(KeyValues(*(join(each) for each in zip(*layer, strict=True))) for layer in layers)

        return DecoderMemory(
            frames=join_all([part.frames for part in parts]),
            audible=join([part.audible for part in parts]),
            valid=join([part.valid for part in parts]),
            tokens=join_all([part.tokens for part in parts]),
            seen=join([part.seen for part in parts]),
        )


class Attention(nn.Module):
    """Multi-head attention; a tap stands behind each of the four projections."""

    def __init__(self, width: int, heads: int, *, dropout_attention: float, dropout_layer: float) -> None:
        """Raises ConfigError where the heads do not divide the width."""
        super().__init__()
        if width % heads:
            raise ConfigError(f"heads is {heads}; a divisor of the width {width} is needed.")
        self.heads = heads
        self.dropout_attention, self.dropout_layer = dropout_attention, dropout_layer
        self.query_net = nn.Linear(width, width)
        self.key_net = nn.Linear(width, width)
        self.value_net = nn.Linear(width, width)
        self.out_projection = nn.Linear(width, width)
        self.q = Tap("linear", width)
        self.k = Tap("linear", width)
        self.v = Tap("linear", width)
        self.out = Tap("linear", width)

    def remember(self, source: Tensor, context: TapContext) -> KeyValues:
        """source [B, N, D] -> its keys and values."""
        keys = self.k(source, self.key_net(source), context)
        values = self.v(source, self.value_net(source), context)
        return KeyValues(split_heads(keys, self.heads), split_heads(values, self.heads))

    def forward(self, x: Tensor, memory: KeyValues, allowed: Tensor, context: TapContext) -> tuple[Tensor, Tensor]:
        """x [B, U, D] attends where allowed [B, 1, U or 1, N] bool -> [B, U, D], weights [B, H, U, N]."""
        query = split_heads(self.q(x, self.query_net(x), context), self.heads)
        scores = query @ memory.keys.transpose(-2, -1) / math.sqrt(query.size(-1))
        weights = torch.softmax(scores.masked_fill(~allowed, -10000.0), dim=-1)
        kept = drop(weights, self.dropout_attention if self.training else 0.0)
        attended = (kept @ memory.values).transpose(1, 2).flatten(2)
        y = self.out(attended, self.out_projection(attended), context)
        return drop(y, self.dropout_layer if self.training else 0.0), weights


class FeedForward(nn.Module):
    """x [B, U, D] -> [B, U, D]; a tap stands behind each of the two projections."""

    def __init__(self, width: int, inner: int, *, activation: str, dropout: float) -> None:
        """Raises ConfigError for an unknown activation."""
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation '{activation}' is unknown. Allowed: {', '.join(ACTIVATIONS)}.")
        self.activation, self.dropout = activation, dropout
        self.dense_in = nn.Linear(width, inner)
        self.dense_out = nn.Linear(inner, width)
        self.expand = Tap("linear", width, inner)
        self.contract = Tap("linear", inner, width)

    def forward(self, x: Tensor, context: TapContext) -> Tensor:
        inner = ACTIVATIONS[self.activation](self.expand(x, self.dense_in(x), context))
        y: Tensor = self.contract(inner, self.dense_out(inner), context)
        return drop(y, self.dropout if self.training else 0.0)


class EncoderLayer(nn.Module):
    """x [B, T, D] -> [B, T, D]; adapters may act after the attention and after the block."""

    def __init__(self, width: int, attention: Attention, feed_forward: FeedForward, *, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.layer_norm_1 = nn.LayerNorm(width)
        self.first_sub_layer = attention
        self.layer_norm_2 = nn.LayerNorm(width)
        self.second_sub_layer = feed_forward
        self.after_attention = Tap("after_attention", width, attention=TRANSFORMER)
        self.after_block = Tap("after_block", width)

    def forward(self, block_input: Tensor, context: TapContext) -> Tensor:
        assert context.attention is not None
        x = self.layer_norm_1(block_input) if self.pre_norm else block_input
        attended, _ = self.first_sub_layer(x, self.first_sub_layer.remember(x, context), context.attention, context)
        x = self.after_attention(block_input, attended + block_input, context)
        if self.pre_norm:
            x = self.second_sub_layer(self.layer_norm_2(x), context) + x
            return self.after_block(block_input, x, context)  # type: ignore[no-any-return]
        x = self.layer_norm_1(x)
        x = self.after_block(block_input, self.second_sub_layer(x, context) + x, context)
        return self.layer_norm_2(x)  # type: ignore[no-any-return]


class TransformerEncoder(nn.Module):
    """x [B, T, E], lengths [B] -> states [B, T, D]: a projection where the widths differ, then layers, perhaps none."""

    def __init__(
        self,
        *,
        input_width: int,
        width: int,
        layers: int = 0,
        heads: int = 1,
        inner: int = 1,
        activation: str = "relu",
        pre_norm: bool = False,
        final_norm: bool = True,
        dropout_attention: float = 0.0,
        dropout_layer: float = 0.0,
        dropout_feed_forward: float = 0.0,
    ) -> None:
        """input_width: E. Raises ConfigError for heads that do not divide the width, and an unknown activation."""
        super().__init__()
        self.projection = None if input_width == width else nn.Linear(input_width, width)
        dropouts = {"dropout_attention": dropout_attention, "dropout_layer": dropout_layer}
        self.layers = nn.ModuleList(
            EncoderLayer(
                width,
                Attention(width, heads, **dropouts),
                FeedForward(width, inner, activation=activation, dropout=dropout_feed_forward),
                pre_norm=pre_norm,
            )
            for _ in range(layers)
        )
        self.final_layer_norm = nn.LayerNorm(width) if layers and pre_norm and final_norm else None

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x if self.projection is None else self.projection(x)
        valid = valid_frames(lengths, x.size(1))
        seen = valid[:, None, None].expand(-1, 1, x.size(1), -1)
        context = TapContext(valid=valid, attention=seen)
        for layer in self.layers:
            x = layer(x, context)
        return x if self.final_layer_norm is None else self.final_layer_norm(x)


class DecoderLayer(nn.Module):
    """One layer of a decoder; adapters may act after the self-attention and after the block."""

    def __init__(
        self,
        width: int,
        self_attention: Attention,
        cross_attention: Attention,
        feed_forward: FeedForward,
        *,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.layer_norm_1 = nn.LayerNorm(width)
        self.first_sub_layer = self_attention
        self.layer_norm_2 = nn.LayerNorm(width)
        self.second_sub_layer = cross_attention
        self.layer_norm_3 = nn.LayerNorm(width)
        self.third_sub_layer = feed_forward
        self.after_attention = Tap("after_attention", width, attention=TRANSFORMER)
        self.after_block = Tap("after_block", width)

    def listen(self, states: Tensor, context: TapContext) -> KeyValues:
        """states [B, T, D] of encoder frames -> as the layer attends to them."""
        return self.second_sub_layer.remember(states, context)

    def forward(
        self,
        block_input: Tensor,
        before: KeyValues | None,
        frames: KeyValues,
        allowed: tuple[Tensor, Tensor],
        context: TapContext,
    ) -> tuple[Tensor, KeyValues, Tensor]:
        """block_input [B, U, D] of new tokens -> [B, U, D], keys and values of all N tokens, weights [B, H, U, T].

        before: those of the tokens before. allowed: [B, 1, U, N] of tokens, [B, 1, 1, T] of frames, both bool.
        """
        x = self.layer_norm_1(block_input) if self.pre_norm else block_input
        new = self.first_sub_layer.remember(x, context)
        tokens = new if before is None else before.append(new)
        attended, _ = self.first_sub_layer(x, tokens, allowed[0], context)
        x = self.after_attention(block_input, attended + block_input, context)
        if not self.pre_norm:
            x = self.layer_norm_1(x)
        heard, weights = self.second_sub_layer(
            self.layer_norm_2(x) if self.pre_norm else x, frames, allowed[1], context
        )
        x = heard + x
        if self.pre_norm:
            x = self.third_sub_layer(self.layer_norm_3(x), context) + x
            return self.after_block(block_input, x, context), tokens, weights
        x = self.layer_norm_2(x)
        x = self.after_block(block_input, self.third_sub_layer(x, context) + x, context)
        return self.layer_norm_3(x), tokens, weights


class FixedPositions(nn.Module):
    """Positions [B, U] int64 -> sinusoidal encodings [B, U, D], divided by √D."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        position = torch.arange(0.0, length).unsqueeze(1)
        frequency = torch.exp(torch.arange(0.0, width, 2) * (-math.log(10000.0) / width))
        table = torch.zeros(length, width)
        table[:, 0::2] = torch.sin(position * frequency)
        table[:, 1::2] = torch.cos(position * frequency)[:, : width // 2]
        self.register_buffer("pos_enc", table / math.sqrt(width))
        self.pos_enc: Tensor

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions, self.pos_enc)


class TokenEmbedding(nn.Module):
    """tokens and positions [B, U] int64 -> [B, U, D]."""

    def __init__(
        self, *, classes: int, width: int, length: int, learned_positions: bool, token_types: int, dropout: float
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(classes, width, padding_idx=0)
        self.position_embedding = nn.Embedding(length, width) if learned_positions else FixedPositions(length, width)
        if token_types:  # held by some checkpoints; no speech model says which type a token is of
            self.token_type_embedding = nn.Embedding(token_types, width)
        self.layer_norm = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.layer_norm(self.token_embedding(tokens) + self.position_embedding(positions))
        return drop(x, self.dropout if self.training else 0.0)


class TransformerDecoder(nn.Module):
    """Tokens so far and encoder states -> log-probabilities of the token that comes next."""

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        inner: int,
        classes: int,
        max_length: int = 512,
        activation: str = "relu",
        pre_norm: bool = False,
        final_norm: bool = True,
        learned_positions: bool = False,
        token_types: int = 2,
        dropout_embedding: float = 0.0,
        dropout_attention: float = 0.0,
        dropout_layer: float = 0.0,
        dropout_feed_forward: float = 0.0,
        dropout_head: float = 0.0,
    ) -> None:
        """classes: V. max_length: most tokens, the prompt included.

        Raises ConfigError for heads that do not divide the width, and for an unknown activation.
        """
        super().__init__()
        self.width, self.max_length, self.dropout_head = width, max_length, dropout_head
        self.embedding = TokenEmbedding(
            classes=classes,
            width=width,
            length=max_length,
            learned_positions=learned_positions,
            token_types=token_types,
            dropout=dropout_embedding,
        )
        dropouts = {"dropout_attention": dropout_attention, "dropout_layer": dropout_layer}
        self.layers = nn.ModuleList(
            DecoderLayer(
                width,
                Attention(width, heads, **dropouts),
                Attention(width, heads, **dropouts),
                FeedForward(width, inner, activation=activation, dropout=dropout_feed_forward),
                pre_norm=pre_norm,
            )
            for _ in range(layers)
        )
        self.final_layer_norm = nn.LayerNorm(width) if pre_norm and final_norm else None
        self.head = nn.Linear(width, classes)
        self.head.weight = self.embedding.token_embedding.weight

    def forward(self, tokens: Tensor, lengths: Tensor, states: Tensor, frames: Tensor) -> Tensor:
        """tokens [B, U] int64, lengths [B], states [B, T, D], frames [B] -> log-probabilities [B, U, V] after each."""
        log_probs, _, _ = self.read(tokens, valid_frames(lengths, tokens.size(1)), self.listen(states, frames))
        return log_probs

    def listen(self, states: Tensor, frames: Tensor) -> DecoderMemory:
        """states [B, T, D], frames [B] -> the memory before the first token."""
        valid = valid_frames(frames, states.size(1))
        context = TapContext(valid=valid)
        return DecoderMemory(
            frames=tuple(layer.listen(states, context) for layer in cast(Iterable[DecoderLayer], self.layers)),
            audible=valid[:, None, None],
            valid=valid,
            seen=valid[:, :0],
        )

    def read(self, tokens: Tensor, valid: Tensor, memory: DecoderMemory) -> tuple[Tensor, DecoderMemory, Tensor]:
        """New tokens [B, U] int64, valid [B, U] bool -> log-probabilities [B, U, V] after each, the memory with them,
        and where they listen, [B, U, T], the mean over heads and layers.

        Adapters behind the self-attention see the new tokens alone.
        """
        before, new = memory.seen.size(1), tokens.size(1)
        positions = memory.seen.sum(1, keepdim=True) + valid.cumsum(1) - 1
        x = self.embedding(tokens, positions.clamp(0, self.max_length - 1))
        causal = torch.ones(new, new, dtype=torch.bool, device=tokens.device).tril()
        own = (valid.unsqueeze(1) & causal).unsqueeze(1)  # [B, 1, U, U]
        earlier = memory.seen[:, None, None].expand(-1, 1, new, before)
        allowed = torch.cat((earlier, own), dim=-1), memory.audible
        context = TapContext(valid=valid, attention=own)
        kept, heard = [], []
        for number, layer in enumerate(self.layers):
            past = memory.tokens[number] if memory.tokens else None
            x, tokens_kept, weights = layer(x, past, memory.frames[number], allowed, context)
            kept.append(tokens_kept)
            heard.append(weights.mean(1))
        if self.final_layer_norm is not None:
            x = self.final_layer_norm(x)
        x = drop(x, self.dropout_head if self.training else 0.0)
        memory = replace(memory, tokens=tuple(kept), seen=torch.cat((memory.seen, valid), dim=1))
        return torch.log_softmax(self.head(x).float(), dim=-1), memory, torch.stack(heard).mean(0)

    def acts(self) -> bool:
        """True if adapters act in it now."""
        return any(module.acts() for module in self.modules() if isinstance(module, Tap))
