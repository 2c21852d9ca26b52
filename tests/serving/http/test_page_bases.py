"""The page of a server with several bases: one is chosen, with its adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from overtone.serving.settings import BaseSettings
from support.chromium import Browser, Tab
from support.speaking_model import Contrary, put_adapter
from support.web_page import address, done, ready, words
from support.web_service import web_service


def options(tab: Tab, select: str) -> list[str]:
    return [str(value) for value in tab.run(f"[...document.querySelector('#{select}').options].map(o => o.value)")]


def test_another_base_brings_its_adapters_and_its_transcripts(chrome: Browser, tmp_path: Path, recording: Path) -> None:
    german = tmp_path / "german"
    put_adapter(Contrary(), "swap", german)
    more = BaseSettings(model="", base="contrary", adapters=german, language="de-DE")
    with (
        web_service(tmp_path / "english", adapters=("other", "swap"), more=[(more, Contrary())]) as service,
        chrome.page() as tab,
    ):
        tab.open(address(service))
        ready(tab)
        assert not tab.run("document.querySelector('#base').closest('.field').hidden")
        assert (options(tab, "base"), options(tab, "adapter")) == (["tones", "contrary"], ["other", "swap"])
        tab.drop(recording)
        done(tab)
        assert words(tab, "base") == ["ab", "cd", "e"]
        tab.run(
            "(select => { select.value = 'contrary'; select.dispatchEvent(new Event('change')) })"
            "(document.querySelector('#base'))"
        )
        tab.until("document.querySelector('#base-words').textContent.includes('hg')")
        done(tab)
        assert options(tab, "adapter") == ["swap"]
        assert (words(tab, "base"), words(tab, "adapter")) == (["hg", "fe", "d"], ["gh", "fe", "d"])
        assert tab.text("#base-model") == "contrary"
        assert tab.complaints() == []


def test_one_base_is_not_asked_for(tab: Tab) -> None:
    assert tab.run("document.querySelector('#base').closest('.field').hidden")
    assert options(tab, "base") == ["tones"]
