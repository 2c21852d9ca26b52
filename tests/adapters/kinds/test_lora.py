"""LoRA: a low-rank product beside a Linear is a change of that Linear's weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from overtone.adapters.kinds.lora import LORA_TAPS, LoraAdapter
from overtone.errors import AdapterError
from support.families import KindCase, add_trained, batch, family_model

LINEARS = {
    "q": "self_attn.linear_q",
    "k": "self_attn.linear_k",
    "v": "self_attn.linear_v",
    "out": "self_attn.linear_out",
    "expand": "linear1",
    "contract": "linear2",
}
"""Taps -> the Linears that they stand behind, in their layer or feed-forward."""


@pytest.mark.parametrize("target", LORA_TAPS)
def test_the_product_is_that_of_a_changed_weight(target: str) -> None:
    model, kind = family_model(layers=1), LoraAdapter(rank=3, alpha=6.0, targets=(target,))
    add_trained(model, "a", KindCase(kind=kind, last=("up.weight",)))
    with torch.no_grad(), model.adapters.use("a"):
        expected = model(*batch(8_000))[0]
    for name in model.adapters["a"].points:
        before, _, tap = name.rpartition(".")
        place = before if tap in ("expand", "contract") else before.rpartition(".")[0]
        linear = model.get_submodule(f"{place}.{LINEARS[tap]}")
        assert isinstance(linear, nn.Linear)
        tensors = model.adapters["a"].at(name).tensors()
        with torch.no_grad():
            linear.weight += kind.alpha / kind.rank * tensors["up.weight"] @ tensors["down.weight"]
    with torch.no_grad():
        torch.testing.assert_close(model(*batch(8_000))[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{"rank": -1}, {"alpha": float("nan")}, {"dropout": 1.0}], ids=str)
def test_settings_out_of_range_raise(settings: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match="lora adapter: "):
        LoraAdapter(**settings)


def test_a_mistyped_target_offers_the_nearest() -> None:
    with pytest.raises(AdapterError, match="Did you mean 'feed_forward'"):
        LoraAdapter(targets=("feed_foward",))
