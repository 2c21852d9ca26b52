"""OpenAI's interface: /v1/audio/transcriptions and /v1/models. A model's name may choose an adapter."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from overtone.serving.adapter_store.names import adapter_names, model_name
from overtone.serving.adapter_store.store import ShelfEntry
from overtone.serving.engine.engine import Samples
from overtone.serving.http.bodies import form_of, while_connected
from overtone.serving.http.errors import envelope, invalid
from overtone.serving.http.requests import Reception, add_contexts, metadata_of
from overtone.serving.openai.responses import FORMATS, answer, event, events
from overtone.serving.recognition.growing import growing
from overtone.serving.recognition.offline import Recognition, recognise_async
from overtone.serving.riva.protobuf import RecognitionConfig
from overtone.serving.riva.requests import RecognitionRequest
from overtone.serving.riva.servicer import Call

GRANULARITIES = {"word", "segment"}
WITHOUT_EFFECT = ("prompt", "temperature", "chunking_strategy", "include[]")
"""Fields of OpenAI's that mean nothing to this kind of model."""
FIELDS = {
    "file", "model", "adapter", "language", "response_format", "stream", "timestamp_granularities[]",
    "timestamp_granularities", "speech_contexts", "profanity_filter",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the fields of a form ask for."""

    request: RecognitionRequest
    format: str
    granularities: frozenset[str]
    stream: bool


class Transcriptions:
    def __init__(self, reception: Reception) -> None:
        self.reception = reception

    async def create(self, request: Request) -> Response:
        """POST /v1/audio/transcriptions."""
        reception = self.reception
        call = reception.admitted(request)
        settings = reception.settings
        async with AsyncExitStack() as held:
            held.enter_context(reception.working())
            most, seconds = settings.limits.max_bytes, settings.idle_seconds
            async with form_of(request, most=most, seconds=seconds) as (request, form):
                wishes = self.wishes(form, request, call)
                reception.guard.charge(call.tenant, requests=1)
                samples = await reception.in_thread(reception.provision.decoded, audio_of(form).file, wishes.request)
            call.audio_seconds = samples.size / reception.engine.sample_rate
            held.enter_context(reception.provision.held.holding(call.audio_seconds))
            if not wishes.stream:
                recognition = await while_connected(request, self.recognised(samples, wishes, call))
                return answer(
                    recognition,
                    wishes.format,
                    granularities=wishes.granularities,
                    language=settings.language,
                    mask=reception.provision.mask(wishes.request),
                )
            recognitions = await self.begun(samples, wishes, call, held)
            told = self.told(events(recognitions, reception.provision.mask(wishes.request)), held.pop_all())
            first = await anext(told)
            return StreamingResponse(rejoined(first, told), media_type="text/event-stream")

    def wishes(self, form: FormData, request: Request, call: Call) -> Wishes:
        """The fields of a form, checked. Raises HttpError, UsageError or AccessError."""
        format = text_field(form, "response_format") or "json"
        if format not in FORMATS:
            raise invalid(
                f"response_format '{format[:40]}' is unknown. Allowed: {', '.join(FORMATS)}.", "response_format"
            )
        granularities = {
            str(value)
            for name in ("timestamp_granularities[]", "timestamp_granularities")
            for value in form.getlist(name)
        }
        if not granularities <= GRANULARITIES:
            raise invalid("timestamp_granularities may name 'word' and 'segment'.", "timestamp_granularities")
        stream = flag_field(form, "stream")
        if stream and format not in ("json", "text"):
            raise invalid(f"A stream of events has no response_format '{format}'; leave it out.", "response_format")
        config = RecognitionConfig(
            model=text_field(form, "model"),
            language_code=text_field(form, "language"),
            profanity_filter=flag_field(form, "profanity_filter"),
        )
        config.custom_configuration["adapter"] = text_field(form, "adapter")
        add_phrases(config, form)
        ignored = [name if name in WITHOUT_EFFECT else f"field {name[:40]!r}" for name in sorted({*form} - FIELDS)]
        return Wishes(
            request=self.reception.understood(config, "offline", call, metadata_of(request), ignored=ignored),
            format=format,
            granularities=frozenset(granularities or {"segment"}),
            stream=stream,
        )

    async def recognised(self, samples: Samples, wishes: Wishes, call: Call) -> Recognition:
        reception = self.reception
        decoding = await reception.provision.decoding(wishes.request)
        call.ignored += decoding.ignored
        with await reception.provision.lease(wishes.request) as lease:
            return await recognise_async(
                reception.engine,
                samples,
                lease=lease,
                decoding=decoding,
                deadline=time.monotonic() + reception.settings.request_seconds,
                group=call.tenant or None,
            )

    async def begun(
        self, samples: Samples, wishes: Wishes, call: Call, held: AsyncExitStack
    ) -> AsyncIterator[Recognition]:
        """The same, told as it grows; the lease is held by `held`."""
        reception = self.reception
        decoding = await reception.provision.decoding(wishes.request)
        call.ignored += decoding.ignored
        lease = held.enter_context(await reception.provision.lease(wishes.request))
        return growing(
            reception.engine,
            samples,
            lease=lease,
            decoding=decoding,
            deadline=time.monotonic() + reception.settings.request_seconds,
            group=call.tenant or None,
        )

    async def told(self, chunks: AsyncIterator[bytes], held: AsyncExitStack) -> AsyncIterator[bytes]:
        """The chunks; what goes wrong after the first of them becomes an event."""
        begun = False
        async with held:
            try:
                async for chunk in chunks:
                    begun = True
                    yield chunk
            except Exception as error:
                if not begun:
                    raise
                yield event(envelope(error))


class Models:
    """GET /v1/models and /v1/models/NAME."""

    def __init__(self, reception: Reception) -> None:
        self.reception = reception
        self.created = int(time.time())

    async def list(self, request: Request) -> Response:
        self.reception.admitted(request)
        metadata = metadata_of(request)
        entries = await asyncio.to_thread(lambda: list(self.reception.visible(metadata)))
        return JSONResponse({"object": "list", "data": [self.shown(entry) for entry in (None, *entries)]})

    async def retrieve(self, request: Request) -> Response:
        self.reception.admitted(request)
        metadata = metadata_of(request)
        name = request.path_params["name"]
        names = adapter_names(name, self.reception.base)
        if not names:
            return JSONResponse(self.shown(None))
        for entry in self.reception.visible(metadata):
            if names == (entry.name,):
                return JSONResponse(self.shown(entry))
        raise self.reception.unknown_model(name, metadata)

    def shown(self, entry: ShelfEntry | None) -> dict[str, Any]:
        """The base where entry is None."""
        base = model_name(self.reception.base, ())
        names = () if entry is None else (entry.name,)
        shown: dict[str, Any] = {
            "id": model_name(self.reception.base, names),
            "object": "model",
            "created": self.created,
            "owned_by": "overtone",
            "root": base,
            "parent": None if entry is None else base,
            "language": self.reception.settings.language,
        }
        if entry is not None:
            shown["adapter"] = {
                "name": entry.name,
                "kind": entry.kind,
                "parameters": entry.parameters,
                "digest": entry.digest,
            }
        return shown


def audio_of(form: FormData) -> UploadFile:
    files = [value for name, value in form.multi_items() if name == "file" and isinstance(value, UploadFile)]
    if len(files) != 1:
        raise invalid("The form holds no audio; send one file in the field 'file'.", "file")
    return files[0]


def text_field(form: FormData, name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise invalid(f"'{name}' must be text, not a file.", name)
    return value.strip()


def flag_field(form: FormData, name: str) -> bool:
    value = text_field(form, name).lower()
    if value not in ("", "true", "false", "1", "0"):
        raise invalid(f"'{name}' is true or false.", name)
    return value in ("true", "1")


def add_phrases(config: Any, form: FormData) -> None:
    """`speech_contexts`, our addition: JSON as Riva spells it, [{"phrases": ["…"], "boost": 10}]."""
    text = text_field(form, "speech_contexts")
    if not text:
        return
    try:
        add_contexts(config, json.loads(text))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise invalid(
            '\'speech_contexts\' must be JSON: [{"phrases": ["…"], "boost": 10}].', "speech_contexts"
        ) from None


async def rejoined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
