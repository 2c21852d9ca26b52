"""What the calls of the Riva interface do."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from overtone.audio.decode import AudioLimits
from overtone.errors import AdapterError
from overtone.serving.adapter_store.names import adapter_names, model_name
from overtone.serving.adapter_store.store import Shelf, ShelfEntry
from overtone.serving.adapter_store.visible import available, visible
from overtone.serving.auth.access import Authorise, Metadata
from overtone.serving.engine.engine import Engine, Samples
from overtone.serving.recognition.held_audio import HeldAudio
from overtone.serving.recognition.offline import recognise_async
from overtone.serving.recognition.profanity import WORDS
from overtone.serving.recognition.service import Provision
from overtone.serving.riva.conversation import Conversation
from overtone.serving.riva.errors import RivaError, abort, invalid, sound, status_of
from overtone.serving.riva.fields import ignored_fields
from overtone.serving.riva.protobuf import ConfigResponse, RecognizeResponse
from overtone.serving.riva.requests import (
    Kind,
    RecognitionRequest,
    read_config,
    unavailable,
)
from overtone.serving.riva.responses import offline_results
from overtone.serving.streaming.inbox import Inbox
from overtone.serving.streaming.session import Hearing
from overtone.serving.streaming.stream import Stream
from overtone.serving.streaming.stream_settings import StreamSettings

__all__ = ["Call", "OnCall", "RivaCalls", "RivaSettings", "write_log"]

LOG = logging.getLogger("overtone.serving.riva.server")
DECODERS = 2
"""Threads that decode recordings."""


@dataclass(frozen=True, kw_only=True)
class RivaSettings:
    """What the Riva door may be told when it is built."""

    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` is all of IPv4."""
    port: int = 50051
    """0 takes any free port."""
    base: str = ""
    """What the base is called; the model's own name, or `base`, unless given."""
    language: str = "en-US"
    """What the model understands, as a BCP-47 tag."""
    stream: StreamSettings = field(default_factory=StreamSettings)
    """Chunks, context and endpointing of streams, unless the request says otherwise."""
    limits: AudioLimits = field(default_factory=AudioLimits)
    """What a request may send."""
    max_calls: int = 1024
    """Calls at a time; more are refused with RESOURCE_EXHAUSTED."""
    idle_seconds: float = 300.0
    """A stream that sends nothing for so long is ended."""
    profanities: frozenset[str] = WORDS
    """Lower-case words that `profanity_filter` masks."""


@dataclass(kw_only=True)
class Call:
    """One call, for logs and metrics: never what was said."""

    method: str
    adapter: str = ""
    """`a+b`; empty for the base."""
    tenant: str = ""
    code: str = "OK"
    """Name of the gRPC status."""
    seconds: float = 0.0
    """From the first byte to the last answer."""
    audio_seconds: float = 0.0
    ignored: tuple[str, ...] = ()
    """Fields that were set and have no effect."""


OnCall = Callable[[Call], None]


def write_log(call: Call) -> None:
    LOG.info("%s %s %.3f s", call.method, call.code, call.seconds, extra={"call": vars(call)})


