"""Multi-head self-attention with relative or absolute positions.

Relative: Dai et al. 2019, Transformer-XL (arXiv:1901.02860), section 3.3, as NeMo's Conformer uses it.
Legend: B batch, T time, D width, H heads, K = D / H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from overtone.nets.layers import drop
from overtone.nets.local_attention import attend_globally, attend_locally, global_frames, mix_queries
from overtone.nets.products import apply_linear, is_traced
from overtone.nets.taps import Position, Tap, TapContext


def relative_shift(scores: Tensor) -> Tensor:
    """[B, H, T, N+T-1] scores by distance -> [B, H, T, N] scores by key: out[i, j] = in[i, T-1-i+j].

    The queries are the last T of N frames, or all of them. A strided view of the contiguous product: nothing is copied.
    """
    batch, heads, frames, distances = scores.shape
    scores = scores.contiguous()
    strides = (heads * frames * distances, frames * distances, distances - 1, 1)
    offset = scores.storage_offset() + frames - 1
    return scores.as_strided((batch, heads, frames, distances - frames + 1), strides, offset)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    allowed: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(query·key / √K + bias)·value, query [B, H, T, K], key and value [B, H, N, K] -> [B, T, H*K].

    `bias` [B, H, T, N] is scaled like the product; `allowed` [B, 1, T, N] bool. A query that may look at
    nothing gets zeros.
    """
    scores = query @ key.transpose(-2, -1)  # [B, H, T, N]
    if bias is not None:
        scores.add_(bias)  # in place: of long inputs every copy of the scores takes as long as a product
    scores.div_(math.sqrt(query.size(-1)))
    if allowed is None or (allowed.device.type == "cpu" and not is_traced() and bool(allowed.all())):
        weights = torch.softmax(scores, dim=-1)
    else:
        forbidden = ~allowed
        weights = torch.softmax(scores.masked_fill_(forbidden, -10000.0), dim=-1).masked_fill(forbidden, 0.0)
    return (drop(weights, dropout) @ value).transpose(1, 2).flatten(2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, H*K] -> [B, H, T, K]."""
    divided: Tensor = x.unflatten(-1, (heads, -1))
    return divided.transpose(1, 2)


class SelfAttention(nn.Module):
    """x [B, T, D] -> [B, T, D]; a tap stands behind each of the four projections."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        position: Position,
        use_bias: bool = True,
        dropout: float = 0.0,
        position_biases: tuple[nn.Parameter, nn.Parameter] | None = None,
        separate: bool = False,
    ) -> None:
        """separate: global frames of local attention have projections of their own."""
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.linear_q = nn.Linear(width, width, bias=use_bias)
        self.linear_k = nn.Linear(width, width, bias=use_bias)
        self.linear_v = nn.Linear(width, width, bias=use_bias)
        self.linear_out = nn.Linear(width, width, bias=use_bias)
        self.q = Tap("linear", width)
        self.k = Tap("linear", width)
        self.v = Tap("linear", width)
        self.out = Tap("linear", width)
        self.separate = separate
        if separate:
            self.global_q = nn.Linear(width, width, bias=use_bias)
            self.global_k = nn.Linear(width, width, bias=use_bias)
            self.global_v = nn.Linear(width, width, bias=use_bias)
        self.position: Position = position
        self.relative = position != "abs_pos"
        if self.relative:
            self.linear_pos = nn.Linear(width, width, bias=False)
            bias_u, bias_v = position_biases or new_position_biases(width, heads)
            self.pos_bias_u = bias_u
            self.pos_bias_v = bias_v

    def forward(self, x: Tensor, context: TapContext) -> Tensor:
        return self.look(x, x, context)

    def look(self, x: Tensor, source: Tensor, context: TapContext) -> Tensor:
        """x [B, T, D] attends to source [B, N, D], whose last T frames it is -> [B, T, D].

        context: attention [B, 1, T, N], positions [1, N+T-1, D]; `valid` is of no use to adapters of the projections.
        """
        query = split_heads(self.q(x, apply_linear(self.linear_q, x), context), self.heads)  # [B, H, T, K]
        key = split_heads(self.k(source, apply_linear(self.linear_k, source), context), self.heads)  # [B, H, N, K]
        value = split_heads(self.v(source, apply_linear(self.linear_v, source), context), self.heads)
        if context.window is not None:
            return self.out_of(self.look_around(query, key, value, x, context), context)
        bias = None
        if self.relative:
            assert context.positions is not None
            distance = split_heads(apply_linear(self.linear_pos, context.positions), self.heads)  # [1, H, N+T-1, K]
            bias = relative_shift((query + self.pos_bias_v.unsqueeze(1)) @ distance.transpose(-2, -1))
            query = query + self.pos_bias_u.unsqueeze(1)
        dropout = self.dropout if self.training else 0.0
        return self.out_of(attend(query, key, value, bias, context.attention, dropout), context)

    def out_of(self, attended: Tensor, context: TapContext) -> Tensor:
        """attended [B, T, D] -> its projection [B, T, D]."""
        result: Tensor = self.out(attended, apply_linear(self.linear_out, attended), context)
        return result

    def look_around(self, query: Tensor, key: Tensor, value: Tensor, x: Tensor, context: TapContext) -> Tensor:
        """query, key, value [B, H, T, K] of x [B, T, D] -> what a frame sees in its window [B, T, D]."""
        window, valid = context.window, context.valid
        assert window is not None
        assert context.positions is not None
        encodings = split_heads(apply_linear(self.linear_pos, context.positions), self.heads)  # [1, H, N, K]
        dropout = self.dropout if self.training else 0.0
        chosen, beyond = global_frames(window, valid), None
        queries, keys, values = query, key, value
        if chosen is not None:
            if self.separate:
                projections = (self.global_q(x), self.global_k(x), self.global_v(x))
                queries, keys, values = (split_heads(each, self.heads) for each in projections)
            scores = queries @ keys[:, :, chosen].transpose(-2, -1) / math.sqrt(query.size(-1))  # [B, H, T, G]
            beyond = scores.masked_fill(~valid[:, None, None, chosen], -10000.0), value[:, :, chosen]
        attended = attend_locally(
            query + self.pos_bias_u.unsqueeze(1),
            key,
            value,
            (query + self.pos_bias_v.unsqueeze(1), encodings),
            valid,
            window,
            beyond=beyond,
            dropout=dropout,
        )
        if chosen is not None:
            mixed = mix_queries(queries[:, :, chosen], valid[:, chosen].sum(1).tolist())
            outputs = attend_globally(mixed, keys, values, valid, dropout=dropout)
            attended = attended.index_copy(2, chosen, outputs)
        return attended.transpose(1, 2).flatten(2).masked_fill(~valid.unsqueeze(-1), 0.0)


