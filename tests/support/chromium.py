"""A real Chromium without a window, driven over its DevTools protocol: what a person does, and what is then there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # everything it loads is our own; containers have no user namespaces
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    "--mute-audio",
    "--remote-debugging-port=0",
)
SECONDS = 60.0
"""How long anything may take."""
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38,
        "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip
TEXTS = {"Enter": "\r", " ": " "}


def chromium() -> str:
    """The browser's executable: $CHROMIUM, or one on the path; else the test is skipped."""
    named = os.environ.get("CHROMIUM")
    found = next(filter(None, map(shutil.which, [named] if named else NAMES)), None)
    if found is None:
        pytest.skip(f"{named or 'Chromium'} is not here; CHROMIUM names a browser's executable")
    return found


@contextmanager
def browser(*flags: str) -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium(), *FLAGS, f"--user-data-dir={profile}", *flags, "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            wait(lambda: port_file.exists() and len(port_file.read_text().splitlines()) == 2, seconds=60)
            port, path = port_file.read_text().splitlines()
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None) as socket:
                opened = Browser(socket)
                yield opened
                opened.call("Browser.close")
            process.wait(10)
        finally:
            process.kill()
            process.wait()


def wait(true: Callable[[], Any], *, seconds: float = SECONDS) -> Any:
    """What is finally true."""
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.02)
    return found


class Browser:
    """One DevTools connection, used by one thread."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.count = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """The result of a command; events that come before it are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        self.socket.send(json.dumps({**message, **({"sessionId": session} if session else {})}))
        while True:
            answer: dict[str, Any] = json.loads(self.socket.recv(timeout=SECONDS))
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            if "method" in answer:
                self.events.append(answer)

    @contextmanager
    def page(self, **metrics: Any) -> Iterator[Tab]:
        """An empty tab with storage of its own. metrics: of `Emulation.setDeviceMetricsOverride`."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network", "DOM", "Accessibility"):
                tab.call(f"{domain}.enable")
            size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False, **metrics}
            tab.call("Emulation.setDeviceMetricsOverride", **size)
            yield tab
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)


class Tab:
    def __init__(self, browser: Browser, session: str) -> None:
        self.browser = browser
        self.session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def events(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of the kind so far."""
        self.run("0")
        found = (event for event in self.browser.events if event.get("sessionId") == self.session)
        return [event["params"] for event in found if event["method"] == method]

    def open(self, address: str) -> None:
        """Go there afresh; what was told of the page before is forgotten."""
        self.call("Page.navigate", url="about:blank")
        self.until("location.href === 'about:blank'")
        self.browser.events.clear()
        self.call("Page.navigate", url=address)
        self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    # Reading

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript, awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """The value of the expression once it is true."""
        return wait(lambda: self.run(script))

    def text(self, selector: str) -> str:
        """What is to be read there now."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText.trim()"))

    def texts(self, selector: str) -> list[str]:
        found = self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(node => node.innerText.trim())")
        return [str(text) for text in found]

    def visible(self, selector: str) -> bool:
        return bool(self.run(f"document.querySelector({json.dumps(selector)})?.checkVisibility() ?? false"))

    def accessible(self) -> list[dict[str, Any]]:
        """The accessibility tree's nodes that are not ignored, as `{"role", "name", "description", …}`."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            {
                "role": node["role"]["value"],
                "name": node.get("name", {}).get("value", ""),
                "description": node.get("description", {}).get("value", ""),
                **{each["name"]: each["value"].get("value") for each in node.get("properties", ())},
            }
            for node in nodes
            if not node["ignored"]
        ]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, uncaught exceptions, and violations of the page's policy."""
        logged = [event["entry"] for event in self.events("Log.entryAdded")]
        found = [entry["text"] for entry in logged if entry["level"] in ("warning", "error")]
        called = [event for event in self.events("Runtime.consoleAPICalled") if event["type"] in ("warning", "error")]
        found += [str(event["args"]) for event in called]
        return found + [str(event["exceptionDetails"]) for event in self.events("Runtime.exceptionThrown")]

    # Acting

    def click(self, selector: str) -> None:
        """Press the left button in the middle of the element."""
        where = self.run(
            f"(node => {{ node.scrollIntoView({{block: 'center', behavior: 'instant'}}); const box = "
            f"node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        self.click_at(*where)

    def click_at(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, times: int = 1, modifiers: int = 0) -> None:
        event = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
        for _ in range(times):
            text = {"text": TEXTS[key]} if key in TEXTS else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def drop(self, *paths: Path, x: float = 300, y: float = 300) -> None:
        """Drag files from outside onto the page."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)
