"""A server with its page, and a real Chromium that opens it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from support.chromium import Browser, Tab, browser
from support.riva_service import file_of
from support.speaking_model import silence, spoken
from support.web_page import address, ready
from support.web_service import WebService, web_service

SAID = "ab cd e"
MICROPHONE_RATE = 48_000
FAKE_MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    with web_service(tmp_path_factory.mktemp("store"), host_names=frozenset({"overtone.test"})) as running:
        yield running


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Its microphone hears `ab`, a pause, `dc`, a long silence, and the same again."""
    rate = MICROPHONE_RATE
    parts = [spoken("ab", rate), silence(1.5, rate), spoken("dc", rate), silence(6.0, rate)]
    heard = tmp_path_factory.mktemp("microphone") / "heard.wav"
    heard.write_bytes(file_of(np.concatenate(parts), rate=rate))
    capture = f"--use-file-for-fake-audio-capture={heard}"
    with browser(*FAKE_MICROPHONE, capture, "--host-resolver-rules=MAP overtone.test 127.0.0.1") as running:
        yield running


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "memo.wav"
    path.write_bytes(file_of(spoken(SAID)))
    return path


@pytest.fixture(scope="module")
def only_tab(chrome: Browser) -> Iterator[Tab]:
    with chrome.page() as opened:
        yield opened


@pytest.fixture
def tab(service: WebService, only_tab: Tab) -> Tab:
    only_tab.open(address(service))
    ready(only_tab)
    return only_tab
