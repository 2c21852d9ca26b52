"""Adding, naming, choosing and switching adapters, and how their deltas join the stream."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.registry import KINDS
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.adapters.strategies import ResidualAdd
from overtone.checkpoints.load import load_model
from overtone.errors import AdapterError
from overtone.models.asr_model import AsrModel
from overtone.nets.taps import TapContext
from support.families import KIND_CASES, add_trained, batch, family_model
from support.fixtures import fixture_file

SIGNAL = (8_000, 6_000)


@pytest.fixture
def model() -> AsrModel:
    model = family_model()
    for seed, name in enumerate(("an4", "an4_v2")):
        add_trained(model, name, KIND_CASES["linear_pre"], seed=seed)
    return model


def log_probs(model: AsrModel, choice: Any = None) -> Tensor:
    with torch.no_grad(), model.adapters.use(choice):
        return model(*batch(*SIGNAL))[0]


# Names


def test_names_are_exact(model: AsrModel) -> None:
    assert model.adapters.names == ["an4", "an4_v2"]
    assert "an4" in model.adapters
    assert "an" not in model.adapters
    assert not torch.equal(log_probs(model, "an4"), log_probs(model, "an4_v2"))
    kept = log_probs(model, "an4_v2")
    model.adapters.remove("an4")
    assert model.adapters.names == ["an4_v2"]
    assert torch.equal(log_probs(model, "an4_v2"), kept)


def test_names_with_dots_and_names_of_torch_s_own_words() -> None:
    model = family_model()
    for name in ("a.b", "train", "type", "keys", "0", "forward", "state_dict"):
        model.adapters.add(name, LinearAdapter(dim=2))
        assert model.adapters[name].name == name
        log_probs(model, name)
    assert model.adapters.names == ["a.b", "train", "type", "keys", "0", "forward", "state_dict"]
    assert "a/b" not in model.adapters
    model.adapters.remove("train")
    assert "train" not in model.adapters


@pytest.mark.parametrize("name", ["", "a+b", "a b", "@file", "base", "none", "null", ".a", "a/b", "a\n", "é"])
def test_names_that_are_not_allowed(model: AsrModel, name: str) -> None:
    with pytest.raises(AdapterError, match="cannot be an adapter's name"):
        model.adapters.add(name, LinearAdapter())
    assert len(model.adapters) == 2


@pytest.mark.parametrize("choice", ["an5", "an4+an5", ["an4", "an5"], "", "an4+", [None, ""], "an4 ", "An4"])
def test_an_unknown_name_raises(model: AsrModel, choice: Any) -> None:
    with pytest.raises(AdapterError, match=r"unknown.*an4"), model.adapters.use(choice):
        pass


@pytest.mark.parametrize("choice", [3, [3], [["an4"]], {"an4": 1}.values()])
def test_a_choice_of_another_type_raises(model: AsrModel, choice: Any) -> None:
    with pytest.raises((AdapterError, TypeError)), model.adapters.use(choice):
        pass


def test_messages_offer_the_nearest(model: AsrModel) -> None:
    with pytest.raises(AdapterError, match="Did you mean 'an4_v2'"):
        model.adapters["an4_v3"]
    with pytest.raises(AdapterError, match="Did you mean 'an4'"):
        model.adapters.remove("a4")
    with pytest.raises(AdapterError, match="Did you mean 'encoder'"):
        model.adapters.add("a", LinearAdapter(), modules="encodr")


def test_a_name_that_is_taken_raises_and_changes_nothing(model: AsrModel) -> None:
    before = log_probs(model, "an4")
    with pytest.raises(AdapterError, match="'an4' exists already"):
        model.adapters.add("an4", LinearAdapter())
    assert torch.equal(log_probs(model, "an4"), before)
    with pytest.raises(AdapterError, match="names an adapter twice"), model.adapters.use("an4+an4"):
        pass


def test_one_choice_for_each_row(model: AsrModel) -> None:
    with pytest.raises(AdapterError, match="3 adapter choices for a batch of 2 rows"):
        log_probs(model, ["an4", "an4", None])
    with pytest.raises(AdapterError, match="0 adapter choices"):
        log_probs(model, [])


# Places


@pytest.mark.parametrize(
    ("kind", "modules"),
    [(TinyAttentionAdapter(), "decoder"), (LoraAdapter(), "decoder"), (LoraAdapter(), "encoder+decoder")],
)
def test_a_kind_without_a_point_raises(kind: Kind, modules: str) -> None:
    model = family_model()
    with pytest.raises(AdapterError, match="has no point in the decoder"):
        model.adapters.add("a", kind, modules=modules)
    assert len(model.adapters) == 0


@pytest.mark.parametrize("modules", ["joint", "Encoder", "encoder+", "encoder+encoder", "encoder,decoder"])
def test_unknown_modules_raise(modules: str) -> None:
    with pytest.raises(AdapterError, match="module"):
        family_model().adapters.add("a", LinearAdapter(), modules=modules)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", [0, 1, 2, 3]),
        ("last:2", [2, 3]),
        ("first:1", [0]),
        ([0, 3], [0, 3]),
        ((2,), [2]),
        (1, [1]),
        ("0,2", [0, 2]),
        ("[1, 3]", [1, 3]),
        (range(2), [0, 1]),
    ],
)
def test_layers(layers: Any, expected: list[int]) -> None:
    model = family_model(layers=4)
    adapter = model.adapters.add("a", LinearAdapter(), layers=layers)
    assert adapter.points == [f"encoder.layers.{layer}.after_block" for layer in expected]
    lora = model.adapters.add("b", LoraAdapter(targets=("q",)), layers=layers)
    assert lora.points == [f"encoder.layers.{layer}.self_attn.q" for layer in expected]


@pytest.mark.parametrize(
    "layers",
    ["last:5", "last:0", "last:x", "some", [4], [-1], [], [0.5], [True], True, 1.0, [[0]], None, "", "last:-1"],
)
def test_layers_that_do_not_exist_raise(layers: Any) -> None:
    with pytest.raises(AdapterError, match="layers="):
        family_model(layers=4).adapters.add("a", LinearAdapter(), layers=layers)


def test_every_kind_has_its_points() -> None:
    model = family_model(layers=1)
    places = {
        name: model.adapters.add(name, case.kind, modules=case.modules).points for name, case in KIND_CASES.items()
    }
    assert places["linear_both"] == ["encoder.layers.0.after_block", "decoder.input"]
    assert places["attention"] == ["encoder.layers.0.after_attention"]
    assert set(places["lora"]) == {
        f"encoder.layers.0.{tap}"
        for tap in (
            *(f"self_attn.{tap}" for tap in ("q", "k", "v", "out")),
            *(f"feed_forward{number}.{tap}" for number in (1, 2) for tap in ("expand", "contract")),
        )
    }
    assert set(KINDS) == {"linear", "tiny_attn", "lora"}


# Scope


def test_uses_nest_and_always_end(model: AsrModel) -> None:
    base, first, second = (log_probs(model, choice) for choice in (None, "an4", "an4_v2"))
    signal = batch(*SIGNAL)
    with torch.no_grad():
        with model.adapters.use("an4"):
            assert torch.equal(model(*signal)[0], first)
            with model.adapters.use("an4_v2"):
                assert torch.equal(model(*signal)[0], second)
                with model.adapters.use(None):
                    assert torch.equal(model(*signal)[0], base)
            assert torch.equal(model(*signal)[0], first)
            with pytest.raises(RuntimeError, match="stop"), model.adapters.use("an4_v2"):
                raise RuntimeError("stop")
            assert torch.equal(model(*signal)[0], first)
        assert torch.equal(model(*signal)[0], base)
    assert model.adapters.selection is None


def test_two_models_have_choices_of_their_own(model: AsrModel) -> None:
    other = family_model(seed=1)
    add_trained(other, "an4", KIND_CASES["lora"])
    base = log_probs(other)
    with torch.no_grad(), model.adapters.use("an4_v2"):
        assert torch.equal(other(*batch(*SIGNAL))[0], base)
        with other.adapters.use("an4"):
            assert torch.equal(model(*batch(*SIGNAL))[0], log_probs(model, "an4_v2"))


def test_threads_do_not_see_each_other_s_choice(model: AsrModel) -> None:
    choices = ["an4", None, "an4_v2", "an4+an4_v2", ["an4", None]]
    expected = [log_probs(model, choice) for choice in choices]
    barrier = threading.Barrier(len(choices))
    results: list[list[Tensor]] = [[] for _ in choices]

    def work(index: int) -> None:
        with torch.no_grad(), model.adapters.use(choices[index]):
            for _ in range(3):
                barrier.wait(timeout=60)
                results[index].append(model(*batch(*SIGNAL))[0])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(choices))]
    with model.adapters.use("an4"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for found, wanted in zip(results, expected, strict=True):
        assert len(found) == 3
        for result in found:
            torch.testing.assert_close(result, wanted, rtol=0, atol=1e-5)


def test_adapters_that_come_and_go_disturb_nobody_who_goes_through_them(model: AsrModel) -> None:
    """As a thread does that loads one while another one computes, saves or moves the model."""
    changes = [lambda: model.adapters.add("new", LinearAdapter(dim=4)), lambda: model.adapters.remove("an4")]
    for change in changes:
        count = len(model.adapters)
        going = [iter(model.adapters), iter(model.adapters.by_name.items()), iter(model.adapters.held.items())]
        modules = model.named_modules()
        for each in going:
            next(each)
        assert any(name.startswith("adapters.held.") for name, _ in modules)  # as far as to the first of them
        change()
        assert [1 + len(list(each)) for each in going] == [count] * 3
        assert any(name.startswith("adapters.held.") for name, _ in modules)
    assert model.adapters.names == ["an4_v2", "new"]


def test_the_file_s_own_choice() -> None:
    model = load_model(fixture_file("conformer_ctc_char/adapted.nemo"))
    signal = batch(*SIGNAL)
    with torch.no_grad():
        base = model(*signal)[0]
        with model.adapters.use("@file"):
            by_file = model(*signal)[0]
        with model.adapters.use("+".join(model.adapters.file_choice)):
            assert torch.equal(model(*signal)[0], by_file)
        with model.adapters.use([None, "@file"]):
            mixed = model(*signal)[0]
    assert not torch.equal(by_file, base)
    assert torch.equal(mixed[0], base[0])
    torch.testing.assert_close(mixed[1], by_file[1], rtol=0, atol=1e-4)
    first = model.adapters.names[0]
    model.adapters.remove(first)
    assert first not in model.adapters.file_choice
    fresh = family_model()
    assert torch.equal(log_probs(fresh, "@file"), log_probs(fresh))


# Strategies


def context_of(y: Tensor) -> TapContext:
    return TapContext(valid=torch.ones(y.shape[:2], dtype=torch.bool))


def test_stochastic_depth_drops_whole_utterances_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    delta = torch.ones(20_000, 2, 3)
    thinned = ResidualAdd(stochastic_depth=0.3).thin(delta)
    kept = thinned.flatten(1).amax(1) > 0
    assert torch.equal(thinned[kept], torch.full_like(thinned[kept], 1 / 0.7))
    assert not thinned[~kept].any()
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.015)
    assert thinned.mean().item() == pytest.approx(1.0, abs=0.02)
    assert not ResidualAdd(stochastic_depth=1.0).thin(delta).any()


@pytest.mark.parametrize(
    "settings", [{"stochastic_depth": 1.5}, {"l2_lambda": -1.0}, {"l2_lambda": float("nan")}], ids=str
)
def test_a_strategy_with_settings_out_of_range_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(AdapterError):
        ResidualAdd(**settings)


def test_stochastic_depth_acts_in_training_only() -> None:
    model = family_model()
    add_trained(model, "a", KIND_CASES["linear_pre"], strategy=ResidualAdd(stochastic_depth=1.0))
    model.train_only("a")
    with model.adapters.use("a"):
        assert torch.equal(model(*batch(*SIGNAL))[0], log_probs(model))
    model.eval()
    assert not torch.equal(log_probs(model, "a"), log_probs(model))
    with model.adapters.use("a"):
        torch.testing.assert_close(model(*batch(*SIGNAL))[0], log_probs(model, "a"))


def test_the_penalty_is_that_of_the_deltas() -> None:
    model = family_model()
    add_trained(model, "a", KIND_CASES["linear_pre"], strategy=ResidualAdd(l2_lambda=0.01))
    model.train_only("a")
    deltas: list[Tensor] = []
    with model.adapters.use("a", observe=lambda _point, _name, _y, delta: deltas.append(delta)) as selection:
        model(*batch(*SIGNAL))
        penalty = selection.auxiliary_loss()
        assert selection.auxiliary_loss().item() == 0.0
    assert len(deltas) == 2
    expected = sum(0.01 * delta.square().sum((1, 2)).mean() for delta in deltas)
    torch.testing.assert_close(penalty, expected)
    assert penalty.requires_grad
    model.eval()
    with model.adapters.use("a") as selection:
        model(*batch(*SIGNAL))
    assert selection.auxiliary_loss().item() == 0.0


def test_recomputation_adds_no_penalty_and_is_not_observed() -> None:
    found = []
    for recompute in (False, True):
        model = family_model()
        add_trained(model, "a", KIND_CASES["attention"], strategy=ResidualAdd(l2_lambda=0.01))
        model.train_only("a")
        model.encoder.gradient_checkpointing = recompute
        seen: list[str] = []
        with model.adapters.use("a", observe=lambda point, *_, seen=seen: seen.append(point)) as selection:
            for _ in range(2):
                penalty = selection.auxiliary_loss() + model(*batch(*SIGNAL))[0].sum() + selection.auxiliary_loss()
                penalty.backward()
        assert len(seen) == 4
        found.append([penalty.detach(), *(parameter.grad for parameter in model.adapters.parameters_of("a"))])
    for kept, recomputed in zip(*found, strict=True):
        assert torch.equal(kept, recomputed)


def test_dropout_of_an_adapter_acts_in_training_only() -> None:
    for kind in (LinearAdapter(dropout=0.5), TinyAttentionAdapter(dropout=0.5), LoraAdapter(dropout=0.5)):
        model = family_model()
        model.adapters.add("a", kind)
        with torch.no_grad():
            for parameter in model.adapters.parameters_of("a"):
                parameter.add_(0.3)
        assert torch.equal(log_probs(model, "a"), log_probs(model, "a"))
        model.train_only("a")
        assert not torch.equal(log_probs(model, "a"), log_probs(model, "a")), kind.name
        model.adapters.form = "stacked"
        assert not torch.equal(log_probs(model, "a"), log_probs(model, "a")), kind.name


def test_an_adapter_that_is_not_in_training_is_frozen_too() -> None:
    model = family_model()
    add_trained(model, "old", KIND_CASES["linear_pre"], strategy=ResidualAdd(stochastic_depth=0.5, l2_lambda=1.0))
    model.adapters.add("new", LinearAdapter(dim=2))
    model.train_only("new")
    assert model.adapters["new"].training
    assert not model.adapters["old"].training
    with model.adapters.use("old+new") as selection:
        model(*batch(*SIGNAL))
    assert selection.auxiliary_loss().item() == 0.0
    assert model.train_only("old").adapters["old"].training
    assert not model.adapters["new"].training
