"""What HTTP requests and realtime sessions share: who asks, for what, and how much work is going on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import HTTPConnection

from overtone.audio.decode import AudioLimits
from overtone.errors import AdapterError
from overtone.serving.adapter_store.store import Shelf, ShelfEntry
from overtone.serving.adapter_store.visible import available, visible
from overtone.serving.auth.access import Metadata
from overtone.serving.auth.guard import Guard
from overtone.serving.engine.engine import Engine
from overtone.serving.errors import DrainingError, OverloadError
from overtone.serving.http.errors import HttpError, invalid
from overtone.serving.recognition.held_audio import HeldAudio
from overtone.serving.recognition.profanity import WORDS
from overtone.serving.recognition.service import Provision
from overtone.serving.riva.fields import ignored_fields
from overtone.serving.riva.requests import Kind, RecognitionRequest, read_config, understands
from overtone.serving.riva.servicer import Call
from overtone.serving.streaming.stream_settings import StreamSettings

R = TypeVar("R")
DECODERS = 2
"""Threads that decode audio."""


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """What the HTTP door may be told when it is built."""

    base: str = ""
    """What the base is called; the model's own name, or `base`, unless given."""
    language: str = "en-US"
    """What the model understands, as a BCP-47 tag."""
    stream: StreamSettings = field(default_factory=StreamSettings)
    """Chunks, context and endpointing of realtime sessions, unless the session says otherwise."""
    limits: AudioLimits = field(default_factory=AudioLimits)
    """What a request or a session may send."""
    max_requests: int = 256
    """Transcriptions and realtime sessions at a time; more are refused with 429."""
    max_adapter_bytes: int = 64 * 2**20
    """Of an uploaded archive."""
    request_seconds: float = 600.0
    """A recording that has not been recognised after so long is given up with 504."""
    idle_seconds: float = 300.0
    """A session, or the body of a request, that sends nothing for so long is ended."""
    origins: frozenset[str] = frozenset()
    """Web sites (`https://example.org`) whose pages may open realtime sessions besides the server's own."""
    profanities: frozenset[str] = WORDS
    """Lower-case words that `profanity_filter` masks."""


class Reception:
    """Belongs to one event loop."""

    def __init__(self, engine: Engine, shelf: Shelf, *, settings: HttpSettings, guard: Guard, held: HeldAudio) -> None:
        self.engine = engine
        self.shelf = shelf
        self.settings = settings
        self.guard = guard
        self.base = settings.base or engine.model.name or "base"
        self.provision = Provision(
            engine=engine, shelf=shelf, limits=settings.limits, profanities=settings.profanities, held=held
        )
        self.active = 0
        """Transcriptions and sessions that go on."""
        self.closing = False
        """Whether new ones are refused."""
        self._threads = ThreadPoolExecutor(DECODERS, thread_name_prefix="overtone-http-audio")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def working(self) -> Iterator[None]:
        """A transcription or a session goes on. Raises DrainingError or OverloadError."""
        if self.closing:
            raise DrainingError("The server is shutting down; ask another one, or again later.")
        if self.active >= self.settings.max_requests:
            raise OverloadError(f"{self.active} requests are being served, as many as are allowed; try again later.")
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def idle(self, seconds: float) -> bool:
        """Wait until nothing goes on any more; whether that came within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while self.active:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return False
        return True

    # Requests

    def admitted(self, connection: HTTPConnection) -> Call:
        """The call of a request whose token is good. Raises AccessError."""
        call = call_of(connection)
        call.tenant = self.guard.authorise(metadata_of(connection), None)
        return call

    def understood(
        self, config: Any, kind: Kind, call: Call, metadata: Metadata, *, ignored: Iterable[str] = ()
    ) -> RecognitionRequest:
        """config: a RecognitionConfig. A request that is sound, allowed, and names what exists.

        ignored: what else was asked for and has no effect.
        """
        asked, own = config.language_code, self.settings.language
        if not understands(own, asked):
            raise invalid(f"The language '{asked[:40]}' is not understood here; this model's is {own}.", "language")
        request = read_config(
            config,
            kind=kind,
            base=self.base,
            language=self.settings.language,
            endpointing=self.settings.stream.endpointing,
        )
        for name in request.names:
            call.tenant = self.guard.authorise(metadata, name)
        try:
            for name in request.names:
                self.shelf.entry(name)
        except AdapterError as error:
            raise self.unknown_model(request.model or "+".join(request.names), metadata) from error
        call.adapter = request.adapter or ""
        call.ignored = (*ignored, *ignored_fields(config))
        return request

    def unknown_model(self, name: str, metadata: Metadata) -> HttpError:
        listed = available(self.shelf, self.guard.authorise, metadata, base=self.base)
        message = f"The model '{name[:200]}' does not exist. Available: {listed}."
        return HttpError(404, message, code="model_not_found", param="model")

    def visible(self, metadata: Metadata) -> Iterator[ShelfEntry]:
        """The usable adapters that the caller may use."""
        return visible(self.shelf, self.guard.authorise, metadata)

    async def in_thread(self, work: Callable[..., R], *arguments: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def call_of(connection: HTTPConnection) -> Call:
    """What the watching middleware will report."""
    call: Call = connection.scope["state"]["call"]
    return call


def metadata_of(connection: HTTPConnection) -> list[tuple[str, str]]:
    """The headers, names in lower case."""
    raw: list[tuple[bytes, bytes]] = connection.scope["headers"]
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw]


def add_contexts(config: Any, contexts: Any) -> None:
    """contexts: `[{"phrases": ["…"], "boost": 10}]` as JSON says it. Raises TypeError or another of protobuf's."""
    if not isinstance(contexts, list):
        raise TypeError("phrases to be boosted must be a list of objects")
    for context in contexts:
        phrases = context.get("phrases") if isinstance(context, dict) else None
        if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
            raise TypeError("'phrases' must be a list of texts")
        config.speech_contexts.add(phrases=phrases, boost=context.get("boost", 0.0))


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    """A JSON object. Raises HttpError."""
    if not isinstance(value, dict):
        raise invalid(f"'{name}' must be an object.", name)
    return value
