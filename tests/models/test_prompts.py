"""Models that are told the language of each row, beside NeMo, and every way that a language goes to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.config import translate
from overtone.checkpoints.nemo.model import nemo_config
from overtone.decoding.decoder import DecodingOptions
from overtone.errors import CheckpointError, ConfigError, DataError, UsageError
from overtone.evaluation.evaluate import evaluate
from overtone.evaluation.verify import verify
from overtone.inference.transcribe import Transcriber, transcribe
from overtone.models.asr_model import AsrModel
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.recognition.offline import recognise
from overtone.training.console import Reporter
from overtone.training.train import run_training
from support.fixtures import fixture_file, recordings
from support.streams import run
from support.train_samples import settings_for

NAME = "fastconformer_prompt_hybrid_bpe"
LANGUAGES = ("en-US", "de-DE", "auto")
QUIET = Reporter(quiet=True)


def prompted() -> AsrModel:
    return load_model(fixture_file(f"{NAME}/prompted.nemo"))


def texts(row: int) -> dict[str, str]:
    """What NeMo writes for a recording, by language."""
    facts = json.loads(fixture_file(f"{NAME}/ref_languages.json").read_text("utf-8"))
    return {language: facts[language]["text"][row].strip() for language in LANGUAGES}


def test_ids_are_those_of_nemo_in_every_language() -> None:
    model = prompted()
    facts = json.loads(fixture_file(f"{NAME}/ref_languages.json").read_text("utf-8"))
    assert model.languages == LANGUAGES
    for language in LANGUAGES:
        with model.speaking(language):
            found = model.transcribe(*recordings())
        assert [list(hypothesis.ids) for hypothesis in found] == facts[language]["ids"], language
    assert len(set(texts(0).values())) == 3


def test_each_row_has_a_language_of_its_own() -> None:
    model = prompted()
    with model.speaking(["de-DE", "EN-us", None]):
        mixed = model.transcribe(*recordings())
    expected = (texts(0)["de-DE"], texts(1)["en-US"], texts(2)["auto"])
    assert tuple(hypothesis.text.strip() for hypothesis in mixed) == expected
    assert [hypothesis.text.strip() for hypothesis in model.transcribe(*recordings())][2] == texts(2)["auto"]
    with model.speaking(["de-DE"]), pytest.raises(UsageError, match="1 languages for 3 rows"):
        model.transcribe(*recordings())


def test_files_folders_and_fingerprints_keep_the_languages(tmp_path: Path) -> None:
    model = prompted()
    for path in (tmp_path / "again.nemo", tmp_path / "folder"):
        save_model(model, path)
        again = load_model(path)
        assert again.languages == LANGUAGES
        assert again.fingerprint() == model.fingerprint()
        assert again.transcribe(*recordings(0)) == model.transcribe(*recordings(0))
    model.config = {}
    described = translate(nemo_config(model))
    assert described.settings["prompt_kernel"] == model.settings["prompt_kernel"]


@pytest.mark.parametrize(
    "dictionary", [None, {}, {"en": 8}, {"en": -1}, {"en": "0"}, {"en": True}, {3: 1}, ["en"]], ids=str
)
def test_languages_without_a_prompt_of_their_own_are_refused(dictionary: Any) -> None:
    config = dict(prompted().config)
    config["model_defaults"] = {**config["model_defaults"], "prompt_dictionary": dictionary}
    with pytest.raises(CheckpointError, match="prompt_dictionary"):
        translate(config)


def test_recordings_are_transcribed_in_the_language_asked_for(tmp_path: Path) -> None:
    model = prompted()
    path = fixture_file("wavs/w0.wav")
    for language in LANGUAGES:
        (found,) = transcribe(model, path, language=language)
        assert found.text.strip() == texts(0)[language]
    assert transcribe(model, path)[0].text.strip() == texts(0)["auto"]
    with pytest.raises(UsageError, match="language 'fr-FR' is none of this model's: en-US, de-DE, auto"):
        Transcriber(model, language="fr-FR")
    plain = load_model(fixture_file("fastconformer_hybrid_rnnt_ctc_bpe/model.nemo"))
    with pytest.raises(UsageError, match="is not told the language"):
        Transcriber(plain, language="de-DE")


def test_a_manifest_names_the_language_of_each_line(tmp_path: Path) -> None:
    model = prompted()
    manifest = write_manifest(tmp_path / "calls.json", ["de-DE", "en-US", None])
    found = [result.hypothesis for result in Transcriber(model).stream(manifest)]
    assert [each and each.text.strip() for each in found] == [
        texts(0)["de-DE"], texts(1)["en-US"], texts(2)["auto"],
    ]  # fmt: skip
    assert evaluate(model, manifest).results[0].wer == 0.0
    assert evaluate(model, manifest, language="auto").results[0].wer > 0.5
    strange = write_manifest(tmp_path / "strange.json", ["xx", None, None])
    first, *others = Transcriber(model).stream(strange)
    assert "language 'xx' is none of this model's" in str(first.error)
    assert all(each.error is None for each in others)


def write_manifest(path: Path, languages: list[str | None]) -> Path:
    """The three recordings with NeMo's text in these languages."""
    lines = []
    for row, language in enumerate(languages):
        shutil.copy(fixture_file(f"wavs/w{row}.wav"), path.parent)
        length = int(recordings(row)[1]) / 16_000
        line = {"audio_filepath": f"w{row}.wav", "duration": length, "text": texts(row).get(language or "auto", "a")}
        lines.append(json.dumps(line | ({} if language is None else {"lang": language})))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_an_adapter_is_trained_with_the_language_of_each_utterance(tmp_path: Path) -> None:
    """The transcripts are NeMo's own in these languages: with them told, the base makes no error."""
    before = {}
    for name, languages in {"right": ["de-DE", "en-US", None], "auto": [None, None, None]}.items():
        folder = tmp_path / name
        folder.mkdir()
        manifest = write_manifest(folder / "train.json", languages)
        if name == "auto":  # the same texts
            rows = [json.loads(line) for line in (tmp_path / "right" / "train.json").read_text("utf-8").splitlines()]
            rows = [{key: value for key, value in row.items() if key != "lang"} for row in rows]
            manifest.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        model = prompted()
        frozen = {key: tensor.clone() for key, tensor in model.base_state_dict().items()}
        settings = settings_for(
            folder / "run",
            f"model.train_ds.manifest_filepath={manifest}",
            f"model.validation_ds.manifest_filepath={manifest}",
            "model.train_ds.batch_size=3",
            "trainer.max_steps=2",
            "model.optim.lr=0.001",
        )
        result = run_training(settings, model=model, reporter=QUIET)
        before[name] = result.wer_before
        assert all(torch.equal(frozen[key], tensor) for key, tensor in model.base_state_dict().items())
    assert before["right"] == 0.0
    assert before["auto"]


