"""Layers that every net is made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from overtone.nets.layers import BLOCK, dropout_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 1.0])
def test_masks_drop_as_often_as_told(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    mask = dropout_mask((50, 200, 100), probability, dtype, torch.device("cpu")).float()
    assert (mask == 0).float().mean().item() == pytest.approx(probability, abs=0.004)
    assert mask.mean().item() == pytest.approx(0.0 if probability == 1.0 else 1.0, abs=0.005)


def test_masks_differ_and_repeat() -> None:
    def draw() -> Tensor:
        return dropout_mask((64, 64), 0.1, torch.float32, torch.device("cpu"))

    torch.manual_seed(6)
    first, second = draw(), draw()
    assert not torch.equal(first, second)
    dropout_mask((BLOCK + 1,), 0.1, torch.float32, torch.device("cpu"))  # a longer tape changes nothing
    torch.manual_seed(6)
    assert torch.equal(draw(), first)
