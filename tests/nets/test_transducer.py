"""Transducers: prediction networks step by step, and losses beside every alignment there is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from overtone.errors import ConfigError
from overtone.nets import transducer_loss
from overtone.nets.transducer import Joint, PredictionNet, RecurrentPrediction, StatelessPrediction
from overtone.nets.transducer_loss import transducer_losses

CLASSES = 5
DURATIONS = [(), (0, 1, 2), (1, 2), (0, 1, 2, 3, 4)]


def make_joint(durations: tuple[int, ...] = (), **options: Any) -> Joint:
    torch.manual_seed(0)
    return Joint(
        encoder_width=6, prediction_width=7, width=8, classes=CLASSES, durations=durations, **options
    ).double()  # fmt: skip


def predictions() -> dict[str, PredictionNet]:
    torch.manual_seed(1)
    return {
        "lstm": RecurrentPrediction(classes=CLASSES, width=7),
        "two layers": RecurrentPrediction(classes=CLASSES, width=7, layers=2),
        "stateless": StatelessPrediction(classes=CLASSES, width=7, context=1),
        "context": StatelessPrediction(classes=CLASSES, width=7, context=3, normalize=True),
    }


@pytest.mark.parametrize("name", predictions())
def test_steps_give_what_the_whole_gives(name: str) -> None:
    net = predictions()[name]
    targets = torch.randint(0, CLASSES, (3, 6), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = net(targets)
        assert whole.shape == (3, 7, 7)
        output, state = net.begin(3)
        assert torch.allclose(output, whole[:, 0], atol=1e-6)
        for place in range(6):
            output, state = net.step(targets[:, place], state)
            assert torch.allclose(output, whole[:, place + 1], atol=1e-6)
            assert all(tensor.size(1) == 3 for tensor in state)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"activation 'gelu' is unknown. Allowed: relu, sigmoid, tanh"):
        make_joint(activation="gelu")


# Losses


def alignments(
    scores: Tensor, frames: int, targets: list[int], durations: tuple[int, ...], sigma: float
) -> Iterator[Tensor]:
    """The log-probability of every alignment; scores [T, U+1, N], not normalised."""
    tokens = scores[..., : CLASSES + 1].log_softmax(-1) - (sigma if durations else 0.0)
    lasting = scores[..., CLASSES + 1 :].log_softmax(-1)

    def walk(t: int, u: int, total: Tensor) -> Iterator[Tensor]:
        if t == frames:
            return
        for index, step in enumerate(durations or (1,)):
            if step == 0:
                continue
            onward = total + tokens[t, u, CLASSES] + (lasting[t, u, index] if durations else 0.0)
            if t + step == frames and u == len(targets):
                yield onward
            elif t + step < frames:
                yield from walk(t + step, u, onward)
        if u == len(targets):
            return
        for index, step in enumerate(durations or (0,)):
            if t + step < frames:
                said = tokens[t, u, targets[u]] + (lasting[t, u, index] if durations else 0.0)
                yield from walk(t + step, u + 1, total + said)

    yield from walk(0, 0, torch.zeros((), dtype=torch.float64))


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Encoder output [3, 5, 6], lengths, predictions [3, 4, 7], targets and target lengths."""
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(3, 5, 6, generator=generator, dtype=torch.float64),
        torch.tensor([5, 3, 4]),
        torch.randn(3, 4, 7, generator=generator, dtype=torch.float64),
        torch.tensor([[1, 1, 4], [0, 2, 0], [3, 0, 0]]),
        torch.tensor([3, 2, 0]),
    )


