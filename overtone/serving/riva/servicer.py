"""Calls of the Riva interface: Recognize, StreamingRecognize and GetRivaSpeechRecognitionConfig."""

from __future__ import annotations

import asyncio
import io
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import grpc

from overtone.serving.adapter_store.names import model_name
from overtone.serving.adapter_store.store import AdapterEntry
from overtone.serving.auth.guard import Metadata
from overtone.serving.errors import IdleError, LanguageError, OverloadError, RequestError, UnknownModelError
from overtone.serving.recognition.bases import Bases
from overtone.serving.recognition.request import Call, RecognitionRequest, unsupported
from overtone.serving.recognition.service import RecognitionService
from overtone.serving.recognition.turns import Turns
from overtone.serving.riva.errors import RivaError, abort, status_of, unavailable
from overtone.serving.riva.protobuf import ConfigResponse, RecognizeResponse, StreamingRecognizeResponse
from overtone.serving.riva.requests import audio_size, readable, recognition_request
from overtone.serving.riva.responses import ResultWriter, responses_for
from overtone.serving.settings import ServerSettings
from overtone.serving.streaming.session import Inbox, StreamSession, open_session
from overtone.serving.streaming.stream import Event

__all__ = ["OnCall", "RivaServicer", "write_log"]

LOG = logging.getLogger("overtone.serving.riva.server")

Kind = Literal["offline", "online"]
"""Riva's words for Recognize and StreamingRecognize."""
OnCall = Callable[[Call], None]


def write_log(call: Call) -> None:
    """Log a call that has ended."""
    LOG.info("%s %s %.3f s", call.method, call.code, call.seconds, extra={"call": call.facts()})


RECEIVING = 64
"""Recordings that are received at a time: nothing of the others is read, so that they take no memory."""
RECEIVING_OF_ONE = 16
"""The same, of one client."""


