"""Weights of word parts, chosen by the errors of recordings whose emissions are made here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch

from overtone.adapters.prior import Prior
from overtone.adapters.word_text import make_words
from overtone.adapters.words import WordPart
from overtone.decoding.ngram_counts import build_ngram
from overtone.inference import word_weights
from overtone.inference.word_weights import (
    BONUSES,
    PRIOR_SHARES,
    WEIGHTS,
    Heard,
    choose_parts,
    choose_weights,
    count_errors,
)
from overtone.models.asr_model import AsrModel
from support.small_models import small_model


@pytest.fixture(scope="module")
def model() -> AsrModel:
    return small_model()


def hear(model: AsrModel, said: Sequence[tuple[str, str]], share: float = 0.4) -> list[Heard]:
    """Emissions in which each of the texts is clear but for the letters of a rival, which sound more like those."""
    size = model.tokenizer.size
    frames = 2 * max(len(text) for text, _ in said)
    emissions = torch.full((len(said), frames, size + 1), math.log(1e-6))
    emissions[..., size] = math.log(0.999)
    for row, (text, rival) in enumerate(said):
        pairs = zip(model.tokenizer.encode(text), model.tokenizer.encode(rival), strict=True)
        for place, (right, wrong) in enumerate(pairs):
            emissions[row, 2 * place, size] = math.log(1e-6)
            emissions[row, 2 * place, wrong] = math.log(1 - share)
            emissions[row, 2 * place, right] = 0.0 if right == wrong else math.log(share)
    lengths = torch.tensor([2 * len(text) for text, _ in said])
    return [Heard(emissions, lengths, [text for text, _ in said])]


def counted(model: AsrModel, *texts: str) -> WordPart:
    return make_words(model.tokenizer, sequences=[model.tokenizer.encode(text) for text in texts])


def test_the_weights_that_make_the_fewest_errors_are_taken(model: AsrModel) -> None:
    heard = hear(model, [("press the pound key", "press the bound key"), ("hold the line", "hold the wine")])
    found = choose_weights(model, heard, counted(model, "press the pound key", "hold the line"), scope=nullcontext)
    assert found.part is not None
    assert (found.without.errors, found.best.errors) == (2, 0)
    assert count_errors(model, heard, found.part, scope=nullcontext).errors == 0
    assert {weight for weight, bonus, _ in found.tried if bonus == 0} == set(WEIGHTS)
    assert {bonus for _, bonus, _ in found.tried} == {0.0, *BONUSES}
    assert (found.part.weight, found.part.token_bonus, 0.0) in found.tried


@pytest.mark.parametrize("text", ["press the pound key", "something else is said here"])
def test_without_a_gain_there_are_no_words(text: str, model: AsrModel) -> None:
    heard = hear(model, [("press the pound key", "press the pound key")])
    found = choose_weights(model, heard, counted(model, text), scope=nullcontext)
    assert found.part is None
    assert found.best == found.without


def test_shares_of_the_general_prior_are_tried_and_the_best_is_kept(model: AsrModel) -> None:
    tokenizer = model.tokenizer
    general = build_ngram([tokenizer.encode("go on with the pound key")], vocabulary_size=tokenizer.size, order=6)
    prior = Prior(tokenizer_digest=tokenizer.digest(), digest="sha256:", ngram=general, weight=0.5, token_bonus=0.0)
    part = make_words(tokenizer, sequences=[tokenizer.encode("hold the line")], prior=prior, prior_share=0.1)
    heard = hear(model, [("the pound key", "the bound key"), ("hold the line", "hold the wine")], share=0.2)
    found = choose_weights(model, heard, part, scope=nullcontext)
    assert found.part is not None
    assert found.best.errors == 0
    assert {share for share, _ in found.shares} == set(PRIOR_SHARES) - {0.1}
    assert found.best.errors < count_errors(model, heard, part.weighted(0.5, prior_share=0.0), scope=nullcontext).errors


def test_of_words_and_acoustic_part_what_makes_the_fewest_errors_is_kept(
    model: AsrModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [("press the pound key", "press the bound key"), ("hold the line", "hold the wine")]
    clear = hear(model, said, share=0.9)
    heard = {
        None: hear(model, said),
        "worse": hear(model, [(text, "x" * len(text)) for text, _ in said], share=0.01),
        "better": clear,
    }
    monkeypatch.setattr(word_weights, "hear", lambda model, recordings, name: heard[name])
    for name in ("worse", "better"):
        if name not in model.adapters:
            model.adapters.add(name, "linear")
    useful, useless = counted(model, "press the pound key", "hold the line"), counted(model, "zz zz")
    both = choose_parts(model, [], useful, "worse", optional=True)
    assert (both.acoustic, both.errors.errors, both.base.errors) == (False, 0, 2)
    assert both.part is not None
    sound = choose_parts(model, [], useless, "better", optional=True)
    assert (sound.acoustic, sound.part, sound.errors.errors) == (True, None, 0)
    nothing = choose_parts(model, [], useless, "worse", optional=True)
    assert (nothing.acoustic, nothing.part, nothing.errors) == (False, None, nothing.base)
    kept = choose_parts(model, [], useless, "worse", optional=False)
    assert kept.acoustic
    assert kept.errors.errors > kept.base.errors


def test_phrases_alone_have_no_weight_to_choose(model: AsrModel) -> None:
    heard = hear(model, [("the pound key", "the bound key")])
    part = make_words(model.tokenizer, phrases=[("pound", 20.0)])
    found = choose_weights(model, heard, part, scope=nullcontext)
    assert found.part is part
    assert found.tried == ((0.0, 0.0, 0.0),)


def test_the_scope_surrounds_every_search(model: AsrModel) -> None:
    entered = []

    def scope() -> nullcontext[None]:
        entered.append(True)
        return nullcontext()

    heard = hear(model, [("hold", "hold"), ("on", "on")])
    assert count_errors(model, heard * 2, None, scope=scope).errors == 0
    assert len(entered) == 2
