"""Adapters of prediction networks, trained on text: likelier text, a held base, and nothing where nothing is gained."""

from __future__ import annotations

import random

import pytest
import torch

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.errors import DataError, UsageError
from overtone.models.asr_model import AsrModel
from overtone.training.prediction_text import expect, find_head, pad_tokens, perplexity, train_prediction
from support.small_models import small_model, small_transducer_model

SENTENCES = ["a bad cab", "a cab", "bad cab", "a bad cab a cab"] * 8


def tokens(model: AsrModel, sentences: list[str]) -> list[list[int]]:
    return [model.tokenizer.encode(text) for text in sentences]


@pytest.mark.parametrize("durations", [(), (0, 1, 2)])
def test_the_text_becomes_likelier_and_the_base_stays(durations: tuple[int, ...]) -> None:
    model = small_transducer_model(durations)
    head, before, fingerprint = find_head(model), model.base_state_dict(), model.fingerprint()
    base = {name: tensor.clone() for name, tensor in before.items()}
    found = train_prediction(model, "domain", tokens(model, SENTENCES), steps=150)
    assert found.after < 0.8 * found.before
    assert found.step
    assert found.held_out == len(SENTENCES) // 8
    held_out = tokens(model, SENTENCES)[::8]
    assert perplexity(model, head, "domain", held_out) == pytest.approx(found.after, rel=1e-5)
    assert perplexity(model, head, None, held_out) == pytest.approx(found.before, rel=1e-5)
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.base_state_dict().items())
    assert model.fingerprint() == fingerprint
    assert model.adapters["domain"].points == ["decoder.output"]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_the_blank_keeps_its_place_beside_the_tokens() -> None:
    model = small_transducer_model()
    train_prediction(model, "domain", tokens(model, SENTENCES), steps=150)
    targets, inside = pad_tokens(tokens(model, SENTENCES), model.device)
    with torch.no_grad():
        with model.adapters.use(None):
            base = expect(find_head(model), targets)
        with model.adapters.use("domain"):
            own = expect(find_head(model), targets)
    assert float((own.blank - base.blank)[inside].abs().mean()) < 0.5
    assert float((own.tokens - base.tokens)[inside].abs().mean()) > 0.1


def test_noise_gains_nothing_and_leaves_nothing() -> None:
    model = small_transducer_model()
    generator = random.Random(0)
    noise = [generator.choices(range(model.tokenizer.size), k=12) for _ in range(17)]
    rest = [own for place, own in enumerate(noise) if place % 8]
    for place in range(0, 17, 8):  # what is held out is said by nothing that is learnt from
        noise[place] = [token for token in range(model.tokenizer.size) for _ in range(2)]
    assert len(rest) == 14
    with torch.no_grad():  # a base that expects just what is held out
        model.joint.joint_net[-1].weight.zero_()
        model.joint.joint_net[-1].bias.zero_()
    found = train_prediction(model, "domain", noise, steps=60)
    assert (found.step, found.after) == (0, found.before)
    assert model.adapters.names == []


def test_it_is_the_same_each_time() -> None:
    digests = []
    for _ in range(2):
        model = small_transducer_model()
        train_prediction(model, "domain", tokens(model, SENTENCES), kind=LinearAdapter(dim=4), steps=50)
        digests.append(model.adapters["domain"].digest())
    assert digests[0] == digests[1]


def test_other_models_and_too_little_text_are_refused() -> None:
    with pytest.raises(UsageError, match="no prediction network"):
        train_prediction(small_model(), "domain", [[1, 2]] * 40)
    model = small_transducer_model()
    with pytest.raises(DataError, match="15 sentences are too few"):
        train_prediction(model, "domain", [[1, 2]] * 15)
    assert model.adapters.names == []
