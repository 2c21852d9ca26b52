"""The product of a linear layer is the same by every library, in every row, and whatever is trained."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from overtone.nets import products
from overtone.nets.products import apply_linear, linear

OUT, IN = 512, 640


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(IN,), (3, IN), (2, 13, IN), (2, 3, 5, IN), (0, IN), (2, 0, IN)])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_product(shape: tuple[int, ...], biased: bool) -> None:
    x, weight, bias = draw(*shape), draw(OUT, IN), draw(OUT) if biased else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = linear(x, weight, bias)
    assert found.dtype is torch.float32
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_pytorchs_own(dtype: torch.dtype) -> None:
    x, weight = draw(3, IN).to(dtype), draw(OUT, IN).to(dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_views_are_multiplied_as_they_are() -> None:
    x, weight = draw(13, 2, 2 * IN)[..., ::2].transpose(0, 1), draw(IN, OUT).t()
    assert torch.allclose(linear(x, weight), x.contiguous() @ weight.t(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("learning", [(True, False, False), (False, True, True), (True, True, True)])
@pytest.mark.parametrize("shape", [(2, 9, IN), (IN,), (0, IN), (2, 0, IN)])
def test_gradients_are_those_of_the_product(shape: tuple[int, ...], learning: tuple[bool, bool, bool]) -> None:
    own = [draw(*shape), draw(OUT, IN), draw(OUT)]
    for each, learns in zip(own, learning, strict=True):
        each.requires_grad_(learns)
    twins = [each.detach().double().requires_grad_(each.requires_grad) for each in own]
    towards = draw(*shape[:-1], OUT)
    linear(*own).backward(towards)
    F.linear(*twins).backward(towards.double())
    for each, twin in zip(own, twins, strict=True):
        assert (each.grad is None) == (twin.grad is None)
        if each.grad is not None and twin.grad is not None:
            assert torch.allclose(each.grad.double(), twin.grad, rtol=1e-4, atol=1e-4)


def test_a_result_does_not_depend_on_what_is_trained() -> None:
    x, weight, bias = draw(2, 9, IN), draw(OUT, IN), draw(OUT)
    plain = linear(x, weight, bias)
    assert torch.equal(linear(x.clone().requires_grad_(), weight, bias), plain)
    assert torch.equal(linear(x, weight.clone().requires_grad_(), bias), plain)
    with torch.inference_mode():
        assert torch.equal(linear(x, weight, bias), plain)


def test_without_wide_kernels_pytorch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_wide_kernels", lambda: False)
    x, weight, bias = draw(2, 9, IN), draw(OUT, IN), draw(OUT)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_small_products_are_pytorchs_own() -> None:
    x, weight, bias = draw(2, 9, 176), draw(704, 176), draw(704)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_autocast_decides_itself() -> None:
    x, weight = draw(2, 9, IN), draw(OUT, IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype is torch.bfloat16


def test_a_wrong_width_is_named() -> None:
    with pytest.raises(RuntimeError, match="3x512 and 640x512"):
        linear(draw(3, 512), draw(OUT, IN))


def test_what_stands_in_a_layers_place_computes() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    module, x = Doubled(IN, OUT), draw(3, IN)
    assert torch.equal(apply_linear(module, x), module(x))
