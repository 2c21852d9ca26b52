"""Private copies of weights: made anew when asked for, and not part of a pickle."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from overtone.models.asr_model import AsrModel
from support.families import KIND_CASES, add_trained, batch, family_model


def emissions(model: AsrModel, choice: str | None = None) -> Tensor:
    with torch.no_grad(), model.adapters.use(choice):
        return model(*batch(8_000, 6_000))[0]


def prepared(dtype: str = "bfloat16") -> AsrModel:
    model = family_model()
    add_trained(model, "a", KIND_CASES["linear_pre"])
    model.adapters["a"].freeze()
    return model.set_compute_dtype(dtype, prepared=True)


def write_data(tensor: Tensor) -> None:
    tensor.data.mul_(1.5)


def write_numpy(tensor: Tensor) -> None:
    tensor.detach().numpy()[:] *= 1.5


@pytest.mark.parametrize("write", [write_data, write_numpy])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_refresh_finds_writes_that_leave_no_trace(dtype: str, write: Callable[[Tensor], None]) -> None:
    model = prepared(dtype)
    before = emissions(model, "a")
    for tensors in (model.encoder.parameters(), model.adapters.parameters_of("a")):
        for tensor in tensors:
            write(tensor)
        model.refresh()
        after = emissions(model, "a")
        fresh = copy.deepcopy(model)
        assert torch.equal(after, emissions(fresh, "a"))
        assert not torch.equal(after, before)
        before = after


def test_refresh_finds_writes_under_a_computing_in_block() -> None:
    model = prepared("float32")
    with model.computing_in("bfloat16"):
        before = emissions(model)
        for tensor in model.encoder.parameters():
            write_data(tensor)
        assert not torch.equal(emissions(model.refresh()), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prepared_model_is_pickled_without_its_copies(dtype: str, tmp_path: Path) -> None:
    model = prepared(dtype)
    before = emissions(model, "a")
    again: AsrModel = pickle.loads(pickle.dumps(model))
    assert again.compute_dtype == model.compute_dtype
    assert torch.equal(emissions(again, "a"), before)
    assert again.backend is not None
    assert again.backend.encoder is again.encoder
    torch.save(model, tmp_path / "model.pt")
    whole: AsrModel = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(emissions(whole, "a"), before)
    assert whole.fingerprint() == model.fingerprint()


def test_to_and_half_are_seen_without_refresh() -> None:
    """They put other tensors in the place of the old ones."""
    model = prepared()
    before = emissions(model)
    model.encoder.to(torch.float64).to(torch.float32)
    assert torch.equal(emissions(model), before)
    for parameter in model.encoder.parameters():
        parameter.data = parameter.data * 1.5
    changed = emissions(model)
    assert not torch.equal(changed, before)
    halved = model.encoder.half().float()
    assert not torch.equal(emissions(model), changed)
    assert halved is model.encoder
