"""The product of a linear layer by the library that is quicker at it: oneDNN's kernels for AVX-512.

PyTorch gives products in float32 to MKL, which uses half of the width of the registers of processors that are not
Intel's. Small ones stay there: little is to be gained, and MKL's sums are somewhat nearer to the exact ones. The result
for a row does not depend on what is trained, nor on whether a gradient is wanted.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

mkldnn: Any = torch.ops.mkldnn
LARGE = 1 << 18
"""Numbers of a weight from which on a product is large: 512 × 512."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] -> x·Wᵀ + b [..., out]."""
    if not is_wide(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, weight, bias)):
        y: Tensor = WideLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return y
    return multiply(x, weight, bias)


def apply_linear(module: nn.Linear, x: Tensor) -> Tensor:
    """x [..., in] -> [..., out] by the weights of a module, or by what somebody has put in its place."""
    if type(module) is not nn.Linear:
        y: Tensor = module(x)
        return y
    return linear(x, module.weight, module.bias)


def is_wide(x: Tensor, weight: Tensor) -> bool:
    """True if oneDNN computes the product of x and weight, of any shapes: large, float32, outside of autocast."""
    return (
        weight.numel() >= LARGE
        and x.numel() > 0
        and x.size(-1) == weight.size(1)  # else PyTorch says what is wrong
        and x.device.type == "cpu"
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and has_wide_kernels()
        and not torch.is_autocast_enabled("cpu")
        and not is_traced()
    )


def is_traced() -> bool:
    """True while PyTorch records the operations, for other values than those of now."""
    return bool(torch.jit.is_tracing() or torch.compiler.is_compiling())  # type: ignore[attr-defined, no-untyped-call]


@cache
def has_wide_kernels() -> bool:
    """True if the processor has AVX-512, and oneDNN is there to use it."""
    return bool(torch.cpu._is_avx512_supported()) and torch.backends.mkldnn.is_available()


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] -> [..., out], without a gradient."""
    y: Tensor = mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class WideLinear(Function):
    """The same with a gradient: x [..., in], weight [out, in], bias [out] -> [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.size(-1))  # [rows, out]
        return (
            multiply(grad, weight.t(), None) if of_x else None,
            multiply(rows.t(), x.reshape(-1, x.size(-1)).t(), None) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
