"""The strength of an adapter beside the general prior: words that are mixed with it where they are too much."""

from __future__ import annotations

import pytest

from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.prior import Prior
from overtone.adapters.word_text import make_words
from overtone.adapters.words import WordPart
from overtone.decoding.ngram_counts import build_ngram
from overtone.inference.retention import choose_strength
from overtone.models.asr_model import AsrModel
from overtone.training.retention import describe_retention, retention_facts
from overtone.wer import ErrorCounts
from support.small_models import add_trained, small_model


@pytest.mark.parametrize(("mixes", "mix", "scale", "domain_errors"), [((), None, 0.0, 50), ((0.5, 0.9), 0.9, 1.0, 5)])
def test_words_are_mixed_with_the_general_prior_where_they_do_the_damage(
    mixes: tuple[float, ...], mix: float | None, scale: float, domain_errors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acoustic part and words break general speech at every strength; with enough of the prior they do not."""
    model = small_model()
    add_trained(model, "mine", LoraAdapter(rank=2))
    adapter, tokenizer = model.adapters["mine"], model.tokenizer
    ngram = build_ngram([tokenizer.encode("ab cd")], vocabulary_size=tokenizer.size, order=3)
    prior = Prior(tokenizer_digest=tokenizer.digest(), digest="sha256:", ngram=ngram, weight=0.5, token_bonus=1.5)
    part = make_words(tokenizer, sequences=[tokenizer.encode("xx yy")], prior=prior, prior_share=0.0, weight=8.0)
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
