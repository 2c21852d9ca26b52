"""The general prior of the embedded base: its file, adapters that are mixed with it, and what needs it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from overtone.adapters import words as words_module
from overtone.adapters.prior import FILE, PRIOR, Prior, find_prior, read_prior
from overtone.adapters.storage import WORDS
from overtone.adapters.word_text import SHARE, make_words, prior_words
from overtone.adapters.words import WordPart
from overtone.checkpoints.adapters import find_adapter, load_prior
from overtone.checkpoints.load import load_model, save_model
from overtone.decoding.decoder import BeamSettings, DecodingOptions
from overtone.decoding.ngram_counts import build_ngram
from overtone.errors import AdapterError
from overtone.models.asr_model import AsrModel
from support.small_models import add_trained, small_model


@pytest.fixture(scope="module")
def fundamental() -> AsrModel:
    return load_model("fundamental")


@pytest.fixture
def prior(monkeypatch: pytest.MonkeyPatch) -> Prior:
    """A prior of the small model's tokens."""
    tokenizer = small_model().tokenizer
    ngram = build_ngram([tokenizer.encode("hold the line please")], vocabulary_size=tokenizer.size, order=4)
    made = Prior(tokenizer_digest=tokenizer.digest(), digest="sha256:one", ngram=ngram, weight=0.6, token_bonus=1.5)
    monkeypatch.setattr(words_module, "find_prior", lambda digest: made if digest == made.tokenizer_digest else None)
    return made


def mixed(prior: Prior, share: float | None = None) -> WordPart:
    tokenizer = small_model().tokenizer
    sequences = [tokenizer.encode(text) for text in ("press the pound key", "press the star key")]
    return make_words(tokenizer, sequences=sequences, prior=prior, prior_share=share)


def test_the_embedded_base_has_a_prior_of_its_tokens(fundamental: AsrModel) -> None:
    assert FILE.stat().st_size < 5_000_000
    prior = find_prior(fundamental.tokenizer.digest())
    assert prior is not None
    assert prior is read_prior(FILE), "it is read once"
    likely, odd = (
        prior.ngram.sentence_log_prob(fundamental.tokenizer.encode(text))
        for text in ("he looked at her and said nothing", "hid lokked et hir und seid nathing")
    )
    assert likely > odd + 10
    assert find_prior(small_model().tokenizer.digest()) is None


def test_the_prior_is_an_adapter_by_its_name_alone(fundamental: AsrModel) -> None:
    model = load_model("fundamental")
    assert model.adapters.names == [], "nothing acts, or is there, unasked"
    before = model.base_state_dict()
    assert find_adapter(model, PRIOR) == PRIOR
    assert find_adapter(model, f"{PRIOR}") == PRIOR
    assert model.adapters[PRIOR].points == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.base_state_dict().items())
    assert model.fingerprint() == fundamental.fingerprint()


def test_a_model_of_other_tokens_has_none() -> None:
    model = small_model()
    assert not load_prior(model)
    with pytest.raises(AdapterError, match="neither in the model nor a folder"):
        find_adapter(model, PRIOR)


def test_an_adapter_of_that_name_comes_first(tmp_path: Path) -> None:
    model = load_model("fundamental")
    own = make_words(model.tokenizer, phrases=[("pound key", 10.0)])
    model.adapters.add_words(PRIOR, own)
    assert find_adapter(model, PRIOR) == PRIOR
    assert model.adapters[PRIOR].words is own


def test_a_mixed_part_goes_to_a_file_and_back_without_the_prior(prior: Prior, tmp_path: Path) -> None:
    part = mixed(prior, 0.35)
    model = small_model()
    model.adapters.add_words("medical", part)
    model.adapters.save("medical", tmp_path / "medical")
    content = (tmp_path / "medical" / WORDS).read_bytes()
    assert len(content) < len(prior_words(prior).to_bytes()) + len(mixed(prior, 0.0).to_bytes())
    found = model.adapters.load(tmp_path / "medical", name="again").words
    assert found is not None
    assert found.prior is prior
    assert found.prior_share == 0.35
    assert found.to_bytes() == part.to_bytes()
    assert found.describe()["prior_share"] == 0.35
    assert "prior_share" not in mixed(prior, 0.0).describe()
    ((mixture, weight),) = found.for_decoding(model.tokenizer).mixtures
    assert (mixture.general, mixture.share, weight) == (prior.ngram, 0.35, part.weight)
    assert not mixed(prior, 0.0).for_decoding(model.tokenizer).mixtures


