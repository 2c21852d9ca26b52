"""Administration of the shelf: which adapters there are, what state they are in, and changing that.

Names come from requests; the shelf takes only letters, digits, `.`, `_` and `-`, and knows what it holds, so that no
path can be said. Everything needs the administrator's token.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from overtone.adapters.adapter import check_name
from overtone.errors import AdapterError
from overtone.serving.adapter_store.store import ShelfEntry
from overtone.serving.http.bodies import body_of, form_of
from overtone.serving.http.errors import HttpError
from overtone.serving.http.requests import Reception, metadata_of
from overtone.serving.openai.endpoints import audio_of

DEEPEST = 16
"""Levels of a card that are shown."""


class Administration:
    def __init__(self, reception: Reception) -> None:
        self.reception = reception
        self.shelf = reception.shelf

    async def list(self, request: Request) -> Response:
        """GET /v1/admin/adapters; refused ones included, with the reason."""
        self.admitted(request)
        entries = await asyncio.to_thread(self.shelf.names)
        return JSONResponse({"object": "list", "data": [shown(entry) for entry in entries]})

    async def one(self, request: Request) -> Response:
        """GET, PUT (or POST) and DELETE /v1/admin/adapters/NAME."""
        name = self.admitted(request)
        if request.method in ("GET", "HEAD"):
            return JSONResponse(shown(await self.known(name)))
        if request.method == "DELETE":
            await self.known(name)
            await asyncio.to_thread(accepted, self.shelf.remove, name)
            return Response(status_code=204)
        archive = await self.archive(request)
        entry = await asyncio.to_thread(accepted, self.shelf.put, name, archive)
        return JSONResponse(shown(entry), 201)

    async def load(self, request: Request) -> Response:
        """POST /v1/admin/adapters/NAME/load: into the model, before the first request asks for it."""
        name = self.admitted(request)
        await self.known(name)
        lease = await asyncio.to_thread(accepted, self.shelf.acquire, name)
        lease.release()
        return JSONResponse(shown(await self.known(name)))

    async def unload(self, request: Request) -> Response:
        """POST /v1/admin/adapters/NAME/unload: out of the model; requests that name it load it again."""
        name = self.admitted(request)
        await self.known(name)
        await asyncio.to_thread(accepted, self.shelf.unload, name)
        return JSONResponse(shown(await self.known(name)))

    async def scan(self, request: Request) -> Response:
        """POST /v1/admin/scan: look at the folder now."""
        self.admitted(request)
        await asyncio.to_thread(self.shelf.scan)
        return await self.list(request)

    def admitted(self, request: Request) -> str:
        """The name in the path, of an administrator's request."""
        self.reception.guard.authorise_admin(metadata_of(request))
        name: str = request.path_params.get("name", "")
        return accepted(check_name, name) if name else ""

    async def known(self, name: str) -> ShelfEntry:
        """Raises AdapterError, which is 404."""
        return await asyncio.to_thread(self.shelf.entry, name)

    async def archive(self, request: Request) -> bytes:
        """The body of a request, or the file of its form: a zip or tar(.gz)."""
        settings = self.reception.settings
        most, seconds = settings.max_adapter_bytes, settings.idle_seconds
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return await body_of(request, most=most, seconds=seconds)
        async with form_of(request, most=most, seconds=seconds) as (_, form):
            return await audio_of(form).read()


def accepted(work: Any, *arguments: Any) -> Any:
    """What an administrator sent and cannot be used is 400, not 404."""
    try:
        return work(*arguments)
    except AdapterError as error:
        raise HttpError(400, str(error), code="invalid_adapter") from error


def shown(entry: ShelfEntry) -> dict[str, Any]:
    content: dict[str, Any] = {
        "object": "adapter",
        "name": entry.name,
        "state": entry.state,
        "reason": entry.reason,
        "kind": entry.kind,
        "parameters": entry.parameters,
        "digest": entry.digest,
        "source": entry.source,
        "card": entry.card,
    }
    return {key: sayable(value) for key, value in content.items()}


def sayable(value: Any, depth: int = 0) -> Any:
    """What JSON can say of a value that came with an adapter: null for a number that it cannot, or what lies too deep.

    One odd card must not keep the others from being listed.
    """
    match value:
        case None | bool():
            return value
        case int():
            return value if value.bit_length() < 64 else None
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            if depth == DEEPEST:
                return None
            return {sayable(str(key)): sayable(inner, depth + 1) for key, inner in value.items()}
        case list() | tuple():
            return None if depth == DEEPEST else [sayable(inner, depth + 1) for inner in value]
    return str(value).encode("utf-8", "replace").decode()
