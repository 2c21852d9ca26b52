"""Gate of the HTTP application: refuses what only an attack sends, before anything of a request is read.

A page of another site makes a browser send requests: with a form, or under a name of its own that suddenly means this
computer (DNS rebinding). The browser tells both: in the header `Origin`, and in `Host`, which then holds that name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from overtone.serving.http.errors import HttpError, error_response
from overtone.serving.settings import ServerSettings

LOOPBACK = ("127.0.0.1", "::1", "localhost")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d*)?")
"""A name or an address, and perhaps a port."""
HEALTH = ("/v1/health/live", "/v1/health/ready")
"""Paths that are answered whatever comes: they tell nothing, and change nothing."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
CROWDED = "crowded"
"""Key of a connection's state that marks one more than there is room for."""


def allowed_names(settings: ServerSettings) -> frozenset[str] | None:
    """Names that requests may call this server by, in lower case; None for any name. IP addresses always may.

    A server that others reach goes by names that it does not know, unless it is told.
    """
    if settings.host_names or settings.host in LOOPBACK:
        return frozenset({"localhost", settings.host.lower(), *(name.lower() for name in settings.host_names)})
    return None


class Gate:
    """ASGI application in front of another one."""

    def __init__(self, app: ASGIApp, names: frozenset[str] | None, origins: Collection[str]) -> None:
        """names: result of `allowed_names`. origins: web sites besides the server's own; `*` is all."""
        self.app = app
        self.names = names
        self.origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it pass."""
        problem = self.problem(scope)
        if problem is None:
            await self.app(scope, receive, send)
            return
        response = error_response(problem, with_detail=True)
        response.headers["Connection"] = "close"
        await response(scope, receive, send)

    def problem(self, scope: Scope) -> HttpError | None:
        """Error of a request that is refused; None for one that may pass."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if b"content-length" in headers and b"transfer-encoding" in headers:
            return HttpError(400, "A request has Content-Length or Transfer-Encoding, not both.")
        if scope["path"] in HEALTH:
            return None
        if scope.get("state", {}).get(CROWDED):
            return HttpError(503, "There are more connections than the server has room for; try again later.")
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if host and not self.knows(host):
            return HttpError(
                421,
                f"This server does not go by the name '{host[:100]}'. Use its address, or start it with --host-name.",
                code="unknown_host",
            )
        return self.origin_problem(scope, headers, host)

    def knows(self, host: str) -> bool:
        """Tell whether a `Host` is one of the server's. host: in lower case, perhaps with a port."""
        if self.names is None:
            return True
        found = HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]").rstrip(".")
        return name in self.names or is_address(name)

    def origin_problem(self, scope: Scope, headers: dict[bytes, bytes], host: str) -> HttpError | None:
        """Error of a request that comes from the page of another site; None for others."""
        origin = headers.get(b"origin")
        if origin is None:
            is_foreign = headers.get(b"sec-fetch-site") == b"cross-site" and scope.get("method") not in SAFE_METHODS
            shown = "another site"
        else:
            shown = origin.decode("latin-1")
            is_foreign = not self.origins & {shown, "*"} and place_of(shown) != host
        if not is_foreign or "*" in self.origins:
            return None
        return HttpError(
            403,
            f"Pages of {shown[:100]} may not use this server. Start it with --allow-origin to let them.",
            code="foreign_origin",
        )


def place_of(origin: str) -> str | None:
    """Host and port of an origin in lower case; None where it has none, as `null` does."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def is_address(name: str) -> bool:
    """Tell whether a name is an IP address: nobody can make that mean another computer."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def crowded_state() -> dict[str, Any]:
    """State of a connection for which there is no room: only health is answered on it."""
    return {CROWDED: True}
