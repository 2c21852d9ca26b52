"""The demonstration: everything it says is measured, and a base that is not intact would be seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from overtone import cli
from overtone import demo as demo_module
from overtone.checkpoints import load
from overtone.checkpoints.load import load_model, save_model
from overtone.data.manifest import read_manifest
from overtone.demo import ADAPTER, Demonstration, changed_most, demo, rate_text, split
from overtone.errors import UsageError
from overtone.training.console import Reporter
from overtone.training.train import run_training
from support.small_models import small_model

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ROOT / "overtone/prompts"
EMBEDDED = ROOT / "overtone/fundamental"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(small_model(name="base"), tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the prompts."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "audio").mkdir()
    for name, count in (("train.jsonl", 12), ("test.jsonl", 24)):
        lines = (PROMPTS / name).read_text("utf-8").splitlines()[:count]
        (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
        for line in lines:
            path = json.loads(line)["audio_filepath"]
            shutil.copy(PROMPTS / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def found(base: Path, prompts: Path, said: list[str], tmp_path_factory: pytest.TempPathFactory) -> Demonstration:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    return demo(folder, base=base, prompts=prompts, steps=3, say=said.append, reporter=Reporter(quiet=True))


def test_base_and_adapter_are_measured_on_the_test_split(found: Demonstration, prompts: Path) -> None:
    assert [result.adapter for result in found.evaluation.results] == [None, ADAPTER]
    assert {result.manifest for result in found.evaluation.results} == {prompts / "test.jsonl"}
    assert len(found.adapted.utterances) == 24
    assert found.adapted.difference is not None
    assert found.training.steps == 3


def test_nothing_is_trained_on_or_chosen_by_test_prompts(found: Demonstration, prompts: Path) -> None:
    train, valid = (
        {line.audio_path for line in read_manifest(found.folder / f"{name}.json")} for name in ("train", "valid")
    )
    test = {line.audio_path for line in read_manifest(prompts / "test.jsonl")}
    assert train.isdisjoint(test)
    assert valid.isdisjoint(test)
    assert train.isdisjoint(valid)
    assert len(train | valid) == 12


def test_the_whole_training_split_is_used() -> None:
    lines = read_manifest(PROMPTS / "train.jsonl")
    train, held_out = split(lines)
    assert len(train) + len(held_out) == len(lines)
    assert len(held_out) > 20


def test_the_base_is_proven_intact(found: Demonstration, base: Path) -> None:
    assert found.intact
    assert [check.name for check in found.checks][:2] == ["base weights after training", "base outputs, adapter off"]
    model = load_model(base)
    model.adapters.load(found.training.best)  # made for this very base
    assert found.evaluation.fingerprint == model.fingerprint()


def test_what_is_said_is_what_was_measured(found: Demonstration, said: list[str]) -> None:
    text = "\n".join(said)
    assert f"{rate_text(found.base)} → {rate_text(found.adapted)}" in text
    assert f"{100 * found.base.wer:.1f} %" in rate_text(found.base)
    assert str(found.report) in text
    assert str(found.training.best) in text
    assert text.count("PASS") == len(found.checks)
    assert "overtone train model.pretrained_model=" in text
    for before, after in changed_most(found):
        assert f"  base     {before.hypothesis or '(nothing)'}" in said
        assert f"  adapter  {after.hypothesis or '(nothing)'}\n" in said


def test_what_is_written(found: Demonstration) -> None:
    assert "<html" in found.report.read_text("utf-8")
    data = json.loads((found.folder / "evaluation.json").read_text("utf-8"))
    assert data["results"][1]["wer"] == found.adapted.wer
    assert (found.training.best / "adapter.safetensors").is_file()
    assert found.training.nemo is not None
    assert load_model(found.training.nemo).adapters.names == [ADAPTER]


def test_a_base_that_was_touched_is_seen(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(settings, *, model, reporter):  # type: ignore[no-untyped-def]
        result = run_training(settings, model=model, reporter=reporter)
        with torch.no_grad():
            model.decoder.projection.bias[0] += 1e-3
        return result

    monkeypatch.setattr(demo_module, "run_training", careless)
    said: list[str] = []
    reporter = Reporter(quiet=True)
    found = demo(tmp_path / "demo", base=base, prompts=prompts, steps=1, say=said.append, reporter=reporter)
    assert not found.intact
    assert [check.passed for check in found.checks[:2]] == [False, False]
    assert "The base is NOT as it was" in said


def test_nothing_is_overwritten(base: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something already"):
        demo(tmp_path, base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.fixture
def quick(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps; where the embedded base is not built, the small one stands in for it."""
    monkeypatch.setattr(demo_module, "STEPS", 2)
    if not EMBEDDED.is_dir():
        monkeypatch.setattr(load, "embedded_folder", lambda name: base)


@pytest.mark.usefixtures("quick")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "overtone_demo").mkdir()
    assert cli.main(["demo"]) == 0
    out = capsys.readouterr().out
    assert "Word error rate on the test prompts" in out
    assert "overtone_demo-2/report.html" in out
    assert (tmp_path / "overtone_demo-2/run/checkpoints/prompts-best/adapter.yaml").is_file()
    assert not any((tmp_path / "overtone_demo").iterdir())