@pytest.mark.parametrize("durations", DURATIONS)
@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_the_loss_and_its_gradient_are_those_of_all_alignments(durations: tuple[int, ...], sigma: float) -> None:
    joint = make_joint(durations)
    encoded, lengths, predicted, targets, sizes = batch()
    inputs = [encoded.requires_grad_(), predicted.requires_grad_(), *joint.parameters()]
    found = transducer_losses(joint, joint.enc(encoded), joint.pred(predicted), lengths, targets, sizes, sigma=sigma)
    expected = []
    for row in range(3):
        scores = joint(joint.enc(encoded[row : row + 1]), joint.pred(predicted[row : row + 1]))[0]
        words = targets[row, : int(sizes[row])].tolist()
        ways = list(alignments(scores, int(lengths[row]), words, durations, sigma))
        expected.append(-torch.stack(ways).logsumexp(0))
    assert torch.allclose(found.double(), torch.stack(expected), atol=1e-5)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    mine = torch.autograd.grad((found.double() * weights).sum(), inputs)
    theirs = torch.autograd.grad((torch.stack(expected) * weights).sum(), inputs)
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("durations", DURATIONS[:2])
def test_stretches_of_frames_do_not_show(durations: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    joint = make_joint(durations)
    encoded, lengths, predicted, targets, sizes = batch()

    def outcome() -> list[Tensor]:
        frames = joint.enc(encoded).detach().requires_grad_()
        losses = transducer_losses(joint, frames, joint.pred(predicted), lengths, targets, sizes)
        losses.sum().backward()
        assert frames.grad is not None
        return [losses.detach(), frames.grad]

    whole = outcome()
    monkeypatch.setattr(transducer_loss, "CHUNK_SCORES", 1)
    for one, other in zip(outcome(), whole, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_gradient_is_whole_where_few_tokens_count(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """scale: of the scores; a model that is sure leaves a few tokens of each frame."""
    generator = torch.Generator().manual_seed(7)
    joint = make_joint((0, 1, 2))
    with torch.no_grad():
        joint.joint_net[-1].weight.mul_(scale)  # type: ignore[operator]
    frames = torch.randn(3, 30, joint.width, generator=generator, dtype=torch.float64, requires_grad=True)
    predicted = torch.randn(3, 21, joint.width, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, CLASSES, (3, 20), generator=generator)
    lengths, sizes = torch.tensor([30, 24, 30]), torch.tensor([20, 8, 13])
    inputs = [frames, predicted, *joint.joint_net.parameters()]
    widths: list[int] = []

    def counted(counts: Tensor) -> Tensor:
        places = cover(counts)
        widths.append(places.size(1))
        return places

    cover = transducer_loss.cover
    monkeypatch.setattr(transducer_loss, "cover", counted)
    monkeypatch.setattr(transducer_loss, "CHUNK_SCORES", 3 * 3 * 21 * 9)
    found = torch.autograd.grad(transducer_losses(joint, frames, predicted, lengths, targets, sizes).sum(), inputs)
    monkeypatch.setattr(joint.sum, "acts", lambda: True)  # as where adapters may act: everything is computed again
    expected = torch.autograd.grad(transducer_losses(joint, frames, predicted, lengths, targets, sizes).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-7 * float(other.abs().max()))
    assert len(widths) == 10
    assert max(widths) <= 21
    assert scale == 1.0 or sum(widths) < 10 * 21


def test_a_loss_that_is_not_a_number_has_a_gradient_that_is_none() -> None:
    joint = make_joint((0, 1, 2))
    encoded, lengths, predicted, targets, sizes = batch()
    frames = joint.enc(encoded).detach()
    frames[0, 2] = torch.nan
    frames.requires_grad_()
    transducer_losses(joint, frames, joint.pred(predicted), lengths, targets, sizes).sum().backward()
    assert frames.grad is not None
    assert not frames.grad[0].isfinite().all()


def test_places_that_count_are_covered_by_stretches_of_one_width() -> None:
    counts = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    places = transducer_loss.cover(counts)
    assert places.tolist()[:2] == [[2, 3, 4], [3, 4, 5]]
    assert places.tolist()[3] == [0, 1, 2]
    assert transducer_loss.cover(counts[2:3]).shape == (1, 0)


def test_padding_has_no_effect() -> None:
    joint = make_joint((0, 1, 2))
    encoded, lengths, predicted, targets, sizes = batch()
    frames, outputs = joint.enc(encoded), joint.pred(predicted)
    whole = transducer_losses(joint, frames, outputs, lengths, targets, sizes)
    alone = transducer_losses(joint, frames[1:2, :3], outputs[1:2, :3], lengths[1:2], targets[1:2, :2], sizes[1:2])
    assert torch.allclose(whole[1:2], alone, atol=1e-6)


def test_omega_is_a_share_of_the_loss_without_durations_and_fastemit_a_weight_of_tokens() -> None:
    joint = make_joint((0, 1, 2))
    encoded, lengths, predicted, targets, sizes = batch()
    frames, outputs = joint.enc(encoded).detach().requires_grad_(), joint.pred(predicted).detach()

    def losses(**options: float) -> Tensor:
        return transducer_losses(joint, frames, outputs, lengths, targets, sizes, **options)

    plain, lasting, mixed = losses(omega=1.0), losses(), losses(omega=0.25)
    assert torch.allclose(mixed, 0.25 * plain + 0.75 * lasting)
    eager = losses(fastemit=0.5)
    assert torch.allclose(eager, 1.5 * lasting)
    with torch.no_grad():
        assert torch.equal(losses(fastemit=0.5), losses())
    first, second = (torch.autograd.grad(each.sum(), frames)[0] for each in (lasting, eager))
    assert not torch.allclose(first, second)


def test_no_tokens_leave_blanks_alone() -> None:
    joint = make_joint()
    encoded, lengths, predicted, _, _ = batch()
    empty = torch.zeros(3, 0, dtype=torch.int64)
    found = transducer_losses(joint, joint.enc(encoded), joint.pred(predicted[:, :1]), lengths, empty, empty.sum(1))
    scores = joint(joint.enc(encoded), joint.pred(predicted[:, :1])).log_softmax(-1)[:, :, 0, CLASSES]
    expected = [-float(scores.detach()[row, : int(lengths[row])].sum()) for row in range(3)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert all(math.isfinite(value) for value in found.tolist())
