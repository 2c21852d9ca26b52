"""The domain table: what it splits, keeps and writes; on noise, and nothing here looks at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.domains import trials
from benchmarks.domains.__main__ import main, write_results
from benchmarks.domains.corpora import relation, split, spread
from benchmarks.domains.page import how
from benchmarks.domains.plan import METHODS, chosen_rates, read_numbers
from benchmarks.domains.plot import axis, forgetting_plot, signed
from benchmarks.domains.table import all_intact
from overtone.backends.fused import encoder as prepared
from overtone.data.manifest import Utterance
from overtone.errors import UsageError

SMOKE = ["--smoke", "--domains", "digits", "--methods", "linear,everything,linear_words,text,prior,nemo"]


@pytest.fixture(autouse=True)
def threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run."""
    folder = tmp_path_factory.mktemp("table")
    assert main([*SMOKE, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def results(finished: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((finished / "results.json").read_text("utf-8"))
    return found


# Parts


def lines(*speakers: str | None) -> list[Utterance]:
    return [
        Utterance(
            audio_path=Path(f"{number}.wav"), duration=1.0, text="one", speaker=speaker, line=number, manifest=Path("m")
        )
        for number, speaker in enumerate(speakers)
    ]


def test_whole_speakers_are_held_out_where_several_are_known() -> None:
    training, held_out = split(lines(*"aabbccddee"))
    assert {line.speaker for line in training} == set("abcd")
    assert {line.speaker for line in held_out} == {"e"}
    training, held_out = split(lines(*"aaaaaaaaabc"))
    assert {line.speaker for line in held_out} == {"b", "c"}  # one alone is less than a fifth
    assert {line.speaker for line in training} == {"a"}


@pytest.mark.parametrize("speakers", ["a" * 11, [None] * 11, ["a", None] * 6])
def test_utterances_are_held_out_where_speakers_cannot_be(speakers: Any) -> None:
    whole = lines(*speakers)
    training, held_out = split(whole)
    assert [line.line for line in held_out] == [0, 5, 10]
    assert sorted(line.line for line in [*training, *held_out]) == [line.line for line in whole]


def test_the_relation_of_speakers_is_looked_up_and_not_believed() -> None:
    assert relation(["anna", "ben"], ["carl"]) == "speakers disjoint"
    assert relation(["anna"], ["anna"]) == "one speaker, the same"
    assert relation(["anna", "ben"], ["ben", "carl"]) == "speakers not disjoint: ben"
    assert relation([], ["anna"]) == "speakers not disjoint: the corpus does not name them"


def test_a_part_is_spread_evenly() -> None:
    whole = lines(*"aaaaaaaaaa")
    assert [line.line for line in spread(whole, 4)] == [0, 2, 5, 7]
    assert spread(whole, 99) == whole


def test_nemo_has_the_rate_of_our_linear_adapter_unless_told() -> None:
    assert chosen_rates(None, {})["nemo"] == METHODS["linear"].learning_rate
    assert chosen_rates(["linear=0.02"], {})["nemo"] == 0.02
    assert chosen_rates(None, {"linear": 0.02, "nemo": 0.5}) == chosen_rates(["linear=0.02"], {"nemo": 0.5})
    assert chosen_rates(["nemo=0.3"], {"nemo": 0.5})["nemo"] == 0.3


# The table


def test_every_row_is_measured_on_the_domain_and_on_general_speech(results: dict[str, Any]) -> None:
    domain = results["domains"]["digits"]
    assert domain["speakers"] == domain["valid_speakers"] == "speakers disjoint"
    assert set(domain["methods"]) == {"linear", "everything", "linear_words", "text"}, "the small base has no prior"
    for row in (domain["base"], *domain["methods"].values()):
        assert set(row["rates"]) == {"domain", "speechocean762", "librispeech"}
        assert all(rate["interval"][0] <= rate["wer"] <= rate["interval"][1] for rate in row["rates"].values())
    linear, everything = domain["methods"]["linear"], domain["methods"]["everything"]
    assert linear["steps"] == everything["steps"] == 2
    assert linear["trained_parameters"] == 2 * (2 * 32 + 2 * 32 * 4)  # two layers: norm, down, up
    assert everything["trained_parameters"] == results["base"]["parameters"]
    assert 0 < linear["bytes"] < everything["bytes"]
    assert linear["valid_wer_before"] > 0


def test_off_is_the_base_and_full_fine_tuning_has_none(results: dict[str, Any]) -> None:
    rows = results["domains"]["digits"]["methods"]
    assert rows["linear"]["off"] == {
        "transcripts": 10,
        "transcripts_equal": 10,
        "log_probs_equal": True,
        "weights_equal": True,
    }
    assert rows["everything"]["off"] is None
    assert all_intact(results)
    rows["linear"]["off"]["log_probs_equal"] = False
    assert not all_intact(results)


def test_the_page_tells_what_is_off_and_what_is_missing(results: dict[str, Any], tmp_path: Path) -> None:
    write_results(results, tmp_path, tmp_path / "pages" / "DOMAINS.md")
    page = (tmp_path / "pages" / "DOMAINS.md").read_text("utf-8")
    assert "| linear adapter | **" in page
    assert "yes, 10 of 10, bit for bit" in page
    assert "no off" in page
    assert "**Not compared with NeMo**" in page
    assert "linear adapter 0.003 (not tuned)" in page
    assert "speakers disjoint" in page
    assert (tmp_path / "pages" / "domains.svg").exists()
    results["domains"]["digits"]["methods"]["linear"]["off"]["transcripts_equal"] = 9
    write_results(results, tmp_path, None)
    assert "**NO**: 9 of 10 transcripts" in (tmp_path / "DOMAINS.md").read_text("utf-8")


def test_a_run_goes_on_where_it_stood(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = {path: path.stat().st_mtime_ns for path in (finished / "cells").rglob("*.json")}
    assert len(cells) == 5
    output = ["--output", str(finished)]
    assert main([*SMOKE, *output]) == 2
    assert "--resume" in capsys.readouterr().err
    (finished / "cells/digits/everything.json").unlink()
    assert main([*SMOKE, *output, "--resume"]) == 0
    assert "NOT COMPARED with NeMo" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in (finished / "cells").rglob("*.json")}
    assert after.keys() == cells.keys()
    assert [path.stem for path in cells if after[path] != cells[path]] == ["everything"]
    assert main([*SMOKE, *output, "--resume", "--steps", "3"]) == 2
    assert "steps was 2, now 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "linear"], "--speech is missing"),
        (["--smoke", "--methods", "lineal"], "unknown 'lineal'"),
        (["--smoke", "--domains", ""], "Known are prompts, digits, wakewords"),
        (["--smoke", "--steps", "0"], "at least 1 is needed"),
        (["--smoke", "--rates", "linear=0.1,0.2"], "one rate is needed, not 2"),
    ],
)
def test_mistakes_are_told(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert main([*words, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["lineal=0.1", "linear", "linear=fast", "linear=0", "linear=nan"])
def test_learning_rates_are_checked(text: str) -> None:
    with pytest.raises(UsageError, match="--grid"):
        read_numbers([text], "--grid")
    assert read_numbers(["linear=0.1,0.2"], "--grid") == {"linear": (0.1, 0.2)}


# NeMo's process

STAND_IN = """#!{python}
import json, sys
from pathlib import Path
import torch
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.checkpoints.load import load_model
from overtone.checkpoints.nemo.adapters import save_adapters
request = json.loads(Path(sys.argv[2]).read_text())
model = load_model(request["base"])
adapter = model.adapters.add(request["adapter"], LinearAdapter(dim=request["dim"]))
with torch.no_grad():
    for parameter in adapter.parameters():
        parameter.add_(torch.randn(parameter.shape))
save_adapters(model, request["adapters_file"])
heard = ["" for line in Path(request["test"]).read_text().splitlines()]
history = [dict(step=0, wer=1.0, loss=9.0), dict(step=2, wer=0.5, loss=3.0)]
answer = dict(heard=heard, history=history, best_step=2, steps=request["steps"], seconds=1.0, utterances=8)
Path(sys.argv[3]).write_text(json.dumps(answer | dict(trained_parameters=640, nemo="3.0.0", torch="2")))
"""


def test_what_nemo_trained_is_read_from_its_file_and_heard(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable), "utf-8")
    python.chmod(0o755)
    words = ["--smoke", "--domains", "digits", "--methods", "nemo", "--output", str(tmp_path / "table")]
    assert main([*words, "--nemo-python", str(python)]) == 0
    results = json.loads((tmp_path / "table" / "results.json").read_text("utf-8"))
    row = results["domains"]["digits"]["methods"]["nemo"]
    assert row["off"]["transcripts_equal"] == row["off"]["transcripts"] == 10
    assert row["own_test_wer"] == 1.0
    assert (row["valid_wer_before"], row["valid_wer"], row["best_step"]) == (1.0, 0.5, 2)
    assert row["bytes"] == (tmp_path / "table/runs/digits/nemo/adapters.pt").stat().st_size
    page = (tmp_path / "table" / "DOMAINS.md").read_text("utf-8")
    assert "NeMo 3.0.0 itself, in float32" in page
    assert "Not compared with NeMo" not in page


def test_nemo_that_fails_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--smoke", "--domains", "digits", "--methods", "nemo", "--output", str(tmp_path)]
    assert main([*words, "--nemo-python", sys.executable]) == 2
    assert "NeMo's process ended with 1" in capsys.readouterr().err
    assert "No module named 'nemo'" in (tmp_path / "runs/digits/nemo/nemo.log").read_text("utf-8")


# Choices


def test_a_learning_rate_is_chosen_and_then_used(tmp_path: Path) -> None:
    words = ["--smoke", "--domains", "wakewords", "--methods", "linear", "--output", str(tmp_path)]
    assert main([*words, "--tune", "--grid", "linear=0.5,0.02"]) == 0
    tuning = json.loads((tmp_path / "tuning.json").read_text("utf-8"))
    runs = tuning["runs"]["linear"]
    assert set(runs) == {"0.5", "0.02"}
    best = min(("0.02", "0.5"), key=lambda value: runs[value]["wakewords"]["left"])
    assert tuning["rates"] == {"linear": float(best)}
    assert main(words) == 0
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert results["domains"]["wakewords"]["methods"]["linear"]["learning_rate"] == float(best)
    page = (tmp_path / "DOMAINS.md").read_text("utf-8")
    assert "## Learning rates" in page
    assert f"linear adapter {float(best):g} (tuned below)" in page


def test_the_sweep_changes_one_thing_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    all_variants = trials.variants(layers=2)
    assert len(all_variants) <= 15
    assert len({variant.name for variant in all_variants}) == len(all_variants)
    few = [variant for variant in all_variants if variant.name in ("centre", "last half of the layers", "rate × 3")]
    streams = [variant for variant in all_variants if variant.stream]
    monkeypatch.setattr(trials, "variants", lambda layers: (*few, *streams))
    before = prepared.STREAM_DTYPE
    assert main(["--smoke", "--domains", "prompts", "--output", str(tmp_path), "--sweep"]) == 0
    assert prepared.STREAM_DTYPE is before
    rows = {row["name"]: row for row in json.loads((tmp_path / "sweep.json").read_text("utf-8"))["rows"]}
    parameters = {name: row["domains"]["prompts"]["trained_parameters"] for name, row in rows.items()}
    assert 2 * parameters["last half of the layers"] == parameters["centre"] == parameters["stream float32"]
    assert rows["rate × 3"]["learning_rate"] == pytest.approx(3 * METHODS["linear"].learning_rate)
    printed = capsys.readouterr().out
    assert "## Which defaults" in printed
    assert "- layers: last half of the layers" in printed


def test_a_default_changes_only_for_more_than_chance() -> None:
    def row(name: str, factor: str, wer: float, high: float) -> dict[str, Any]:
        return {"name": name, "factor": factor, "together": change(wer, wer - 0.1, high)}

    centre, chance = row("centre", "", 0.0, 0.0), row("seed 1", trials.CHANCE, 0.03, 0.05)
    found = {"rows": [centre, chance, row("dim 8", "dim", 0.01, 0.02), row("dim 96", "dim", -0.05, -0.01)]}
    assert trials.verdicts(found) == ["dim: dim 96, −5.0 (−15.0 … −1.0): better than the centre"]
    for unclear in (row("dim 96", "dim", -0.02, -0.01), row("dim 96", "dim", -0.05, 0.01)):
        assert "the centre stays" in trials.verdicts({"rows": [centre, chance, unclear]})[0]


# The plot


def change(wer: float, low: float, high: float) -> dict[str, Any]:
    return {"wer": wer, "interval": [low, high]}


def test_the_plot_shows_every_method_where_it_belongs() -> None:
    rows = {
        "linear": {"domain_change": change(-0.2, -0.3, -0.1), "general_change": change(0.01, -0.01, 0.03)},
        "everything": {"domain_change": change(-0.4, -0.5, -0.3), "general_change": change(0.2, 0.1, 0.3)},
    }
    drawn = forgetting_plot({"domains": {"digits": {"title": "Digits & more", "methods": rows}}})
    svg = ElementTree.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    assert svg.tag == f"{space}svg"
    marks = [group for group in svg.iter(f"{space}g") if group.find(f"{space}title") is not None]
    places = [(float(dot.get("cx", "nan")), float(dot.get("cy", "nan"))) for dot in svg.iter(f"{space}circle")]
    (linear_x, linear_y), (everything_x, everything_y) = places[: len(marks)]
    assert len(marks) == 2
    assert everything_x < linear_x, "a larger gain lies further left"
    assert everything_y < linear_y, "more forgetting lies higher up"
    assert "Digits & more" in {node.text for node in svg.iter(f"{space}text")}


def test_an_axis_holds_zero_and_every_interval() -> None:
    found = axis([change(-0.2, -0.31, -0.1)], 100.0, 400.0)
    assert found.marks[0] <= -31
    assert 0.0 in found.marks
    assert found.at(found.marks[0]) == 100.0
    assert found.at(found.marks[-1]) == 400.0
    assert axis([change(0.0, 0.0, 0.0)], 0.0, 1.0).marks[0] == 0.0
    assert [signed(value) for value in (3.24, -0.5, 0.0, -0.04, 12.0)] == ["+3.2", "−0.5", "0", "0", "+12"]


def test_a_page_of_words_alone_names_no_rates(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text("utf-8"))
    assert "linear adapter 0.0" in how(results, {})
    assert "linear adapter by NeMo" not in how({**results, "rates": {}}, {})
