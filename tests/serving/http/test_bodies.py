"""Bodies that are too large are answered in words, however the client sends them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from overtone.audio.decode import AudioLimits
from support.web_service import WebService, web_service

LIMITS = replace(AudioLimits(), max_bytes=2**20)
SIZE = 40 * 2**20
"""Bytes of a body that is far too large."""


@pytest.fixture(scope="module")
def service() -> Iterator[WebService]:
    with web_service(None, limits=LIMITS) as running:
        yield running


@pytest.mark.parametrize("expects", [True, False])
def test_far_too_large(service: WebService, expects: bool) -> None:
    """A client that asks first sends nothing; another one is heard out, since it would not see the answer else."""
    lines = [
        "POST /v1/audio/transcriptions HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=x",
        f"Content-Length: {SIZE}", *(["Expect: 100-continue"] if expects else []), "", "",
    ]  # fmt: skip
    with socket.create_connection(("localhost", service.addresses.http_port), timeout=60) as client:
        client.sendall("\r\n".join(lines).encode())
        if not expects:
            for _ in range(SIZE // 2**20):
                client.sendall(bytes(2**20))
        received = b""
        while data := client.recv(2**16):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    message = json.loads(body)["error"]["message"]
    assert "has 40.0 MiB; at most 1.2 MiB are allowed" in message
    assert "--max-megabytes" in message


def test_two_hours_of_plain_samples_are_within_the_limits() -> None:
    limits = AudioLimits()
    assert limits.max_seconds * 24_000 * 2 < limits.max_bytes
