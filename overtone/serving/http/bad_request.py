"""The answer to bytes that are no HTTP: it reaches the client, who may still be sending."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from overtone.serving.http.bodies import LINGERING, LINGERING_SECONDS
from overtone.serving.http.errors import envelope, invalid

NO_HTTP = "The request is no HTTP that is understood here: its first line or a header is malformed."


def connection(**options: Any) -> H11Protocol:
    """One of uvicorn's, which refuses as told here."""
    protocol = H11Protocol(**options)
    protocol.send_400_response = partial(refuse, protocol, protocol.send_400_response)  # type: ignore[method-assign]
    return protocol


def refuse(protocol: H11Protocol, otherwise: Any, message: str) -> None:
    """Answer 400 and go on reading for a moment: a connection that is closed over unread bytes is reset, and the answer
    lost. What comes in the midst of a request that is being answered is left to uvicorn."""
    if not getattr(protocol.cycle, "response_complete", True):
        otherwise(message)
        return
    content = json.dumps(envelope(invalid(NO_HTTP))).encode()
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    transport = protocol.transport
    transport.write(f"{head}Connection: close\r\n\r\n".encode() + content)
    if transport.can_write_eof():
        transport.write_eof()
    transport.set_protocol(cast(asyncio.Protocol, Lingering(protocol)))
    transport.resume_reading()


class Lingering:
    """An asyncio protocol that throws away what comes, until enough has come or a moment has passed."""

    def __init__(self, before: H11Protocol) -> None:
        self.before = before
        self.left = LINGERING
        self.ends = before.loop.call_later(LINGERING_SECONDS, before.transport.close)

    def data_received(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left <= 0:
            self.before.transport.close()

    def eof_received(self) -> None:
        """The client has sent all: the transport closes."""

    def pause_writing(self) -> None:
        """Nothing more is written."""

    def resume_writing(self) -> None:
        """Nothing more is written."""

    def connection_lost(self, error: Exception | None) -> None:
        self.ends.cancel()
        self.before.connection_lost(error)