class RivaServicer:
    """One method for each of the interface's; `context` is a grpc.aio.ServicerContext.

    All of them take an iterator of messages: gRPC would otherwise read, and hold, the message of a call before anybody
    has looked at its token.
    """

    def __init__(self, bases: Bases, settings: ServerSettings, *, on_call: OnCall) -> None:
        self.bases = bases
        self.service = bases.first
        """The first base's; all of them share guard, tenants and the server's end."""
        self.settings = settings
        self.on_call = on_call
        self.open = 0
        """Calls that are running."""
        self.admitted = 0
        """Those of them whose token is valid."""
        self.receiving = Turns(RECEIVING, most_of_one=RECEIVING_OF_ONE)

    async def recognize(self, messages: AsyncIterator[Any], context: Any) -> None:
        """Transcribe a recording. Raises RequestError and errors of the service, which end the call."""
        async with self.call("Recognize", context) as call:
            metadata: Metadata = context.invocation_metadata() or ()
            message = await self.receive(messages, call)
            request = recognition_request(message.config, endpointing=self.settings.stream.endpointing)
            service = self.check(request, "offline", metadata, call)
            if request.attention_context is not None:
                raise unsupported("custom_configuration 'att_context_size'", "it is for streams")
            if not message.audio:
                raise RequestError("empty audio: the field 'audio' holds no bytes")
            samples = await service.decode(io.BytesIO(message.audio), request, call)
            remaining = context.time_remaining()
            deadline = None if remaining is None else time.monotonic() + remaining
            recognition = await service.recognise(samples, request, call, deadline=deadline)
            response = RecognizeResponse(results=writer_of(service, request).recording(recognition))
            if message.HasField("id"):
                response.id.CopyFrom(message.id)
            await context.write(response)

    async def streaming_recognize(self, messages: AsyncIterator[Any], context: Any) -> None:
        """Transcribe a stream, message by message."""
        settings = self.settings
        async with (
            self.call("StreamingRecognize", context) as call,
            Inbox(messages, audio_size, idle_seconds=settings.idle_seconds, ending=self.service.ending) as inbox,
        ):
            metadata: Metadata = context.invocation_metadata() or ()
            opening = await first_message(inbox, settings.opening_seconds)
            request = recognition_request(
                opening.streaming_config.config,
                endpointing=self.settings.stream.endpointing,
                interim=opening.streaming_config.interim_results,
            )
            service = self.check(request, "online", metadata, call)
            async with open_session(service, request, call, self.settings.stream) as session:
                answers = StreamAnswers(
                    context=context,
                    session=session,
                    writer=writer_of(service, request),
                    id=opening.id if opening.HasField("id") else None,
                    idle_seconds=settings.idle_seconds,
                )
                while arrived := await inbox.take():
                    await answers.answer(arrived)
                await answers.end(least=0 if inbox.was_cut else 1)
            inbox.check_ending()

    async def get_config(self, messages: AsyncIterator[Any], context: Any) -> None:
        """List the models that the caller may use."""
        async with self.call("GetRivaSpeechRecognitionConfig", context, requests=0) as call:
            metadata: Metadata = context.invocation_metadata() or ()
            asked = (await self.receive(messages, call)).model_name
            response = ConfigResponse()
            named, wanted = self.bases.place(asked)
            for service in self.bases if named is None else [named]:
                visible = service.visible_adapters(metadata)
                for entry in [None, *visible]:
                    names = () if entry is None else (entry.name,)
                    if asked and wanted != names:
                        continue
                    for kind in kinds_of(service):
                        parameters = parameters_of(service, entry, kind)
                        response.model_config.add(model_name=model_name(service.base, names), parameters=parameters)
            await context.write(response)

    # Steps of a call

    @asynccontextmanager
    async def call(self, method: str, context: Any, *, requests: int = 1) -> AsyncIterator[Call]:
        """Record of a call whose token is valid: an error becomes its status, and `on_call` gets it at the end.

        requests: charged when it opens. Nothing is read, waited for or held before the token is good.
        """
        call = Call(method=method, connection=str(context.peer()), request_id=f"req_{secrets.token_hex(12)}")
        context.set_trailing_metadata((("x-request-id", call.request_id),))
        began = time.monotonic()
        self.open += 1
        try:
            with self.admission(call, context, requests):
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

    @contextmanager
    def admission(self, call: Call, context: Any, requests: int) -> Iterator[None]:
        """A place among the calls, for a caller whose token is valid. Raises AccessError or OverloadError."""
        self.service.admit(context.invocation_metadata() or (), call)
        with self.service.guard.session(call.tenant, requests=requests):
            if self.admitted >= self.settings.max_calls:
                raise OverloadError(f"{self.admitted} calls are being served, as many as are allowed; try again later.")
            self.admitted += 1
            try:
                yield
            finally:
                self.admitted -= 1

    async def receive(self, messages: AsyncIterator[Any], call: Call) -> Any:
        """The one message of a call. Raises RequestError, and RivaError where it does not come in time."""
        seconds = self.settings.message_seconds
        async with self.receiving.turn(call.client):
            try:
                async with asyncio.timeout(seconds):
                    return readable(await anext(messages, None))
            except TimeoutError:
                message = f"The message of this call did not come within {seconds:g} seconds."
                raise RivaError(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None

    def check(self, request: RecognitionRequest, kind: Kind, metadata: Metadata, call: Call) -> RecognitionService:
        """Service of a request's base, which has checked it. Raises RivaError for an absent model or language.

        Raises the errors of `Bases.choose` and of the service besides.
        """
        if not request.model and not request.adapter:
            request = replace(request, model=model_of_function(metadata, self.bases))
        service = self.service
        try:
            service = self.bases.choose(request, metadata, call)
            service.check(request, metadata, call)
        except LanguageError as error:
            raise unavailable(error.asked, kind) from error
        except UnknownModelError as error:
            asked = f"model={request.model}" if request.model else f"adapter={request.adapter}"
            more = f"; {asked}; available: {error.available}"
            raise unavailable(service.language, kind, more) from error
        return service


def writer_of(service: RecognitionService, request: RecognitionRequest) -> ResultWriter:
    """Writer of a request's results."""
    return ResultWriter(request=request, mask=service.mask(request), language=service.spoken_language(request))


def kinds_of(service: RecognitionService) -> tuple[Kind, ...]:
    """Calls that a base answers: a multitask model has no streams."""
    return ("offline", "online") if service.engine.model.head.prompts is None else ("offline",)


def parameters_of(service: RecognitionService, entry: AdapterEntry | None, kind: Kind) -> dict[str, str]:
    """Parameters of a model in the list of models; entry: None for the base."""
    parameters = {
        "type": kind,
        "language_code": service.language,
        "sample_rate_hertz": str(service.engine.sample_rate),
        "streaming": str(kind == "online"),
        "decoder": service.engine.model.head_in_use,
        "base_model": service.base,
    }
    if entry is not None:
        parameters |= {"adapter": entry.name, "adapter_type": entry.kind, "adapter_digest": entry.digest}
    return parameters


def model_of_function(metadata: Metadata, bases: Bases) -> str:
    """Model that the header `function-id` names, where that is an adapter, an alias or one of several bases; or empty.

    NVIDIA's clients choose a hosted model by it, and some of them (Pipecat's) say nothing else.
    """
    names = [value for name, value in metadata if name == "function-id" and isinstance(value, str)]
    return names[0] if names and bases.is_known(names[0]) else ""


async def first_message(inbox: Inbox[Any], seconds: float) -> Any:
    """First message of a stream, which holds its configuration. Raises RequestError, RivaError or IdleError.

    seconds: for it to come.
    """
    first = await inbox.take(most=1, seconds=seconds)
    if not first:
        raise RequestError("no messages received")
    if first[0].WhichOneof("streaming_request") != "streaming_config":
        raise RivaError(grpc.StatusCode.FAILED_PRECONDITION, "streaming_config was not received")
    return first[0]


@dataclass(kw_only=True)
class StreamAnswers:
    """Messages of one stream in, responses out, at least one for each. For one task at a time."""

    context: Any
    session: StreamSession
    writer: ResultWriter
    id: Any
    """RequestId of the responses, or None."""
    idle_seconds: float
    """The client may leave a response unread for so long."""
    unanswered: int = 0
    """Messages without a response yet."""

    async def answer(self, messages: Sequence[Any]) -> None:
        """Answer messages that have arrived together; they go to the stream together. Raises RequestError."""
        for message in messages:
            if message.WhichOneof("streaming_request") == "streaming_config":
                raise RequestError("streaming_config was already received")
            if message.HasField("id"):
                self.id = message.id
            if message.audio_content:
                await self.session.take(message.audio_content)
            self.unanswered += 1
            if message.runtime_config.get("force_eou", "").lower() == "true":
                await self._push(force_eou=True)
        if self.unanswered:
            await self._push()

    async def end(self, *, least: int = 1) -> None:
        """Answer the end of the stream: the rest of the last utterance. least: number of responses."""
        await self._write(await self.session.finish(), least)

    async def _push(self, *, force_eou: bool = False) -> None:
        await self._write(await self.session.push(force_eou=force_eou), self.unanswered)
        self.unanswered = 0

    async def _write(self, events: Sequence[Event], chunks: int) -> None:
        for group in responses_for(events, chunks):
            response = StreamingRecognizeResponse(results=[self.writer.stream(event) for event in group])
            if self.id is not None:
                response.id.CopyFrom(self.id)
            try:
                async with asyncio.timeout(self.idle_seconds):
                    await self.context.write(response)
            except TimeoutError:
                raise IdleError(self.idle_seconds, "taken") from None
