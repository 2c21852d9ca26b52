"""Web page of the server: a recording or a microphone, base and adapter side by side.

Its files are read once, and answered from memory; a request names one of them or gets 404.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from overtone.serving.http.errors import HttpError

MEDIA = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".ogg": "audio/ogg",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Content-Security-Policy: the page may load its own files, and recordings from the browser's memory."""
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
}
EXAMPLES = ("conf-getpin", "vm-next", "agent-alreadyon")
"""Telephone prompts of the test split that the page offers to try."""
CREDIT = "Spoken by Allison Smith, adapted; CC BY-SA 3.0, creativecommons.org/licenses/by-sa/3.0"

Answer = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class PageFile:
    """A file of the page, in memory."""

    content: bytes
    media_type: str
    tag: str
    """ETag."""


class Page:
    """Endpoints of the page and its files."""

    def __init__(self, language: str, otherwise: Answer) -> None:
        """language: of the model; English gets examples. otherwise: answers at `/` whoever wants no HTML."""
        self.otherwise = otherwise
        self.files = dict(page_files(with_examples=language.lower().partition("-")[0] == "en"))

    def routes(self) -> list[BaseRoute]:
        return [Route("/", self.index), Route("/web/{name}", self.file)]

    async def index(self, request: Request) -> Response:
        wants_page = "text/html" in request.headers.get("accept", "")
        response = self.answer(INDEX, request) if wants_page else await self.otherwise(request)
        response.headers["Vary"] = "Accept"
        return response

    async def file(self, request: Request) -> Response:
        return self.answer(request.path_params["name"], request)

    def answer(self, name: str, request: Request) -> Response:
        """Answer with a file, or 304 where the browser has it already. Raises HttpError."""
        found = self.files.get(name)
        if found is None:
            raise HttpError(404, "The page has no such file.")
        known = request.headers.get("if-none-match", "")
        headers = {**HEADERS, "ETag": found.tag}
        if found.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(found.content, headers=headers, media_type=found.media_type)


def page_files(*, with_examples: bool) -> Iterator[tuple[str, PageFile]]:
    """Files of the page by name. with_examples: of speech, besides the page itself."""
    for source in files("overtone.serving.http").joinpath("web").iterdir():
        if suffix(source.name) in MEDIA:
            yield source.name, page_file(source.name, source.read_bytes())
    prompts = files("overtone").joinpath("prompts")
    recordings = list(examples(prompts)) if with_examples else []
    for recording in recordings:
        name = recording["file"]
        yield name, page_file(name, prompts.joinpath("audio", name).read_bytes())
    listing = json.dumps({"credit": CREDIT, "recordings": recordings})
    yield "examples.json", page_file("examples.json", listing.encode())


def examples(prompts: Traversable) -> Iterator[dict[str, str]]:
    """`file` and `text` of each example."""
    lines = [json.loads(line) for line in prompts.joinpath("test.jsonl").read_text("utf-8").splitlines()]
    texts = {line["audio_filepath"].removeprefix("audio/"): line["text"] for line in lines}
    for name in EXAMPLES:
        yield {"file": f"{name}.ogg", "text": texts[f"{name}.ogg"]}


def page_file(name: str, content: bytes) -> PageFile:
    """File with the media type of its name."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return PageFile(content=content, media_type=MEDIA[suffix(name)], tag=tag)


def suffix(name: str) -> str:
    return name[name.rfind(".") :]
