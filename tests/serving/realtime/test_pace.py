"""Changes of a session cost what they weigh, and large messages stay out of the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from websockets.sync.client import connect

from overtone.serving.auth.guard import Guard, Tenant, hash_token
from overtone.serving.errors import RequestError
from overtone.serving.realtime import pace as module
from overtone.serving.realtime.pace import CHANGE_SIZE, CHANGES_PER_MINUTE, LARGE, LARGEST, Pace
from overtone.serving.recognition.decoding import DecodingThreads
from overtone.serving.recognition.request import Call
from support.web_service import WebService, web_service


class Service:
    """What a pace needs of the service."""

    def __init__(self) -> None:
        tenant = Tenant(name="anna", adapters=None, requests_per_minute=1000.0)
        self.guard = Guard(tenants={hash_token("anna"): tenant})
        self.threads = DecodingThreads(2)

    @property
    def requests_left(self) -> float:
        return next(iter(self.guard._usage.values())).requests.left


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.threads.close()


def is_main(*ignored: Any) -> bool:
    return threading.current_thread() is threading.main_thread()


def pace_of(service: Service) -> Pace:
    return Pace(service, Call(method="", tenant="anna"))  # type: ignore[arg-type]


def test_large_messages_are_read_in_threads(service: Service) -> None:
    async def run() -> None:
        pace = pace_of(service)
        assert await pace.read(is_main, "x" * LARGE)
        assert not await pace.read(is_main, "x" * (LARGE + 1))
        assert not await pace.read(is_main, f'{{"audio": "{"A" * LARGEST}"}}')
        with pytest.raises(RequestError, match="too large"):
            await pace.read(is_main, '"a", ' * LARGEST)
        assert await pace.change(is_main, CHANGE_SIZE)
        assert service.requests_left == pytest.approx(1000.0)
        assert not await pace.change(is_main, 10 * CHANGE_SIZE)
        assert 989 < service.requests_left < 991
        with pytest.raises(RequestError, match="too large"):
            await pace.change(is_main, LARGEST + 1)

    asyncio.run(run())


def test_many_changes_wait(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute's worth at once; the next one comes when the allowance has filled again."""
    now, slept = [100.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    class Loop:
        """asyncio, whose time passes at once."""

        def __getattr__(self, name: str) -> Any:
            return sleep if name == "sleep" else getattr(asyncio, name)

    monkeypatch.setattr(module, "asyncio", Loop())

    async def run() -> None:
        pace = pace_of(service)
        for _ in range(int(CHANGES_PER_MINUTE)):
            await pace.change(is_main, 0)
        assert slept == []
        await pace.change(is_main, 0)
        assert sum(slept) == pytest.approx(1.0)

    asyncio.run(run())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    with web_service(tmp_path_factory.mktemp("store"), adapters=()) as made:
        yield made


@pytest.mark.parametrize("subprotocol", [None, "realtime"])
def test_a_change_of_four_megabytes_is_refused(running: WebService, subprotocol: str | None) -> None:
    phrases = [{"phrases": [f"word{index}" for index in range(250_000)]}]
    session = {"word_boosting": {"enable_word_boosting": True, "word_boosting_list": phrases}}
    update = json.dumps({"type": "transcription_session.update", "session": session})
    assert 3 * 2**20 < len(update) < 4 * 2**20
    assert running.post("/v1/realtime/transcription_sessions", {}).status == 200
    options: dict[str, Any] = {} if subprotocol is None else {"subprotocols": [subprotocol]}
    with connect(f"ws://localhost:{running.addresses.http_port}/v1/realtime", **options) as websocket:
        websocket.recv(timeout=60)
        websocket.send(update)
        answer = json.loads(websocket.recv(timeout=60))
        while answer["type"] != "error":
            answer = json.loads(websocket.recv(timeout=60))
    assert "too large" in answer["error"]["message"]
