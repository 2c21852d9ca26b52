"""Administration of the adapter store over HTTP: list, upload, load, unload and delete adapters.

Names come from requests; the store takes only letters, digits, `.`, `_` and `-`, and knows its names, so that a name
is never a path. Everything needs the administrator's token.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from overtone.adapters.adapter import check_name
from overtone.errors import AdapterError
from overtone.serving.adapter_store.mirror import fetch_archive, without_user
from overtone.serving.adapter_store.store import AdapterEntry
from overtone.serving.http.bodies import form_file, read_body, read_form
from overtone.serving.http.errors import HttpError
from overtone.serving.http.requests import HttpRequests, metadata_of

MAX_LORA_BODY = 2**14
"""Bytes of the JSON of vLLM's requests."""
DEEPEST = 16
"""Levels of an adapter's card that are shown."""
ODD = ("%", "\\", "::", "?", "#")
"""Marks that servers and fsspec read as something else than the name of a folder: an upward step, another place."""


class Administration:
    """Endpoints under /v1/admin."""

    def __init__(self, requests: HttpRequests) -> None:
        self.guard = requests.service.guard
        self.elsewhere = requests.service.elsewhere
        self.store = requests.service.store
        self.settings = requests.settings

    async def list(self, request: Request) -> Response:
        """GET /v1/admin/adapters; refused ones included, with the reason."""
        self.admit(request)
        entries = await asyncio.to_thread(self.store.entries)
        return JSONResponse({"object": "list", "data": [entry_json(entry) for entry in entries]})

    async def one(self, request: Request) -> Response:
        """GET, PUT (or POST) and DELETE /v1/admin/adapters/NAME."""
        name = self.admit(request)
        if request.method in ("GET", "HEAD"):
            return JSONResponse(entry_json(await self.known(name)))
        self.check_folder_is_ours()
        if request.method == "DELETE":
            await self.known(name)
            await asyncio.to_thread(run_or_400, self.store.remove, name)
            await self.tell("scan", "")
            return Response(status_code=204)
        archive = await self.archive(request)
        entry = await asyncio.to_thread(run_or_400, self.store.put, name, archive)
        await self.tell("scan", "")
        return JSONResponse(entry_json(entry), 201)

    async def load(self, request: Request) -> Response:
        """POST /v1/admin/adapters/NAME/load: into the model, before the first request asks for it."""
        name = self.admit(request)
        await self.load_known(name)
        return JSONResponse(entry_json(await self.known(name)))

    async def load_known(self, name: str) -> None:
        """Load an adapter of the store. Raises AdapterError, which is 404, and HttpError."""
        await self.known(name)
        if self.elsewhere is None:
            lease = await asyncio.to_thread(run_or_400, self.store.acquire, name)
            lease.release()
        await self.tell("load", name)

    async def unload(self, request: Request) -> Response:
        """POST /v1/admin/adapters/NAME/unload: out of the model; requests that name it load it again."""
        name = self.admit(request)
        await self.unload_known(name)
        return JSONResponse(entry_json(await self.known(name)))

    async def unload_known(self, name: str) -> None:
        """Unload an adapter of the store. Raises AdapterError, which is 404, and HttpError."""
        await self.known(name)
        await asyncio.to_thread(run_or_400, self.store.unload, name)
        await self.tell("unload", name)

    async def load_lora(self, request: Request) -> Response:
        """POST /v1/load_lora_adapter, as vLLM has it: {"lora_name", "lora_path"}, into the store and the model.

        A path is a URI below one of the server's adapter sources; without one the adapter is in the store already.
        """
        self.admit(request)
        body = await self.lora_body(request)
        name, path = run_or_400(check_name, body.get("lora_name", "")), body.get("lora_path", "")
        if path and path != name:
            self.check_folder_is_ours()
            self.check_source(path)
            archive = await asyncio.to_thread(run_or_400, fetch_archive, path)
            await asyncio.to_thread(run_or_400, self.store.put, name, archive)
        await self.load_known(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_lora(self, request: Request) -> Response:
        """POST /v1/unload_lora_adapter, as vLLM has it: {"lora_name"}; it stays in the store."""
        self.admit(request)
        name = run_or_400(check_name, (await self.lora_body(request)).get("lora_name", ""))
        await self.unload_known(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def lora_body(self, request: Request) -> dict[str, str]:
        """Texts of a JSON body. Raises HttpError for another one."""
        try:
            body = json.loads(await read_body(request, most=MAX_LORA_BODY, seconds=self.settings.idle_seconds))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("lora_name"), str):
            raise HttpError(400, 'A JSON object is needed: {"lora_name": "medical", "lora_path": "s3://…"}.')
        if not isinstance(body.get("lora_path", ""), str):
            raise HttpError(400, "'lora_path' must be a text.")
        return body

    def check_source(self, path: str) -> None:
        """Raises HttpError for a URI that does not lie below one of the server's adapter sources."""
        sources = [source.rstrip("/") + "/" for source in self.settings.adapter_sources]
        rests = [path.removeprefix(source) for source in sources if path.startswith(source)]
        if not any(is_plain(rest) for rest in rests):
            allowed = ", ".join(map(without_user, sources)) or "none; start the server with --adapter-source"
            raise HttpError(
                403,
                f"Adapters are not fetched from there. Allowed beginnings: {allowed}; after them no '..' and none of "
                f"{' '.join(ODD)}.",
            )

    def check_folder_is_ours(self) -> None:
        """Raises HttpError where the store mirrors a place that the server does not write to."""
        if self.settings.adapters_from:
            raise HttpError(
                400, f"The adapters are those of {without_user(self.settings.adapters_from)}; change them there."
            )

    async def scan(self, request: Request) -> Response:
        """POST /v1/admin/scan: look at the folder now."""
        self.admit(request)
        await asyncio.to_thread(self.store.scan)
        await self.tell("scan", "")
        return await self.list(request)

    async def tell(self, work: str, name: str) -> None:
        """Tell the processes that recognise elsewhere, if there are any. Raises HttpError 400 as `run_or_400`."""
        if self.elsewhere is not None:
            try:
                await self.elsewhere.change_adapters(work, name)
            except AdapterError as error:
                raise HttpError(400, str(error), code="invalid_adapter") from error

    def admit(self, request: Request) -> str:
        """Name in the path of an administrator's request; empty where it has none. Raises AccessError or HttpError."""
        self.guard.authorise_admin(metadata_of(request))
        name: str = request.path_params.get("name", "")
        return run_or_400(check_name, name) if name else ""

    async def known(self, name: str) -> AdapterEntry:
        """Entry of a name. Raises AdapterError, which is 404."""
        return await asyncio.to_thread(self.store.entry, name)

    async def archive(self, request: Request) -> bytes:
        """Body of a request, or file of its form: a zip or tar(.gz)."""
        most, seconds = self.settings.max_adapter_bytes, self.settings.idle_seconds
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return await read_body(request, most=most, seconds=seconds)
        async with read_form(request, most=most, seconds=seconds) as (_, form):
            return await form_file(form).read()


def is_plain(path: str) -> bool:
    """Tell whether a path goes down from its source alone, however it is read there."""
    return ".." not in path.split("/") and not any(mark in path for mark in ODD)


def run_or_400(work: Any, *arguments: Any) -> Any:
    """Result of the work. Raises HttpError 400 for an AdapterError, which would be 404: the administrator's mistake."""
    try:
        return work(*arguments)
    except AdapterError as error:
        raise HttpError(400, str(error), code="invalid_adapter") from error


def entry_json(entry: AdapterEntry) -> dict[str, Any]:
    """JSON of an entry."""
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
    return {key: json_value(value) for key, value in content.items()}


def json_value(value: Any, depth: int = 0) -> Any:
    """Value of an adapter's card as JSON: null for numbers that JSON lacks, and for values that lie too deep.

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
            return {json_value(str(key)): json_value(inner, depth + 1) for key, inner in value.items()}
        case list() | tuple():
            return None if depth == DEEPEST else [json_value(inner, depth + 1) for inner in value]
    return str(value).encode("utf-8", "replace").decode()
