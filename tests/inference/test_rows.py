"""Rows of a batch in groups of similar length: what is cut, and that nothing changes but the time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.strategies import ResidualAdd
from overtone.inference.rows import WORTH_FRAMES, length_groups, recognise_in_groups, rows_are_independent
from overtone.models.asr_model import AsrModel
from support.small_models import small_model

LENGTHS = [90, 401, 88, 93, 97]
"""Mel frames: one row is far longer than the others."""


def test_a_long_row_stands_alone() -> None:
    assert length_groups(LENGTHS, worth=600) == [[1], [4, 3, 0, 2]]


@pytest.mark.parametrize("lengths", [[100], [100, 100, 100], [300, 200, 150]])
def test_rows_stay_together_where_a_cut_saves_little(lengths: list[int]) -> None:
    assert length_groups(lengths, worth=600) == [list(range(len(lengths)))]


def test_every_row_is_in_one_group_and_groups_save_what_they_cost() -> None:
    lengths = torch.randint(60, 3000, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = length_groups(lengths)
    assert sorted(row for rows in groups for row in rows) == list(range(40))
    assert len(groups) > 2
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in groups)
    assert padded + WORTH_FRAMES * (len(groups) - 1) < len(lengths) * max(lengths)


@pytest.fixture
def mel() -> Tensor:
    """[B, F, T] float32, with something other than silence on the padding."""
    return torch.randn(len(LENGTHS), 80, 416, generator=torch.Generator().manual_seed(3))


def recognised(model: AsrModel, mel: Tensor, *, grouped: bool, inner: tuple[int, ...] = ()) -> tuple[list[Tensor], Any]:
    """The heads on every row's own frames, and the gradients of the adapter."""

    def recognise(mel: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        return model.recognise_within(mel, lengths, inner)

    lengths = torch.tensor(LENGTHS)
    with model.adapters.use("mine"):
        if grouped:
            heads, counts = recognise_in_groups(recognise, mel, lengths, factor=model.encoder.subsampling_factor)
        else:
            heads, counts = recognise(mel, lengths)
    outputs = [row[:count] for head in heads for row, count in zip(head, counts.tolist(), strict=True)]
    gradients = torch.autograd.grad(sum(row[:, 3].sum() for row in outputs), model.adapters.parameters_of("mine"))
    return outputs, gradients


@pytest.mark.parametrize("inner", [(), (0,)])
@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("subsampling", ["dw_striding", "striding", "stacking", "stacking_norm"])
def test_groups_change_no_row_and_no_gradient(
    mel: Tensor, subsampling: str, prepared: bool, inner: tuple[int, ...]
) -> None:
    model = small_model(subsampling=subsampling)
    model.adapters.add("mine", LinearAdapter(dim=4))
    model.set_compute_dtype("float32", prepared=prepared).train_only("mine")
    outputs, gradients = recognised(model, mel, grouped=True, inner=inner)
    expected, wanted = recognised(model, mel, grouped=False, inner=inner)
    assert len(length_groups(LENGTHS)) == 2
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, wanted, atol=1e-4, rtol=1e-4)


def test_rows_that_depend_on_each_other_stay_together() -> None:
    model = small_model()
    model.adapters.add("mine", LinearAdapter(dim=4))
    model.adapters.add("small", LinearAdapter(dim=4), strategy=ResidualAdd(l2_lambda=0.1))
    assert rows_are_independent(model.train_only("mine"), "mine")
    assert not rows_are_independent(model.train_only("small"), "small")
    assert not rows_are_independent(model.train_base(), None)
    assert rows_are_independent(model.eval(), None)
    assert not rows_are_independent(small_model(conv_norm="group_norm4"), None)
