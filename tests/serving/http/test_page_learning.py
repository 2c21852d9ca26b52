"""Mending a transcript in the page: the correction is learnt, and the recording is recognised with the next version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from overtone.learning.corrections import Corrections
from support.chromium import Browser, Tab
from support.learning_worker import worker
from support.web_page import address, choose, done, ready
from support.web_service import WebService, web_service


@pytest.fixture(scope="module")
def learning_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    with web_service(tmp_path_factory.mktemp("store"), learn=True) as running:
        assert running.server.jobs is not None
        running.server.jobs.command = lambda folder, options: worker(folder, ["--words-only"])
        running.server.jobs.yields = False
        yield running


def test_a_transcript_is_mended_and_learnt(learning_service: WebService, chrome: Browser, recording: Path) -> None:
    with chrome.page() as tab:
        tab.open(address(learning_service))
        ready(tab)
        assert tab.run("document.querySelector('#mend').hidden")
        choose(tab, "swap")
        tab.drop(recording)
        done(tab)
        tab.until("!document.querySelector('#mend').hidden")
        heard = tab.run("document.querySelector('#mend-text').value")
        assert heard == " ".join(tab.texts("#adapter-words .word > span"))
        tab.run("document.querySelector('#mend-text').value = 'abba fed'")
        tab.click("#mend .primary")
        tab.until("document.querySelector('#mend-state').textContent === 'Version 1, 1 correction.'")
        tab.until("document.querySelector('#status').textContent.startsWith('Learnt: version 1.')")
        folder = learning_service.server.settings.adapters
        assert folder is not None
        (own,) = Corrections(folder / "swap", sample_rate=16_000).read()
        assert own.text == "abba fed"
        assert own.audio is not None
        assert tab.run("document.querySelector('#mend-text').value") == "abba fed"
        tab.click("#mend .quiet")
        tab.until("document.querySelector('#status').textContent === 'Gone back to version 0.'")
        tab.run("document.querySelector('#mend-text').value = 'xyz'")
        tab.click("#mend .primary")
        tab.until("!document.querySelector('#notice').hidden")
        assert "cannot write" in tab.text("#notice")


def test_where_nothing_learns_nothing_is_offered(tab: Tab, recording: Path) -> None:
    tab.drop(recording)
    done(tab)
    assert tab.run("document.querySelector('#mend').hidden")
    assert tab.complaints() == []
