"""The report: nothing from outside, nothing unescaped, sound within its budget, legible in light and dark."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from overtone.errors import UsageError
from overtone.evaluation.listening import mark_errors
from overtone.evaluation.report.plots import ticks
from overtone.evaluation.report.writer import print_table, write_html, write_json
from overtone.evaluation.results import Difference, Evaluation, Result, UtteranceResult
from overtone.wer import character_errors, word_errors

VOID = {"meta", "link", "br", "input", "img", "source"}
HOSTILE = '<script>alert("1")</script> & co'
CARD = {
    "data": {"utterances": 182, "hours": 0.1046},
    "steps": 300,
    "wer_before": 0.702,
    "wer_after": 0.49,
    "curve": [[0, 0.702], [150, 0.55], [300, 0.49]],
    "training_seconds": 95.0,
}
LINES = [
    ("hello there", "hello there", "hello there"),
    ("press one", "press on", "press one"),
    (HOSTILE, "co", HOSTILE),
    ("", "uh", ""),
]
"""Said, heard by the base, heard by the adapter."""


class Page(HTMLParser):
    """Tags in order, with their attributes; fails where one is closed that is not open."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(markup)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def result_of(folder: Path, name: str, adapter: str | None, column: int) -> Result:
    utterances = tuple(
        UtteranceResult(
            audio_path=folder / f"{number} é.wav",
            offset=0.5 if number == 1 else 0.0,
            duration=0.4,
            line=number + 1,
            reference=line[0],
            hypothesis=line[column],
            words=word_errors(line[0], line[column]),
            characters=character_errors(line[0], line[column]),
            speaker=f"voice {number % 2} <i>" if name == "domain" else None,
        )
        for number, line in enumerate(LINES)
    )
    difference = Difference(wer=-0.2, interval=(-0.3, -0.1), better=3, worse=0, same=1)
    return Result(
        adapter=adapter,
        chain=adapter,
        manifest=folder / f"{name}.jsonl",
        name=f"set/{name}",
        wer_interval=(0.1, 0.4),
        cer_interval=(0.1, 0.2),
        difference=None if adapter is None else difference,
        wall_seconds=0.1,
        utterances=utterances,
    )


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    folder = tmp_path / "audio"
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    for number in range(len(LINES)):
        soundfile.write(folder / f"{number} é.wav", noise, 48_000)
    results = [
        result_of(folder, name, adapter, column)
        for name in ("domain", "general")
        for adapter, column in ((None, 1), ("medical+noise", 2))
    ]
    return Evaluation(
        model="fundamental <small>",
        fingerprint="sha256:0123456789abcdef",
        compute_dtype="bfloat16",
        device="cpu",
        level=0.95,
        resamples=1000,
        seed=0,
        created="2026-01-02T03:04:05+00:00",
        results=tuple(results),
        adapters={
            "medical": {"kind": "linear", "parameters": 204_864, "share": 0.0441, "card": CARD},
            "noise": {"kind": "lora", "parameters": 12, "share": 0.0, "card": {}},
        },
    )


@pytest.fixture
def page(evaluation: Evaluation, tmp_path: Path) -> str:
    return write_html(evaluation, tmp_path / "report.html").read_text("utf-8")


def test_the_page_asks_nothing_of_the_network(page: str) -> None:
    parsed = Page(page)
    addresses = [value for _, attributes in parsed.tags for key, value in attributes.items() if key in ("src", "href")]
    assert addresses
    assert not any(re.match(r"(?i)(https?:)?//", address or "") for address in addresses)
    assert all((attributes["src"] or "").startswith("data:audio/") for attributes in parsed.all("audio"))
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page
    assert parsed.all("script") == parsed.all("link") == parsed.all("img") == []


def test_transcripts_and_names_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "fundamental <small>" not in page
    assert "${" not in page


def test_drawings_are_well_formed_and_told_in_words(page: str) -> None:
    drawings = re.findall(r'<svg[^>]*role="img".*?</svg>', page, re.DOTALL)
    assert len(drawings) == 1 + 2 * 2
    assert "From 70.2\u00a0% at step 0 to 49.0\u00a0% at step 300" in page
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.findtext("title")
        assert root.findtext("desc")
        assert "nan" not in drawing


def test_the_page_tells_how_adapters_were_trained_and_what_each_speaker_got(page: str) -> None:
    words = " ".join(" ".join(Page(page).words).split())
    for told in (
        "medical+noise on fundamental",
        "6 min in 182 utterances",
        "204\u202f864, 4.41\u00a0% of the base",
        "2 min",
    ):
        assert " ".join(told.split()) in words, told
    assert "2 speakers" in words
    assert words.index("voice 0") < words.index("voice 1")  # more words
    assert "<i>" not in re.sub("<i style=[^>]*>|<i>nothing", "", page)


def test_what_gained_most_is_shown_first(page: str) -> None:
    """A visitor reads the first examples; what became worse stands last, and can be chosen."""
    firsts = re.findall(r'<li class="(better|same|worse)"', page)
    assert len(firsts) >= 4
    half = len(firsts) // 2
    order = {"better": 0, "same": 1, "worse": 2}
    for part in (firsts[:half], firsts[half:]):  # one list for each manifest
        assert [order[kind] for kind in part] == sorted(order[kind] for kind in part)


