"""Encodings of positions grow with the inputs, and are no part of the weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from overtone.backends.fused.encoder import FusedEncoder
from overtone.nets.attention import PositionTable
from support.small_models import small_model


@pytest.mark.parametrize("position", ["rel_pos", "abs_pos"])
def test_a_table_of_positions_grows_without_changing(position: Any) -> None:
    table = PositionTable(10, position)
    with torch.inference_mode():
        short = table(40, torch.device("cpu")).clone()
    assert not table.table.is_inference()
    long = table(700, torch.device("cpu"))
    assert torch.equal(long[:, 660:739] if position == "rel_pos" else long[:, :40], short)
    assert torch.equal(table(40, torch.device("cpu")), short)
    middle = 39 if position == "rel_pos" else 0
    assert short[0, middle].tolist() == [0.0, 1.0] * 5


@pytest.mark.parametrize("position", ["rel_pos", "abs_pos"])
def test_a_table_of_positions_is_no_part_of_the_weights(position: Any) -> None:
    """Processes that train together send each other every buffer; their tables are as long as their own inputs."""
    encoder = small_model(position=position).encoder
    before = [name for name, _ in encoder.named_buffers()], list(encoder.state_dict())
    with torch.no_grad():
        x, _ = encoder(torch.randn(1, 80, 40), torch.tensor([40]))
    assert x.size(1) == 10
    assert len(encoder.positions.table) >= 512
    assert ([name for name, _ in encoder.named_buffers()], list(encoder.state_dict())) == before
    assert not any("table" in name for name in before[0])
    assert torch.equal(copy.deepcopy(encoder).positions.table, encoder.positions.table)


def test_longer_inputs_derive_no_weights_anew() -> None:
    prepared, derived = FusedEncoder(small_model().encoder, torch.float32), set()
    with torch.no_grad():
        for frames in (40, 40, 2_200):  # 550 encoder frames are more than are prepared at first
            prepared(torch.randn(1, 80, frames), torch.tensor([frames]))
            derived.add(prepared.layers[0])
    assert len(derived) == 1
