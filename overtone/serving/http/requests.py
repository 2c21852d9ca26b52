"""HTTP requests and realtime sessions that are running, who sent them, and how many there may be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.requests import HTTPConnection

from overtone.serving.errors import DrainingError, OverloadError, RequestError
from overtone.serving.recognition.bases import Bases
from overtone.serving.recognition.request import Call
from overtone.serving.recognition.service import RecognitionService
from overtone.serving.settings import ServerSettings


class HttpRequests:
    """Count of running requests, and the service and settings that all endpoints share. Belongs to one event loop."""

    def __init__(self, service: RecognitionService, settings: ServerSettings, bases: Bases | None = None) -> None:
        """service: of the first base. bases: all of them, where there are several."""
        self.service = service
        self.bases = bases or Bases([service])
        self.settings = settings
        self.active = 0
        """Transcriptions and sessions that are running."""
        self.closing = False
        """New ones are refused."""

    @contextmanager
    def begin(self, tenant: str = "") -> Iterator[None]:
        """Count a transcription or a session while it runs; it is charged to its tenant at once.

        Raises DrainingError, OverloadError or AccessError.
        """
        if self.closing:
            raise DrainingError()
        if self.active >= self.settings.max_requests:
            raise OverloadError(f"{self.active} requests are being served, as many as are allowed; try again later.")
        with self.service.guard.session(tenant):
            self.active += 1
            try:
                yield
            finally:
                self.active -= 1

    async def idle(self, seconds: float) -> bool:
        """Wait until none is running. Returns whether that came within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while self.active:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return False
        return True

    def admit(self, connection: HTTPConnection) -> Call:
        """Call of a request whose token is valid. Raises AccessError."""
        call = call_of(connection)
        self.service.admit(metadata_of(connection), call)
        return call


def call_of(connection: HTTPConnection) -> Call:
    """Record of the request, which the app reports at its end."""
    call: Call = connection.scope["state"]["call"]
    return call


def metadata_of(connection: HTTPConnection) -> list[tuple[str, str]]:
    """Headers of a request, names in lower case."""
    raw: list[tuple[bytes, bytes]] = connection.scope["headers"]
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw]


def json_object(value: Any, name: str) -> Mapping[str, Any]:
    """A JSON object. Raises RequestError where it is something else."""
    if not isinstance(value, dict):
        raise RequestError(f"'{name}' must be an object.", name)
    return value
