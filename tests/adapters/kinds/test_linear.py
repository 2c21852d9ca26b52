"""The linear adapter: its settings, its formula, and its fast forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from overtone.adapters.kinds.linear import ACTIVATIONS, LinearAdapter
from overtone.errors import AdapterError
from overtone.nets.taps import TapContext

CONTEXT = TapContext(valid=torch.ones(3, 7, dtype=torch.bool))


def make_tensors(*rows: int, width: int = 16, dim: int = 4) -> dict[str, Tensor]:
    """Parameters that leave nothing without effect, of one adapter or of several rows."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"norm.weight": (width,), "norm.bias": (width,), "down.weight": (dim, width), "up.weight": (width, dim)}
    return {name: torch.randn(*rows, *shape, generator=generator) for name, shape in shapes.items()}


def make_stream() -> Tensor:
    return torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))


def by_definition(kind: LinearAdapter, tensors: dict[str, Tensor], y: Tensor) -> Tensor:
    """y [T, D] -> the delta [T, D] of one row, written as the papers do."""
    norm = tensors["norm.weight"], tensors["norm.bias"]
    inner = F.layer_norm(y, [16], *norm) if kind.norm_position == "pre" else y
    delta = ACTIVATIONS[kind.activation](inner @ tensors["down.weight"].T) @ tensors["up.weight"].T
    return F.layer_norm(delta, [16], *norm) if kind.norm_position == "post" else delta


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_the_formula_for_one_adapter_and_for_one_each_row(activation: str, norm_position: str) -> None:
    kind, y = LinearAdapter(dim=4, activation=activation, norm_position=norm_position), make_stream()
    one, each = make_tensors(), make_tensors(3)
    for found, row_tensors in (
        (kind.delta(one, y, y, CONTEXT, False), [one] * 3),
        (kind.delta(each, y, y, CONTEXT, False), [{name: own[row] for name, own in each.items()} for row in range(3)]),
    ):
        for row in range(3):
            torch.testing.assert_close(found[row], by_definition(kind, row_tensors[row], y[row]))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("rows", [(), (3,)], ids=["one", "rows"])
def test_the_sum_in_one_product_is_that_of_the_formula(rows: tuple[int, ...], in_place: bool) -> None:
    kind, y = LinearAdapter(dim=4), make_stream()
    tensors = make_tensors(*rows)
    expected = y + kind.delta(tensors, y, y, CONTEXT, False)
    stream = y.clone()
    found = kind.added(kind.prepare(tensors, torch.float32), stream, in_place)
    assert found is not None
    torch.testing.assert_close(found, expected)
    assert torch.equal(stream, found if in_place else y)


def test_where_a_norm_stands_between_there_is_no_such_product() -> None:
    kind, y = LinearAdapter(dim=4, norm_position="post"), make_stream()
    assert kind.added(kind.prepare(make_tensors(), torch.float32), y, False) is None
    assert kind.bottleneck(make_tensors(), torch.float32) is None
    assert LinearAdapter(dim=4).added(make_tensors(), y, False) is None, "not prepared"


def test_the_bottleneck_is_the_formula() -> None:
    kind, y, tensors = LinearAdapter(dim=4), make_stream(), make_tensors()
    form = kind.bottleneck(tensors, torch.float32)
    assert form is not None
    assert form.activation == "swish"
    delta = F.silu(F.layer_norm(y, [16]) @ form.down.T + form.bias) @ form.up.T
    torch.testing.assert_close(delta, kind.delta(tensors, y, y, CONTEXT, False))


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 0},
        {"dim": True},
        {"dim": 10**9},
        {"dim": 2.5},
        {"dropout": 1.0},
        {"dropout": "0.1"},
        {"norm_position": "middle"},
    ],
    ids=str,
)
def test_settings_out_of_range_raise(settings: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match="linear adapter: "):
        LinearAdapter(**settings)


def test_a_mistyped_activation_offers_the_nearest() -> None:
    with pytest.raises(AdapterError, match="Did you mean 'swish'"):
        LinearAdapter(activation="swsh")
