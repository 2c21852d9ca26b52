"""The attention of a frozen Conformer layer with its backward pass written out.

Legend: B batch, T time, D width, H heads, K head width, P head width with its padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.backends.fused.parts import (
    Norm,
    Product,
    Saved,
    SharedContext,
    add_part,
    cast,
    cast_product,
    draw_mask,
    part_gradient,
    run_part,
)
from overtone.nets.attention import SelfAttention
from overtone.nets.layers import dropout_mask
from overtone.nets.products import linear
from overtone.nets.taps import Tap, TapContext

FORBIDDEN = -10000.0
"""The score of a key that must not be seen."""
FEW_SCORES = 8_000
"""The most scores of a head, B·T², for which a CPU attends in float32 while something is learnt, whatever the dtype of
the products: the kernels for narrow numbers take longer to call, and to build for each new length, than they save."""


def attends_wide(batch: int, frames: int, device: torch.device) -> bool:
    """True if a forward attends in float32: only where something is learnt.

    Elsewhere the output of a row must not depend on how many other rows there are.
    """
    return torch.is_grad_enabled() and device.type == "cpu" and batch * frames * frames <= FEW_SCORES


class AttentionPart:
    """x [B, T, D] -> x + attention(norm(x)).

    Queries, keys and values come from one product whose heads are padded to P columns. One of the padding columns
    is one in every query: through it the keys carry the mask of the padding, and the encodings of the distances
    what the second bias v of relative attention adds beyond the first bias u, which is in the queries already.
    """

    saved_count = 8

    def __init__(self, norm: nn.LayerNorm, module: SelfAttention, dropout: nn.Dropout, dtype: torch.dtype) -> None:
        self.norm = Norm(norm, dtype)
        self.module = module
        self.dropout = dropout
        self.heads = module.heads
        self.head_width = module.linear_q.out_features // self.heads
        self.padded_width = -(-(self.head_width + 1) // 8) * 8
        self.core = AttentionCore(module, self.padded_width, dtype)
        self.padded = self.fused_projection(dtype)
        self.reverse: Product | None = None
        """The product of `backward`, made when it is first needed."""
        self.out = cast_product(module.linear_out, dtype)

    def fused_projection(self, dtype: torch.dtype) -> Product:
        """The product with padded heads, D -> 3·H·P."""
        module, heads = self.module, self.heads
        linears = (module.linear_q, module.linear_k, module.linear_v)
        scales = (self.core.scale, 1.0, 1.0)
        casts = [cast(linear.weight, dtype, scale) for linear, scale in zip(linears, scales, strict=True)]
        weight = torch.stack(casts)  # [3, D, D]
        bias = weight.new_zeros(3, weight.size(1), dtype=torch.float64)
        if linears[0].bias is not None:
            bias = torch.stack([linear.bias.detach().double() for linear in linears])
        if module.relative:
            bias[0] += module.pos_bias_u.detach().double().flatten()
        bias[0] *= self.core.scale
        padding = self.padded_width - self.head_width
        padded = F.pad(weight.unflatten(1, (heads, -1)), (0, 0, 0, padding))
        padded_bias = F.pad(bias.unflatten(1, (heads, -1)), (0, padding))
        padded_bias[0, :, self.head_width] = 1.0
        return Product(padded.flatten(0, 2), padded_bias.flatten().to(dtype))

    def reversed_projection(self) -> Product:
        """The product of the gradients, without the padding, 3D -> D."""
        weight = self.padded.unpacked().unflatten(0, (-1, self.padded_width))[:, : self.head_width]
        return Product(weight.flatten(0, 1).t().contiguous(), None)

    def __call__(self, x: Tensor, shared: SharedContext) -> Tensor:
        module = self.module
        if not any(tap.acts() for tap in (module.q, module.k, module.v, module.out)):
            return run_part(self, x, shared)
        normed = self.norm(x).to(self.out.dtype)
        query, key, value = self.project(normed).unbind(2)  # each [B, T, H, P]
        bias = module.pos_bias_u.detach().flatten() if module.relative else 0.0
        query = self.tap_heads(module.q, normed, query, shared.taps, self.core.scale, bias)
        key = self.tap_heads(module.k, normed, key, shared.taps)
        value = self.tap_heads(module.v, normed, value, shared.taps)
        fused = self.by_head(torch.stack([query, key, value], dim=2), shared)
        attended = run_part(self.core, fused, shared)
        part = module.out(attended, self.out(attended), shared.taps)
        return add_part(x, part, draw_mask(self.dropout, part))

    def tap_heads(
        self,
        tap: Tap,
        normed: Tensor,
        heads: Tensor,
        context: TapContext,
        scale: float = 1.0,
        bias: Tensor | float = 0.0,
    ) -> Tensor:
        """normed [B, T, D], heads [B, T, H, P] = scale · (y + bias) -> the same with y taken through the tap.

        bias: [D]. The result is bitwise `heads` where the tap adds zero.
        """
        if not tap.acts():
            return heads
        y = heads[..., : self.head_width].float().flatten(2) / scale - bias  # [B, T, D]
        delta = (tap(normed, y, context) - y).unflatten(-1, (self.heads, -1)) * scale
        return (heads.float() + F.pad(delta, (0, self.padded_width - self.head_width))).to(heads.dtype)

    def project(self, normed: Tensor) -> Tensor:
        """normed [B, T, D] -> queries, keys and values [B, T, 3, H, P]."""
        divided: Tensor = self.padded(normed).unflatten(-1, (3, self.heads, self.padded_width))
        return divided

    def by_head(self, projected: Tensor, shared: SharedContext) -> Tensor:
        """projected [B, T, 3, H, P] -> [3, H, B, T, P], keys of padding marked."""
        dtype = torch.float32 if shared.attends_wide else self.core.dtype
        fused = projected.permute(2, 3, 0, 1, 4).to(dtype, memory_format=torch.contiguous_format)
        if shared.marks is not None:
            fused[1, ..., self.head_width] = shared.marks
        return fused

    def forward(self, x: Tensor, shared: SharedContext) -> tuple[Tensor, Saved]:
        normed, mean, scale = self.norm.forward(x)
        attended, saved = self.core.forward(self.by_head(self.project(normed), shared), shared)
        part = self.out(attended)
        mask = draw_mask(self.dropout, part)
        return add_part(x, part, mask), (x, mean, scale, mask, *saved)

    def backward(self, grad: Tensor, saved: Saved, shared: SharedContext) -> Tensor:
        x, mean, scale, mask, *core_saved = saved
        through = self.out.backward(part_gradient(grad, mask, self.out.dtype))
        through = self.core.gradients(through, tuple(core_saved), shared)  # [3, H, B, T, K]
        through = through.permute(2, 3, 0, 1, 4).to(self.out.dtype, memory_format=torch.contiguous_format)
        if self.reverse is None:
            self.reverse = self.reversed_projection()
        through = self.reverse(through.flatten(2))
        return self.norm.backward(through, x, mean, scale).add_(grad)


class AttentionCore:
    """Queries, keys and values [3, H, B, T, P], in the dtype to compute in -> the weighted values [B, T, D]."""

    saved_count = 4

    def __init__(self, module: SelfAttention, padded_width: int, dtype: torch.dtype) -> None:
        self.module = module
        self.dtype = dtype
        self.heads = module.heads
        self.head_width = module.linear_q.out_features // self.heads
        self.padded_width = padded_width
        self.scale = 1.0 / math.sqrt(self.head_width)
        self.encodings: dict[torch.dtype, Tensor] = {}
        """[H, 2N-1, P] by the dtype to compute in; N is less in float32 where that is for short inputs alone."""

    def prepare(self, positions: Tensor) -> None:
        """Encode the distances of up to N frames: positions [1, 2N-1, D] float32."""
        encodings, middle = self.encode(positions), positions.size(1) // 2
        reach = min(middle, math.isqrt(FEW_SCORES))
        short = encodings[:, middle - reach : middle + reach + 1]
        self.encodings = {torch.float32: short.clone(), self.dtype: encodings.to(self.dtype)}

    def encode(self, positions: Tensor) -> Tensor:
        """positions [1, N, D] float32 -> encodings of the distances [H, N, P] float32."""
        module = self.module
        beyond = (module.pos_bias_v - module.pos_bias_u).detach() * self.scale  # [H, K]
        encodings = linear(positions[0], module.linear_pos.weight.detach()).unflatten(-1, (self.heads, -1))
        column = (encodings * beyond).sum(-1, keepdim=True)
        padding = encodings.new_zeros(*encodings.shape[:2], self.padded_width - self.head_width - 1)
        return torch.cat([encodings, column, padding], dim=-1).transpose(0, 1).contiguous()

    def distances(self, shared: SharedContext, frames: int, dtype: torch.dtype) -> Tensor:
        """[H, 2T-1, P]: a slice of the encodings for the longest input so far, unless dropout acts on them."""
        if shared.positions is not None:
            return self.encode(shared.positions).to(dtype)
        return self.encoded(frames, dtype)

    def encoded(self, frames: int, dtype: torch.dtype) -> Tensor:
        """[H, 2T-1, P] of the encodings that `prepare` made."""
        encodings = self.encodings[dtype]
        longest = (encodings.size(1) + 1) // 2
        return encodings[:, longest - frames : longest + frames - 1]

    @property
    def longest(self) -> int:
        """The number of encoder frames up to which distances are encoded."""
        return (self.encodings[self.dtype].size(1) + 1) // 2 if self.encodings else 0

    def forward(self, x: Tensor, shared: SharedContext) -> tuple[Tensor, Saved]:
        _, heads, batch, frames, _ = x.shape
        query, key, value = x.flatten(1, 2)  # each [H·B, T, P]
        distances = None
        if self.module.relative:
            distances = self.distances(shared, frames, x.dtype)
            by_distance = torch.bmm(query.view(heads, batch * frames, -1), distances.transpose(1, 2))
            scores = torch.baddbmm(shifted(by_distance, batch, frames), query, key.transpose(1, 2))
        else:
            scores = torch.bmm(query, key.transpose(1, 2))
        weights = masked_softmax(scores, shared.forbidden, heads)  # [H·B, T, T]
        thinned, mask = weights, None
        if self.module.training and self.module.dropout > 0.0:
            mask = dropout_mask(tuple(weights.shape), self.module.dropout, self.dtype, weights.device).to(weights.dtype)
            thinned = weights * mask
        attended = torch.bmm(thinned, value).view(heads, batch, frames, -1)
        attended = attended[..., : self.head_width].permute(1, 2, 0, 3)
        attended = attended.to(self.dtype, memory_format=torch.contiguous_format).flatten(2)  # [B, T, D]
        if shared.keep is not None:
            attended.mul_(shared.keep)
        return attended, (x, distances, weights, mask)

    def backward(self, grad: Tensor, saved: Saved, shared: SharedContext) -> Tensor:
        return F.pad(self.gradients(grad, saved, shared), (0, self.padded_width - self.head_width))

    def gradients(self, grad: Tensor, saved: Saved, shared: SharedContext) -> Tensor:
        """grad [B, T, D] -> the gradients of queries, keys and values [3, H, B, T, K], without the padding columns."""
        fused, distances, weights, mask = saved
        _, heads, batch, frames, _ = fused.shape
        query, key, value = fused[..., : self.head_width].flatten(1, 2)  # each [H·B, T, K]
        if shared.keep is not None:
            grad = grad * shared.keep
        grad = grad.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3)
        grad = grad.to(fused.dtype, memory_format=torch.contiguous_format).flatten(0, 1)  # [H·B, T, K]
        gradients = grad.new_empty(3, *grad.shape)  # [3, H·B, T, K]
        torch.bmm((weights if mask is None else weights * mask).transpose(1, 2), grad, out=gradients[2])
        by_weight = torch.bmm(grad, value.transpose(1, 2))
        if mask is not None:
            by_weight.mul_(mask)
        by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype)
        torch.bmm(by_score, key, out=gradients[0])
        torch.bmm(by_score.transpose(1, 2), query, out=gradients[1])
        if distances is not None:
            by_distance = by_score.new_zeros(heads, batch * frames, 2 * frames - 1)
            shifted(by_distance, batch, frames).copy_(by_score)
            by_query = gradients[0].view(heads, batch * frames, -1)
            by_query.baddbmm_(by_distance, distances[..., : self.head_width])
        divided: Tensor = gradients.unflatten(1, (heads, batch))
        return divided


def shifted(by_distance: Tensor, batch: int, frames: int) -> Tensor:
    """Scores by distance [H, B·T, 2T-1] -> by key [H·B, T, T], a view: out[…, i, j] = in[…, i, T-1-i+j]."""
    distances = 2 * frames - 1
    shape: Sequence[int] = (by_distance.size(0) * batch, frames, frames)
    return by_distance.as_strided(shape, (frames * distances, distances - 1, 1), frames - 1)


def masked_softmax(scores: Tensor, forbidden: Tensor | None, heads: int) -> Tensor:
    """scores [H·B, T, T], forbidden [B, T, T] bool -> weights [H·B, T, T], zero for a query that sees nothing."""
    if forbidden is None:
        return torch.softmax(scores, -1)
    by_head = scores.view(heads, -1, *scores.shape[1:])
    weights = torch.softmax(by_head.masked_fill_(forbidden, FORBIDDEN), -1)
    return weights.masked_fill_(forbidden, 0.0).flatten(0, 1)
