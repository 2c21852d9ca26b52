"""`overtone adapters`: its words, its table and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overtone import cli
from overtone.checkpoints.load import load_model, save_model
from support.small_models import add_trained, small_model


@pytest.fixture
def nemo(tmp_path: Path) -> Path:
    model = small_model()
    for name in ("medical", "legal"):
        add_trained(model, name)
    model.adapters["medical"].card = {"wer_before": 0.25, "wer_after": 0.125}
    return save_model(model, tmp_path / "adapted.nemo")


def test_the_actions(nemo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(nemo)
    for words in (
        ["rename", path, "medical", "cardiology"],
        ["copy", path, "legal", "law"],
        ["copy", path, "legal", "--to", str(tmp_path / "apart")],
        ["remove", path, "legal"],
        ["enable", path, "law"],
    ):
        assert cli.main(["adapters", *words]) == 0
    capsys.readouterr()
    assert cli.main(["adapters", "list", path, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(entry["name"], entry["enabled"]) for entry in listed] == [("cardiology", False), ("law", True)]
    assert cli.main(["adapters", "enable", path, "--none", "--output", str(tmp_path / "off.nemo")]) == 0
    assert load_model(tmp_path / "off.nemo").adapters.file_choice == ()
    assert load_model(nemo).adapters.file_choice == ("law",)
    capsys.readouterr()
    assert cli.main(["adapters", "list", str(tmp_path / "apart")]) == 0
    assert "legal" in capsys.readouterr().out


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model()
    add_trained(model, "medical")
    model.adapters["medical"].card = {"wer_before": 0.25, "wer_after": 0.125}
    save_model(model, tmp_path / "model")
    assert cli.main(["adapters", "list", str(tmp_path / "model")]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "kind", "modules", "layers", "parameters", "enabled", "WER"]
    assert row.split()[:4] == ["medical", "linear", "encoder", "all"]
    assert row.endswith("25.00% → 12.50%")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst", "PATH"], "Did you mean 'list'"),
        (["rename", "PATH", "medical"], "takes OLD NEW"),
        (["list", "PATH", "medical"], "takes no names"),
        (["enable", "PATH"], "or --none"),
        (["enable", "PATH", "medical", "--none"], "or --none"),
        (["copy", "PATH", "medical"], "or --to"),
        (["remove", "PATH", "medical", "--to", "x"], "--to is for `overtone adapters copy`"),
        (["list", "PATH", "--output", "x"], "--output is for a changed model"),
        (["remove", "PATH", "medcal"], "Did you mean 'medical'"),
    ],
)
def test_mistakes(words: list[str], message: str, nemo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = nemo.read_bytes()
    assert cli.main(["adapters", *(str(nemo) if word == "PATH" else word for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert nemo.read_bytes() == before
