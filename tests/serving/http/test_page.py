"""The web page in a real Chromium: files, microphone, marks, errors, tokens, keyboard; and how it is served."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from overtone.serving.http.errors import CODES
from support.chromium import Browser, Tab
from support.speaking_model import spoken
from support.web_page import (
    COMPARE,
    CONTRASTS,
    RESAMPLE,
    address,
    alert,
    choose,
    done,
    marked,
    ready,
    words,
)
from support.web_service import WebService, web_service

SAID = "ab cd e"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


# Recordings


def test_a_dropped_recording_beside_its_adapter(service: WebService, tab: Tab, recording: Path) -> None:
    tab.drop(recording)
    assert done(tab) == "Done. Both heard the same words."
    assert tab.texts("#adapter option") == ["other", "swap"]
    choose(tab, "swap")
    tab.until("document.querySelector('#status').textContent.includes('differ')")
    assert done(tab) == "Done. They differ in 1 word."
    assert words(tab, "base") == ["ab", "cd", "e"]
    assert words(tab, "adapter") == ["ba", "cd", "e"]
    assert marked(tab, "base") == ["ab"]
    assert marked(tab, "adapter") == ["ba"]
    assert tab.text("#adapter-name") == "swap"
    assert tab.text("#adapter-model").startswith("linear, ")
    assert tab.text("#name") == "memo.wav"
    answer = service.transcribe(
        recording.read_bytes(), model="swap", response_format="verbose_json", granularities="word"
    ).json
    shown = [f"{word['start']:.2f} · {round(100 * word['confidence'])}%" for word in answer["words"]]
    assert tab.texts("#adapter-words small") == shown
    first = answer["words"][0]
    described = tab.run("document.querySelector('#adapter-words .word').getAttribute('aria-description')")
    percent = round(100 * first["confidence"])
    assert described == f"{first['start']:.2f} to {first['end']:.2f} s, {percent} % sure; differs"
    assert tab.complaints() == []


def test_a_word_is_played_and_lit(tab: Tab, recording: Path) -> None:
    tab.drop(recording)
    done(tab)
    begins = float(tab.text("#base-words .word:nth-of-type(2) small").split()[0])
    assert 0.9 < begins < 1.4
    tab.click("#base-words .word:nth-of-type(2) > span")
    tab.until("!audio.paused && document.querySelectorAll('.word.current').length === 2")
    assert tab.texts(".word.current > span") == ["cd", "cd"]
    assert tab.text("#play") == "Pause"
    tab.click("#play")
    tab.until("audio.paused")
    assert begins <= tab.run("audio.currentTime") < begins + 1.5
    assert tab.run("audio.duration") == pytest.approx(spoken(SAID).size / 16_000, abs=0.01)
    left, middle = tab.run("(box => [box.x, box.y + 80])(document.querySelector('#timeline').getBoundingClientRect())")
    tab.click_at(left + 3, middle)
    tab.until("audio.currentTime < 0.1")
    assert tab.run("document.querySelector('#timeline').ariaValueText").startswith("0.0 of 2.")


def test_two_adapters_in_a_row(service: WebService, tab: Tab, recording: Path) -> None:
    tab.drop(recording)
    done(tab)
    choose(tab, "swap")
    assert tab.texts("#then option") == ["nothing more", "other"]
    tab.run("document.querySelector('#then').value = 'other'")
    tab.run("document.querySelector('#then').dispatchEvent(new Event('change'))")
    tab.until("document.querySelectorAll('#adapter-words .word.differs').length === 1")
    done(tab)
    assert tab.text("#adapter-name") == "swap, then other"
    assert [call.adapter for call in service.calls if call.adapter][-1] == "swap+other"


def test_differences(tab: Tab) -> None:
    replaced, empty, unsettled, settled, long, far = tab.run(COMPARE)
    assert replaced == [["=x==", "=x==x"], [[[4, "e"]], []], 2]
    assert empty == [["", "xx"], [[[0, "a b"]], []], 2]
    assert unsettled == [["===", "=="], [[], []], 0]
    assert settled == [["xx=", "x="], [[], [[0, "a"]]], 2]
    assert long == 1
    assert far == [["xx", "xx"], [[[2, "b b"]], [[0, "a b"]]], 4]


# The microphone


def test_resampling(tab: Tab) -> None:
    length, error, alias, pieces = tab.run(RESAMPLE)
    assert 16_000 <= length <= 16_002
    assert error < 0.005
    assert alias < 0.005
    assert pieces < 1e-5


def test_the_microphone_live(service: WebService, tab: Tab) -> None:
    choose(tab, "swap")
    tab.click("#speak")
    tab.until("document.querySelector('#status').textContent.startsWith('Listening')")
    assert tab.text("#speak") == "Stop"
    assert tab.run("document.querySelector('#adapter').disabled")
    tab.until("document.querySelector('#adapter-words').innerText.includes('ba')")
    assert tab.run("document.querySelector('#status').textContent.startsWith('Listening')")
    tab.until("document.querySelector('#base-words').innerText.includes('dc')")
    tab.click("#speak")
    assert done(tab) == "Done. They differ in 1 word."
    assert words(tab, "base") == ["ab", "dc"]
    assert words(tab, "adapter") == ["ba", "dc"]
    assert marked(tab, "adapter") == ["ba"]
    assert tab.text("#aloud") == "dc"
    assert sorted(call.adapter for call in service.calls if call.method.startswith("WEBSOCKET"))[-2:] == ["", "swap"]
    times = [float(text.split()[0]) for text in tab.texts("#base-words small")]
    assert 1.5 < times[1] - times[0] < 3.5
    seconds = float(tab.run("document.querySelector('#timeline').ariaValueMax"))
    assert tab.until("audio.duration") == pytest.approx(seconds, abs=0.02)
    tab.click("#adapter-words .word:nth-of-type(2) > span")
    tab.until("audio.currentTime > 1.5")
    choose(tab, "other")
    assert done(tab)
    tab.until("document.querySelector('#status').textContent === 'Done. Both heard the same words.'")
    assert tab.complaints() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("NotAllowedError", "The microphone is blocked."), ("NotFoundError", "No microphone was found.")],
)
def test_no_microphone(tab: Tab, name: str, message: str) -> None:
    tab.run(f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{name}') }}; 0")
    tab.click("#speak")
    assert alert(tab).startswith(message)
    assert "try again" in tab.text("#notice .advice")
    assert tab.text("#speak") == "Speak"
    assert not tab.run("document.querySelector('#speak').disabled")


def test_a_page_without_https_says_so(service: WebService, chrome: Browser) -> None:
    with chrome.page() as tab:
        tab.open(address(service, "overtone.test"))
        ready(tab)
        tab.click("#speak")
        assert "only to pages over HTTPS" in alert(tab)
        assert "--tls-cert" in tab.text("#notice .advice")
        assert tab.complaints() == []


# Errors


def test_files_that_are_no_recordings(tab: Tab, recording: Path, tmp_path: Path) -> None:
    broken = tmp_path / "notes.wav"
    broken.write_text("no sound at all, " * 400)
    tab.drop(broken)
    assert "WAV, FLAC, Ogg" in alert(tab)
    assert words(tab, "base") == []
    tab.drop(recording, broken)
    assert alert(tab).startswith("One recording at a time, please.")
    tab.drop(recording)
    assert done(tab)
    assert not tab.visible("#notice")
    assert words(tab, "base") == ["ab", "cd", "e"]


def test_a_busy_server_and_the_next_try(service: WebService, tab: Tab, recording: Path) -> None:
    requests = service.server.requests
    requests.active += requests.settings.max_requests
    try:
        tab.drop(recording)
        assert "as many as are allowed" in alert(tab)
        assert tab.text("#notice .advice") == "Try again in 1 second."
        tab.click("#speak")
        tab.until("document.querySelector('#notice').textContent.includes('probably busy')")
    finally:
        requests.active -= requests.settings.max_requests
    tab.drop(recording)
    assert done(tab)


def test_a_server_that_is_gone(tab: Tab, recording: Path) -> None:
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    tab.call("Network.emulateNetworkConditions", **offline)
    tab.drop(recording)
    assert alert(tab).startswith("The server does not answer.")
    tab.call("Network.emulateNetworkConditions", **{**offline, "offline": False})
    tab.click("#notice button")
    assert done(tab)
    assert words(tab, "base") == ["ab", "cd", "e"]


# Tokens


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[WebService]:
    digest = hashlib.sha256(b"a token of the clinic").hexdigest()
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f'tenants:\n  clinic:\n    tokens: ["sha256:{digest}"]\n    adapters: [swap]\n')
    with web_service(tmp_path / "store", tokens=tokens) as running:
        yield running


def test_a_token(guarded: WebService, chrome: Browser, recording: Path) -> None:
    with chrome.page() as tab:
        tab.open(address(guarded))
        tab.until("document.querySelector('#token').checkVisibility()")
        assert tab.text("#token-problem") == "This server asks for a token."
        tab.write("a wrong one")
        tab.press("Enter")
        tab.until("document.querySelector('#token-problem').textContent.includes('does not know')")
        tab.write("a token of the clinic")
        tab.press("Enter")
        ready(tab)
        assert not tab.visible("#token")
        assert tab.texts("#adapter option") == ["swap"]
        tab.drop(recording)
        assert done(tab) == "Done. They differ in 1 word."
        tab.open(address(guarded))
        ready(tab)
        tab.click("#speak")
        tab.until("document.querySelector('#adapter-words').innerText.includes('ba')")
        guarded.run(guarded.server.stop(0))
        assert alert(tab).startswith("The server")
        tab.until("document.querySelector('#play').disabled === false")


# People


def test_with_the_keyboard_alone(tab: Tab, recording: Path) -> None:
    focused = "document.activeElement.id || document.activeElement.className || document.activeElement.textContent"
    stops = []
    for _ in range(6):
        tab.press("Tab")
        stops.append(tab.run(focused))
    assert stops[:5] == ["skip", "adapter", "then", "file", "speak"]
    file = tab.call("Runtime.evaluate", expression="document.querySelector('#file')")["result"]["objectId"]
    tab.call("DOM.setFileInputFiles", files=[str(recording)], objectId=file)
    done(tab)
    tab.run("document.querySelector('#numbers').focus(); 0")
    for name in ["VTT", "SRT", "TXT", "Copy"]:
        tab.press("Tab", modifiers=8)
        assert tab.run("document.activeElement.textContent") == name
    tab.press("Tab", modifiers=8)
    assert tab.run("document.activeElement.closest('#adapter-words') !== null")
    for key, word in [("ArrowRight", "cd"), ("End", "e"), ("ArrowRight", "e"), ("Home", "ab"), ("ArrowRight", "cd")]:
        tab.press(key)
        assert tab.run("document.activeElement.firstChild.textContent") == word
    tab.press("Enter")
    tab.until("audio.currentTime > 0.9 && !audio.paused")
    for _ in range(5):  # the buttons below the base's transcript lie between
        tab.press("Tab", modifiers=8)
    assert tab.run("document.activeElement.closest('#base-words') !== null")
    tab.press("Tab", modifiers=8)
    assert tab.run(focused) == "timeline"
    tab.press("Home")
    tab.until("audio.currentTime < 0.9")
    tab.press("Tab", modifiers=8)
    assert tab.run(focused) == "play"
    tab.until("!audio.paused")
    tab.press(" ")
    tab.until("audio.paused")


def test_names_roles_and_contrast(tab: Tab, recording: Path) -> None:
    tab.drop(recording)
    choose(tab, "swap")
    tab.until("document.querySelectorAll('.word.differs').length === 2")
    done(tab)
    nodes = tab.accessible()
    controls = [node for node in nodes if node.get("focusable") and node["role"] != "RootWebArea"]
    assert len(controls) > 10
    assert [node for node in controls if not node["name"] and node["role"] not in ("generic", "none")] == []
    named = {(node["role"], node["name"]) for node in nodes}
    assert {
        ("combobox", "Adapter"), ("button", "Choose a recording"), ("button", "Speak"), ("button", "Play"),
        ("slider", "Place in the recording"), ("group", "Words of the base"), ("checkbox", "Times and confidences"),
        ("button", "ba"), ("region", "Recording"),
    } <= named  # fmt: skip
    assert len([node for node in nodes if node["role"] == "main"]) == 1
    assert len([node for node in nodes if node["role"] == "heading" and node.get("level") == 1]) == 1
    assert tab.run("document.querySelectorAll('[role=alert], [role=status], [aria-live]').length") == 5
    assert tab.run("document.documentElement.lang") == "en"
    for scheme in ("light", "dark"):
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert tab.run(CONTRASTS) == [], scheme


def test_a_phone_and_little_motion(service: WebService, chrome: Browser, recording: Path) -> None:
    with chrome.page(**PHONE) as tab:
        tab.open(address(service))
        ready(tab)
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        tab.drop(recording)
        done(tab)
        assert tab.run("document.documentElement.scrollWidth") == 390
        heights = tab.run("[...document.querySelectorAll('.ways .button, select')].map(node => node.offsetHeight)")
        assert min(height for height in heights if height) >= 44
        tab.run("document.body.dataset.mode = 'listening'")
        assert tab.run("getComputedStyle(document.querySelector('.dot')).animationName") == "none"


# Serving


def test_the_page_knows_every_code_of_a_live_error() -> None:
    script = files("overtone.serving.http").joinpath("web/conversation.js").read_text("utf-8")
    statuses = script.partition("const STATUSES = {")[2].partition("}")[0]
    known = {code: int(status) for code, status in re.findall(r"(\w+): (\d+)", statuses)}
    assert known == {**{code: status for status, code in CODES.items()}, "model_not_found": 404}


def test_how_the_page_is_served(service: WebService) -> None:
    html = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = service.get("/", headers=html)
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-cache"
    assert page.headers["vary"] == "Accept"
    assert page.headers["x-content-type-options"] == "nosniff"
    again = service.get("/", headers={**html, "If-None-Match": page.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert service.get("/").json["service"] == "overtone"
    kinds = {"main.js": "text/javascript", "page.css": "text/css", "icon.svg": "image/svg+xml"}
    for name, kind in {**kinds, "examples.json": "application/json", "vm-next.ogg": "audio/ogg"}.items():
        answer = service.get(f"/web/{name}")
        assert answer.status == 200
        assert answer.headers["content-type"].partition(";")[0] == kind
    assert service.request("HEAD", "/web/main.js").status == 200
    for path in ("/web/", "/web/nobody.js", "/web/../http.py", "/web/%2e%2e%2fhttp.py", "/web/page.css/x"):
        assert service.get(path).status == 404, path
    assert service.request("POST", "/").status == 405
