"""Requests that the pages of other sites make a browser send are refused, and those that two servers read apart."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from overtone.serving.http.gate import Gate, allowed_names
from overtone.serving.settings import ServerSettings
from support.riva_service import file_of
from support.speaking_model import spoken
from support.web_service import WebService, form, web_service

SITE = "https://example.org"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    folder = tmp_path_factory.mktemp("store")
    with web_service(folder, adapters=(), host_names=frozenset({"ASR.example.net"})) as running:
        yield running


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9000", 200), ("LOCALHOST", 200), ("127.0.0.1:9000", 200), ("[::1]:9000", 200), ("10.1.2.3", 200),
        ("asr.example.net:443", 200), ("asr.example.net.", 200), ("attacker.example", 421), ("localhost.example", 421),
        ("127.0.0.1.example", 421), ("[nonsense", 421), ("[::1].example", 421),
    ],
)  # fmt: skip
def test_names_of_the_server(service: WebService, host: str, status: int) -> None:
    answer = service.get("/v1/models", headers={"Host": host})
    assert answer.status == status
    if status == 421:
        assert answer.error["code"] == "unknown_host"
        assert "--host-name" in answer.error["message"]
        assert answer.headers["connection"] == "close"
    assert service.get("/v1/health/live", headers={"Host": host}).status == 200


def test_a_rebound_name_opens_no_session(service: WebService) -> None:
    port = service.addresses.http_port
    with socket.create_connection(("localhost", port), timeout=60) as client:
        head = "GET /v1/realtime HTTP/1.1\r\nHost: attacker.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        client.sendall((head + key).encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": SITE}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_forms_of_other_sites_are_refused(service: WebService, headers: dict[str, str], status: int) -> None:
    content_type, body = form(file_of(spoken("abc")))
    answer = service.request(
        "POST", "/v1/audio/transcriptions", body=body, headers={"Content-Type": content_type, **headers}
    )
    assert answer.status == status
    if status == 403:
        assert "may not use this server" in answer.error["message"]


def test_pages_of_the_server_and_of_chosen_sites_may_use_it(service: WebService, tmp_path: Path) -> None:
    own = f"http://localhost:{service.addresses.http_port}"
    assert service.post("/v1/realtime/transcription_sessions", {}).status == 200
    assert service.request("POST", "/v1/realtime/transcription_sessions", headers={"Origin": own}).status == 200
    assert service.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status == 200  # a link to the page
    for origins in ({SITE}, {"*"}):
        with web_service(tmp_path, adapters=(), origins=frozenset(origins)) as other:
            path = "/v1/realtime/transcription_sessions"
            assert other.request("POST", path, headers={"Origin": SITE}).status == 200
            elsewhere = other.request("POST", path, headers={"Origin": "https://example.com"})
            assert elsewhere.status == (200 if "*" in origins else 403)
            with connect(f"ws://localhost:{other.addresses.http_port}/v1/realtime", origin=SITE) as websocket:
                assert json.loads(websocket.recv(timeout=60))
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://localhost:{service.addresses.http_port}/v1/realtime", origin=SITE).__enter__()
    assert refused.value.response.status_code == 403


def test_names_that_a_server_knows() -> None:
    assert allowed_names(ServerSettings()) == {"localhost", "127.0.0.1"}
    assert allowed_names(ServerSettings(host="0.0.0.0")) is None
    named = allowed_names(ServerSettings(host="0.0.0.0", host_names=frozenset({"asr.example.org"})))
    assert named == {"localhost", "0.0.0.0", "asr.example.org"}
    assert Gate(None, None, ()).knows("anything.example")  # type: ignore[arg-type]


def test_two_lengths_of_one_body_are_refused(service: WebService) -> None:
    """A server in front of this one could believe the other length, and take the rest for a request of its own."""
    body = b"5\r\nhello\r\n0\r\n\r\n"
    head = [
        b"POST /v1/realtime/transcription_sessions HTTP/1.1",
        b"Host: localhost",
        b"Content-Length: " + str(len(body)).encode(),
        b"Transfer-Encoding: chunked",
    ]
    with socket.create_connection(("localhost", service.addresses.http_port), timeout=60) as client:
        client.sendall(b"\r\n".join(head) + b"\r\n\r\n" + body)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"not both" in answer
    assert answer.count(b"HTTP/1.1") == 1