def test_training_refuses_other_languages_and_a_prefix_cache(tmp_path: Path) -> None:
    model = prompted()
    manifest = write_manifest(tmp_path / "train.json", ["xx", None, None])
    overrides = [f"model.{part}_ds.manifest_filepath={manifest}" for part in ("train", "validation")]
    with pytest.raises(
        DataError, match=r"'lang' is 'xx'; the model knows en-US, de-DE, auto. .* leave it out for auto"
    ):
        run_training(settings_for(tmp_path / "run", *overrides), model=model, reporter=QUIET)
    write_manifest(tmp_path / "train.json", [None, None, None])
    settings = settings_for(tmp_path / "cached", *overrides, "model.prefix_cache.enabled=true")
    with pytest.raises(ConfigError, match="told the language"):
        run_training(settings, model=prompted(), reporter=QUIET)


def test_the_engine_mixes_languages_and_adapters_in_a_batch() -> None:
    model = prompted()
    adapter = model.adapters.add("trained", LinearAdapter(dim=4), modules="encoder+joint")
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    assert verify(model).passed
    waveform = recordings(0)[0][0].numpy()

    async def all_at_once(engine: Engine) -> list[str]:
        import asyncio

        asked = [recognise(engine, waveform, decoding=DecodingOptions(language=each)) for each in (*LANGUAGES, None)]
        return [found.hypotheses[0].text.strip() for found in await asyncio.gather(*asked)]

    with Engine(model, EngineSettings(max_wait=0.2, threads=1)) as engine:
        found = run(all_at_once(engine))
        assert engine.state().batches < 4
    expected = texts(0)
    assert found == [*(expected[language] for language in LANGUAGES), expected["auto"]]
