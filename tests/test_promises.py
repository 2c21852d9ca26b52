"""What is promised of adapters, over every kind, every family of encoders and both dtypes of the base."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from overtone.models.asr_model import AsrModel
from overtone.nets.ctc import ctc_loss
from support.families import KIND_CASES, PAIRS, KindCase, add_trained, batch, family_model

DTYPES = ("float32", "bfloat16")
LENGTHS = (8_000, 6_000, 8_000, 4_500)
ROWS_AGREE = {"float32": 1e-5, "bfloat16": 0.05}
"""How far log-probabilities of a row may differ between batches, by the dtype of the base."""


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A family, and a case of a kind that has places there."""
    family, name = request.param
    return family, name


@pytest.fixture
def family(pair: tuple[str, str]) -> str:
    return pair[0]


@pytest.fixture
def case(pair: tuple[str, str]) -> KindCase:
    return KIND_CASES[pair[1]]


@pytest.fixture(params=DTYPES)
def model(request: pytest.FixtureRequest, family: str) -> AsrModel:
    return family_model(family).set_compute_dtype(request.param)


def log_probs(model: AsrModel, choice: object = None, *, rows: slice = slice(None)) -> Tensor:
    waveforms, lengths = batch(*LENGTHS)
    with torch.no_grad(), model.adapters.use(choice):  # type: ignore[arg-type]
        return model(waveforms[rows], lengths[rows])[0]


def snapshot(model: AsrModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.base_state_dict().items()}


def same_bits(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def step(model: AsrModel, name: str, *, rate: float = 1e-2) -> float:
    """One step of training with the adapter alone; the loss before it."""
    optimiser = torch.optim.AdamW(model.adapters.parameters_of(name), lr=rate)
    optimiser.zero_grad()
    with model.adapters.use(name):
        loss = loss_of(model)
    loss.backward()
    optimiser.step()
    return loss.item()


def loss_of(model: AsrModel) -> Tensor:
    probabilities, frames = model(*batch(*LENGTHS))
    targets = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [2, 3, 4]])
    return ctc_loss(probabilities, frames, targets, torch.tensor([3, 3, 2, 1]))


# 1 and 6: the base is what it was


def test_the_base_stays_what_it_was(model: AsrModel, case: KindCase, tmp_path: Path) -> None:
    before, fingerprint, output = snapshot(model), model.fingerprint(), log_probs(model)
    add_trained(model, "old", case)
    model.adapters.save("old", tmp_path / "old")
    model.adapters.remove("old")
    model.adapters.load(tmp_path / "old", name="again")
    model.adapters.add("new", case.kind, modules=case.modules)
    for base_dropout in (True, False):
        model.train_only("new", base_dropout=base_dropout)
        losses = [step(model, "new") for _ in range(2)]
    assert losses[0] != losses[1]
    model.eval()
    with torch.no_grad(), model.adapters.use(["again", None, "new", "again+new"]):
        model(*batch(*LENGTHS))
    assert same_bits(before, model.base_state_dict())
    assert torch.equal(log_probs(model), output)
    for name in model.adapters.names:
        model.adapters.remove(name)
    assert same_bits(before, model.base_state_dict())
    assert same_bits(before, model.state_dict())
    assert torch.equal(log_probs(model), output)
    assert model.fingerprint() == fingerprint


# 2: identity at birth


def test_a_fresh_adapter_is_identity(model: AsrModel, case: KindCase) -> None:
    base = log_probs(model)
    model.adapters.add("a", case.kind, modules=case.modules)
    model.adapters.add("b", case.kind, modules=case.modules)
    for choice in (None, "a", "a+b", ["a", None, "b", "b+a"], ["a"] * 4):
        assert torch.equal(log_probs(model, choice), base), choice


# 3: each row its own


@pytest.mark.parametrize("form", ["loop", "stacked"])
def test_every_row_of_a_mixed_batch_is_as_if_alone(model: AsrModel, case: KindCase, form: str) -> None:
    add_trained(model, "a", case, seed=1)
    add_trained(model, "b", case, seed=2)
    model.adapters.form = form  # type: ignore[assignment]
    base = log_probs(model)
    for choices in (["a", None, "b", "a+b"], ["b", "a", "b+a", None], ["a", "b", "b", "a"]):
        mixed = log_probs(model, choices)
        for row, choice in enumerate(choices):
            alone = log_probs(model, choice, rows=slice(row, row + 1))
            torch.testing.assert_close(mixed[row], alone[0], rtol=0, atol=ROWS_AGREE[model.compute_dtype])
            assert torch.equal(mixed[row], base[row]) == (choice is None)


def test_the_stacked_form_equals_the_loop(model: AsrModel, case: KindCase) -> None:
    for seed, name in enumerate("abc"):
        add_trained(model, name, case, seed=seed)
    choices = ["a", "b+c", "c", "a+b"]
    model.adapters.form = "loop"
    loop = log_probs(model, choices)
    model.adapters.form = "stacked"
    tolerance = ROWS_AGREE[model.compute_dtype]
    torch.testing.assert_close(log_probs(model, choices), loop, rtol=0, atol=tolerance)
    model.adapters.form = "auto"
    torch.testing.assert_close(log_probs(model, choices), loop, rtol=0, atol=tolerance)


