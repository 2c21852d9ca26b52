"""The benchmarks of serving: they run against a tiny server, and what they judge by is right; no time is looked at."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.plots import line_plot, write_section
from benchmarks.serving_adapters import APART, FAVOURED, STRENGTH, Asked, Truth, apart, make_clips, truth
from benchmarks.serving_clients import Answer, choices
from benchmarks.serving_mutations import Mutations, sounds
from benchmarks.serving_report import shares, spread
from benchmarks.serving_soak import REFUSALS, Shop, judged
from benchmarks.serving_throughput import pace
from benchmarks.serving_ties import TIE, tellable
from overtone.adapters.storage import PARAMETERS
from overtone.audio.decode import AudioDecoder
from overtone.checkpoints.load import load_model
from overtone.decoding.ctc import GreedyDecoder
from overtone.errors import AdapterError
from overtone.serving.http.errors import envelope, status_of
from overtone.tokenizers import CharTokenizer
from support.benchmark_runs import run
from support.serving_models import make_adapter, store_of, tiny_model


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


def test_small_attacks(tmp_path: Path) -> None:
    json_file, page = tmp_path / "attacks.json", tmp_path / "SERVING.md"
    run("benchmarks.serving_attacks", "--smoke", "--threads", "1", "--json", str(json_file), "--page", str(page))
    found = figures(json_file)
    assert found["alive"]
    assert len(found["attacks"]) == 13
    got = {attack["attack"]: attack["got"] for attack in found["attacks"]}
    assert got["calls without a token"] == "40 opened, 0 open"
    assert got["silent sessions of one tenant"] == "64 sessions, 6 refused"
    assert "| connections with half a head |" in page.read_text("utf-8")


def test_streams_beside_whole_recordings(tmp_path: Path) -> None:
    page = tmp_path / "SERVING.md"
    output = run("benchmarks.streaming_wer", "--smoke", "--threads", "1", "--page", str(page))
    for expected in ("| offline |", "0.8/1.6/1.6, whole", "0.16/1.92/1.92, chunks", "points"):
        assert expected in output
        assert expected in page.read_text("utf-8")


# What they judge by


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    for name in ("store", "versions"):
        (tmp_path / name).mkdir()
    return Shop(
        model=tiny_model(), folder=tmp_path / "store", versions=tmp_path / "versions", dim=4, strength=3.0
    )  # fmt: skip


@pytest.fixture
def right(shop: Shop, tmp_path: Path) -> Iterator[Truth]:
    with Truth(tiny_model(), shop.versions, make_clips(tmp_path / "clips", [2.0])) as truth:
        yield truth


def answer(shop: Shop, right: Truth, version: str | None, adapter: str | None, at: float, **others: Any) -> Answer:
    text = right.text(Asked(clip="clip000", adapter=version))
    values = {"interface": "grpc", "clip": "clip000", "adapter": adapter, "due": at, "ended": at + 1, "text": text}
    return Answer(**{**values, **others})


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
        ("INTERNAL", "lost"), ("404", "lost"), ("not_found", "lost"),
        ("RESOURCE_EXHAUSTED", "overload"), ("GONE", "vanished"),
    ]:  # fmt: skip
        assert judged(answer(shop, right, "voice.v1", "voice", at, status=status), shop, right) == verdict
    shop.change("voice", None, lambda: None, "removed")
    later = shop.history["voice"][1].begin
    for status in REFUSALS:
        assert judged(answer(shop, right, "voice.v1", "voice", later, status=status), shop, right) == "refused"
    assert judged(answer(shop, right, "voice.v1", "voice", later, status="INTERNAL"), shop, right) == "lost"


def test_a_session_for_a_damaged_adapter_ends_with_a_refusal(tmp_path: Path) -> None:
    model = tiny_model()
    make_adapter(model, tmp_path / "voice")
    parameters = tmp_path / "voice" / PARAMETERS
    parameters.write_bytes(parameters.read_bytes()[:-100])
    with pytest.raises(AdapterError) as raised:
        store_of(model, tmp_path).acquire("voice")
    assert envelope(raised.value)["error"]["code"] in REFUSALS
    assert str(status_of(raised.value)) in REFUSALS


def test_only_ties_may_fall_otherwise() -> None:
    """Symbols a and b, the blank last: the second frame is a tie, the others are sure."""
    tokenizer = CharTokenizer(["a", "b", " "])
    sure = np.log(np.array([[0.97, 0.01, 0.01, 0.01], [0.01, 0.01, 0.01, 0.97]], dtype=np.float32))
    tie = np.log(np.array([[0.01, 0.44, 0.01, 0.54]], dtype=np.float32))
    frames = np.concatenate((sure[:1], tie, sure))
    for text, told in [("aa", True), ("ab a", True), ("a", False), ("ba", False), ("aab", False), ("", False)]:
        assert tellable([frames], text, tokenizer) == told
    assert not tellable([frames], "aba", tokenizer, tie=0.1)
    assert tellable([frames[:1], frames[:1]], "a a", tokenizer), "utterances are read apart"
    assert not tellable([frames[:1], frames[:1]], "a", tokenizer)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Truth]]:
    """As in the soak test: the embedded model, and adapters that write letters of their own."""
    folder = tmp_path_factory.mktemp("speaking")
    (folder / "store").mkdir()
    with truth("fundamental", "float32", folder / "versions", make_clips(folder / "clips", [0.7, 4.0])) as right:
        yield (
            Shop(
                model=load_model("fundamental"), folder=folder / "store", versions=folder / "versions",
                dim=32, strength=STRENGTH, favoured=FAVOURED, is_distinct=right.is_distinct,
            ),
            right,
        )  # fmt: skip


def test_versions_can_be_told_apart_by_whatever_they_say(speaking: tuple[Shop, Truth]) -> None:
    shop, right = speaking
    versions = [None, *(shop.new_version("voice") for _ in range(4))]
    for clip, streamed in itertools.product(right.clips, (False, True)):
        texts = [right.text(Asked(clip=clip, adapter=version, streamed=streamed)) for version in versions]
        assert all(apart(first, second) >= APART for first, second in itertools.combinations(texts, 2))
        for text, version in zip(texts, versions, strict=True):
            for other in versions:
                verdict = right.verdict(text, [Asked(clip=clip, adapter=other, streamed=streamed)])
                assert verdict == ("right" if version == other else "wrong")


def test_a_version_that_says_what_another_says_is_not_placed(speaking: tuple[Shop, Truth]) -> None:
    shop, right = speaking
    version = shop.new_version("voice")
    twin = f"{version}.twin"
    shutil.copytree(shop.versions / version, shop.versions / twin)
    assert not right.is_distinct(twin)
    assert all(asked.adapter != twin for asked in right.known), "nor is it compared with"


def test_a_shop_makes_another_version_where_one_is_too_like_others(shop: Shop) -> None:
    shop.is_distinct = lambda version: version == "voice.v3"
    shop.put_on_disk("voice")
    assert [placed.version for placed in shop.history["voice"]] == ["voice.v3"]
    assert shop.done["thrown away, for being too like another"] == 2
    with pytest.raises(RuntimeError, match="too like others"):
        shop.new_version("voice")


def test_a_stretch_of_another_version_within_an_answer_is_found(speaking: tuple[Shop, Truth]) -> None:
    """One chunk of a stream, 0.8 s of four, from a version that is not allowed."""
    shop, right = speaking
    own, other = (Asked(clip="clip001", adapter=shop.new_version("voice"), streamed=True) for _ in range(2))
    (_, (frames,)), (_, (wrong,)) = right.heard(own), right.heard(other)
    assert right.verdict(read(frames, right), [own]) == "right"
    for begin in range(0, len(frames) - 10, 5):
        mixed = frames.copy()
        mixed[begin : begin + 10] = wrong[begin : begin + 10]
        assert right.verdict(read(mixed, right), [own]) == "wrong"


def test_what_rounding_changes_is_rounded(speaking: tuple[Shop, Truth]) -> None:
    """The least sure frame that matters to the text says its second best."""
    shop, right = speaking
    own = Asked(clip="clip001", adapter=shop.new_version("voice"))
    _, (frames,) = right.heard(own)
    ranked = np.sort(frames, axis=1)
    margins = ranked[:, -1] - ranked[:, -2]

    def second_best(place: int) -> Any:
        changed = frames.copy()
        changed[place, frames[place].argmax()] -= margins[place] + 0.01
        return changed

    ties = [int(place) for place in margins.argsort() if margins[place] < TIE]
    changed = next(text for place in ties if (text := read(second_best(place), right)) != right.text(own))
    assert right.verdict(changed, [own]) == "rounded"


def read(log_probs: Any, right: Truth) -> str:
    decoder = GreedyDecoder(right.model.tokenizer, seconds_per_frame=1.0)
    decoder.push(log_probs)
    return decoder.hypotheses()[0].text


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
        with AudioDecoder() as decoder:
            assert decoder.push(sound).size + decoder.finish().size == pytest.approx(16_000, rel=0.1)


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
