"""Bodies that are too large are answered in words, however the client sends them."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from tempfile import SpooledTemporaryFile

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from starlette import formparsers
from starlette.types import Message

from overtone.audio.decode import AudioLimits
from overtone.serving.http import bodies
from support.riva_service import file_of
from support.speaking_model import spoken
from support.web_service import WebService, form, web_service

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


def test_a_recording_that_cannot_be_kept_is_refused_in_words(
    service: WebService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a descriptor for its file, or room on the disk; the server goes on, and waits for no more of its body."""

    class Unwritable(SpooledTemporaryFile[bytes]):
        def write(self, data: object) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

    content_type, body = form(file_of(spoken("a")))
    with monkeypatch.context() as patched:
        patched.setattr(formparsers, "SpooledTemporaryFile", Unwritable)
        patched.setattr(bodies, "LINGERING_SECONDS", 600.0)
        answer = service.request("POST", "/v1/audio/transcriptions", body=body, headers={"Content-Type": content_type})
    assert (answer.status, answer.error["code"]) == (503, "unavailable")
    assert "Too many open files. Try again later." in answer.error["message"]
    answer = service.request("POST", "/v1/audio/transcriptions", body=body, headers={"Content-Type": content_type})
    assert answer.status == 200


def test_what_is_left_of_a_body_is_thrown_away_without_an_error_and_only_until_its_end() -> None:
    messages = [(b"a", True), (bytes(100), True), (b"", False)]

    async def receive() -> Message:
        part, more = messages.pop(0)  # nothing comes after the end
        return {"type": "http.request", "body": part, "more_body": more}

    async def read() -> None:
        body = bodies.LimitedBody(receive, most=10, seconds=60.0)
        await body()
        await body.discard()
        messages.append((b"whole", False))
        body = bodies.LimitedBody(receive, most=10, seconds=60.0)
        assert (await body())["body"] == b"whole"
        await body.discard()

    asyncio.run(read())
    assert messages == []