def test_errors_carry_their_sound(page: str) -> None:
    parsed = Page(page)
    players = parsed.all("audio")
    assert len(players) == 2 * 3  # of each manifest the three lines with errors
    assert all(attributes["aria-label"] for attributes in players)
    kind, content = str(players[0]["src"]).removeprefix("data:").split(";base64,")
    assert kind == "audio/ogg"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert len(samples) / rate == pytest.approx(0.4, abs=0.03)
    links = [attributes["href"] for attributes in parsed.all("a")]
    assert "audio/1%20%C3%A9.wav#t=0.5,0.9" in links


def test_sound_stays_within_its_budget(evaluation: Evaluation, tmp_path: Path) -> None:
    def players(**limits: int) -> int:
        return write_html(evaluation, tmp_path / "report.html", **limits).read_text("utf-8").count("<audio")

    assert players(players=2) == 2
    assert players(audio_bytes=0) == 0
    assert players(audio_bytes=6_000) in (1, 2, 3)


def test_small_files_are_embedded_as_they_are(evaluation: Evaluation, tmp_path: Path) -> None:
    first = evaluation.results[0].utterances[2].audio_path
    soundfile.write(first, np.zeros(6_400, np.float32), 16_000)
    content = base64.b64encode(first.read_bytes()).decode("ascii")
    assert f"data:audio/wav;base64,{content}" in write_html(evaluation, tmp_path / "r.html").read_text("utf-8")


def test_a_missing_recording_is_only_linked(evaluation: Evaluation, tmp_path: Path) -> None:
    for utterance in evaluation.results[0].utterances:
        utterance.audio_path.unlink()
    assert "<audio" not in write_html(evaluation, tmp_path / "report.html").read_text("utf-8")


def test_without_a_base_there_is_nothing_to_compare(evaluation: Evaluation, tmp_path: Path) -> None:
    alone = Evaluation(**{**vars(evaluation), "results": evaluation.results[:1]})
    markup = write_html(alone, tmp_path / "report.html").read_text("utf-8")
    Page(markup)
    assert "Utterance by utterance" not in markup
    assert "worse than the base" not in markup


def test_a_perfect_result_has_a_page_too(evaluation: Evaluation, tmp_path: Path) -> None:
    perfect = evaluation.results[1]
    assert perfect.wer == 0
    only = Evaluation(**{**vars(evaluation), "results": (Result(**{**fields(perfect), "wer_interval": (0.0, 0.0)}),)})
    Page(write_html(only, tmp_path / "report.html").read_text("utf-8"))


def fields(result: Result) -> dict[str, object]:
    return {name: getattr(result, name) for name in result.__dataclass_fields__}


def test_marks_tell_what_was_missed_and_what_was_made_up() -> None:
    marked = mark_errors("press one now", "uh press on")
    assert marked == "<ins>uh</ins> press <del>one</del> <ins>on</ins> <del>now</del>"


@given(st.floats(1e-4, 1e4))
def test_axes_have_a_few_round_marks_that_reach_the_top(highest: float) -> None:
    marks = ticks(highest)
    assert marks[0] == 0
    assert 4 <= len(marks) <= 9
    assert marks[-2] < highest <= marks[-1] * (1 + 1e-6)
    assert f"{marks[1]:.3e}"[:3] in ("1.0", "2.0", "2.5", "5.0")


# Legibility


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_are_legible_in_light_and_dark(page: str, scheme: int) -> None:
    """WCAG 2.2, level AA: 4.5 for text, 3 for drawings."""
    blocks = re.findall(r":root \{(.*?)\}", page, re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    for text, paper in (
        ("ink", "paper"), ("ink", "card"), ("muted", "paper"), ("muted", "card"), ("good", "good-paper"),
        ("bad", "bad-paper"), ("ink", "plain-paper"), ("bad", "paper"), ("good", "paper"),
    ):  # fmt: skip
        assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
    for number in range(6):
        assert contrast(colours[f"series-{number}"], colours["paper"]) >= 3, number


# The other forms


def test_json_is_that_of_the_evaluation(evaluation: Evaluation, tmp_path: Path) -> None:
    path = write_json(evaluation, tmp_path / "new" / "report.json")
    assert json.loads(path.read_text("utf-8")) == json.loads(json.dumps(evaluation.to_json()))


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(evaluation: Evaluation, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO(), legacy_windows=False)
    print_table(evaluation, console)
    shown = console.export_text()
    assert "…" not in shown
    for expected in ("set/domain", "set/general", "base", "medical+noise", "10.0 – 40.0", "−20.00 [−30.0, −10.0]"):
        assert expected in shown
    assert ("RTF" in shown) == (width == 120)


def test_a_place_that_cannot_be_written_is_one_error_and_loses_nothing(evaluation: Evaluation, tmp_path: Path) -> None:
    old = tmp_path / "report.html"
    old.write_text("old")
    with pytest.raises(UsageError, match="Cannot write"):
        write_html(evaluation, old / "below.html")
    assert old.read_text() == "old"
