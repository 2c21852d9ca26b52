"""Products and parts of a frozen Conformer layer, laid out for the kernels, with their backward passes written out.

Nothing is learnt here, so the backward pass needs no gradient of a weight: each part keeps what the gradient of
its input asks for and no more, and is one node of the graph. Every part is y = x + f(norm(x)), the factor ½ of
the feed-forwards, the scale of the attention and the statistics of the batch norm folded into its weights.

Legend: B batch, T time, D width, K kernel size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.nets.conformer import ConvolutionModule, FeedForward
from overtone.nets.layers import channels_last_is_safe, dropout_mask
from overtone.nets.products import linear
from overtone.nets.taps import TapContext

Saved = tuple[Any, ...]
"""Tensors, or None for masks that are not there."""
aten: Any = torch.ops.aten
mkldnn: Any = torch.ops.mkldnn


class Product:
    """x [..., in] -> x·Wᵀ + b [..., out] for a weight [out, in] that no gradient flows to.

    Bit for bit what `linear` gives.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.dtype = weight.dtype
        self.bias = bias
        self.packed: Any = mkldnn._reorder_linear_weight(weight) if has_own_layout(weight) else None
        self.plain = weight if self.packed is None else None
        self.reverse: Product | None = None
        """The product of `backward`, made when it is first needed."""

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None or (torch.is_grad_enabled() and x.requires_grad):
            return linear(x, self.weight, self.bias)
        y: Tensor = mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y

    def rectified(self, x: Tensor) -> Tensor:
        """x [..., in] -> relu(x·Wᵀ + b) [..., out], where no gradient is wanted."""
        if self.packed is None:
            return F.relu_(linear(x, self.weight, self.bias))
        y: Tensor = mkldnn._linear_pointwise(x, self.packed, self.bias, "relu", [], "")
        return y

    def backward(self, grad: Tensor) -> Tensor:
        """The gradient of the output [..., out] -> the gradient of x [..., in].

        With a layout of its own it adds a bias of zeros: a product the other way round of the same size, elsewhere in
        the layer, has a bias too, and the two share a kernel.
        """
        if self.packed is None:
            return linear(grad, self.weight.t())
        if self.reverse is None:
            weight = self.unpacked().t().contiguous()
            self.reverse = Product(weight, weight.new_zeros(weight.size(0)))
        return self.reverse(grad)

    @property
    def weight(self) -> Tensor:
        """[out, in]; only gradients need it where the products have a layout of their own."""
        if self.plain is None:
            self.plain = self.unpacked()
        return self.plain

    def unpacked(self) -> Tensor:
        """The same [out, in], not kept where the products have a layout of their own."""
        weight: Tensor = self.packed.to_dense() if self.plain is None else self.plain
        return weight


class Filter:
    """Depthwise convolution over time, x [B, T, D] -> [B, T, D], as a channels-last image [B, D, 1, T]."""

    def __init__(self, kernel: Tensor, bias: Tensor | None, *, left: int, right: int) -> None:
        self.kernel = kernel  # [D, 1, 1, K]
        self.bias = bias
        self.outside = (left, right)
        self.padding = (0, left if left == right else 0)
        self.packed = None
        if has_own_layout(kernel):
            self.packed = mkldnn._reorder_convolution_weight(kernel, self.padding, 1, 1, kernel.size(0))

    def __call__(self, x: Tensor) -> Tensor:
        if self.outside[0] != self.outside[1]:
            x = F.pad(x, (0, 0, *self.outside))
        image = x.to(self.kernel.dtype).transpose(1, 2).unsqueeze(2)
        groups = self.kernel.size(0)
        if self.packed is None:
            image = F.conv2d(image, self.kernel, self.bias, padding=self.padding, groups=groups)
        else:
            image = mkldnn._convolution_pointwise(
                image, self.packed, self.bias, self.padding, (1, 1), (1, 1), groups, "none", [], ""
            )
        return image.squeeze(2).transpose(1, 2).to(x.dtype)


def has_own_layout(weight: Tensor) -> bool:
    """True if the kernels for a weight, of any shape, want it in an order of their own: bfloat16 on a CPU."""
    return (
        weight.dtype is torch.bfloat16
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and bool(mkldnn._is_mkldnn_bf16_supported())
    )


@dataclass(frozen=True, kw_only=True)
class SharedContext:
    """Masks and positions that all layers share in one forward."""

    taps: TapContext
    """The context of every tap; its positions are float32."""
    keep: Tensor | None
    """[B, T, 1], one on speech and zero on padding; None where nothing is padded."""
    marks: Tensor | None
    """[B, T], added to the scores of a key: zero on speech, very negative on padding; None as above."""
    forbidden: Tensor | None
    """[B, T, T] bool, true where a query may not look, under a limited context; None where all may."""
    positions: Tensor | None
    """[1, 2T-1, D] float32 if this forward has position encodings of its own (dropout), else None."""
    attends_wide: bool
    """True if queries, keys and values are float32, whatever the dtype of the products."""


