"""Connections of gRPC without a call end, so that a port that they have filled is open again."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")

from overtone.serving import descriptors  # noqa: E402
from overtone.serving.riva import protobuf, server  # noqa: E402
from support.riva_service import SETTINGS, Service, finals_of, riva_service, stream_requests  # noqa: E402
from support.serving_models import until  # noqa: E402
from support.speaking_model import spoken  # noqa: E402

NO_CALL = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The beginning of a connection of HTTP/2: its settings, which are none."""
MOST = 4
"""Connections of the port."""


def is_healthy(service: Service) -> bool:
    """Ask for health over a connection of one's own, which is closed at once where there is no room."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"localhost:{service.port}", options=options) as channel:
        try:
            return bool(replace(service, channel=channel).health("Check").status == protobuf.SERVING)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise


def wait_for_the_end(client: socket.socket) -> None:
    """Read until the server has closed the connection. Raises TimeoutError where it does not."""
    try:
        while client.recv(4096):
            pass
    except ConnectionError:
        pass


@pytest.mark.parametrize("begin", [b"", NO_CALL], ids=["nothing", "no call"])
def test_connections_without_a_call_end_and_a_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(server, "RESTING_SECONDS", 1.0)
    requests = list(stream_requests(spoken("abc")))
    ended: list[bool] = []

    def speaking() -> Iterator[Any]:
        """A stream that says nothing until the others have ended."""
        yield requests[0]
        until(lambda: bool(ended), 60)
        yield from requests[1:]

    settings = replace(SETTINGS, max_channels=MOST, opening_seconds=1.0, idle_seconds=120.0)
    with riva_service(tmp_path, adapters=(), settings=settings) as service, ExitStack() as stack:
        stream = service.method("StreamingRecognize")(speaking(), timeout=120.0)
        until(lambda: service.servicer.admitted == 1, 60)
        for _ in range(3 * MOST):
            client = stack.enter_context(socket.create_connection(("localhost", service.port), timeout=60))
            stack.callback(wait_for_the_end, client)
            client.sendall(begin)
        stack.pop_all().close()  # waits for each of them
        until(lambda: is_healthy(service), 60)
        ended.append(True)
        assert finals_of(stream) == ["abc "]


def test_with_few_descriptors_connections_without_a_call_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    class Resource:
        RLIMIT_NOFILE, RLIM_INFINITY = 7, -1
        limits = (1024, 1024)

        @classmethod
        def getrlimit(cls, which: int) -> tuple[int, int]:
            return cls.limits

    monkeypatch.setattr(descriptors, "resource", Resource)
    few = dict(server.channel_options(SETTINGS))
    Resource.limits = (2**20, 2**20)
    many = dict(server.channel_options(SETTINGS))
    assert few["grpc.max_allowed_incoming_connections"] < 1024 < many["grpc.max_allowed_incoming_connections"]
    for option in ("grpc.max_connection_idle_ms", "grpc.server_handshake_timeout_ms"):
        assert few[option] == 5000 < many[option]
