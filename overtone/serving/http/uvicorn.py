"""HTTP server: uvicorn in an event loop of ours, and its answer to bytes that are no HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from contextlib import suppress
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from overtone.errors import UsageError
from overtone.serving.descriptors import most_connections
from overtone.serving.errors import RequestError
from overtone.serving.http.bodies import LINGERING, LINGERING_SECONDS
from overtone.serving.http.connections import Connections
from overtone.serving.http.errors import envelope
from overtone.serving.http.gate import crowded_state
from overtone.serving.settings import ServerSettings

MAX_MESSAGE = 4 * 2**20
"""Bytes of one WebSocket message."""
LAST_SECONDS = 2
"""Time for answers that are on their way when the server closes."""
NO_HTTP = "The request is no HTTP that is understood here: its first line or a header is malformed."


class HttpServer:
    """`start` and `stop` it in a running event loop. Signals are not its business."""

    def __init__(self, app: Any, settings: ServerSettings) -> None:
        self.address = (settings.host, settings.http_port)
        self.settings = settings
        has_tls = settings.tls_certificate is not None and settings.tls_key is not None
        self.server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=connection,  # type: ignore[arg-type]
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=LAST_SECONDS,
                ws_max_size=MAX_MESSAGE,
                ws_ping_timeout=settings.idle_seconds,  # a pong waits behind audio that is not read yet
                ws_per_message_deflate=False,
                ssl_certfile=settings.tls_certificate if has_tls else None,
                ssl_keyfile=None if settings.tls_key is None else str(settings.tls_key),
                ssl_ca_certs=None if settings.client_authority is None else str(settings.client_authority),
                ssl_cert_reqs=ssl.CERT_NONE if settings.client_authority is None else ssl.CERT_REQUIRED,
            )
        )
        self.socket: socket.socket | None = None
        self.connections: Connections | None = None
        self.loop: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen, and return the port. Raises UsageError where it cannot be had."""
        self.socket = bind(*self.address)
        server = self.server
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[])  # connections are accepted here, not there
        self.connections = Connections(
            self.protocol,
            most=most_connections("http", self.settings.max_connections),
            silent_seconds=self.settings.opening_seconds,
            tls=server.config.ssl,
        )
        self.connections.listen(self.socket, server.config.backlog)
        self.loop = asyncio.create_task(server.main_loop())
        return int(self.socket.getsockname()[1])

    async def renew_keys(self) -> None:
        """Take new connections with the certificates that the files hold now; open ones keep theirs."""
        config = self.server.config
        if self.connections is not None and config.ssl_certfile:
            config.loaded = False
            config.load()
            self.connections.tls = config.ssl

    async def stop(self) -> None:
        """Stop listening; answers on their way have a moment."""
        if self.socket is not None and self.connections is not None and self.loop is not None:
            self.connections.close()
            self.server.should_exit = True
            await self.loop
            await self.server.shutdown(sockets=[self.socket])

    def protocol(self, crowded: bool) -> H11Protocol:
        """Protocol of a new connection. crowded: there is no room for it, and health alone is answered."""
        server = self.server
        return connection(
            config=server.config,
            server_state=server.server_state,
            app_state=crowded_state() if crowded else {},
        )


def bind(host: str, port: int) -> socket.socket:
    """Socket bound to an address. Raises UsageError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        raise UsageError(f"Port {port} of '{host}' cannot be used for HTTP: {error}.") from error
    return listening


# Bytes that are no HTTP


def connection(**options: Any) -> H11Protocol:
    """A connection of uvicorn's that refuses malformed requests with `refuse`."""
    protocol = H11Protocol(**options)
    protocol.send_400_response = partial(refuse, protocol, protocol.send_400_response)  # type: ignore[method-assign]
    return protocol


def refuse(protocol: H11Protocol, otherwise: Any, message: str) -> None:
    """Answer 400 and go on reading for a moment: a connection that is closed over unread bytes is reset, and the answer
    lost. In the midst of a request that is being answered, uvicorn's own way (`otherwise`) is taken."""
    if not getattr(protocol.cycle, "response_complete", True):
        otherwise(message)
        return
    content = json.dumps(envelope(RequestError(NO_HTTP))).encode()
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    transport = protocol.transport
    transport.write(f"{head}Connection: close\r\n\r\n".encode() + content)
    if transport.can_write_eof():
        with suppress(OSError):  # the client is gone already
            transport.write_eof()
    transport.set_protocol(cast(asyncio.Protocol, Lingering(protocol)))
    transport.resume_reading()


class Lingering:
    """An asyncio protocol that throws away the bytes of a client, until there are many or a moment has passed."""

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
