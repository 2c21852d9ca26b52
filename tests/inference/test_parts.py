"""Transcription in parts: an adapter for each row, runs that go on, JSON lines and Parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile

from overtone.cli import main
from overtone.errors import DataError, UsageError
from overtone.inference.on_cluster import MOST_ADAPTERS, Hearer, WorkerPlan, failed
from overtone.inference.parts import PartStore, Row, plan_digest, plan_parts, rows_by_column
from overtone.inference.recordings import Recording
from support.speaking_model import SAMPLE_RATE, SpeakingModel, put_adapter, spoken

TENANTS = ("swap", None, "other", "swap")


def load_tones(source: str) -> SpeakingModel:
    return SpeakingModel()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four recordings of `abba`, each of a tenant of its own, and a folder of their adapters."""
    for name in ("swap", "other"):
        put_adapter(SpeakingModel(), name, tmp_path / "adapters")
    soundfile.write(tmp_path / "a.wav", spoken("abba"), SAMPLE_RATE)
    lines = [{"audio_filepath": "a.wav", **({"tenant": name} if name else {})} for name in TENANTS]
    path = tmp_path / "calls.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def plan(folder: Path) -> WorkerPlan:
    return WorkerPlan(adapters=folder / "adapters", load=load_tones)


def texts(results: Sequence[Any]) -> list[str | None]:
    return [result.hypothesis.text if result.hypothesis else None for result in results]


def test_each_row_has_the_adapter_that_its_line_names(manifest: Path) -> None:
    rows = rows_by_column(manifest, "tenant")
    assert tuple(row.adapter for row in rows) == TENANTS
    results = Hearer(plan(manifest.parent)).transcribe(rows)
    assert texts(results) == ["baab", "abba", "abba", "baab"]
    assert tuple(result.adapter for result in results) == TENANTS


def test_an_adapter_that_is_not_there_is_an_error_of_its_rows_alone(manifest: Path) -> None:
    (first, *_) = rows_by_column(manifest, "tenant")
    rows = [first, *(Row(recording=first.recording, adapter=name) for name in ("absent", "../adapters/swap"))]
    results = Hearer(plan(manifest.parent)).transcribe(rows)
    assert texts(results) == ["baab", None, None]
    assert "absent" in str(results[1].error)


