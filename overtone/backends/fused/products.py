"""What a copy of frozen weights multiplies with, laid out for the kernels once instead of at every call.

Legend: B batch, T time, D width, K kernel size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

mkldnn: Any = torch.ops.mkldnn


class Product:
    """x [..., in] -> x·Wᵀ + b [..., out] for a weight [out, in] that no gradient flows to.

    Bit for bit what `F.linear` gives.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.dtype = weight.dtype
        self.bias = bias
        self.packed: Any = mkldnn._reorder_linear_weight(weight) if has_own_layout(weight) else None
        self.plain = weight if self.packed is None else None
        self.reverse: Product | None = None
        """What `backward` multiplies with, laid out when it is first asked for."""

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None or (torch.is_grad_enabled() and x.requires_grad):
            return F.linear(x, self.weight, self.bias)
        y: Tensor = mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y

    def rectified(self, x: Tensor) -> Tensor:
        """The same with zeros in the place of what is negative, where no gradient is wanted."""
        if self.packed is None:
            return F.relu_(F.linear(x, self.weight, self.bias))
        y: Tensor = mkldnn._linear_pointwise(x, self.packed, self.bias, "relu", [], "")
        return y

    def backward(self, grad: Tensor) -> Tensor:
        """The gradient of the output [..., out] -> the gradient of x [..., in].

        With a layout of its own it adds a bias of zeros: a product the other way round of the same size, elsewhere in
        the layer, has a bias too, and the two share a kernel.
        """
        if self.packed is None:
            return grad @ self.weight
        if self.reverse is None:
            weight = self.packed.to_dense().t().contiguous()
            self.reverse = Product(weight, weight.new_zeros(weight.size(0)))
        return self.reverse(grad)

    @property
    def weight(self) -> Tensor:
        """[out, in]; only gradients need it where the products have a layout of their own."""
        if self.plain is None:
            self.plain = self.packed.to_dense()
        return self.plain


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
    """Whether the kernels for this weight want it in an order of their own: bfloat16 on a CPU that multiplies it."""
    return (
        weight.dtype is torch.bfloat16
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and bool(mkldnn._is_mkldnn_bf16_supported())
    )
