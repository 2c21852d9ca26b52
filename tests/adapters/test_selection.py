"""Which adapters act on which rows; frozen ones give the same numbers with less to look at in each forward."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from overtone.adapters.adapter import PointAdapter, unstack
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.storage import read_folder
from overtone.adapters.strategies import ResidualAdd
from overtone.errors import AdapterError
from overtone.models.asr_model import AsrModel
from overtone.nets.taps import TapContext
from support.families import KIND_CASES, add_trained, batch, family_model

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


def freeze(model: AsrModel) -> None:
    for adapter in model.adapters:
        adapter.freeze()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", sorted(KIND_CASES))
def test_freezing_changes_no_number(case: str, dtype: str) -> None:
    model = three(dtype, case=case)
    before = [log_probs(model, mix) for mix in MIXES]
    freeze(model)
    for mix, expected in zip(MIXES, before, strict=True):
        assert torch.equal(log_probs(model, mix), expected)


def test_adapters_of_different_points_are_told_apart() -> None:
    model = three("bfloat16", layers="last:1")
    before = [log_probs(model, mix) for mix in MIXES]
    freeze(model)
    for mix, expected in zip(MIXES, before, strict=True):
        assert torch.equal(log_probs(model, mix), expected)


@pytest.mark.parametrize("others", [0, 20])
def test_a_forward_looks_at_no_parameter_again(others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = three("bfloat16")
    for index in range(others):
        model.adapters.add(f"other{index}", LinearAdapter(dim=4))
    freeze(model)
    expected = log_probs(model, MIXES[0])
    looked: list[PointAdapter] = []
    monkeypatch.setattr(PointAdapter, "version", lambda part: looked.append(part) or [])
    monkeypatch.setattr(PointAdapter, "tensors", lambda part: looked.append(part) or {})
    assert torch.equal(log_probs(model, MIXES[0]), expected)
    assert looked == []


def test_what_is_stacked_is_held_once() -> None:
    model = three("bfloat16")
    freeze(model)
    log_probs(model, MIXES[0])
    adapter = model.adapters["a"]
    stack = adapter.inference_stack(torch.bfloat16, torch.device("cpu"))
    assert stack is not None
    for index, point in enumerate(adapter.points):
        for name, tensor in adapter.at(point).inference_tensors(torch.bfloat16).items():
            assert tensor.data_ptr() == stack[name][index].data_ptr()


def test_frozen_parameters_are_not_overwritten() -> None:
    model = three("float32")
    adapter = model.adapters["a"]
    adapter.freeze()
    with pytest.raises(AdapterError, match="'a' is frozen"):
        adapter.load_tensors(adapter.tensors())


# Taken over from a folder


def stored_in(tmp_path: Path, *, case: str = "linear_pre") -> Path:
    model = family_model()
    add_trained(model, "made", KIND_CASES[case], strategy=ResidualAdd(l2_lambda=0.5))
    model.adapters["made"].card = {"hours": 2}
    return model.adapters.save("made", tmp_path / "made")


@pytest.mark.parametrize("case", sorted(KIND_CASES))
def test_a_folder_is_taken_over_as_it_would_be_loaded(case: str, tmp_path: Path) -> None:
    folder, model = stored_in(tmp_path, case=case), family_model()
    loaded = model.adapters.load(folder, name="loaded")
    random = torch.get_rng_state()
    frozen = model.adapters.make_frozen("frozen", read_folder(folder, model.adapters.identity()))
    assert torch.equal(torch.get_rng_state(), random), "parameters were drawn that nobody needs"
    assert "frozen" not in model.adapters
    model.adapters.insert(frozen)
    assert frozen.frozen
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert (frozen.digest(), frozen.card, frozen.strategy) == (loaded.digest(), loaded.card, loaded.strategy)
    assert frozen.state_dict().keys() == loaded.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(frozen.state_dict()[name], tensor)
    twin = copy.deepcopy(model)
    for other in (model, twin):
        torch.testing.assert_close(log_probs(other, ["frozen"] * 4), log_probs(model, ["loaded"] * 4))
    for path in folder.iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    assert frozen.digest() == loaded.digest(), "it still looks into the file"


def test_what_is_taken_over_has_the_shapes_that_are_described(tmp_path: Path) -> None:
    folder, model = stored_in(tmp_path), family_model()
    stored = read_folder(folder, model.adapters.identity())
    for changes, message in (
        ({"kind": LinearAdapter(dim=5)}, r"layers.0.after_block.down.weight has shape \[4, 16\], expected \[5, 16\]"),
        ({"layers": [0]}, "Missing: none. Left over: encoder.layers.1"),
        ({"kind": KIND_CASES["lora"].kind}, "Missing: encoder.layers.0.feed_forward1"),
    ):
        with pytest.raises(AdapterError, match=message):
            model.adapters.make_frozen("frozen", replace(stored, **changes))
    model.adapters.insert(model.adapters.make_frozen("frozen", stored))
    with pytest.raises(AdapterError, match="exists already"):
        model.adapters.insert(model.adapters.make_frozen("frozen", stored))


def test_narrow_files_become_wide_parameters(tmp_path: Path) -> None:
    model = family_model()
    stored = read_folder(stored_in(tmp_path), model.adapters.identity())
    narrow = replace(stored, tensors={name: tensor.half() for name, tensor in stored.tensors.items()})
    frozen = model.adapters.make_frozen("frozen", narrow)
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.float32}


# Rows of a batch


@pytest.mark.parametrize("mix", [["a"] * 4, *MIXES], ids=str)
def test_a_stream_is_written_to_only_where_it_is_spare(mix: list[str | None]) -> None:
    model = three("bfloat16")
    freeze(model)
    y = torch.randn(4, 7, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    context = TapContext(valid=torch.ones(4, 7, dtype=torch.bool))
    point, kept, spare = model.adapters["a"].points[0], y.clone(), y.clone()
    with torch.no_grad(), model.adapters.use(mix) as selection:
        expected = selection.apply(point, y, y, context)
        assert torch.equal(y, kept)
        assert torch.equal(selection.apply(point, y, spare, context, in_place=True), expected)
    for row, choice in enumerate(mix):
        assert torch.equal(expected[row], y[row]) == (choice is None)
    if all(mix) and not any("+" in str(choice) for choice in mix):
        assert torch.equal(spare, expected), "the sum did not take the place of the stream"


def test_what_a_batch_stacked_is_there_for_the_next_one_and_for_no_other_adapters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = three("bfloat16")
    freeze(model)
    expected = log_probs(model, MIXES[0])
    stacked: list[object] = []
    monkeypatch.setattr(
        "overtone.adapters.selection.unstack", lambda tensors: stacked.append(tensors) or unstack(tensors)
    )
    assert torch.equal(log_probs(model, MIXES[0]), expected)
    assert stacked == []
    model.adapters.remove("a")
    add_trained(model, "a", KIND_CASES["linear_pre"], seed=9)
    model.adapters["a"].freeze()
    replaced = log_probs(model, MIXES[0])
    assert stacked
    assert not torch.equal(replaced[0], expected[0])
    assert torch.equal(replaced[1], expected[1])