class Part(Protocol):
    """A part of the layer with its backward pass."""

    saved_count: int
    """Number of tensors that `forward` saves for `backward`."""

    def forward(self, x: Tensor, shared: SharedContext) -> tuple[Tensor, Saved]:
        """x [B, T, D] -> y [B, T, D], and the tensors that `backward` needs."""
        ...

    def backward(self, grad: Tensor, saved: Saved, shared: SharedContext) -> Tensor:
        """The gradient of y -> the gradient of x, both [B, T, D]."""
        ...


class FrozenPart(torch.autograd.Function):
    """One part as one node of the autograd graph: x [B, T, D] -> y [B, T, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Part, shared: SharedContext) -> Tensor:
        y, saved = part.forward(x, shared)
        ctx.save_for_backward(*saved)
        ctx.part, ctx.shared = part, shared
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.part.backward(grad, ctx.saved_tensors, ctx.shared), None, None


def run_part(part: Part, x: Tensor, shared: SharedContext) -> Tensor:
    """x [B, T, D] -> y [B, T, D], as one node of the graph where a gradient is wanted."""
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = FrozenPart.apply(x, part, shared)  # type: ignore[no-untyped-call]
        return y
    return part.forward(x, shared)[0]


class PartChain:
    """Parts one after the other: x [B, T, D] -> y [B, T, D]."""

    def __init__(self, *parts: Part) -> None:
        self.parts = parts
        self.saved_count = sum(part.saved_count for part in parts)

    def forward(self, x: Tensor, shared: SharedContext) -> tuple[Tensor, Saved]:
        kept: list[Any] = []
        for part in self.parts:
            x, saved = part.forward(x, shared)
            kept += saved
        return x, tuple(kept)

    def backward(self, grad: Tensor, saved: Saved, shared: SharedContext) -> Tensor:
        end = len(saved)
        for part in reversed(self.parts):
            grad = part.backward(grad, saved[end - part.saved_count : end], shared)
            end -= part.saved_count
        return grad


class Norm:
    """Layer norm of the stream x [B, T, D] in the dtype of the products; its mean and scale are [B, T, 1]."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        self.shape = list(norm.normalized_shape)
        self.weight = norm.weight.detach().float()
        self.bias = norm.bias.detach().float()
        self.epsilon = norm.eps
        self.dtype = dtype

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, scale = torch.native_layer_norm(x, self.shape, self.weight, self.bias, self.epsilon)
        return y.to(self.dtype), mean, scale

    def __call__(self, x: Tensor) -> Tensor:
        """The same with the backward pass left to autograd."""
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.epsilon)

    def backward(self, grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        wanted = [True, False, False]
        inner: Tensor = aten.native_layer_norm_backward(
            grad.to(x.dtype), x, self.shape, mean, scale, self.weight, self.bias, wanted
        )[0]
        return inner


class NormPart:
    """x [B, T, D] -> norm(x) in the dtype of the stream."""

    saved_count = 3

    def __init__(self, norm: Norm) -> None:
        self.norm = norm

    def forward(self, x: Tensor, shared: SharedContext) -> tuple[Tensor, Saved]:
        norm = self.norm
        y, mean, scale = torch.native_layer_norm(x, norm.shape, norm.weight, norm.bias, norm.epsilon)
        return y, (x, mean, scale)

    def backward(self, grad: Tensor, saved: Saved, shared: SharedContext) -> Tensor:
        return self.norm.backward(grad, *saved)


def cast(tensor: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """A copy of a tensor of any shape, scaled and rounded once: in float64 where float32 could not hold the product."""
    if math.frexp(scale)[0] == 0.5:  # a power of two
        return tensor.detach().to(dtype, copy=True) if scale == 1.0 else (tensor.detach() * scale).to(dtype)
    return (tensor.detach().double() * scale).to(dtype)


def cast_product(module: nn.Linear | nn.Conv1d, dtype: torch.dtype, scale: float = 1.0) -> Product:
    """The product of a linear layer, or of a convolution with kernels of one place."""
    weight = cast(module.weight, dtype, scale).flatten(1).contiguous()
    return Product(weight, None if module.bias is None else cast(module.bias, dtype, scale))


def draw_mask(dropout: nn.Dropout, like: Tensor) -> Tensor | None:
    """A dropout mask for a tensor `like` of any shape; None where the module's dropout is not active."""
    if not dropout.training or dropout.p == 0.0:
        return None
    return dropout_mask(tuple(like.shape), dropout.p, like.dtype, like.device)


def add_part(x: Tensor, part: Tensor, mask: Tensor | None) -> Tensor:
    """x + part · mask, each [B, T, D], in the dtype of x."""
    if mask is None:
        return x + part
    return torch.addcmul(x, part.to(x.dtype), mask.to(x.dtype))


def part_gradient(grad: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The gradient of `part` in `add_part`: grad and mask [B, T, D] -> [B, T, D]."""
    grad = grad.to(dtype)
    return grad if mask is None else grad * mask


class FeedForwardPart:
    """x [B, T, D] -> x + ½ · feed_forward(norm(x))."""

    saved_count = 6

    def __init__(self, norm: nn.LayerNorm, module: FeedForward, dropout: nn.Dropout, dtype: torch.dtype) -> None:
        self.norm = Norm(norm, dtype)
        self.module = module
        self.dropout = dropout
        self.expand = cast_product(module.linear1, dtype)
        self.contract = cast_product(module.linear2, dtype, 0.5)

    def __call__(self, x: Tensor, shared: SharedContext) -> Tensor:
        module = self.module
        if not (module.expand.acts() or module.contract.acts()):
            return run_part(self, x, shared)
        normed = self.norm(x).to(self.expand.dtype)
        inner = module.expand(normed, self.expand(normed), shared.taps)
        active = F.silu(inner)
        mask = draw_mask(module.dropout, active)
        if mask is not None:
            active = active * mask
        half = self.contract(active)
        part = 0.5 * module.contract(active, 2.0 * half, shared.taps)
        return add_part(x, part, draw_mask(self.dropout, part))

    def forward(self, x: Tensor, shared: SharedContext) -> tuple[Tensor, Saved]:
        normed, mean, scale = self.norm.forward(x)
        inner = self.expand(normed)  # [B, T, 4D]
        active = F.silu(inner)
        inner_mask = draw_mask(self.module.dropout, active)
        if inner_mask is not None:
            active.mul_(inner_mask)
        part = self.contract(active)
        mask = draw_mask(self.dropout, part)
        return add_part(x, part, mask), (x, mean, scale, inner, inner_mask, mask)

    def backward(self, grad: Tensor, saved: Saved, shared: SharedContext) -> Tensor:
        x, mean, scale, inner, inner_mask, mask = saved
        through = self.contract.backward(part_gradient(grad, mask, inner.dtype))
        if inner_mask is not None:
            through.mul_(inner_mask)
        through = self.expand.backward(aten.silu_backward(through, inner))
        return self.norm.backward(through, x, mean, scale).add_(grad)


class ConvolutionPart:
    """x [B, T, D] -> x + convolution(norm(x)), the batch norm folded into the depthwise kernel."""

    saved_count = 6

    def __init__(self, norm: nn.LayerNorm, module: ConvolutionModule, dropout: nn.Dropout, dtype: torch.dtype) -> None:
        self.norm = Norm(norm, dtype)
        self.dropout = dropout
        self.gate = cast_product(module.pointwise_conv1, dtype)
        self.project = cast_product(module.pointwise_conv2, dtype)
        kernel, bias = folded_batch_norm(module)
        depthwise = dtype if channels_last_is_safe(dtype, kernel.size(0)) else torch.float32
        kernel = kernel.to(depthwise).unsqueeze(2)  # [D, 1, 1, kernel size]
        self.filter = Filter(kernel, bias.to(depthwise), left=module.left, right=module.right)
        self.reversed = Filter(kernel.flip(-1), None, left=module.right, right=module.left)

    def __call__(self, x: Tensor, shared: SharedContext) -> Tensor:
        return run_part(self, x, shared)

    def forward(self, x: Tensor, shared: SharedContext) -> tuple[Tensor, Saved]:
        normed, mean, scale = self.norm.forward(x)
        gates = self.gate(normed)  # [B, T, 2D]
        inner = F.glu(gates, -1)
        if shared.keep is not None:
            inner.mul_(shared.keep)
        filtered = self.filter(inner)
        part = self.project(F.silu(filtered))
        mask = draw_mask(self.dropout, part)
        return add_part(x, part, mask), (x, mean, scale, gates, filtered, mask)

    def backward(self, grad: Tensor, saved: Saved, shared: SharedContext) -> Tensor:
        x, mean, scale, gates, filtered, mask = saved
        through = self.project.backward(part_gradient(grad, mask, gates.dtype))
        through = aten.silu_backward(through, filtered)
        through = self.reversed(through)
        if shared.keep is not None:
            through = through * shared.keep
        through = self.gate.backward(aten.glu_backward(through, gates, -1))
        return self.norm.backward(through, x, mean, scale).add_(grad)


def folded_batch_norm(module: ConvolutionModule) -> tuple[Tensor, Tensor]:
    """The depthwise kernel [D, 1, size] and bias [D] with the norm's statistics inside, float64."""
    norm = module.batch_norm
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    conv = module.depthwise_conv
    scale = norm.weight.detach().double() / (variance.double() + norm.eps).sqrt()
    bias = -mean.double() if conv.bias is None else conv.bias.detach().double() - mean.double()
    return conv.weight.detach().double() * scale.view(-1, 1, 1), bias * scale + norm.bias.detach().double()