def test_a_mixed_part_is_searched_as_widely_as_the_prior_was_tuned(prior: Prior) -> None:
    wide = mixed(replace(prior, beam=12), 0.35)
    again = WordPart.from_bytes(wide.to_bytes(), tokenizer_digest=prior.tokenizer_digest, place="words")
    assert again.beam == 12
    words = again.for_decoding(small_model().tokenizer)
    assert DecodingOptions(words=words).settings.width == 12
    assert DecodingOptions(words=words + words, alternatives=20).settings.width == 20
    assert DecodingOptions(words=words, beam=BeamSettings(width=4)).settings.width == 4, "what is asked for comes first"
    narrow = mixed(prior, 0.35)
    assert b"beam" not in narrow.to_bytes()[:2000], "files without a width of their own are what they were"
    assert DecodingOptions(words=narrow.for_decoding(small_model().tokenizer)).settings == BeamSettings()
    with pytest.raises(AdapterError, match="beam of 65 must lie between 0 and 64"):
        replace(narrow, beam=65)
    for damaged in (torch.tensor([math.inf]), torch.tensor([3, 4], dtype=torch.int32), torch.tensor([3.7])):
        content = save({**load(wide.to_bytes()), "beam": damaged}, metadata={"tokenizer_digest": wide.tokenizer_digest})
        with pytest.raises(AdapterError, match="words is damaged: its beam is"):
            WordPart.from_bytes(content, tokenizer_digest=wide.tokenizer_digest, place="words")


def test_the_bytes_of_a_mixed_part_are_the_same_each_time(prior: Prior) -> None:
    assert len({mixed(prior, 0.35).to_bytes() for _ in range(20)}) == 1
    assert mixed(prior, 0.35).digest() != mixed(prior, 0.36).digest()
    assert mixed(prior, 0.35).digest() != mixed(replace(prior, digest="sha256:two"), 0.35).digest()


def test_a_part_of_another_prior_is_refused(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    content, digest = mixed(prior, 0.35).to_bytes(), prior.tokenizer_digest
    monkeypatch.setattr(words_module, "find_prior", lambda digest: replace(prior, digest="sha256:two"))
    with pytest.raises(AdapterError, match="general prior sha256:one; this version of Overtone has sha256:two"):
        WordPart.from_bytes(content, tokenizer_digest=digest, place="words")
    monkeypatch.setattr(words_module, "find_prior", lambda digest: None)
    with pytest.raises(AdapterError, match="has none for this tokenizer"):
        WordPart.from_bytes(content, tokenizer_digest=digest, place="words")


def test_mixed_parts_go_through_nemo_files(prior: Prior, tmp_path: Path) -> None:
    model = small_model()
    add_trained(model, "medical")
    model.adapters["medical"].words = mixed(prior, 0.5)
    save_model(model, tmp_path / "both.nemo")
    found = load_model(tmp_path / "both.nemo").adapters["medical"].words
    assert found is not None
    assert found.prior_share == 0.5


def test_shares_that_make_no_sense_are_refused(prior: Prior) -> None:
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(AdapterError, match="from 0 to below 1"):
            mixed(prior, 0.5).weighted(1.0, prior_share=share)
    with pytest.raises(AdapterError, match="needs both a prior and an n-gram"):
        replace(mixed(prior, 0.5), prior=None)


def test_the_share_comes_from_the_text_where_none_is_given(prior: Prior) -> None:
    assert mixed(prior).prior_share not in (0.0, SHARE)
    tokenizer = small_model().tokenizer
    repeated = make_words(tokenizer, sequences=[tokenizer.encode("yes")] * 40, prior=prior)
    assert (repeated.prior, repeated.prior_share) == (prior, 0.0)
    given = make_words(tokenizer, ngram=prior.ngram, prior=prior)
    assert given.prior_share == SHARE
    assert make_words(tokenizer, phrases=[("key", 3.0)], prior=prior).prior is None
