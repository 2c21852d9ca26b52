"""The whole server in a thread of its own, with the tone model, and calls to it by the standard library alone."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from overtone.serving.recognition.request import Call
from overtone.serving.server import Addresses, Server, ServerSettings
from overtone.serving.settings import BaseSettings
from overtone.serving.streaming.stream import StreamSettings
from support.speaking_model import SpeakingModel, put_adapter

SETTINGS = ServerSettings(
    grpc_port=0,
    http_port=0,
    stream=StreamSettings(chunk=0.4, left=0.4, right=0.4),
    idle_seconds=20.0,
    poll_seconds=0,
    compute_dtype="float32",
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found


@dataclass(kw_only=True)
class WebService:
    server: Server
    addresses: Addresses
    run: Callable[[Any], Any]
    """Runs a coroutine in the server's loop."""
    loop: asyncio.AbstractEventLoop
    calls: list[Call] = field(default_factory=list)
    tls: ssl.SSLContext | None = None

    def connection(self) -> http.client.HTTPConnection:
        port = self.addresses.http_port
        if self.addresses.tls:
            return http.client.HTTPSConnection("localhost", port, timeout=30, context=self.tls)
        return http.client.HTTPConnection("localhost", port, timeout=30)

    def request(
        self, method: str, path: str, *, body: bytes = b"", headers: dict[str, str] | None = None, token: str = ""
    ) -> Answer:
        connection = self.connection()
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        told = len(self.calls)
        try:
            connection.request(method, path, body=body or None, headers=headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(status=response.status, headers=found, body=response.read())
        finally:
            connection.close()
        eventually(lambda: len(self.calls) > told)
        return answer

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def post(self, path: str, content: Any = None, **options: Any) -> Answer:
        body = b"" if content is None else json.dumps(content).encode()
        return self.request("POST", path, body=body, headers={"Content-Type": "application/json"}, **options)

    def transcribe(self, audio: bytes | None, *, token: str = "", **fields: Any) -> Answer:
        """A list is a field that comes several times; `granularities` has brackets in its name."""
        if "granularities" in fields:
            fields["timestamp_granularities[]"] = fields.pop("granularities")
        content_type, body = form(audio, **fields)
        headers = {"Content-Type": content_type}
        return self.request("POST", "/v1/audio/transcriptions", body=body, headers=headers, token=token)

    def text(self, audio: bytes, **fields: Any) -> str:
        answer = self.transcribe(audio, **fields)
        assert answer.status == 200, answer.text
        return str(answer.json["text"])


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what happens in another thread."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def form(audio: bytes | None, **fields: Any) -> tuple[str, bytes]:
    """Content type and body of a multipart form."""
    boundary = uuid4().hex
    lines: list[bytes] = []
    for name, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            lines += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{each}\r\n'.encode()]
    if audio is not None:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="../../a.wav"\r\n'
        lines += [head.encode(), b"Content-Type: audio/wav\r\n\r\n", audio, b"\r\n"]
    return f"multipart/form-data; boundary={boundary}", b"".join([*lines, f"--{boundary}--\r\n".encode()])


@contextmanager
def web_service(
    folder: Path | None,
    *,
    adapters: Sequence[str] = ("swap", "other"),
    grace: float = 0.0,
    tls: ssl.SSLContext | None = None,
    model: Any = None,
    more: Sequence[tuple[BaseSettings, Any]] = (),
    **options: Any,
) -> Iterator[WebService]:
    """folder: of the adapters. grace: seconds for what runs at the end. model: a SpeakingModel unless given.

    more: further bases and their models.

    options: of ServerSettings.
    """
    model = model or SpeakingModel()
    for name in adapters if folder is not None else ():
        put_adapter(model, name, folder)  # type: ignore[arg-type]
    settings = replace(SETTINGS, adapters=folder, more=tuple(own for own, _ in more), **options)
    server = Server(settings, model, more=[(own, None) for _, own in more])
    calls: list[Call] = []
    ended = server.observer.ended

    def recorded(door: str, call: Call, request_id: str = "") -> None:
        ended(door, call, request_id)
        calls.append(call)

    server.observer.ended = recorded  # type: ignore[method-assign]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    try:
        yield WebService(server=server, addresses=run(server.start()), run=run, loop=loop, calls=calls, tls=tls)
    finally:
        run(server.stop(grace))
        server.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
