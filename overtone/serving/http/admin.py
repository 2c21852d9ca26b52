"""Administration of the adapter store over HTTP: list, upload, load, unload and delete adapters.

Names come from requests; the store takes only letters, digits, `.`, `_` and `-`, and knows its names, so that a name
is never a path. Everything needs the administrator's token.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from overtone.errors import AdapterError
from overtone.serving.adapter_store.mirror import fetch_archive, without_user
from overtone.serving.adapter_store.store import AdapterEntry, AdapterStore
from overtone.serving.http.bodies import form_file, read_body, read_form
from overtone.serving.http.errors import HttpError
from overtone.serving.http.requests import HttpRequests, metadata_of
from overtone.serving.recognition.service import RecognitionService

MAX_LORA_BODY = 2**14
"""Bytes of the JSON of vLLM's requests."""
DEEPEST = 16
"""Levels of an adapter's card that are shown."""
ODD = ("%", "\\", "::", "?", "#")
"""Marks that servers and fsspec read as something else than the name of a folder: an upward step, another place."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """An adapter that an administrator's request names, and the place that it belongs to."""

    service: RecognitionService
    """Service of its base."""
    name: str
    """The adapter's own name, without the base's."""
    base: str
    """Name of the base where there are several, for the answer; else empty."""

    @property
    def store(self) -> AdapterStore:
        return self.service.store

    async def entry(self) -> AdapterEntry:
        """Entry of the adapter. Raises AdapterError, which is 404."""
        return await asyncio.to_thread(self.store.entry, self.name)

    async def load(self) -> None:
        """Load it, here or elsewhere. Raises AdapterError, which is 404, and HttpError."""
        await self.entry()
        if self.service.elsewhere is None:
            lease = await asyncio.to_thread(run_or_400, self.store.acquire, self.name)
            lease.release()
        await tell(self.service, "load", self.name)

    async def unload(self) -> None:
        """Unload it. Raises AdapterError, which is 404, and HttpError."""
        await self.entry()
        await asyncio.to_thread(run_or_400, self.store.unload, self.name)
        await tell(self.service, "unload", self.name)

    async def json(self) -> dict[str, Any]:
        """JSON of its entry. Raises AdapterError, which is 404."""
        return entry_json(await self.entry(), self.base)

    def check_folder_is_ours(self) -> None:
        """Raises HttpError where the store mirrors a place that the server does not write to."""
        if self.store.mirrored:
            raise HttpError(400, f"The adapters are those of {without_user(self.store.mirrored)}; change them there.")