def new_position_biases(width: int, heads: int) -> tuple[nn.Parameter, nn.Parameter]:
    """The two biases u and v [H, K] of relative attention, zero at birth."""
    shape = (heads, width // heads)
    return nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))


class PositionTable(nn.Module):
    """Sinusoidal encodings, computed once for the longest input seen and sliced from then on."""

    def __init__(self, width: int, position: Position) -> None:
        super().__init__()
        self.width = width
        self.relative = position != "abs_pos"
        self.table = torch.zeros(0, width)
        """No buffer: it is no part of the weights, and of another length in every process."""

    def forward(self, frames: int, device: torch.device) -> Tensor:
        """[1, 2T-1, D] for the distances T-1 … -(T-1), or [1, T, D] for the positions 0 … T-1."""
        rows = 2 * frames - 1 if self.relative else frames
        table = self.table  # read once: another thread may put a longer one in its place
        if table.size(0) < rows or table.device != device:
            with torch.inference_mode(False):
                table = self.table = self.encode(max(frames, 512), device)
        start = (table.size(0) - rows) // 2 if self.relative else 0
        return table[start : start + rows].unsqueeze(0)

    def encode(self, frames: int, device: torch.device) -> Tensor:
        """Encodings [2N-1 or N, D] for up to N frames."""
        first, last = (frames - 1, -frames) if self.relative else (0, frames)
        step = -1 if self.relative else 1
        positions = torch.arange(first, last, step, dtype=torch.float32, device=device).unsqueeze(1)
        even = torch.arange(0, self.width, 2, dtype=torch.float32, device=device)
        frequency = torch.exp(even * -(math.log(10000.0) / self.width))
        table = torch.zeros(positions.size(0), self.width, device=device)
        table[:, 0::2] = torch.sin(positions * frequency)
        table[:, 1::2] = torch.cos(positions * frequency)[:, : self.width // 2]
        return table