class RivaCalls:
    """One method for each of the interface's; `context` is a grpc.aio.ServicerContext."""

    def __init__(
        self,
        engine: Engine,
        shelf: Shelf,
        *,
        settings: RivaSettings,
        authorise: Authorise,
        on_call: OnCall,
        held: HeldAudio,
    ) -> None:
        self.engine = engine
        self.shelf = shelf
        self.settings = settings
        self.authorise = authorise
        self.on_call = on_call
        self.base = settings.base or engine.model.name or "base"
        self.provision = Provision(
            engine=engine, shelf=shelf, limits=settings.limits, profanities=settings.profanities, held=held
        )
        self.open = 0
        """Calls that go on."""
        self._threads = ThreadPoolExecutor(DECODERS, thread_name_prefix="overtone-audio")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def recognize(self, message: Any, context: Any) -> Any:
        async with self.call("Recognize", context) as call:
            self.admit(call, context)
            request = self.understood(sound(message).config, "offline", call, context)
            if not message.audio:
                raise invalid("empty audio: the field 'audio' holds no bytes")
            decoding = await self.provision.decoding(request)
            call.ignored += decoding.ignored
            samples = await self.in_thread(self.provision.decoded, io.BytesIO(message.audio), request)
            call.audio_seconds = samples.size / self.engine.sample_rate
            remaining = context.time_remaining()
            with self.provision.held.holding(call.audio_seconds), await self.provision.lease(request) as lease:
                recognition = await recognise_async(
                    self.engine,
                    samples,
                    lease=lease,
                    decoding=decoding,
                    deadline=None if remaining is None else time.monotonic() + remaining,
                    group=call.tenant or None,
                )
            response = RecognizeResponse(results=offline_results(recognition, request, self.provision.mask(request)))
            if message.HasField("id"):
                response.id.CopyFrom(message.id)
            return response

    async def streaming_recognize(self, messages: AsyncIterator[Any], context: Any) -> None:
        async with self.call("StreamingRecognize", context) as call, Inbox(messages) as inbox:
            self.admit(call, context)
            opening = await self.opening(inbox)
            config = opening.streaming_config.config
            request = self.understood(config, "online", call, context)
            settings = replace(
                self.settings.stream,
                endpointing=request.endpointing,
                interim=opening.streaming_config.interim_results,
            )
            decoding = await self.provision.decoding(request)
            call.ignored += decoding.ignored
            lease = await self.provision.lease(request)
            stream = Stream(self.engine, lease, settings=settings, decoding=decoding, group=call.tenant or None)
            with stream, self.provision.decoder(request) as decoder:
                hearing = Hearing(stream=stream, decoder=decoder, request=request, in_thread=self.in_thread)
                conversation = Conversation(
                    context=context,
                    hearing=hearing,
                    request=request,
                    mask=self.provision.mask(request),
                    id=opening.id if opening.HasField("id") else None,
                )
                try:
                    while arrived := await self.arrived(inbox):
                        await conversation.hear(arrived)
                    await conversation.end()
                finally:
                    call.audio_seconds = hearing.samples / self.engine.sample_rate

    async def get_config(self, message: Any, context: Any) -> Any:
        async with self.call("GetRivaSpeechRecognitionConfig", context) as call:
            metadata = self.admit(call, context)
            asked = sound(message).model_name
            response = ConfigResponse()
            for entry in [None, *visible(self.shelf, self.authorise, metadata)]:
                names = () if entry is None else (entry.name,)
                if asked and adapter_names(asked, self.base) != names:
                    continue
                for kind in ("offline", "online"):
                    parameters = self.parameters(entry, kind)
                    response.model_config.add(model_name=model_name(self.base, names), parameters=parameters)
            return response

    # Steps of a call

    @asynccontextmanager
    async def call(self, method: str, context: Any) -> AsyncIterator[Call]:
        """Whatever goes wrong inside becomes the call's status; the call is told of at its end."""
        call = Call(method=method)
        began = time.monotonic()
        self.open += 1
        try:
            yield call
        except asyncio.CancelledError:
            call.code = grpc.StatusCode.CANCELLED.name
            raise
        except Exception as error:
            if context.cancelled() or context.done():  # writing to a client that is gone
                call.code = grpc.StatusCode.CANCELLED.name
                return
            code = status_of(error)
            call.code = code.name
            if code is grpc.StatusCode.INTERNAL:
                LOG.exception("%s failed", method)
            await abort(context, error)
        finally:
            self.open -= 1
            call.seconds = time.monotonic() - began
            self.on_call(call)

    def admit(self, call: Call, context: Any) -> Metadata:
        """The metadata of a caller whose token is good, before anything is waited for. Raises AccessError."""
        metadata: Metadata = context.invocation_metadata() or ()
        call.tenant = self.authorise(metadata, None)
        return metadata

    def understood(self, config: Any, kind: Kind, call: Call, context: Any) -> RecognitionRequest:
        """A configuration that is sound, allowed, and names what exists."""
        request = read_config(
            config,
            kind=kind,
            base=self.base,
            language=self.settings.language,
            endpointing=self.settings.stream.endpointing,
        )
        metadata = context.invocation_metadata() or ()
        for name in request.names:
            call.tenant = self.authorise(metadata, name)
        call.adapter = request.adapter or ""
        call.ignored = tuple(ignored_fields(config))
        try:
            for name in request.names:
                self.shelf.entry(name)
        except AdapterError as error:
            listed = available(self.shelf, self.authorise, metadata, base=self.base)
            asked = f"model={request.model}" if request.model else f"adapter={request.adapter}"
            raise unavailable(request.language, kind, f"; {asked}; available: {listed}") from error
        return request

    def parameters(self, entry: ShelfEntry | None, kind: str) -> dict[str, str]:
        parameters = {
            "type": kind,
            "language_code": self.settings.language,
            "sample_rate_hertz": str(self.engine.sample_rate),
            "streaming": str(kind == "online"),
            "decoder": "ctc",
            "base_model": self.base,
        }
        if entry is not None:
            parameters |= {"adapter": entry.name, "adapter_type": entry.kind, "adapter_digest": entry.digest}
        return parameters

    async def opening(self, inbox: Inbox) -> Any:
        """The first message of a stream."""
        first = await self.arrived(inbox, most=1)
        if not first:
            raise invalid("no messages received")
        if first[0].WhichOneof("streaming_request") != "streaming_config":
            raise RivaError(grpc.StatusCode.FAILED_PRECONDITION, "streaming_config was not received")
        return first[0]

    async def arrived(self, inbox: Inbox, *, most: int = 64) -> list[Any]:
        seconds = self.settings.idle_seconds
        try:
            return await inbox.take(seconds, most=most)
        except TimeoutError:
            raise RivaError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing was sent for {seconds:g} seconds; the stream is closed"
            ) from None

    async def in_thread(self, work: Callable[..., Samples], *arguments: Any) -> Samples:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
