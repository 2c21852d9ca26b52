"""Clients that go away leave their places, and nothing goes on for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from overtone.audio.decode import AudioDecoder
from overtone.serving.app import ObservedApp
from overtone.serving.errors import IdleError
from overtone.serving.recognition.request import Call, RecognitionRequest
from overtone.serving.riva.servicer import StreamAnswers
from support.riva_service import file_of
from support.speaking_model import spoken
from support.web_service import WebService, eventually, form, web_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    with web_service(tmp_path_factory.mktemp("store")) as running:
        yield running


def test_a_client_that_goes_away_frees_its_place(service: WebService, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = service.server.engine
    content_type, body = form(file_of(np.tile(spoken("abc"), 10)))
    asked = threading.Event()

    def slow(*arguments: object, **options: object) -> object:
        asked.set()
        return Future[object]()

    monkeypatch.setattr(engine, "submit", slow)
    connection = service.connection()
    connection.request("POST", "/v1/audio/transcriptions", body=body, headers={"Content-Type": content_type})
    assert asked.wait(10)
    assert service.server.requests.active == 1
    connection.close()
    eventually(lambda: service.server.requests.active == 0)
    eventually(lambda: service.calls[-1].code == "499")


def test_decoding_ends_where_its_client_goes_away(service: WebService, monkeypatch: pytest.MonkeyPatch) -> None:
    decoders: list[AudioDecoder] = []
    make = service.server.service.audio_decoder
    begun = threading.Event()

    def endless(request: RecognitionRequest) -> AudioDecoder:
        decoders.append(make(request))

        def rest() -> Iterator[np.ndarray]:
            begun.set()
            while not decoders[-1].closed:
                yield np.zeros(1, np.float32)

        decoders[-1].rest = rest  # type: ignore[method-assign]
        return decoders[-1]

    monkeypatch.setattr(service.server.service, "audio_decoder", endless)
    content_type, body = form(file_of(spoken("abc")))
    connection = service.connection()
    connection.request("POST", "/v1/audio/transcriptions", body=body, headers={"Content-Type": content_type})
    assert begun.wait(60)
    connection.close()
    eventually(lambda: service.server.requests.active == 0)
    eventually(lambda: service.calls[-1].code == "499")
    assert decoders[-1].closed


def test_an_answer_that_nobody_takes_ends_its_request() -> None:
    """A client may open a connection, ask, and never read: the request must not stay for ever."""
    ended: list[Call] = []

    class Watching:
        def ended(self, interface: str, call: Call, request_id: str) -> None:
            ended.append(call)

    async def run() -> None:
        async def answering(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def stuck(message: Any) -> None:
            await asyncio.Event().wait()

        app = ObservedApp(answering, Watching(), [], idle_seconds=0.05)  # type: ignore[arg-type]
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await asyncio.wait_for(app(scope, stuck, stuck), 60)  # type: ignore[arg-type]

    asyncio.run(run())
    assert len(ended) == 1


def test_responses_that_nobody_takes_end_their_stream() -> None:
    class Stuck:
        async def write(self, response: Any) -> None:
            await asyncio.Event().wait()

    class Silent:
        async def finish(self) -> list[Any]:
            return []

    answers = StreamAnswers(context=Stuck(), session=Silent(), writer=None, id=None, idle_seconds=0.05)  # type: ignore[arg-type]
    with pytest.raises(IdleError, match="taken"):
        asyncio.run(asyncio.wait_for(answers.end(), 60))