class Administration:
    """Endpoints under /v1/admin. With several bases, a name may be `BASE:ADAPTER`."""

    def __init__(self, requests: HttpRequests) -> None:
        self.guard = requests.service.guard
        self.bases = requests.bases
        self.settings = requests.settings

    async def list(self, request: Request) -> Response:
        """GET /v1/admin/adapters; refused ones included, with the reason."""
        self.authorise(request)
        found: list[dict[str, Any]] = []
        for service in self.bases:
            entries = await asyncio.to_thread(service.store.entries)
            found += [entry_json(entry, self.shown(service)) for entry in entries]
        return JSONResponse({"object": "list", "data": found})

    async def one(self, request: Request) -> Response:
        """GET, PUT (or POST) and DELETE /v1/admin/adapters/NAME."""
        named = self.admit(request)
        if request.method in ("GET", "HEAD"):
            return JSONResponse(await named.json())
        named.check_folder_is_ours()
        if request.method == "DELETE":
            await named.entry()
            await asyncio.to_thread(run_or_400, named.store.remove, named.name)
            await tell(named.service, "scan", "")
            return Response(status_code=204)
        archive = await self.archive(request)
        entry = await asyncio.to_thread(run_or_400, named.store.put, named.name, archive)
        await tell(named.service, "scan", "")
        return JSONResponse(entry_json(entry, named.base), 201)

    async def load(self, request: Request) -> Response:
        """POST /v1/admin/adapters/NAME/load: into the model, before the first request asks for it."""
        named = self.admit(request)
        await named.load()
        return JSONResponse(await named.json())

    async def unload(self, request: Request) -> Response:
        """POST /v1/admin/adapters/NAME/unload: out of the model; requests that name it load it again."""
        named = self.admit(request)
        await named.unload()
        return JSONResponse(await named.json())

    async def load_lora(self, request: Request) -> Response:
        """POST /v1/load_lora_adapter, as vLLM has it: {"lora_name", "lora_path"}, into the store and the model.

        A path is a URI below one of the server's adapter sources; without one the adapter is in the store already.
        """
        self.authorise(request)
        body = await self.lora_body(request)
        name, path = body.get("lora_name", ""), body.get("lora_path", "")
        named = self.named(name)
        if path and path not in (name, named.name):
            named.check_folder_is_ours()
            self.check_source(path)
            archive = await asyncio.to_thread(run_or_400, fetch_archive, path)
            await asyncio.to_thread(run_or_400, named.store.put, named.name, archive)
        await named.load()
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_lora(self, request: Request) -> Response:
        """POST /v1/unload_lora_adapter, as vLLM has it: {"lora_name"}; it stays in the store."""
        self.authorise(request)
        name = (await self.lora_body(request)).get("lora_name", "")
        await self.named(name).unload()
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

    async def scan(self, request: Request) -> Response:
        """POST /v1/admin/scan: look at the folders now."""
        self.authorise(request)
        for service in self.bases:
            await asyncio.to_thread(service.store.scan)
            await tell(service, "scan", "")
        return await self.list(request)

    def authorise(self, request: Request) -> None:
        """Raises AccessError where a request is not an administrator's."""
        self.guard.authorise_admin(metadata_of(request))

    def admit(self, request: Request) -> Named:
        """Adapter in the path of an administrator's request. Raises AccessError, RequestError or HttpError."""
        self.authorise(request)
        return self.named(request.path_params["name"])

    def named(self, name: str) -> Named:
        """Adapter of a name. Raises HttpError 400 for a malformed one, RequestError for one of several bases."""
        service, own = run_or_400(self.bases.owner, name)
        return Named(service=service, name=own, base=self.shown(service))

    def shown(self, service: RecognitionService) -> str:
        """Name of a base in answers; empty where there is one alone."""
        return service.base if self.bases.are_several else ""

    async def archive(self, request: Request) -> bytes:
        """Body of a request, or file of its form: a zip or tar(.gz)."""
        most, seconds = self.settings.max_adapter_bytes, self.settings.idle_seconds
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return await read_body(request, most=most, seconds=seconds)
        async with read_form(request, most=most, seconds=seconds) as (_, form):
            return await form_file(form).read()


async def tell(service: RecognitionService, work: str, name: str) -> None:
    """Tell the processes that recognise elsewhere, if there are any. Raises HttpError 400 as `run_or_400`."""
    if service.elsewhere is not None:
        try:
            await service.elsewhere.change_adapters(work, name)
        except AdapterError as error:
            raise HttpError(400, str(error), code="invalid_adapter") from error


def is_plain(path: str) -> bool:
    """Tell whether a path goes down from its source alone, however it is read there."""
    return ".." not in path.split("/") and not any(mark in path for mark in ODD)


def run_or_400(work: Any, *arguments: Any) -> Any:
    """Result of the work. Raises HttpError 400 for an AdapterError, which would be 404: the administrator's mistake."""
    try:
        return work(*arguments)
    except AdapterError as error:
        raise HttpError(400, str(error), code="invalid_adapter") from error


def entry_json(entry: AdapterEntry, base: str = "") -> dict[str, Any]:
    """JSON of an entry. base: name of its base; empty where there is one alone."""
    content: dict[str, Any] = {
        "object": "adapter",
        **({"base": base} if base else {}),
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
