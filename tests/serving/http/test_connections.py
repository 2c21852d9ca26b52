"""Connections that stay silent end or make way, and a request for health gets in whatever the others do."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from websockets.sync.client import connect

from overtone.serving import descriptors
from overtone.serving.http import connections
from support.web_service import WebService, eventually, web_service

HALF_A_HEAD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


def opened(service: WebService) -> int:
    """Number of connections that the server counts."""
    assert service.server.http is not None
    assert service.server.http.connections is not None
    return len(service.server.http.connections.open)


@contextmanager
def sockets(service: WebService, count: int, begin: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that send so much and no more."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            client = socket.create_connection(("localhost", service.addresses.http_port), timeout=60)
            stack.enter_context(client)
            client.sendall(begin)
            found.append(client)
        yield found


def is_closed(client: socket.socket) -> bool:
    """Wait for the server's end of the connection."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("begin", [b"", HALF_A_HEAD], ids=["nothing", "half a head"])
def test_silent_connections_end(tmp_path: Path, begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.05)
    with (
        web_service(tmp_path, adapters=(), opening_seconds=3.0) as service,
        sockets(service, 3, begin) as clients,
        connect(f"ws://localhost:{service.addresses.http_port}/v1/realtime") as websocket,
    ):
        assert all(map(is_closed, clients))
        assert websocket.recv(timeout=60)
        eventually(lambda: opened(service) == 1)  # the session has a limit of its own


def test_a_silent_connection_makes_way(tmp_path: Path) -> None:
    with web_service(tmp_path, adapters=(), max_connections=8) as service, sockets(service, 30, HALF_A_HEAD) as clients:
        for _ in range(3):
            assert service.get("/v1/models").status == 200
        assert opened(service) <= 8
        assert all(map(is_closed, clients[:20]))


def test_health_is_answered_where_every_connection_is_at_work(tmp_path: Path) -> None:
    with web_service(tmp_path, adapters=(), max_connections=2) as service, ExitStack() as stack:
        url = f"ws://localhost:{service.addresses.http_port}/v1/realtime"
        for _ in range(2):
            stack.enter_context(connect(url)).recv(timeout=60)
        crowd = stack.enter_context(sockets(service, 2 * connections.RESERVE))
        for _ in range(3):
            assert service.get("/v1/health/live").status == 200
            assert service.get("/v1/health/ready").status == 200
            busy = service.get("/v1/models")
            assert (busy.status, busy.error["code"]) == (503, "unavailable")
        assert opened(service) <= 2 + connections.RESERVE
        assert is_closed(crowd[0])


def test_descriptors_run_out_politely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line of the log; new connections wait, silent ones make way for them, and then they are accepted."""
    monkeypatch.setattr(connections, "REST_SECONDS", 0.01)
    caplog.set_level(logging.WARNING, logger="overtone")
    tries: list[int] = []

    class Exhausted:
        """A listening socket of a process that has no descriptors for a while."""

        def __init__(self, listening: socket.socket) -> None:
            self.listening = listening

        def fileno(self) -> int:
            return self.listening.fileno()

        def accept(self) -> Any:
            tries.append(1)
            if len(tries) <= 20:
                raise OSError(errno.EMFILE, "Too many open files")
            return self.listening.accept()

    with web_service(tmp_path, adapters=()) as service, sockets(service, 2) as silent:
        eventually(lambda: opened(service) == 2)
        own = service.server.http.connections  # type: ignore[union-attr]
        assert own is not None
        own._listening = Exhausted(own._listening)  # type: ignore[assignment, arg-type]
        assert service.get("/v1/models").status == 200
        assert len(tries) > 20
        assert all(map(is_closed, silent))
    lines = [record for record in caplog.records if "new connections wait" in record.message]
    assert len(lines) == 1
    assert "Too many open files; " in lines[0].getMessage()


def test_connections_are_as_many_as_there_are_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"now": (1024, 4096)}

    class Resource:
        RLIMIT_NOFILE, RLIM_INFINITY = 7, -1

        @staticmethod
        def getrlimit(which: int) -> tuple[int, int]:
            return limits["now"]

        @staticmethod
        def setrlimit(which: int, pair: tuple[int, int]) -> None:
            limits["now"] = pair

    monkeypatch.setattr(descriptors, "resource", Resource)
    assert descriptors.most_connections("http", 2048) + descriptors.most_connections("grpc", 8192) < 1024 - 128
    descriptors.raise_limit()
    assert limits["now"] == (4096, 4096)
    assert descriptors.most_connections("http", 2048) == int((4096 - 128) * 0.4)
    limits["now"] = (-1, -1)
    assert descriptors.most_connections("http", 2048) == 2048
    monkeypatch.setattr(descriptors, "resource", None)
    assert descriptors.most_connections("http", 2048) == 2048
    descriptors.raise_limit()
