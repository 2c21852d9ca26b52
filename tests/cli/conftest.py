"""Command lines that run in this process, and what they work on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overtone import cli
from overtone.checkpoints.load import save_model
from support.command_line import PROMPTS, Outcome, Overtone
from support.small_models import add_trained, small_model


@pytest.fixture
def overtone(capsys: pytest.CaptureFixture[str]) -> Overtone:
    """Runs a command line: exit code, standard output, standard error."""

    def run(*words: object) -> Outcome:
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the adapters `medical` and `noise`, and `apart/` holding another."""
    folder = tmp_path_factory.mktemp("models")
    model = small_model()
    add_trained(model, "apart", seed=5)
    model.adapters.save("apart", folder / "apart")
    model.adapters.remove("apart")
    add_trained(model, "medical", seed=1)
    add_trained(model, "noise", seed=2)
    save_model(model, folder / "model")
    return folder


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    lines = [json.loads(line) for line in (PROMPTS / "test.jsonl").read_text("utf-8").splitlines()[:4]]
    path = tmp_path / "test.json"
    for line in lines:
        line["audio_filepath"] = str(PROMPTS / line["audio_filepath"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
