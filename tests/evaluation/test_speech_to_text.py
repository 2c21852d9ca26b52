"""Predictions as manifests, and their scores: NeMo's numbers for every step of text processing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overtone import cli
from overtone.checkpoints.load import load_model, save_model
from overtone.errors import ConfigError
from overtone.evaluation.speech_to_text import nemo_rate, read_lines, read_prediction_settings, score
from overtone.inference.transcribe import transcribe
from support.fixtures import HERE
from support.small_models import add_trained, small_model
from support.train_samples import write_corpus

REFERENCE = json.loads((HERE / "fixtures/speech_to_text_eval/reference.json").read_text("utf-8"))


@pytest.fixture
def nemo(tmp_path: Path) -> Path:
    """A model with the adapters `medical`, which its file has enabled, and `legal`."""
    model = small_model()
    for seed, name in enumerate(("medical", "legal"), start=1):
        add_trained(model, name, seed=seed)
    return save_model(model, tmp_path / "adapted.nemo", enabled=["medical"])


def evaluate(*words: object) -> int:
    return cli.main(["evaluate", *map(str, words)])


@pytest.mark.parametrize("name", REFERENCE["rates"])
def test_rates_are_those_of_nemo(name: str, tmp_path: Path) -> None:
    wanted = REFERENCE["rates"][name]
    values = {"dataset_manifest": "given", "only_score_manifest": True, "text_processing": wanted["steps"]}
    found = score(REFERENCE["lines"], read_prediction_settings(values))
    assert nemo_rate(found.words) == pytest.approx(wanted["wer"], abs=1e-12)
    assert nemo_rate(found.characters) == pytest.approx(wanted["cer"], abs=1e-12)
    assert found.written is None


@pytest.mark.parametrize(("adapter", "chosen"), [(None, "medical"), ("legal", "legal"), ("null", None)])
def test_predictions_of_a_model(
    nemo: Path, tmp_path: Path, adapter: str | None, chosen: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapters that the file has enabled act unless another is named; every key of a line stays."""
    manifest = write_corpus(tmp_path, count=3, room="hall")
    output = tmp_path / "out/predictions.json"
    words = [f"model_path={nemo}", f"dataset_manifest={manifest}", f"output_filename={output}", "batch_size=32"]
    words += ["compute_dtype=float32", *([] if adapter is None else [f"adapter={adapter}"])]
    assert evaluate(*words) == 0
    printed = capsys.readouterr()
    assert "Dataset WER/CER" in printed.out
    assert (f"adapter {chosen}" if chosen else "no adapter") in printed.err
    before, lines = read_lines(manifest), read_lines(output)
    assert [{key: line[key] for key in line if key != "pred_text"} for line in lines] == before
    paths = [tmp_path / line["audio_filepath"] for line in before]
    wanted = [hypothesis.text for hypothesis in transcribe(load_model(nemo), paths, adapter=chosen)]
    assert [line["pred_text"] for line in lines] == wanted
    assert evaluate(f"dataset_manifest={output}", "only_score_manifest=true") == 0
    assert capsys.readouterr().out.splitlines()[0] == printed.out.splitlines()[0]


def test_scores_of_each_line(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text('{"text": "A b", "pred_text": "a b"}\n\n{"text": "c", "pred_text": "c"}\n')
    assert evaluate(f"dataset_manifest={path}", "only_score_manifest=true", "scores_per_sample=true") == 0
    assert [(line["wer"], line["cer"]) for line in read_lines(path)] == [(50.0, 33.33), (0.0, 0.0)]


def test_another_key_and_a_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.json"
    path.write_text('{"label": "a b c d", "pred_text": "a b c x"}\n')
    words = [f"dataset_manifest={path}", "only_score_manifest=true", "gt_text_attr_name=label"]
    assert evaluate(*words, "tolerance=0.25") == 0
    assert evaluate(*words, "tolerance=0.2") == 1
    assert "WER 0.2500 is above the tolerance, 0.2." in capsys.readouterr().out
    assert evaluate(*words, "tolerance=0.2", "use_cer=true") == 0
    capsys.readouterr()
    assert evaluate(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"wer": 0.25, "cer": 1 / 7, "lines": 1, "output": None}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "dataset_manifest: has to be given"),
        ({"dataset_manifest": "m"}, "exactly one of model_path"),
        ({"dataset_manifest": "m", "model_path": "a", "pretrained_name": "b"}, "exactly one of model_path"),
        ({"dataset_manifest": "m", "model_path": "a", "only_score_manifest": True}, "needs no model"),
        ({"dataset_manifest": "m", "model_path": "a", "use_punct_er": True}, "use_punct_er: True is not supported"),
        ({"dataset_manifest": "m", "model_path": "a", "text_processing": {"lower": True}}, "text_processing.lower"),
        ({"dataset_manifest": "m", "model_pth": "a"}, "Did you mean 'model_path'"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_prediction_settings(values)


def test_data_that_cannot_be(nemo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, bare = tmp_path / "bad.json", tmp_path / "bare.json"
    bad.write_text('{"text": "a"\n')
    bare.write_text('{"text": "a"}\n')
    for words, message in (
        ([f"dataset_manifest={bad}", "only_score_manifest=true"], "bad.json:1 is no JSON"),
        ([f"dataset_manifest={bare}", "only_score_manifest=true"], "line 1 has no text under 'pred_text'"),
        ([f"dataset_manifest={tmp_path / 'none'}", "only_score_manifest=true"], "cannot be read"),
        ([f"dataset_manifest={bare}", f"output_filename={bare}", f"model_path={nemo}"], "is the manifest itself"),
        ([f"dataset_manifest={bare}", "--adapter", "legal", f"model_path={nemo}"], "give adapter=NAME"),
        ([f"dataset_manifest={bare}", f"model_path={nemo}", "adapter=legl"], "Did you mean 'legal'"),
    ):
        assert evaluate(*words) == 2
        assert message in capsys.readouterr().err
    assert bare.read_text() == '{"text": "a"}\n'
