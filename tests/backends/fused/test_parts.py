"""Products and filters of frozen weights are those of the plain weights, whatever layout they are kept in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from overtone.backends.fused.encoder import FusedEncoder
from overtone.backends.fused.parts import Filter, Product
from overtone.nets.conformer import ConformerEncoder
from overtone.nets.products import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 13, 400])
def test_products_are_those_of_the_plain_weight(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(8)
    x, weight, bias = (torch.randn(*size, generator=generator).to(dtype) for size in ((2, rows, 176), (44, 176), (44,)))
    for offset in (bias, None):
        product = Product(weight, offset)
        with torch.no_grad():
            assert torch.equal(product(x), linear(x, weight, offset))
            assert torch.equal(product.rectified(x), F.relu(linear(x, weight, offset)))
        assert torch.equal(product.weight, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_back_is_the_gradient(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(12)
    weight, grad = (torch.randn(*size, generator=generator).to(dtype) for size in ((44, 176), (3, 50, 44)))
    error = Product(weight, None).backward(grad).float() - grad.float() @ weight.float()
    assert error.norm() / (grad.float() @ weight.float()).norm() < (1e-6 if dtype is torch.float32 else 5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_back_of_attention_is_made_when_it_is_needed(dtype: torch.dtype) -> None:
    torch.manual_seed(13)
    encoder = ConformerEncoder(width=32, layers=2, heads=4, kernel_size=7).eval().requires_grad_(False)
    backend = FusedEncoder(encoder, dtype)
    x, lengths = torch.randn(2, 9, 32), torch.tensor([9, 7])
    with torch.no_grad():
        backend.above(x, lengths, 1)
    attention = backend.layers[1].attention
    assert attention.reverse is None
    backend.above(x.requires_grad_(True), lengths, 1)[0].sum().backward()
    assert attention.reverse is not None
    module = attention.module
    linears = (module.linear_q, module.linear_k, module.linear_v)
    weights = [linear.weight.double() * factor for linear, factor in zip(linears, (8**-0.5, 1, 1), strict=True)]
    assert torch.equal(attention.reverse.weight, torch.cat(weights).to(dtype).t())


def test_gradients_go_through_a_product() -> None:
    """A tap that acts inside a part leaves the products to autograd."""
    torch.manual_seed(10)
    weight, x = torch.randn(20, 32).bfloat16(), torch.randn(3, 5, 32).bfloat16().requires_grad_(True)
    Product(weight, None)(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, weight.sum(0).expand_as(x), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("left", "right"), [(4, 4), (6, 2), (8, 0)])
def test_filters_are_those_of_the_plain_kernel(left: int, right: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(9)
    x, kernel, bias = (torch.randn(*size, generator=generator) for size in ((3, 50, 176), (176, 1, 1, 9), (176,)))
    expected = F.conv1d(F.pad(x.transpose(1, 2), (left, right)), kernel.squeeze(2), bias, groups=176).transpose(1, 2)
    filtered = Filter(kernel.to(dtype), bias.to(dtype), left=left, right=right)(x.to(dtype))
    assert filtered.dtype is dtype
    error = (filtered.float() - expected).norm() / expected.norm()
    assert error < (1e-6 if dtype is torch.float32 else 1e-2)
