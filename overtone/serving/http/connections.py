"""Connections of the HTTP port: accepted here, so many at a time, and closed where their client stays silent.

A connection without a request, or with a part of its head, makes way for a new one. Where every connection is at work,
some more are accepted, on which health alone is answered. So a request for health always gets in.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

LOG = logging.getLogger("overtone.serving.http.connections")
RESERVE = 32
"""Connections beyond the most, for health."""
AT_ONCE = 64
"""Connections that are accepted before the event loop goes on."""
LOOK_SECONDS = 1.0
"""Time between two looks for silent connections."""
REST_SECONDS = 0.5
"""Time without accepting, after the system had no room for a connection."""
QUIET_SECONDS = 60.0
"""Time between two lines of the log about that."""
PASSING = (BlockingIOError, InterruptedError, ConnectionError)
"""Errors of `accept` that concern one connection, or none."""


@dataclass(kw_only=True, eq=False)
class Connection:
    """One connection, and the protocol that reads it."""

    socket: socket.socket
    protocol: H11Protocol
    crowded: bool
    since: float = field(default_factory=time.monotonic)
    """Time since when it has been silent, as far as that was looked at."""
    opening: asyncio.Task[None] | None = None
    """TLS handshake."""

    @property
    def transport(self) -> Any:
        """None before the handshake."""
        return self.protocol.transport

    @property
    def is_gone(self) -> bool:
        """True once the transport has closed the socket."""
        return self.socket.fileno() < 0

    @property
    def is_busy(self) -> bool:
        """True while a request is answered, and for WebSockets, which have limits of their own."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        if transport.get_protocol() is not self.protocol:
            return True
        cycle = self.protocol.cycle
        return cycle is not None and not cycle.response_complete

    def end(self) -> None:
        """Close it; a second time, and without a transport, at once."""
        transport = self.transport
        if transport is None:
            if self.opening is not None:
                self.opening.cancel()
            self.socket.close()
        elif transport.is_closing():
            transport.abort()
        else:
            transport.close()


class Connections:
    """Connections of one listening socket. Belongs to one event loop."""

    def __init__(
        self,
        make: Callable[[bool], H11Protocol],
        *,
        most: int,
        silent_seconds: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """make: a protocol; its argument tells whether there is no room. most: connections but for those of health.

        silent_seconds: a connection may be so long without a whole head of a request.
        """
        self.open: dict[Connection, None] = {}
        """The oldest first."""
        self._make = make
        self._most = most
        self._silent_seconds = silent_seconds
        self.tls = tls
        """The TLS context of new connections."""
        self._listening: socket.socket | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._said = float("-inf")
        """Time when the log last told that the system has no room."""

    def listen(self, listening: socket.socket, backlog: int) -> None:
        """Accept connections from now on."""
        listening.setblocking(False)
        listening.listen(backlog)
        self._listening = listening
        self._go_on()
        self._look()

    def close(self) -> None:
        """Accept no more; open connections stay."""
        for timer in self._timers.values():
            timer.cancel()
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
        self._listening = None

    def _go_on(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        """Accept what waits."""
        assert self._listening is not None
        for _ in range(AT_ONCE):
            try:
                accepted, _ = self._listening.accept()
            except PASSING:
                return
            except OSError as error:  # no file descriptors, no memory
                self._rest(error)
                return
            accepted.setblocking(False)
            self._add(accepted)

    def _add(self, accepted: socket.socket) -> None:
        crowded = self._has_no_room()
        connection = Connection(socket=accepted, protocol=self._make(crowded), crowded=crowded)
        self.open[connection] = None
        connection.opening = asyncio.get_running_loop().create_task(self._begin(connection))

    async def _begin(self, connection: Connection) -> None:
        """Let the protocol read, after the handshake if there is one."""
        options: dict[str, Any] = {}
        if self.tls is not None:
            options = {"ssl": self.tls, "ssl_handshake_timeout": self._silent_seconds}
        loop = asyncio.get_running_loop()
        protocol = cast(asyncio.Protocol, connection.protocol)
        with suppress(OSError, ssl.SSLError):  # the client's fault; the transport has closed the socket
            await loop.connect_accepted_socket(lambda: protocol, connection.socket, **options)

    def _has_no_room(self) -> bool:
        """Tell whether every connection is at work, so that the next one can only ask for health."""
        if len(self.open) < self._most:
            return False
        self._forget()
        if len(self.open) < self._most:
            return False
        silent = next((connection for connection in self.open if not connection.is_busy), None)
        if silent is not None:
            self._end(silent)
        elif len(self.open) >= self._most + RESERVE:
            self._end(next((connection for connection in self.open if connection.crowded), next(iter(self.open))))
        return len(self.open) >= self._most

    def _end(self, connection: Connection) -> None:
        del self.open[connection]
        connection.end()
        if not connection.is_gone and connection.transport is not None:
            connection.transport.abort()

    def _forget(self) -> None:
        """Forget connections that are gone."""
        for connection in [connection for connection in self.open if connection.is_gone]:
            del self.open[connection]

    def _look(self) -> None:
        """Close connections that have been silent for too long, now and in a while."""
        self._forget()
        now = time.monotonic()
        for connection in list(self.open):
            if connection.is_busy:
                connection.since = now
            elif now - connection.since > self._silent_seconds:
                connection.end()
        self._timers["look"] = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _rest(self, error: OSError) -> None:
        """Leave new connections waiting for a moment, in which a silent one makes way."""
        assert self._listening is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listening)
        self._timers["rest"] = loop.call_later(REST_SECONDS, self._go_on)
        self._forget()
        silent = next((connection for connection in self.open if not connection.is_busy), None)
        if silent is not None:
            self._end(silent)
        if time.monotonic() - self._said > QUIET_SECONDS:
            self._said = time.monotonic()
            LOG.warning("new connections wait: %s; %d are open", error.strerror or error, len(self.open))
