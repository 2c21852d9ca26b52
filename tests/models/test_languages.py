"""Models over several languages and over WordPiece, every way that they go; the reference is NeMo's."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.archive import open_archive
from overtone.decoding.phrase_boost import Boost, BoostTree
from overtone.errors import DataError
from overtone.inference.transcribe import transcribe
from overtone.models.asr_model import AsrModel, build_model
from overtone.tokenizers import AggregateTokenizer, SentencePieceTokenizer, Tokenizer, WordPieceTokenizer
from overtone.training.console import Reporter
from overtone.training.data import read_training_set
from overtone.training.plan import plan_training
from overtone.training.train import run_training
from support.families import batch
from support.fixtures import fixture_file, recordings
from support.train_samples import settings_for, write_corpus

NAME = "conformer_ctc_bpe_multilang"
QUIET = Reporter(quiet=True)
WORDS = [
    "[PAD]",
    "[UNK]",
    "o",
    "##n",
    "##e",
    "two",
    "word",
    "##s",
    "l",
    "##i",
    "a",
    "third",
    "four",
    "and",
    "five",
    "six",
]


@pytest.fixture(scope="module")
def adapted() -> AsrModel:
    return load_model(fixture_file(f"{NAME}/adapted.nemo"))


@pytest.mark.parametrize("combo", ["base", "none", "an4", "rel", "all"])
def test_encoder_texts_and_losses_are_those_of_nemo(combo: str, adapted: AsrModel) -> None:
    arrays = np.load(fixture_file(f"{NAME}/ref_{combo}.npz"))
    facts = json.loads(fixture_file(f"{NAME}/ref_{combo}.json").read_text("utf-8"))
    choice = {"base": None, "none": None, "all": "@file"}.get(combo, combo)
    for tag, (waveforms, lengths) in {"0": recordings(0), "1": recordings(1), "b": recordings()}.items():
        if f"enc_{tag}" not in arrays:
            continue
        with torch.no_grad(), adapted.adapters.use(choice):
            mel, frames = adapted.preprocessor(waveforms, lengths)
            encoded, frames = adapted.encoder(mel, frames)
            log_probs = adapted.head.emit(encoded, frames)
        for row, length in enumerate(frames.tolist()):
            expected = torch.from_numpy(arrays[f"enc_{tag}"][row, :, :length].T)
            torch.testing.assert_close(encoded[row, :length], expected, rtol=0, atol=2e-4)
        paths = adapted.head.align(log_probs, frames)
        assert [adapted.head.read(path).text for path in paths] == value_of(facts[f"ctc_{tag}"])
        assert [list(adapted.head.read(path).ids) for path in paths] == value_of(facts[f"ctc_ids_{tag}"])
        targets, sizes = (torch.from_numpy(arrays[f"{key}_{tag}"]) for key in ("targets", "target_len"))
        loss = adapted.head.loss(log_probs, frames, targets, sizes)
        assert float(loss) == pytest.approx(float(arrays[f"ctc_loss_{tag}"]), rel=1e-4)


def value_of(content: Any) -> Any:
    return ast.literal_eval(content) if isinstance(content, str) else content


def test_all_files_of_all_languages_are_written_back(adapted: AsrModel, tmp_path: Path) -> None:
    save_model(adapted, tmp_path / "again.nemo")
    save_model(adapted, tmp_path / "folder")
    with open_archive(fixture_file(f"{NAME}/adapted.nemo")) as before, open_archive(tmp_path / "again.nemo") as after:
        members = {name for name in before.names if "tokenizer" in name or "vocab" in name}
        assert len(members) == 6
        for member in members:
            content = before.read(member)
            assert after.read(member) == content
            assert (tmp_path / "folder" / member).read_bytes() == content
    for path in (tmp_path / "again.nemo", tmp_path / "folder"):
        again = load_model(path)
        assert again.tokenizer.digest() == adapted.tokenizer.digest()
        assert again.tokenizer.languages == ("en", "es")
        assert again.fingerprint() == adapted.fingerprint()


# Models of our own


def english() -> SentencePieceTokenizer:
    tokenizer = load_model(fixture_file("conformer_ctc_bpe/model.nemo")).tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


def both() -> AggregateTokenizer:
    other = load_model(fixture_file(f"{NAME}/model.nemo")).tokenizer
    assert isinstance(other, AggregateTokenizer)
    return AggregateTokenizer({"en": english(), "de": other.parts["es"]})


def small(tokenizer: Tokenizer) -> AsrModel:
    settings: dict[str, dict[str, Any]] = {
        "preprocessor": {"dither": 0.0},
        "encoder": {
            "width": 32, "layers": 1, "heads": 4, "kernel_size": 5, "subsampling": "dw_striding",
            "subsampling_factor": 4, "subsampling_channels": 16,
        },
        "decoder": {"width": 32, "classes": tokenizer.size},
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(settings=settings, tokenizer=tokenizer, name="small")


def words() -> WordPieceTokenizer:
    return WordPieceTokenizer("\n".join(WORDS).encode())


@pytest.mark.parametrize("make", [both, words])
def test_models_that_nemo_never_wrote_come_back(make: Any, tmp_path: Path) -> None:
    model = small(make())
    waveforms, lengths = batch(20_000)
    for path in (tmp_path / "x.nemo", tmp_path / "folder"):
        save_model(model, path)
        again = load_model(path)
        assert again.fingerprint() == model.fingerprint()
        assert again.tokenizer.digest() == model.tokenizer.digest()
        assert again.transcribe(waveforms, lengths) == model.transcribe(waveforms, lengths)
        save_model(again, path, overwrite=True)
        assert load_model(path).tokenizer.digest() == model.tokenizer.digest()


def tokens_of(folder: Path, model: AsrModel, **fields: Any) -> Any:
    settings = settings_for(folder)
    write_corpus(folder, **fields)
    return read_training_set(model, plan_training(settings, model=model), QUIET)


def test_transcripts_are_written_in_their_language(tmp_path: Path) -> None:
    model, text = small(both()), english().decode(english().encode("a"))
    sets = {
        language: tokens_of(tmp_path / str(language), model, text=text, **({"lang": language} if language else {}))
        for language in (None, "en", "de")
    }
    first = model.tokenizer.encode(text)
    assert sets[None].dataset.tokens[0] == sets["en"].dataset.tokens[0] == first
    assert sets["de"].dataset.tokens[0] == model.tokenizer.encode(text, "de") != first
    assert len({speech.digest for speech in sets.values()}) == 3


def test_a_language_that_the_model_does_not_have_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.json:1: 'lang' is 'fr'; the model knows en, de"):
        tokens_of(tmp_path, small(both()), text="a", lang="fr")


def test_one_vocabulary_does_not_care_for_the_language(tmp_path: Path) -> None:
    model = small(english())
    plain = tokens_of(tmp_path / "plain", model, text="a")
    named = tokens_of(tmp_path / "named", model, text="a", lang="fr")
    assert plain.dataset.tokens == named.dataset.tokens
    assert plain.digest == named.digest


@pytest.mark.parametrize("make", [both, words])
def test_adapters_are_trained_and_recordings_recognised(make: Any, tmp_path: Path) -> None:
    model = small(make())
    text = "one two words" if make is words else "a"
    settings = settings_for(tmp_path, "trainer.max_steps=2", "model.vocabulary_check=keep")
    write_corpus(tmp_path, text=text, lang="de")
    write_corpus(tmp_path, count=3, name="valid", text=text)
    result = run_training(settings, model=model, reporter=QUIET)
    assert result.steps == 2
    fresh = small(make())
    fresh.adapters.load(result.best)
    (found,) = transcribe(fresh, tmp_path / "train0.wav", adapter="mine")
    assert found.text == fresh.tokenizer.decode(found.ids)


def test_phrases_of_every_language_are_boosted() -> None:
    tokenizer = both()
    piece = next(piece for piece in tokenizer.parts["de"].vocabulary if set(piece) & set("äöü") and len(piece) > 3)
    phrase = piece.replace("▁", "")
    assert english().unwritable(phrase)
    assert BoostTree([Boost(phrases=(phrase, "漢"), boost=5.0)], tokenizer).ignored == ("漢",)
