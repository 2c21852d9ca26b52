"""Scores of a search's runs: the constrained score, its table, CSV and plot, and NeMo's table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from overtone import cli
from overtone.errors import UsageError
from overtone.evaluation.scores import constrained_score, score_runs
from support.small_models import add_trained, small_model

TABLE = """Model,Group,Adapter Position,Adapter Dimensions,Adapter Dropout,Stochastic Depth,Train Steps,WER: Test,WER: Librispeech Test Other
m,irish,encoder,32,0.5,0.0,5000,16.552,5.618
m,welsh,encoder,32,0.5,0.0,5000,8.6,4.618
m,irish,encoder,64,0.5,0.0,5000,10.345,9.0
m,welsh,encoder,64,0.5,0.0,5000,12.0,5.118
m,irish,decoder,32,0.5,0.0,5000,20.0,5.118
"""  # noqa: E501
BASES = ["--base-original", "5.118", "--base-adapted", "irish=20.69", "--base-adapted", "welsh=11.463"]


def make_run(folder: Path, *, after: float, general: list[tuple[float, float, int]] | None, dim: int = 8) -> None:
    """A run folder whose best adapter has a card with these rates."""
    model = small_model()
    add_trained(model, "medical")
    card: dict[str, object] = {"wer_before": 0.4, "wer_after": after}
    if general is not None:
        card["general"] = [
            {"manifest": "g", "wer_before": before, "wer_after": now, "words": words} for before, now, words in general
        ]
    model.adapters["medical"].card = card
    model.adapters.save("medical", folder / "checkpoints/medical-best")
    settings = {"model": {"adapter": {"linear": {"dim": dim}}, "optim": {"lr": 0.001}}, "seed": 0, "name": folder.name}
    (folder / "hparams.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture
def search(tmp_path: Path) -> Path:
    folder = tmp_path / "search"
    make_run(folder / "0", after=0.2, general=[(0.1, 0.115, 100)], dim=8)
    make_run(folder / "1", after=0.1, general=[(0.1, 0.2, 100)], dim=16)
    make_run(folder / "2", after=0.28, general=[(0.1, 0.08, 300), (0.2, 0.2, 100)], dim=32)
    make_run(folder / "3", after=0.1, general=None, dim=64)
    return folder


@pytest.mark.parametrize(
    ("after", "general", "score"),
    [
        (0.2, 0.1, 0.5),
        (0.2, 0.115, 0.25),
        (0.2, 0.13, 0.0),
        (0.2, 0.5, 0.0),
        (0.2, 0.05, 0.5),
        (0.5, 0.1, 0.0),
        (0.0, 0.1, 1.0),
    ],
)
def test_the_score(after: float, general: float, score: float) -> None:
    """An improvement of general speech is no damage; a loss on the domain is no gain."""
    found = constrained_score(wer_before=0.4, wer_after=after, general_before=0.1, general_after=general, allowed=0.03)
    assert found == pytest.approx(score)


def test_runs_are_ranked(search: Path) -> None:
    runs = score_runs(search)
    assert [run.folder.name for run in runs] == ["2", "0", "1"], "one without general speech has no score"
    assert [run.score for run in runs] == pytest.approx([0.3, 0.25, 0.0])
    assert runs[0].damage == pytest.approx((0.08 * 300 + 0.2 * 100) / 400 - (0.1 * 300 + 0.2 * 100) / 400)
    assert [run.chosen for run in runs] == [{"model.adapter.linear.dim": str(dim)} for dim in (32, 8, 16)]
    assert [run.folder.name for run in score_runs(search, allowed=0.5)] == ["1", "0", "2"]


def test_the_command(search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, plot = tmp_path / "scores.csv", tmp_path / "scores.svg"
    assert cli.main(["scores", str(search), "--csv", str(table), "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    assert "Left out: 1 runs" in err
    head, best, *_ = out.splitlines()
    assert head.split()[:3] == ["score", "domain", "WER"]
    assert best.split()[0] == "0.3000"
    assert "dim=32" in best
    rows = list(csv.DictReader(table.open()))
    assert [row["model.adapter.linear.dim"] for row in rows] == ["32", "8", "16"]
    assert float(rows[1]["damage"]) == pytest.approx(0.015)
    dots = ElementTree.fromstring(plot.read_text()).findall("{http://www.w3.org/2000/svg}circle")
    assert len(dots) == 3
    assert cli.main(["scores", str(search), "--json"]) == 0
    assert [entry["score"] for entry in json.loads(capsys.readouterr().out)] == pytest.approx([0.3, 0.25, 0.0])


def test_nothing_to_rank(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no runs with a best adapter"):
        score_runs(tmp_path)
    make_run(tmp_path / "0", after=0.2, general=None)
    with pytest.raises(UsageError, match="there is no score"):
        score_runs(tmp_path)
    with pytest.raises(UsageError, match="more than 0"):
        score_runs(tmp_path, allowed=0.0)


def test_the_table_of_nemo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Improvements count as damage there; the numbers are those of NeMo's formula with four decimals."""
    path = tmp_path / "results.csv"
    path.write_text(TABLE)
    words = ["scores", str(path), "--nemo-compat", "--dataset-type-column", "Group", *BASES]
    assert cli.main(words) == 0
    rows = list(csv.DictReader(path.open()))
    assert "Model" not in rows[0]
    assert [(row["Original Scale"], row["Adapt WERR"], row["Score"]) for row in rows] == [
        ("0.8333", "0.2", "0.1667"),
        ("0.8333", "0.2498", "0.2081"),
        ("0.0", "0.5", "0.0"),
        ("1.0", "0.0", "0.0"),
        ("1.0", "0.0333", "0.0333"),
    ]
    constrained, unconstrained = capsys.readouterr().out.split("Unconstrained")
    assert [line.split()[0] for line in constrained.splitlines() if "5000" in line] == ["32", "32"]
    assert [line.split()[0] for line in unconstrained.splitlines() if "5000" in line] == ["64", "32"]
    assert f"{(16.552 + 8.6) / 2:.3f}" in constrained
    assert cli.main([*words, "-s", "-cargs", "Adapter Position", "encoder", "--csv", str(tmp_path / "new.csv")]) == 0
    constrained = capsys.readouterr().out.split("Unconstrained")[0]
    assert [line.split()[0] for line in constrained.splitlines() if "5000" in line] == ["32", "64"]
    assert (tmp_path / "new.csv").read_text() == path.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nemo-compat"], "needs --dataset-type-column"),
        (["--nemo-compat", "--dataset-type-column", "Grup", *BASES], "Did you mean 'Group'"),
        (["--nemo-compat", "--dataset-type-column", "Group", *BASES[:4]], "no base for welsh"),
        (["--nemo-compat", "--dataset-type-column", "Group", *BASES[:2], "--base-adapted", "irish"], "GROUP=WER"),
        (["--nemo-compat", "--dataset-type-column", "Group", *BASES, "-uargs", "Steps", "1"], "no column 'Steps'"),
        (["--nemo-compat", "--dataset-type-column", "Group", *BASES, "--json"], "leave them out"),
        (["--base-original", "5"], "are for --nemo-compat"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.csv"
    path.write_text(TABLE)
    assert cli.main(["scores", str(path), *words]) == 2
    assert message in capsys.readouterr().err
