"""Learning rates, held against NeMo's."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from overtone.config import OptimSettings
from overtone.errors import ConfigError
from overtone.training.optim import OPTIMISERS, SCHEDULES, make_optimiser, make_schedule
from support.fixtures import fixture_file

FIXTURE: dict[str, tuple[str, dict[str, Any]]] = {
    "cosine_warm0.1_max20_min1e-5_lr1e-3": ("CosineAnnealing", {"warmup_ratio": 0.1, "min_lr": 1e-5}),
    "cosine_nowarm_max20_min1e-5_lr1e-3": ("CosineAnnealing", {"min_lr": 1e-5}),
    "noam_d176_warm5_max20_lr1e-3": ("NoamAnnealing", {"warmup_steps": 5, "options": {"d_model": 176}}),
}

STEPS = (0, 2, 5, 12, 21)
# NeMo 3.0.0: AVAILABLE_SCHEDULERS[name](SGD([p], lr=1e-3), max_steps=20, …) of nemo.core.optim.lr_scheduler,
# the optimiser's rate before so many steps of the schedule.
NEMO: list[tuple[str, dict[str, Any], dict[str, Any], tuple[float, ...]]] = [
    (
        "CosineAnnealing",
        {"warmup_steps": 3, "min_lr": 1e-5},
        {"constant_steps": 4},
        (0.0, 0.0006666666666666666, 0.0009433007326983388, 0.00022380795036807793, 1e-05),
    ),
    ("NoamAnnealing", {"min_lr": 1e-5}, {"d_model": 144},
     (8.333333333333333e-05, 5.892556509887896e-05, 3.726779962499649e-05, 2.4056261216234405e-05,
      1.8184824186332698e-05)),
    ("NoamHoldAnnealing", {"warmup_steps": 3}, {"hold_steps": 5}, (0.00025, 0.00075, 0.001, 0.000654653670707977, 0.0)),
    ("NoamHoldAnnealing", {"warmup_steps": 3}, {}, (0.00025, 0.00075, 0.0007745966692414833, 0.0005, 0.0)),
    ("NoamHoldAnnealing", {"warmup_steps": 3, "min_lr": 1e-4}, {"hold_ratio": 0.3, "decay_rate": 1.0},
     (0.00025, 0.00075, 0.001, 0.0005, 0.0001)),
    ("WarmupAnnealing", {"warmup_steps": 3, "min_lr": 1e-5}, {},
     (0.00025, 0.00075, 0.0008835294117647059, 0.0004758823529411765, 1e-05)),
    ("WarmupPolicy", {"warmup_steps": 4, "min_lr": 1e-5}, {}, (0.0002, 0.0006, 0.001, 0.001, 1e-05)),
    ("WarmupHoldAnnealLinear", {"warmup_steps": 3, "min_lr": 1e-5}, {"hold_steps": 4},
     (0.00025, 0.00075, 0.001, 0.0006192307692307693, 1e-05)),
    ("WarmupHoldAnnealLinear", {"warmup_steps": 3}, {}, (0.00025, 0.00075, 0.00075, 0.0004000000000000001, 0.0)),
    ("SquareAnnealing", {"warmup_steps": 3}, {},
     (0.00025, 0.00075, 0.0007785467128027682, 0.00022145328719723185, 1e-05)),
    ("SquareRootAnnealing", {"warmup_steps": 3}, {},
     (0.00025, 0.00075, 0.0008660254037844386, 0.0006324555320336759, 0.0)),
    ("InverseSquareRootAnnealing", {"warmup_steps": 3}, {},
     (0.00025, 0.00075, 0.0008164965809277262, 0.0005547001962252292, 0.0)),
    ("PolynomialDecayAnnealing", {"warmup_steps": 3, "min_lr": 1e-5}, {"power": 2.0},
     (0.00025, 0.00075, 0.0007807612456747405, 0.00022923875432525953, 1e-05)),
]  # fmt: skip


# NeMo 3.0.0: nemo.core.optim.novograd.Novograd([a, b], lr=0.05, betas=(0.8, 0.25), …) after four steps.
NOVOGRAD: list[tuple[dict[str, Any], tuple[float, ...]]] = [
    ({}, (0.8850146, -1.7700292, 0.4425073, 2.6550436, 0.0502259, -0.3664824)),
    ({"weight_decay": 0.01}, (0.8810165, -1.762033, 0.4405082, 2.6430492, 0.0492815, -0.3661661)),
    (
        {"weight_decay": 0.01, "grad_averaging": True},
        (0.9761563, -1.9523126, 0.4880781, 2.9284687, 0.2096643, -0.0718137),
    ),
]


@pytest.mark.parametrize(("options", "expected"), NOVOGRAD)
def test_novograd_is_nemos(options: dict[str, Any], expected: tuple[float, ...]) -> None:
    a = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    b = torch.nn.Parameter(torch.tensor([0.25, 0.0]))
    settings = OptimSettings(name="novograd", lr=0.05, betas=(0.8, 0.25), **options)
    optimiser = make_optimiser(settings, [a, b], fused=True)
    for step in range(4):
        optimiser.zero_grad()
        ((a * a).sum() * (step + 1) + (b - 1).pow(3).sum()).backward()
        optimiser.step()
    assert [*a.flatten().tolist(), *b.tolist()] == pytest.approx(expected, abs=2e-7)
    again = make_optimiser(settings, [a, b], fused=True)
    again.load_state_dict(optimiser.state_dict())
    assert torch.equal(again.state[a]["momentum"], optimiser.state[a]["momentum"])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_makes_steps(name: str) -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser = make_optimiser(OptimSettings(name=name, lr=0.1), [parameter], fused=True)
    parameter.square().sum().backward()
    optimiser.step()
    assert float(parameter.detach().square().sum()) < 5.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "rprop", "weight_decay": 0.1}, "rprop has none"),
        ({"name": "novograd", "betas": (0.9, 1.5)}, "not allowed"),
        ({"name": "sgd", "nesterov": True}, "model.optim: Nesterov"),
    ],
)
def test_values_that_an_optimiser_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_optimiser(OptimSettings(**settings), [torch.nn.Parameter(torch.ones(1))], fused=False)


@pytest.mark.parametrize("name", FIXTURE)
def test_every_step_equals_nemos(name: str) -> None:
    expected = json.loads(fixture_file("lr_schedules.json").read_text())[name]
    schedule, options = FIXTURE[name]
    rate = make_schedule(schedule, learning_rate=1e-3, max_steps=20, **options)
    assert [rate(step) for step in range(len(expected))] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "common", "options", "expected"), NEMO)
def test_a_few_steps_equal_nemos(
    name: str, common: dict[str, Any], options: dict[str, Any], expected: tuple[float, ...]
) -> None:
    rate = make_schedule(name, learning_rate=1e-3, max_steps=20, options=options, **common)
    assert [rate(step) for step in STEPS] == pytest.approx(expected, rel=1e-12, abs=0)


def test_every_schedule_is_held_against_nemos() -> None:
    assert {name for name, *_ in NEMO} == set(SCHEDULES) - {"constant"}


def test_a_constant_rate() -> None:
    rate = make_schedule("constant", learning_rate=0.5, max_steps=10)
    assert [rate(step) for step in (0, 5, 10)] == [0.5, 0.5, 0.5]


def test_steps_of_warmup_win_over_a_ratio() -> None:
    """NeMo's documented command gives steps beside the ratio in its YAML, where NeMo itself gives up."""
    rate = make_schedule("CosineAnnealing", learning_rate=1.0, max_steps=100, warmup_steps=4, warmup_ratio=0.5)
    assert rate(0) == pytest.approx(1 / 5)
    assert rate(4) == 1.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CosineAnealing", {}, "Did you mean 'CosineAnnealing'"),
        ("StepLR", {}, "Known are CosineAnnealing, NoamAnnealing"),
        ("CosineAnnealing", {"power": 2.0}, "model.optim.sched.power: CosineAnnealing does not take it"),
        ("CosineAnnealing", {"constant_steps": 30}, "30 is more than the 20 steps"),
        ("NoamAnnealing", {}, "d_model: has to be given"),
        ("NoamHoldAnnealing", {}, "warmup_steps: has to be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_schedule(name, learning_rate=1e-3, max_steps=20, options=options)


def test_a_smallest_rate_above_the_peak_is_refused() -> None:
    with pytest.raises(ConfigError, match="is larger than the learning rate"):
        make_schedule("CosineAnnealing", learning_rate=1e-6, max_steps=20, min_lr=1e-5)
