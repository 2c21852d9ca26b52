"""The strength of an adapter beside the general prior: words that are mixed with it where they are too much."""

from __future__ import annotations

import pytest

from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.prior import Prior
from overtone.adapters.word_text import make_words
from overtone.adapters.words import WordPart
from overtone.decoding.ngram_counts import build_ngram
from overtone.inference.retention import Strength, choose_strength
from overtone.models.asr_model import AsrModel
from overtone.training.retention import describe_retention, note_words, retention_facts
from overtone.wer import ErrorCounts
from support.small_models import add_trained, small_model


def adapted_model_and_words() -> tuple[AsrModel, WordPart]:
    """A model with the adapter `mine`, and strong words that come with a prior which is not mixed in."""
    model = small_model()
    add_trained(model, "mine", LoraAdapter(rank=2))
    tokenizer = model.tokenizer
    ngram = build_ngram([tokenizer.encode("ab cd")], vocabulary_size=tokenizer.size, order=3)
    prior = Prior(tokenizer_digest=tokenizer.digest(), digest="sha256:", ngram=ngram, weight=0.5, token_bonus=1.5)
    sequences = [tokenizer.encode("xx yy")]
    return model, make_words(tokenizer, sequences=sequences, prior=prior, prior_share=0.0, weight=8.0)


@pytest.mark.parametrize(("mixes", "mix", "scale", "domain_errors"), [((), None, 0.0, 50), ((0.5, 0.9), 0.9, 1.0, 5)])
def test_words_are_mixed_with_the_general_prior_where_they_do_the_damage(
    mixes: tuple[float, ...], mix: float | None, scale: float, domain_errors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acoustic part and words break general speech at every strength; with enough of the prior they do not."""
    model, part = adapted_model_and_words()
    adapter = model.adapters["mine"]
    last = next(name for name in adapter.tensors() if name.endswith("up.weight"))

    def count(model: AsrModel, heard: list[str | None], words: WordPart | None, **_: object) -> ErrorCounts:
        is_base = heard[0] is None or not bool(adapter.tensors()[last].any())
        general, domain = (10, 50) if is_base else (20, 30)
        if words is not None:
            general, domain = {0.0: (40, 4), 0.5: (11, 5), 0.9: (9, 5)}[words.prior_share]
        return ErrorCounts(substitutions=general if heard[-1] == "general" else domain, hits=100)

    monkeypatch.setattr("overtone.inference.retention.count_errors", count)
    hears = {name: lambda choice, name=name: [choice, name] for name in ("general", "domain")}
    found = choose_strength(model, adapter, part, **hears, kappa=0.0, mixes=mixes)  # type: ignore[arg-type]
    assert found.chosen is not None
    assert found.chosen.domain is not None
    assert (found.chosen.mix, found.chosen.scale, found.chosen.domain.errors) == (mix, scale, domain_errors)
    assert retention_facts(found).get("general_prior") == mix
    if mix is not None:
        assert found.chosen.part is not None
        assert (found.chosen.part.weight, found.chosen.part.token_bonus) == (0.5, 1.5), "the prior's own weights"
        assert "the words with 90% of the general prior" in describe_retention(found)


def test_a_mix_is_taken_without_recordings_of_the_domain_and_nothing_is_counted_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """General speech bears no share of the words, but both mixes: the gentler one is taken, and not no words."""
    model, part = adapted_model_and_words()
    adapter = model.adapters["mine"]
    last = next(name for name in adapter.tensors() if name.endswith("up.weight"))
    counted: list[tuple[object, ...]] = []

    def count(model: AsrModel, heard: list[str | None], words: WordPart | None, **_: object) -> ErrorCounts:
        weights = None if words is None else (words.weight, words.prior_share)
        counted.append((*heard, float(adapter.tensors()[last].norm()), weights))
        errors = 5 if words is None else {0.0: 40, 0.5: 10, 0.9: 9}[words.prior_share]
        return ErrorCounts(substitutions=errors if heard[0] is not None else 10, hits=100)

    monkeypatch.setattr("overtone.inference.retention.count_errors", count)

    def general(choice: str | None) -> list[str | None]:
        return [choice]

    found = choose_strength(
        model,
        adapter,
        part,
        general=general,  # type: ignore[arg-type]
        domain=None,
        kappa=0.0,
        mixes=(0.5, 0.9),
    )
    assert found.chosen is not None
    assert (found.chosen.scale, found.chosen.mix, found.chosen.general.errors) == (1.0, 0.9, 9)
    assert found.chosen.part is not None
    assert len(counted) == len(set(counted))


@pytest.mark.parametrize("errors", [3, None])
def test_the_card_tells_the_words_that_are_left(errors: int | None) -> None:
    """Weights and rates are of those words: what was counted with the words before is gone."""
    model = small_model()
    add_trained(model, "mine", LoraAdapter(rank=2))
    adapter, tokenizer = model.adapters["mine"], model.tokenizer
    part = make_words(tokenizer, sequences=[tokenizer.encode("xx yy")], weight=0.8)
    before = {"base": 0.6, "words": 0.45, "adapter": 0.4, "together": 0.5, "prior": 0.55}
    domain = None if errors is None else ErrorCounts(substitutions=errors, hits=10 - errors)
    strength = Strength(scale=1.0, share=0.5, part=part, general=ErrorCounts(), domain=domain)
    adapter.card = {"steps": 6, "words": {**part.describe(), "utterances": 4, "wer": before}}
    adapter.words = part.weakened(0.5)
    note_words(adapter, strength)
    assert adapter.card["words"]["weight"] == pytest.approx(0.4)
    assert adapter.card["words"]["utterances"] == 4
    assert adapter.card["words"]["wer"] == {"base": 0.6, "prior": 0.55, "together": None if errors is None else 0.3}
    adapter.words = None
    note_words(adapter, strength)
    assert adapter.card == {"steps": 6}
