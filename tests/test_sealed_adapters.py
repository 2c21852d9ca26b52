"""Adapters whose parameters stay as they are: the same numbers, with less to look at in each forward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from families import KIND_CASES, add_trained, batch, family_model
from overtone.adapters.kinds import LinearAdapter, PointAdapter
from overtone.errors import AdapterError
from overtone.model import AsrModel

SIGNAL = (8_000, 6_000, 7_000, 5_000)
MIXES = (["a", "b", "a", "c"], ["a", None, "b", None], [None, "c", None, None], ["a+b", "c", None, "b+c"])


def three(dtype: str, *, case: str = "linear_pre", layers: str = "all") -> AsrModel:
    model = family_model().set_compute_dtype(dtype)
    for seed, name in enumerate("abc"):
        add_trained(model, name, KIND_CASES[case], seed=seed)
    if layers != "all":
        model.adapters.remove("c")
        model.adapters.add("c", LinearAdapter(dim=4), layers=layers)
    return model


def log_probs(model: AsrModel, choice: list[str | None]) -> Tensor:
    with torch.no_grad(), model.adapters.use(choice):
        return model(*batch(*SIGNAL))[0]


def seal(model: AsrModel) -> None:
    for adapter in model.adapters:
        adapter.seal()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", sorted(KIND_CASES))
def test_a_seal_changes_no_number(case: str, dtype: str) -> None:
    model = three(dtype, case=case)
    before = [log_probs(model, mix) for mix in MIXES]
    seal(model)
    for mix, expected in zip(MIXES, before, strict=True):
        assert torch.equal(log_probs(model, mix), expected)


def test_adapters_of_different_points_are_told_apart() -> None:
    model = three("bfloat16", layers="last:1")
    before = [log_probs(model, mix) for mix in MIXES]
    seal(model)
    for mix, expected in zip(MIXES, before, strict=True):
        assert torch.equal(log_probs(model, mix), expected)


@pytest.mark.parametrize("others", [0, 20])
def test_a_forward_looks_at_no_parameter_again(others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = three("bfloat16")
    for index in range(others):
        model.adapters.add(f"other{index}", LinearAdapter(dim=4))
    seal(model)
    expected = log_probs(model, MIXES[0])
    looked: list[PointAdapter] = []
    monkeypatch.setattr(PointAdapter, "stamp", lambda part: looked.append(part) or [])
    monkeypatch.setattr(PointAdapter, "tensors", lambda part: looked.append(part) or {})
    assert torch.equal(log_probs(model, MIXES[0]), expected)
    assert looked == []


def test_what_is_packed_is_kept_once() -> None:
    model = three("bfloat16")
    seal(model)
    log_probs(model, MIXES[0])
    adapter = model.adapters["a"]
    packed = adapter.pack(torch.bfloat16, torch.device("cpu"))
    assert packed is not None
    for index, point in enumerate(adapter.points):
        for name, tensor in adapter.at(point).ready(torch.bfloat16).items():
            assert tensor.data_ptr() == packed[name][index].data_ptr()


def test_sealed_parameters_are_not_overwritten() -> None:
    model = three("float32")
    adapter = model.adapters["a"]
    adapter.seal()
    with pytest.raises(AdapterError, match="'a' is sealed"):
        adapter.load_tensors(adapter.tensors())
