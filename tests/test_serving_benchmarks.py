"""The benchmarks of serving: they run against a tiny server, and what they judge by is right; no time is looked at."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plots import line_plot, write_section
from benchmarks.serving_adapters import Asked, Truth, make_clips, write_adapter
from benchmarks.serving_clients import Answer, choices
from benchmarks.serving_mutations import Mutations, sounds
from benchmarks.serving_report import shares, spread
from benchmarks.serving_soak import Shop, judged
from benchmarks.serving_throughput import pace
from overtone.serving.sniff import decode_audio
from serving_models import tiny_model
from test_benchmarks import run


def figures(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))["figures"]


# Runs


def test_load(tmp_path: Path) -> None:
    page, json_file = tmp_path / "SERVING.md", tmp_path / "load.json"
    run("benchmarks.serving_load", "--smoke", "--threads", "1", "--page", str(page), "--json", str(json_file))
    found = figures(json_file)
    answers = found["answers"]
    assert answers["right"] + answers["rounded"] > 10
    assert answers["wrong"] == answers["unanswered"] == 0
    row = found["throughput"][0]
    assert row["resident"] == 4
    for measured in (row["speed"], row["processor"]):
        assert measured.keys() == {"base", "zipf", "base only", "16 in turn"}
        assert all(len(values) == 1 for values in measured.values())
    assert sum(values[0] for values in row["processor"].values()) > 0
    assert found["cold"]["loads"] > 0
    assert found["streams"][0]["chunks"]["count"] > 0
    text = page.read_text("utf-8")
    assert text.count("plots/serving-") == 3
    assert "### Sizing" in text
    assert "processor time" in text
    assert text.index("- zipf: ") < text.index("By the clock, for orientation")
    assert (tmp_path / "plots" / "serving-latency.svg").read_text("utf-8").startswith("<svg xmlns=")


def test_soak(tmp_path: Path) -> None:
    json_file = tmp_path / "soak.json"
    run("benchmarks.serving_soak", "--smoke", "--threads", "1", "--json", str(json_file))
    found = figures(json_file)
    assert found["clean"]
    assert found["verdicts"]["right"] > 5
    assert not found["faults"]
    assert sum(found["disturbances"].values()) > 14


def test_a_hundred_damaged_inputs(tmp_path: Path) -> None:
    json_file = tmp_path / "fuzz.json"
    run("benchmarks.serving_fuzz", "--smoke", "--threads", "1", "--json", str(json_file))
    found = figures(json_file)
    assert found["inputs"] == 100
    assert found["alive"]
    assert not found["faults"]
    assert not found["log_faults"]
    assert {"OK", "INVALID_ARGUMENT"} <= set(found["outcomes"]["recognize"])
    assert {"200", "400"} <= set(found["outcomes"]["form"])


def test_streams_beside_whole_recordings(tmp_path: Path) -> None:
    page = tmp_path / "SERVING.md"
    output = run("benchmarks.streaming_wer", "--smoke", "--threads", "1", "--page", str(page))
    for expected in ("| offline |", "0.8/1.6/1.6, whole", "0.16/1.92/1.92, chunks", "points"):
        assert expected in output
        assert expected in page.read_text("utf-8")


# What they judge by


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    for name in ("shelf", "versions"):
        (tmp_path / name).mkdir()
    return Shop(
        model=tiny_model(), folder=tmp_path / "shelf", versions=tmp_path / "versions", dim=4, strength=3.0
    )  # fmt: skip


@pytest.fixture
def right(shop: Shop, tmp_path: Path) -> Iterator[Truth]:
    with Truth(tiny_model(), shop.versions, make_clips(tmp_path / "clips", [2.0])) as truth:
        yield truth


def answer(shop: Shop, right: Truth, version: str | None, adapter: str | None, at: float, **others: Any) -> Answer:
    text = right.text(Asked(clip="clip000", adapter=version))
    return Answer(**{"door": "grpc", "clip": "clip000", "adapter": adapter, "due": at, "ended": at + 1, "text": text,
                     **others})  # fmt: skip


def test_only_the_versions_in_place_are_right(shop: Shop, right: Truth) -> None:
    shop.put_on_disk("voice")
    shop.put_on_disk("voice")
    first, second = shop.history["voice"]
    texts = {right.text(Asked(clip="clip000", adapter=name)) for name in (None, "voice.v1", "voice.v2")}
    assert len(texts) == 3
    between, after = second.begin, first.end + 1.0
    for version, at, verdict in [
        ("voice.v1", between, "right"),
        ("voice.v2", between, "right"),
        ("voice.v2", after, "right"),
        ("voice.v1", after, "wrong"),
        (None, after, "wrong"),
    ]:
        assert judged(answer(shop, right, version, "voice", at), shop, right) == verdict
    assert judged(answer(shop, right, None, None, after), shop, right) == "right"
    assert judged(answer(shop, right, "voice.v2", None, after), shop, right) == "wrong"


def test_losses_and_refusals_are_told_apart(shop: Shop, right: Truth) -> None:
    shop.put_on_disk("voice")
    at = shop.history["voice"][0].begin
    for status, verdict in [
        ("INTERNAL", "lost"), ("404", "lost"), ("RESOURCE_EXHAUSTED", "overload"), ("GONE", "vanished"),
    ]:  # fmt: skip
        assert judged(answer(shop, right, "voice.v1", "voice", at, status=status), shop, right) == verdict
    shop.change("voice", None, lambda: None, "removed")
    later = shop.history["voice"][1].begin
    assert judged(answer(shop, right, "voice.v1", "voice", later, status="404"), shop, right) == "refused"


def test_an_answer_nearer_to_its_own_adapter_is_rounded(shop: Shop, right: Truth) -> None:
    for seed in (1, 2):
        write_adapter(shop.model, shop.versions / f"voice{seed}", seed=seed, dim=4, strength=3.0)
    own, other = (Asked(clip="clip000", adapter=f"voice{seed}") for seed in (1, 2))
    right.known |= {own: "the quick brown fox jumps", other: "a slow green dog sleeps"}
    assert right.verdict("the quick brown fox  jumps", [own]) == "right"
    assert right.verdict("the quick brow fox jumps", [own]) == "rounded"
    assert right.verdict("a slow green dog sleeps", [own]) == "wrong"
    assert right.verdict("something else", [own]) == "wrong"


def test_zipf_prefers_the_first() -> None:
    drawn = choices(["a", "b", "c"], zipf=1.0, generator=random.Random(0))
    found = [next(drawn) for _ in range(3000)]
    assert found.count("a") == pytest.approx(3000 * 6 / 11, rel=0.1)
    turns = choices(["a", "b"], zipf=None, generator=random.Random(0))
    assert [next(turns) for _ in range(4)] == ["a", "b", "a", "b"]


def test_inputs_repeat_by_their_number(tmp_path: Path) -> None:
    for kind in ("recognize", "stream", "form", "raw_request"):
        first, second, third = (getattr(Mutations(seed=seed), kind)() for seed in (3, 3, 4))
        assert first == second
        assert first != third
    for sound in sounds()[1:]:
        assert decode_audio(sound).size == pytest.approx(16_000, rel=0.1)


def test_pace_counts_from_the_first_batch_on() -> None:
    batches = [10.0 + 0.5 * index + 0.001 * row for index in range(9) for row in range(16)]
    assert pace(batches) == pytest.approx(32.0, rel=0.01)
    assert pace([]) == pace([3.0]) == 0.0


def test_goals_are_judged_by_processor_time() -> None:
    row = {"processor": {"base": [2.0, 2.0, 4.0], "zipf": [2.5, 2.0, 4.0]}, "speed": {"base": [100.0], "zipf": [50.0]}}
    assert shares(row, "zipf") == [0.8, 1.0, 1.0]
    assert shares(row, "zipf", by="speed") == [0.5]
    assert shares(row, "16 in turn") == []
    assert spread(shares(row, "zipf")) == "100.0 % (80.0 – 100.0)"


# Pages


def test_sections_are_replaced_in_their_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    write_section(page, "a", "first")
    write_section(page, "b", "second")
    write_section(page, "a", "third")
    text = page.read_text("utf-8")
    assert "first" not in text
    assert text.index("third") < text.index("second")
    assert text.count("<!-- a -->") == text.count("<!-- end of a -->") == 1


def test_plots_stand_alone() -> None:
    drawing = line_plot("Title", {"a & b": [(0.0, 1.0), (2.0, 300.0)]}, x="x", y="y", goal=("goal", 200.0))
    assert drawing.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "a &amp; b" in drawing
    assert drawing.count("<circle") == 2
