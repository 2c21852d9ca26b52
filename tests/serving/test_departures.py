"""Clients that go away leave their places, and nothing goes on for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from overtone.audio.decode import AudioDecoder
from overtone.serving.recognition.request import RecognitionRequest
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
