"""Learning rates, held against NeMo's."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from overtone.config import OptimSettings
from overtone.errors import ConfigError
from overtone.training.optim import OPTIMISERS, make_optimiser
from overtone.training.optim.schedules import SCHEDULES, make_schedule
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
    ("PolynomialDecayAnnealing", {"warmup_steps": 3, "min_lr": 1e-5}, {"power": 2.0, "cycle": True},
     (0.00025, 0.00075, 0.0007807612456747405, 0.00022923875432525953, 1e-05)),
    ("WarmupHoldPolicy", {"warmup_steps": 3, "min_lr": 1e-5}, {"hold_steps": 4},
     (0.00025, 0.00075, 0.001, 0.001, 1e-05)),
    ("WarmupHoldAnnealOneMinusSquareRoot", {"warmup_steps": 3, "min_lr": 1e-5}, {"hold_steps": 4},
     (0.00025, 0.00075, 0.001, 0.0003798263270539577, 1e-05)),
    ("WarmupHoldAnnealOneMinusSquareRoot", {"warmup_steps": 3}, {},
     (0.00025, 0.00075, 0.0005, 0.0002254033307585166, 0.0)),
    ("T5InverseSquareRootAnnealing", {"min_lr": 1e-5}, {"constant_steps": 4},
     (0.5, 0.5, 0.4472135954999579, 0.2886751345948129, 1e-05)),
    ("PolynomialHoldDecayAnnealing", {"warmup_steps": 3, "min_lr": 1e-5}, {"hold_steps": 4, "power": 2.0},
     (0.00025, 0.00075, 0.001, 0.00038491124260355036, 1e-05)),
    ("PolynomialHoldDecayAnnealing", {"warmup_steps": 3, "min_lr": 1e-5}, {"power": 2.0},
     (0.00025, 0.00075, 0.0005032871972318339, 9.564013840830447e-05, 1e-05)),
    ("StepLR", {}, {"step_size": 5, "gamma": 0.5}, (0.001, 0.001, 0.0005, 0.00025, 6.25e-05)),
    ("CyclicLR", {}, {"base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 4},
     (0.0001, 0.00055, 0.0007750000000000001, 0.001, 0.0007750000000000001)),
    ("CyclicLR", {}, {"base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 4, "step_size_down": 2, "mode": "triangular2"},
     (0.0001, 0.0005499999999999999, 0.0005499999999999996, 0.0001, 0.00018437500000000002)),
    ("CyclicLR", {}, {"base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 4, "mode": "exp_range", "gamma": 0.9},
     (0.0001, 0.0004645, 0.0004985807500000001, 0.0003541865828329001, 0.0001738578176637709)),
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


# NeMo 3.0.0: AVAILABLE_OPTIMIZERS[name]([a, b], lr=0.05, …) after four steps; adafactor with relative_step=False.
OTHERS: list[tuple[str, dict[str, Any], tuple[float, ...]]] = [
    ("adafactor", {}, (0.7179619, -1.8221555, 0.3948629, 2.8056629, 0.0484864, -0.1984692)),
    ("adafactor", {"weight_decay": 0.01}, (0.7161806, -1.8182873, 0.3939418, 2.7998095, 0.0481234, -0.1983057)),
    ("adafactor", {"beta1": 0.9}, (0.9358501, -1.9601512, 0.4763905, 2.9560921, 0.2047039, -0.0451937)),
    (
        "adafactor",
        {"decay_rate": -0.5, "clip_threshold": 0.5, "eps": (1e-20, 1e-3)},
        (0.8582869, -1.9117082, 0.4476327, 2.903152, 0.1497199, -0.0997187),
    ),
    ("adan", {}, (0.8110352, -1.8118525, 0.3093032, 2.8121161, 0.050966, -0.199498)),
    ("adan", {"weight_decay": 0.01}, (0.80926, -1.8080792, 0.308529, 2.8063447, 0.050719, -0.1992497)),
    (
        "adan",
        {"weight_decay": 0.01, "no_prox": True},
        (0.8091638, -1.8079827, 0.3084315, 2.806247, 0.0506204, -0.1993486),
    ),
    ("adan", {"max_grad_norm": 1.0}, (0.8001273, -1.8000966, 0.3008341, 2.8001211, 0.0723767, -0.1741782)),
    ("adan", {"betas": (0.9, 0.8, 0.95)}, (0.8077981, -1.8084595, 0.3064535, 2.8086755, 0.0499471, -0.2002719)),
]


@pytest.mark.parametrize(("name", "options", "expected"), OTHERS)
def test_optimisers_that_are_nemos(name: str, options: dict[str, Any], expected: tuple[float, ...]) -> None:
    a = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    b = torch.nn.Parameter(torch.tensor([0.25, 0.0]))
    scaled = {"scale_parameter": False} if name == "adafactor" else {}
    settings = OptimSettings(name=name, lr=0.05, **scaled, **options)
    optimiser = make_optimiser(settings, [a, b], fused=True)
    for step in range(4):
        optimiser.zero_grad()
        ((a * a).sum() * (step + 1) + (b - 1).pow(3).sum()).backward()
        optimiser.step()
    assert [*a.flatten().tolist(), *b.tolist()] == pytest.approx(expected, abs=1e-6)
    again = make_optimiser(settings, [a, b], fused=True)
    again.load_state_dict(optimiser.state_dict())
    assert again.state[a]["step"] == 4


def test_adafactor_scales_the_rate_by_each_tensor_alone() -> None:
    """NeMo's writes the scaled rate back, so that it is scaled again for the next tensor; the first one is the same."""
    a, b = (torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]])) for _ in range(2))
    optimiser = make_optimiser(OptimSettings(name="adafactor", lr=0.05), [a, b], fused=False)
    for step in range(4):
        optimiser.zero_grad()
        ((a * a).sum() * (step + 1) + (b * b).sum() * (step + 1)).backward()
        optimiser.step()
    nemos = [0.5041236, -1.6807081, 0.3117315, 2.6534643]
    assert a.flatten().tolist() == b.flatten().tolist() == pytest.approx(nemos, abs=1e-6)


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
    before = parameter._version
    optimiser.step()
    assert float(parameter.detach().square().sum()) < 5.0
    assert parameter._version > before  # what is derived from it is derived anew


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "rprop", "weight_decay": 0.1}, "rprop has none"),
        ({"name": "novograd", "betas": (0.9, 1.5)}, "not allowed"),
        ({"name": "sgd", "nesterov": True}, "model.optim: Nesterov"),
        ({"name": "adan", "betas": (0.9, 0.99)}, "not allowed for adan"),
        ({"name": "adafactor", "eps": (1e-30, 1e-3), "decay_rate": 0.0}, "decay_rate is below 0"),
        ({"name": "adamw", "rho": 0.9}, r"model\.optim\.rho: adamw does not take it; it is for adadelta\."),
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
        ("ReduceLROnPlateau", {}, "Known are CosineAnnealing, NoamAnnealing"),
        ("StepLR", {}, "step_size: has to be given"),
        ("CyclicLR", {"base_lr": 0.1}, "max_lr: have to be given"),
        ("T5InverseSquareRootAnnealing", {}, "constant_steps: has to be at least 1"),
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
