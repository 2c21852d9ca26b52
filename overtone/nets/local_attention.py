"""Local attention: a frame sees its neighbours and a few global frames; memory grows with the length alone.

Beltagy et al. 2020, Longformer (arXiv:2004.05150), with the relative positions of Transformer-XL, as NeMo has it.
Legend: B batch, T time, H heads, K head width, N frames of a window, G global frames, W frames that a block sees.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from overtone.nets.layers import drop
from overtone.nets.taps import Window

FORBIDDEN = -10000.0
"""The score of a key that must not be seen."""
SHORTEST_BLOCK = 32
"""Queries of a block, at least: a block is one matrix product."""
SCORES_AT_ONCE = 1 << 24
"""Scores that are computed together; blocks beyond are computed one after the other."""


def encoding_rows(window: Window) -> list[int | None]:
    """For each distance, from `left` frames before a query to `right` behind it, its row among the encodings of the
    distances left … -right; None: no encoding.

    Where the sides differ, NeMo puts the encodings of the longer side's half elsewhere than they belong. Models were
    trained with it.
    """
    left, right = window.left, window.right
    widest = max(left, right)
    rows: list[int | None] = []
    for offset in range(-left, right + 1):
        if offset + widest < left:
            rows.append(offset + widest)
        else:
            rows.append(left + offset - widest + right if offset >= widest - right else None)
    return rows


def select_encodings(table: Tensor, window: Window) -> Tensor:
    """table [1, 2M+1, D] of the distances M … -M, M the longer side -> encodings [1, N, D], zeros for none."""
    widest, rows = max(window.left, window.right), encoding_rows(window)
    index = torch.tensor([widest - window.left + (row or 0) for row in rows], device=table.device)
    there = torch.tensor([row is not None for row in rows], device=table.device)
    return table[:, index] * there.unsqueeze(-1)


def attend_locally(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    placed: tuple[Tensor, Tensor],
    valid: Tensor,
    window: Window,
    *,
    beyond: tuple[Tensor, Tensor] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax((query·key + placed query·encoding) / √K)·value over a window, each [B, H, T, K] -> [B, H, T, K].

    placed: the queries for the encodings [B, H, T, K], and the encodings [1, H, N, K]. valid [B, T] bool: frames that
    may be seen. beyond: scores of global frames [B, H, T, G] and their values [B, H, G, K], under the same softmax.
    """
    frames, left, right = query.size(2), window.left, window.right
    block = max(SHORTEST_BLOCK, (left + right) // 2)
    whole, seen = block + left + right, left + right + 1
    filled = -frames % block
    sides = (0, 0, left, right + filled)
    key, value, known = F.pad(key, sides), F.pad(value, sides), F.pad(valid, (left, right + filled))
    query, second = (F.pad(each, (0, 0, 0, filled)) for each in (query, placed[0]))
    scores_beyond = None if beyond is None else F.pad(beyond[0], (0, 0, 0, filled))
    step = block * max(1, SCORES_AT_ONCE // (query.size(0) * query.size(1) * block * whole))
    found = []
    for first in range(0, frames, step):
        end = min(first + step, frames + filled)
        queries = query[:, :, first:end].unflatten(2, (-1, block))  # [B, H, blocks, block, K]
        keys = key[:, :, first : end + left + right].unfold(2, whole, block)  # [B, H, blocks, K, W]
        values = value[:, :, first : end + left + right].unfold(2, whole, block)
        scores = take_band(queries @ keys, seen)  # [B, H, blocks, block, N]
        places = second[:, :, first:end].unflatten(2, (-1, block)) @ placed[1].unsqueeze(2).transpose(-2, -1)
        allowed = known[:, first : end + left + right].unfold(1, seen, 1).unflatten(1, (-1, block)).unsqueeze(1)
        scores = ((scores + places) / math.sqrt(query.size(-1))).masked_fill(~allowed, FORBIDDEN)
        count = 0
        if scores_beyond is not None:
            others = scores_beyond[:, :, first:end].unflatten(2, (-1, block))
            scores, count = torch.cat((others, scores), dim=-1), others.size(-1)
        weights = drop(torch.softmax(scores, dim=-1), dropout)
        attended = spread_band(weights[..., count:], whole) @ values.transpose(-2, -1)
        if beyond is not None:
            attended = attended + weights[..., :count] @ beyond[1].unsqueeze(2)
        found.append(attended.flatten(2, 3))
    return torch.cat(found, dim=2)[:, :, :frames]


def take_band(scores: Tensor, seen: int) -> Tensor:
    """[…, block, W] -> [..., block, N]: out[i, n] = in[i, i + n], N = `seen`; nothing is copied."""
    scores = scores.contiguous()
    *shape, block, whole = scores.shape
    strides = (*scores.stride()[:-2], whole + 1, 1)
    return scores.as_strided((*shape, block, seen), strides, scores.storage_offset())


def spread_band(weights: Tensor, whole: int) -> Tensor:
    """[…, block, N] -> [..., block, W]: out[i, i + n] = in[i, n], zeros elsewhere."""
    block = weights.size(-2)
    flat = F.pad(weights, (0, whole + 1 - weights.size(-1))).flatten(-2)
    spread: Tensor = flat[..., : block * whole].unflatten(-1, (block, whole))
    return spread


def global_frames(window: Window, valid: Tensor) -> Tensor | None:
    """The numbers [G] of the global frames of a batch, valid [B, T]; None where there are none."""
    if window.tokens == 0:
        return None
    end = min(valid.size(1), window.tokens * window.spacing)
    return torch.arange(0, end, window.spacing, device=valid.device)


def mix_queries(query: Tensor, counts: list[int]) -> Tensor:
    """Queries of global frames [B, H, G, K], of which each row has so many -> the same in NeMo's order.

    NeMo reads frames and heads in each other's place where there are several global frames. Models were trained with
    it; its rows of a batch disturb each other besides, ours do not.
    """
    heads, tokens, width = query.shape[1:]
    rows = [
        row[:, :count].transpose(0, 1).reshape(heads, count, width) for row, count in zip(query, counts, strict=True)
    ]
    return torch.stack([F.pad(row, (0, 0, 0, tokens - row.size(1))) for row in rows])


def attend_globally(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, *, dropout: float = 0.0) -> Tensor:
    """softmax(query·key / √K)·value: query [B, H, G, K], key and value [B, H, T, K], valid [B, T] -> [B, H, G, K]."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    weights = torch.softmax(scores.masked_fill(~valid[:, None, None], FORBIDDEN), dim=-1)
    return drop(weights, dropout) @ value