def test_the_stacked_form_has_the_gradients_of_the_loop(family: str, case: KindCase) -> None:
    gradients = []
    for form in ("loop", "stacked"):
        model = family_model(family)
        add_trained(model, "a", case, seed=1)
        add_trained(model, "b", case, seed=2)
        model.adapters.form = form  # type: ignore[assignment]
        with model.adapters.use(["a", "b", None, "b+a"]):
            loss_of(model).backward()
        gradients.append([parameter.grad for name in "ab" for parameter in model.adapters.parameters_of(name)])
    for loop, stacked in zip(*gradients, strict=True):
        assert loop is not None
        assert stacked is not None
        torch.testing.assert_close(stacked, loop, rtol=1e-3, atol=1e-4 * float(loop.abs().max()) + 1e-5)


# 5: gradients


def gradients_of(model: AsrModel, name: str) -> dict[str, float]:
    """The largest gradient of each parameter of the adapter."""
    found = {}
    for point in model.adapters[name].points:
        for parameter, tensor in model.adapters[name].at(point).named_parameters():
            assert tensor.grad is not None
            found[f"{point}.{parameter}"] = float(tensor.grad.abs().max())
    return found


def test_gradients_reach_only_the_adapter_in_training(model: AsrModel, case: KindCase) -> None:
    add_trained(model, "other", case)
    model.adapters.add("new", case.kind, modules=case.modules)
    model.train_only("new")
    with model.adapters.use("other+new"):
        loss_of(model).backward()
    own = {id(parameter) for parameter in model.adapters.parameters_of("new")}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (id(parameter) not in own), name
        assert parameter.requires_grad == (id(parameter) in own), name


def test_at_birth_the_last_layer_alone_has_gradients_then_all(model: AsrModel, case: KindCase) -> None:
    model.adapters.add("new", case.kind, modules=case.modules)
    model.train_only("new")
    step(model, "new")
    for parameter, gradient in gradients_of(model, "new").items():
        assert (gradient > 0.0) == parameter.endswith(case.last), parameter
    step(model, "new")
    step(model, "new")
    for parameter, gradient in gradients_of(model, "new").items():
        # A bias of the keys shifts all scores of a query alike: the softmax does not see it.
        assert gradient > 0.0 or parameter.endswith("key.bias"), parameter


def test_training_lowers_the_loss(model: AsrModel, case: KindCase) -> None:
    model.adapters.add("new", case.kind, modules=case.modules)
    model.train_only("new")
    losses = [step(model, "new", rate=3e-3) for _ in range(6)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_recomputed_activations_give_the_same_gradients(family: str, case: KindCase, dtype: str) -> None:
    found = []
    for recompute in (False, True):
        model = family_model(family).set_compute_dtype(dtype)
        add_trained(model, "other", case, seed=2)
        add_trained(model, "new", case)
        model.train_only("new")
        model.encoder.gradient_checkpointing = recompute
        with model.adapters.use(["new", "other+new", None, "new+other"]):
            loss = loss_of(model)
        with model.adapters.use("other"):
            loss.backward()  # the choice of the forward counts
        found.append([loss.detach(), *(parameter.grad for parameter in model.adapters.parameters_of("new"))])
    for kept, recomputed in zip(*found, strict=True):
        assert torch.equal(kept, recomputed)


# 7: chains


def test_a_chain_runs_in_the_order_given(model: AsrModel, case: KindCase) -> None:
    add_trained(model, "a", case, seed=1)
    add_trained(model, "b", case, seed=2)
    seen: list[tuple[str, str, Tensor, Tensor]] = []

    def observe(point: str, name: str, y: Tensor, delta: Tensor) -> None:
        seen.append((point, name, y, delta))

    waveforms, lengths = batch(*LENGTHS)
    with torch.no_grad(), model.adapters.use("b+a", observe=observe):
        model(waveforms, lengths)
    assert sorted({point for point, *_ in seen}) == sorted(model.adapters["a"].points)
    for (point, first, y, delta), (same_point, second, next_y, _) in zip(seen[::2], seen[1::2], strict=True):
        assert (point, first, second) == (same_point, "b", "a")
        assert torch.equal(next_y, (y.float() + delta.float()).to(y.dtype))
    if case.kind.name != "lora":  # its deltas depend on the input alone: the order only changes the rounding
        assert not torch.equal(log_probs(model, "a+b"), log_probs(model, "b+a"))


# Copies


def test_a_copy_of_the_model_goes_its_own_way(model: AsrModel, case: KindCase) -> None:
    add_trained(model, "a", case)
    base, adapted = log_probs(model), log_probs(model, "a")
    twin = copy.deepcopy(model)
    assert torch.equal(log_probs(twin, "a"), adapted)
    assert torch.equal(log_probs(twin), base)
    assert twin.fingerprint() == model.fingerprint()
    with torch.no_grad():
        for parameter in twin.adapters.parameters_of("a"):
            parameter.add_(1.0)
        next(iter(twin.encoder.parameters())).add_(1.0)
    twin.adapters.remove("a")
    assert twin.fingerprint() != model.fingerprint()
    assert torch.equal(log_probs(model, "a"), adapted)
    assert torch.equal(log_probs(model), base)
    with model.adapters.use("a"):  # a choice holds for its own model
        assert torch.equal(log_probs(model, "a"), adapted)
        with torch.no_grad():
            assert not torch.equal(twin(*batch(*LENGTHS))[0], adapted)
