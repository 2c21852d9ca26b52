"""The word part of a trained adapter: counted, weighted on the validation set, and left out where it does not help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overtone.adapters.storage import WORDS
from overtone.adapters.word_text import make_words
from overtone.adapters.words import WordPart
from overtone.checkpoints.load import load_model
from overtone.config import WordsSettings, load_settings
from overtone.errors import ConfigError, DataError
from overtone.inference.transcribe import transcribe
from overtone.models.asr_model import AsrModel
from overtone.tokenizers import Tokenizer
from overtone.training.console import Reporter
from overtone.training.plan import plan_training
from overtone.training.run import TrainingResult
from overtone.training.train import run_training, train
from support.small_models import small_model
from support.train_samples import settings_for, write_corpus

PROMPTS = Path(__file__).parents[2] / "overtone" / "prompts"


def prompts(folder: Path, name: str, first: int, count: int) -> Path:
    """A manifest of some of the prompts that come with the package, short ones."""
    lines = [json.loads(line) for line in (PROMPTS / "train.jsonl").read_text("utf-8").splitlines()]
    chosen = sorted((line for line in lines if 1 < line["duration"] < 4), key=lambda line: line["audio_filepath"])
    own = [{**line, "audio_filepath": str(PROMPTS / line["audio_filepath"])} for line in chosen[first : first + count]]
    (folder / f"{name}.txt").write_text("".join(f"{line['text']}\n" for line in own), "utf-8")
    path = folder / f"{name}.json"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in own), "utf-8")
    return path


def as_heard(model: AsrModel, manifest: Path) -> Path:
    """The manifest with what the base makes of its recordings, as if that were right."""
    lines = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    heard = transcribe(model, [line["audio_filepath"] for line in lines], compute_dtype="float32")
    for line, hypothesis in zip(lines, heard, strict=True):
        line["text"] = hypothesis.text
    manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return manifest


def short_training(
    model: AsrModel, folder: Path, words: WordsSettings, validation: Path | None = None
) -> TrainingResult:
    return train(
        model,
        adapter_name="mine",
        train_manifest=prompts(folder, "train", 0, 4),
        validation_manifest=validation or prompts(folder, "valid", 4, 10),
        output_dir=folder / "run",
        max_steps=1,
        learning_rate=1e-5,
        batch_size=4,
        words=words,
        quiet=True,
    )


def test_words_that_make_fewer_errors_are_kept_with_the_adapter(tmp_path: Path) -> None:
    """The text says what the validation recordings do, so that the gain is certain."""
    model = load_model("fundamental")
    prompts(tmp_path, "valid", 4, 10)
    (tmp_path / "terms.txt").write_text("voicemail\t20\n", "utf-8")
    words = WordsSettings(text=str(tmp_path / "valid.txt"), phrases=str(tmp_path / "terms.txt"), order=5)
    result = short_training(model, tmp_path, words)
    rates = result.card["words"]["wer"]
    assert rates["together"] < rates["adapter"]
    assert rates["words"] < rates["base"]
    assert rates["prior"] < rates["base"], "the base's general prior, beside which the words are shown"
    assert result.wer_words == rates["together"]
    part = model.adapters["mine"].words
    assert part is not None
    assert part.ngram is not None
    assert (part.ngram.order, part.phrases, part.weight) == (5, 1, result.card["words"]["weight"])
    stored = load_model("fundamental").adapters.load(result.best)
    assert stored.words is not None
    assert stored.words.to_bytes() == part.to_bytes()
    assert stored.card["words"]["wer"] == rates
    assert not (result.last / WORDS).exists()


def test_words_of_something_else_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base alone makes no error, so that no weights can make fewer."""
    said: list[str] = []
    noise = [[3, 9, 27, 81, 3, 9]] * 50

    def make_of_noise(tokenizer: Tokenizer, **options: Any) -> WordPart:
        return make_words(tokenizer, **{**options, "sequences": noise})

    monkeypatch.setattr("overtone.training.model.make_words", make_of_noise)
    model = load_model("fundamental")
    monkeypatch.setattr(Reporter, "say", lambda self, text: said.append(text))
    valid = as_heard(model, prompts(tmp_path, "valid", 4, 10))
    result = short_training(model, tmp_path, WordsSettings(order=2, prior=False), valid)
    assert result.wer_words is None
    assert model.adapters["mine"].words is None
    assert not (result.best / WORDS).exists()
    assert "words" not in result.card
    assert any("the adapter has no word part" in line for line in said)


def test_without_validation_the_usual_weights_are_taken(tmp_path: Path) -> None:
    reporter = Reporter(quiet=True)
    settings = settings_for(tmp_path, "model.adapter.words=auto", validation=False)
    result = run_training(settings, model=small_model(), reporter=reporter)
    assert result.wer_words is None
    assert result.card["words"]["wer"] == {"together": None}
    assert (result.best / WORDS).exists()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("auto", WordsSettings()),
        ("true", WordsSettings()),
        ("off", None),
        ("false", None),
        ("{text: [a.txt, b.txt], order: 4}", WordsSettings(text=("a.txt", "b.txt"), order=4)),
        ("{phrases: terms.txt}", WordsSettings(phrases="terms.txt")),
    ],
)
def test_the_forms_of_the_setting(value: str, expected: WordsSettings | None, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, f"model.adapter.words={value}")
    assert plan_training(settings, model=small_model()).words == expected


def test_nemos_own_files_train_as_nemo_does(tmp_path: Path) -> None:
    """A YAML without the keys that are ours has no words, and the rate that it names."""
    write_corpus(tmp_path)
    text = (
        "name: x\nmodel:\n  nemo_model: given\n  adapter: {adapter_name: mine}\n"
        f"  train_ds: {{manifest_filepath: {tmp_path / 'train.json'}}}\n"
        "  optim: {name: adamw, lr: 0.0007}\ntrainer: {max_steps: 5}\n"
    )
    (tmp_path / "nemo.yaml").write_text(text, "utf-8")
    settings = load_settings([], config_path=str(tmp_path), config_name="nemo")
    plan = plan_training(settings, model=small_model())
    assert (plan.words, plan.optimiser.lr) == (None, 0.0007)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("{text: none.txt}", DataError, "cannot be read"),
        ("{text: [a.txt], order: 11}", ConfigError, "order"),
        ("{txt: a.txt}", ConfigError, "Did you mean 'text'"),
        ("sometimes", ConfigError, "is not"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    words: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run_training(settings_for(tmp_path, f"model.adapter.words={words}"), model=small_model())
    assert not (tmp_path / "run").exists()


def test_text_follows_the_vocabulary_check(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("well known\n9 beds\n", "utf-8")
    setting = f"model.adapter.words={{text: {tmp_path / 'notes.txt'}}}"
    with pytest.raises(DataError, match=r"(?s)1 of 2 sentences hold .*model\.vocabulary_check=keep"):
        run_training(settings_for(tmp_path, setting), model=small_model())
