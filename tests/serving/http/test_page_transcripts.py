"""The transcripts of the page: examples, right and wrong words, copies and captions."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from support.chromium import Tab
from support.web_page import CAPTIONS, SCORE, done


def test_an_example(tab: Tab) -> None:
    tab.until("document.querySelectorAll('#example-list button').length === 3")
    tab.click("#example-list li:first-child button")
    done(tab)
    assert f"“{tab.text('#said-words')}”" == tab.text("#example-list button")
    assert "CC BY-SA" in tab.text("#credit")
    whole = len(tab.text("#said-words").split())
    assert done(tab) == f"Done. Right words: base 0 of {whole}, adapter 0 of {whole}."
    assert tab.text("#base-score") == f"0 of {whole} words right"
    assert tab.complaints() == []


def test_what_is_known_to_be_said_is_right_or_wrong(tab: Tab) -> None:
    early, score, wrong, unknown = tab.run(SCORE)
    assert (early, unknown) == (None, None)
    assert score == [2, 5]
    assert wrong == [["on", "here"], ["the"]]


def test_a_transcript_is_copied_and_saved(tab: Tab, recording: Path) -> None:
    assert tab.run("document.querySelector('#base-tools').hidden")
    tab.drop(recording)
    done(tab)
    assert tab.texts("#base-tools button") == ["Copy", "TXT", "SRT", "VTT"]
    assert tab.run(CAPTIONS) == {
        "txt": "we hear you again\n",
        "srt": "1\n00:00:00,000 --> 00:00:01,400\nwe hear you\n\n2\n01:01:01,500 --> 01:01:02,005\nagain\n",
        "vtt": "WEBVTT\n\n00:00:00.000 --> 00:00:01.400\nwe hear you\n\n01:01:01.500 --> 01:01:02.005\nagain\n",
    }
    tab.run("globalThis.saved = []; HTMLAnchorElement.prototype.click = function () { saved.push(this.download) }")
    tab.click("#base-tools button:nth-of-type(3)")
    assert tab.run("saved") == ["memo.srt"]
    assert tab.complaints() == []
