"""What adapters compute with where nothing is learnt: parameters derived once for a narrow stream, and derived anew."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from overtone.adapters.adapter import PointAdapter
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.selection import add_in_float32
from overtone.models.asr_model import AsrModel
from overtone.nets.taps import TapContext
from support.families import KIND_CASES, add_trained, batch, family_model

SIGNAL = (8_000, 6_000)


def log_probs(model: AsrModel, choice: object) -> Tensor:
    with torch.no_grad(), model.adapters.use(choice):  # type: ignore[arg-type]
        return model(*batch(*SIGNAL))[0]


def part_of(model: AsrModel, name: str) -> PointAdapter:
    adapter = model.adapters[name]
    return adapter.at(adapter.points[0])


@pytest.mark.parametrize("case", ["linear_pre", "linear_post"])
def test_a_narrow_stream_gets_the_same_delta_but_for_rounding(case: str) -> None:
    model = family_model()
    for seed, name in enumerate("ab"):
        add_trained(model, name, KIND_CASES[case], seed=seed)
    y = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    context = TapContext(valid=torch.ones(2, 7, dtype=torch.bool))
    point = model.adapters["a"].points[0]
    deltas: dict[object, list[Tensor]] = {}
    for choice in ("a", "b", ["a", "b"]):
        for form in ("loop", "stacked"):
            model.adapters.form = form  # type: ignore[assignment]
            kept: list[Tensor] = []
            with torch.no_grad(), model.adapters.use(
                choice, observe=lambda *told, kept=kept: kept.append(told[3])
            ) as selection:  # fmt: skip
                selection.apply(point, y, y, context)
            deltas[str(choice), form] = kept
    for row, name in enumerate("ab"):
        part = part_of(model, name)
        exact = part.kind.delta(part.tensors(), y.float(), y.float(), context, False).detach()
        for found in (deltas[name, "loop"][0][row], deltas["['a', 'b']", "stacked"][row][0]):
            assert found.dtype is torch.bfloat16
            torch.testing.assert_close(found.float(), exact[row], rtol=0.02, atol=0.02 * float(exact.abs().max()))


def test_they_are_derived_once_and_anew_after_a_change() -> None:
    model = family_model().set_compute_dtype("bfloat16")
    add_trained(model, "a", KIND_CASES["linear_pre"])
    part = part_of(model, "a")
    before = log_probs(model, "a")
    first = part.inference_tensors(torch.bfloat16)
    assert part.inference_tensors(torch.bfloat16) is first
    assert first["up.weight"].dtype is torch.bfloat16
    with torch.no_grad():
        for parameter in model.adapters.parameters_of("a"):
            parameter.add_(0.3)
    assert part.inference_tensors(torch.bfloat16) is not first
    changed = log_probs(model, "a")
    assert not torch.equal(changed, before)
    fresh = family_model().set_compute_dtype("bfloat16")
    fresh.adapters.add("a", LinearAdapter(dim=4))
    fresh.adapters["a"].load_tensors(model.adapters["a"].tensors())
    assert torch.equal(log_probs(fresh, "a"), changed)


def test_what_is_written_without_a_trace_is_seen_with_a_change_of_mode() -> None:
    """As by fused optimisers, and where averaged weights are swapped in through `data`."""
    model = family_model().set_compute_dtype("bfloat16")
    add_trained(model, "a", KIND_CASES["linear_pre"])
    before = log_probs(model, "a")
    model.train()
    for parameter in model.adapters.parameters_of("a"):
        parameter.data.add_(0.3)
    changed = log_probs(model.eval(), "a")
    assert not torch.equal(changed, before)
    part = part_of(model, "a")
    kept = part.inference_tensors(torch.bfloat16)
    model.eval()
    assert part.inference_tensors(torch.bfloat16) is kept


def test_a_wide_stream_and_parameters_that_are_learnt_are_taken_as_they_are() -> None:
    model = family_model()
    add_trained(model, "a", KIND_CASES["linear_pre"])
    part = part_of(model, "a")
    assert part.inference_tensors(torch.float32)["norm.weight"] is part.tensors()["norm.weight"]
    with model.adapters.use("a") as selection:
        assert selection.tensors_of(part, torch.bfloat16)["up.weight"] is part.tensors()["up.weight"]
        with torch.no_grad():
            assert "norm.weight" not in selection.tensors_of(part, torch.bfloat16)
            part.train()
            assert selection.tensors_of(part, torch.bfloat16)["up.weight"] is part.tensors()["up.weight"]


def test_nothing_is_kept_where_nothing_would_tell_of_a_change() -> None:
    with torch.inference_mode():
        model = family_model().set_compute_dtype("bfloat16")
        add_trained(model, "a", KIND_CASES["linear_pre"])
        before = log_probs(model, "a")
        for parameter in model.adapters.parameters_of("a"):
            parameter.add_(0.3)
        assert not torch.equal(log_probs(model, "a"), before)


def test_a_copy_derives_its_own() -> None:
    model = family_model().set_compute_dtype("bfloat16")
    add_trained(model, "a", KIND_CASES["linear_pre"])
    before = log_probs(model, "a")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.adapters.parameters_of("a"):
            parameter.add_(0.3)
    assert not torch.equal(log_probs(twin, "a"), before)
    assert torch.equal(log_probs(model, "a"), before)


def test_the_sum_of_narrow_numbers_is_that_of_wide_ones_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    y, delta = (torch.randn(64, 64, generator=generator).bfloat16() for _ in range(2))
    assert torch.equal(add_in_float32(y, delta), (y.float() + delta.float()).bfloat16())