def test_a_worker_keeps_few_adapters_and_chains_share_them(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overtone.inference.on_cluster.MOST_ADAPTERS", 1)
    assert MOST_ADAPTERS > 1
    hearer = Hearer(plan(manifest.parent))
    recording = rows_by_column(manifest, "tenant")[0].recording
    for choice in ("swap", "other+swap", "other"):
        hearer.transcribe([Row(recording=recording, adapter=choice)])
        assert len(hearer.model.adapters.names) == 1
    assert hearer.model.adapters.names == ["other"]


def test_a_column_must_hold_names(tmp_path: Path, manifest: Path) -> None:
    with pytest.raises(UsageError, match=r"No line of .* has a key 'client'"):
        rows_by_column(manifest, "client")
    manifest.write_text(json.dumps({"audio_filepath": "a.wav", "tenant": 7}) + "\n")
    with pytest.raises(DataError, match=r"calls.json:1: 'tenant' is '7'"):
        rows_by_column(manifest, "tenant")


def row(number: int, seconds: float | None = 100.0) -> Row:
    recording = Recording(path=Path(f"{number}.wav"), name=f"{number}.wav", duration=seconds)
    return Row(recording=recording, adapter=None)


def test_parts_hold_some_minutes_in_the_order_of_the_rows() -> None:
    rows = [row(number) for number in range(7)]
    parts = plan_parts(rows, seconds=250.0)
    assert [len(part.rows) for part in parts] == [3, 3, 1]
    assert [each for part in parts for each in part.rows] == rows
    assert plan_parts([row(0, None)])[0].seconds > 0


def test_a_plan_is_told_by_all_that_results_depend_on() -> None:
    parts = plan_parts([row(0), row(1)])
    assert plan_digest(parts, {"beam": 1}) == plan_digest(plan_parts([row(0), row(1)]), {"beam": 1})
    assert plan_digest(parts, {"beam": 1}) != plan_digest(parts, {"beam": 2})
    assert plan_digest(parts, {}) != plan_digest(plan_parts([row(1), row(0)]), {})


def test_parts_of_another_plan_are_left_alone(tmp_path: Path) -> None:
    store = PartStore(tmp_path / "out.jsonl", "jsonl")
    assert store.open("one") == set()
    assert store.open("one") == set()
    with pytest.raises(UsageError, match="parts of another run"):
        store.open("other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds files of something else"):
        PartStore(tmp_path / "mine", "parquet").open("one")
    with pytest.raises(UsageError, match="is a folder"):
        PartStore(tmp_path, "jsonl")


def command(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`overtone transcribe` with the tone model, in parts of one recording."""
    monkeypatch.setattr("overtone.inference.parts.PART_SECONDS", 1.0)
    monkeypatch.setattr("overtone.cli.parts.partial", lambda work, **options: partial(load_tones))
    words = ["--adapter", "column:tenant", "--adapters", str(manifest.parent / "adapters")]
    return lambda output, *more: main(["transcribe", str(manifest), *words, "--output", str(output), *more])


def test_a_run_that_ended_goes_on_with_what_is_not_written(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = command(manifest, monkeypatch)
    output, heard = tmp_path / "out.jsonl", []
    whole = Hearer.transcribe

    def hear(self: Hearer, rows: Sequence[Row]) -> Any:
        if len(heard) == 2:
            raise KeyboardInterrupt
        heard.append(rows)
        return whole(self, rows)

    monkeypatch.setattr(Hearer, "transcribe", hear)
    assert run(output, "--format", "jsonl") == 130
    assert not output.exists()
    heard.append(())
    assert run(output, "--format", "jsonl") == 0
    assert len(heard) == 5  # two, the mark, and the other two
    assert "2 of 4 parts are written already" in capsys.readouterr().err
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [entry["pred_text"] for entry in found] == ["baab", "abba", "abba", "baab"]
    assert tuple(entry["adapter"] for entry in found) == TENANTS
    assert not (tmp_path / "out.jsonl.parts").exists()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(("seconds", "written", "code"), [(1.0, "3 of 4", 0), (60.0, "1 of 1", 1)])
def test_a_part_of_failures_alone_is_done_again_and_other_failures_are_not_forgotten(
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str,
    seconds: float,
    written: str,
    code: int,
) -> None:
    """The first run ends before its parts are joined. written: parts that the second one finds. code: its own."""
    pytest.importorskip("pyarrow", reason="the ray extra is not installed")
    run, whole = command(manifest, monkeypatch), Hearer.transcribe
    monkeypatch.setattr("overtone.inference.parts.PART_SECONDS", seconds)

    def hear(self: Hearer, rows: Sequence[Row]) -> Any:
        found = zip(rows, whole(self, rows), strict=True)
        return [failed(row, "out of reach") if row.adapter == "other" else result for row, result in found]

    with monkeypatch.context() as first:
        first.setattr(Hearer, "transcribe", hear)
        first.setattr(PartStore, "finish", lambda *_: None)
        assert run(tmp_path / "out", "--format", form) == 1
    assert run(tmp_path / "out", "--format", form) == code
    assert f"{written} parts are written already" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["words.txt", "base.nemo"])
def test_another_content_of_the_phrases_or_the_model_is_another_run(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    run, words = command(manifest, monkeypatch), ["--phrases", "words.txt", "--model", "base.nemo"]
    monkeypatch.chdir(tmp_path)
    for name in ("words.txt", "base.nemo"):
        (tmp_path / name).write_text("abba")
    with monkeypatch.context() as first:
        first.setattr(PartStore, "finish", lambda *_: None)
        assert run(tmp_path / "out", "--format", "jsonl", *words) == 0
    (tmp_path / file).write_text("abba cab")
    assert run(tmp_path / "out", "--format", "jsonl", *words) == 2
    assert "parts of another run" in capsys.readouterr().err


def test_the_prompt_of_the_command_reaches_workers_and_the_plan(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told, facts = command(manifest, monkeypatch), [], []
    monkeypatch.setattr("overtone.cli.parts.hear", lambda parts, plan, _: told.append(plan.options["language"]) or ())
    monkeypatch.setattr("overtone.inference.parts.plan_digest", lambda _, found: facts.append(found["language"]) or "")
    monkeypatch.setattr(PartStore, "finish", lambda *_: None)
    assert run(tmp_path / "out", "--format", "jsonl", "--prompt", "target_lang=de", "pnc=no") == 0
    assert told == facts == ["target_lang=de,pnc=no"]


def test_parquet_is_a_folder_of_parts(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the ray extra is not installed")
    run = command(manifest, monkeypatch)
    assert run(tmp_path / "out", "--format", "parquet") == 0
    table = parquet.read_table(tmp_path / "out").to_pylist()
    assert [entry["pred_text"] for entry in table] == ["baab", "abba", "abba", "baab"]
    assert [word["word"] for word in table[0]["words"]] == ["baab"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "text", "--output", "out.txt"], "need --output, and --format jsonl or parquet"),
        (["--format", "jsonl"], "need --output"),
        (["--format", "jsonl", "--output", "out.jsonl", "more.wav"], "is a key of manifests; more.wav was given"),
    ],
)
def test_what_does_not_go_together_is_said(
    manifest: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(manifest.parent)
    assert main(["transcribe", "calls.json", "--adapter", "column:tenant", *words]) == 2
    assert message in capsys.readouterr().err
