"""OpenAI's interface: /v1/audio/transcriptions and /v1/models. A model's name may choose an adapter."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from overtone.adapters.card import part, rate, reached_rates
from overtone.decoding.phrase_boost import Boost
from overtone.serving.adapter_store.names import model_name
from overtone.serving.adapter_store.store import AdapterEntry
from overtone.serving.errors import AccessError, RequestError
from overtone.serving.http.bodies import form_file, read_form, while_connected
from overtone.serving.http.errors import envelope
from overtone.serving.http.requests import HttpRequests, metadata_of
from overtone.serving.openai.responses import FORMATS, answer, event, events
from overtone.serving.recognition.bases import ambiguous
from overtone.serving.recognition.request import (
    TASK_KEYS,
    RecognitionRequest,
    custom_task,
    json_boosts,
    keyword_boosts,
)
from overtone.serving.recognition.service import RecognitionService

GRANULARITIES = {"word", "segment"}
WITHOUT_EFFECT = ("temperature", "chunking_strategy")
"""Fields of OpenAI's that mean nothing to this kind of model."""
FIELDS = {
    "file", "model", "adapter", "language", "languages", "languages[]", "response_format", "stream",
    "timestamp_granularities", "timestamp_granularities[]", "speech_contexts", "profanity_filter", "prompt", "keywords",
    "keywords[]", "include", "include[]", *TASK_KEYS,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Form of the answer that a request asks for. Raises RequestError."""

    format: str
    """One of FORMATS."""
    granularities: frozenset[str]
    """`word` and `segment`, for verbose_json."""
    stream: bool
    """Answer with server-sent events."""
    logprobs: bool = False
    """Add the words' log-probabilities."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            allowed = ", ".join(FORMATS)
            message = f"response_format '{self.format[:40]}' is unknown. Allowed: {allowed}."
            raise RequestError(message, "response_format")
        if not self.granularities <= GRANULARITIES:
            raise RequestError("timestamp_granularities may name 'word' and 'segment'.", "timestamp_granularities")
        if self.stream and self.format not in ("json", "text"):
            message = f"A stream of events has no response_format '{self.format}'; leave it out."
            raise RequestError(message, "response_format")
        if self.logprobs and self.format != "json":
            message = f"'logprobs' are for response_format 'json', not '{self.format}'; verbose_json has confidences."
            raise RequestError(message, "include")


# Forms


def recognition_request(form: FormData, *, prompt_boost: float = 0.0) -> RecognitionRequest:
    """Fields of a form -> a recognition request. prompt_boost: of the prompt's words. Raises RequestError."""
    prompt = text_field(form, "prompt")
    ignored = sorted({*form} - FIELDS | ({"prompt"} if prompt and not prompt_boost else set()))
    return RecognitionRequest(
        model=text_field(form, "model"),
        adapter=text_field(form, "adapter"),
        language=text_field(form, "language") or one_language(form),
        task=custom_task({name: text_field(form, name) for name in TASK_KEYS}),
        mask_profanity=flag_field(form, "profanity_filter"),
        boosts=boosts_field(form) + keyword_boosts(list_field(form, "keywords"), prompt, prompt_boost),
        ignored=tuple(name if name in (*WITHOUT_EFFECT, "prompt") else f"field {name[:40]!r}" for name in ignored),
    )


def answer_options(form: FormData) -> AnswerOptions:
    """Fields of a form -> the form of its answer. Raises RequestError."""
    granularities = {*list_field(form, "timestamp_granularities")}
    included = {*list_field(form, "include")}
    if not included <= {"logprobs"}:
        raise RequestError("'include' may name 'logprobs'.", "include")
    return AnswerOptions(
        format=text_field(form, "response_format") or "json",
        granularities=frozenset(granularities or {"segment"}),
        stream=flag_field(form, "stream"),
        logprobs=bool(included),
    )


def list_field(form: FormData, name: str) -> list[str]:
    """Texts of a field that may come several times, with brackets in its name or without."""
    return [str(value) for key in (f"{name}[]", name) for value in form.getlist(key)]


def text_field(form: FormData, name: str) -> str:
    """Text of a field, empty where there is none. Raises RequestError for a file."""
    value = form.get(name, "")
    if not isinstance(value, str):
        raise RequestError(f"'{name}' must be text, not a file.", name)
    return value.strip()


def one_language(form: FormData) -> str:
    """The one language of OpenAI's `languages`; empty where it has none. Raises RequestError for several."""
    languages = list_field(form, "languages")
    if len(languages) > 1:
        message = f"'languages' names {len(languages)} languages; the model is told one, or none."
        raise RequestError(message, "languages")
    return languages[0].strip() if languages else ""


def flag_field(form: FormData, name: str) -> bool:
    """Value of a field that is true or false. Raises RequestError."""
    value = text_field(form, name).lower()
    if value not in ("", "true", "false", "1", "0"):
        raise RequestError(f"'{name}' is true or false.", name)
    return value in ("true", "1")


def boosts_field(form: FormData) -> tuple[Boost, ...]:
    """Boosts of `speech_contexts`, our addition: JSON as Riva spells it, [{"phrases": ["…"], "boost": 10}].

    Raises RequestError.
    """
    text = text_field(form, "speech_contexts")
    if not text:
        return ()
    try:
        return json_boosts(json.loads(text))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise RequestError(
            '\'speech_contexts\' must be JSON: [{"phrases": ["…"], "boost": 10}].', "speech_contexts"
        ) from None


# Endpoints


class Transcriptions:
    """POST /v1/audio/transcriptions."""

    def __init__(self, requests: HttpRequests) -> None:
        self.requests = requests

    async def create(self, request: Request) -> Response:
        """Transcribe the file of a form; the answer is one text, or a stream of events."""
        requests, settings = self.requests, self.requests.settings
        call = requests.admit(request)
        async with AsyncExitStack() as running:
            running.enter_context(requests.begin(call.tenant))
            most, seconds = settings.limits.max_bytes, settings.idle_seconds
            async with read_form(request, most=most, seconds=seconds) as (request, form):
                asked = recognition_request(form, prompt_boost=settings.prompt_boost)
                options = answer_options(form)
                service = requests.bases.choose(asked, metadata_of(request), call)
                service.check(asked, metadata_of(request), call)
                samples = await while_connected(request, service.decode(form_file(form).file, asked, call))
            deadline, mask = time.monotonic() + settings.request_seconds, service.mask(asked)
            if not options.stream:
                work = service.recognise(samples, asked, call, deadline=deadline)
                recognition = await while_connected(request, work)
                return answer(
                    recognition,
                    options.format,
                    granularities=options.granularities,
                    language=service.spoken_language(asked),
                    mask=mask,
                    logprobs=options.logprobs,
                )
            recognitions = service.recognise_in_parts(samples, asked, call, deadline=deadline)
            chunks = add_error_event(events(recognitions, mask, logprobs=options.logprobs), running.pop_all())
            first = await anext(chunks)
            return StreamingResponse(prepend(first, chunks), media_type="text/event-stream")


async def add_error_event(chunks: AsyncGenerator[bytes], running: AsyncExitStack) -> AsyncGenerator[bytes]:
    """Chunks of an answer; an error after the first of them becomes an event. running: closed at the end."""
    has_begun = False
    async with running, aclosing(chunks):
        try:
            async for chunk in chunks:
                has_begun = True
                yield chunk
        except Exception as error:
            if not has_begun:
                raise
            yield event(envelope(error))


async def prepend(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Iterator over `first` and the rest."""
    yield first
    async for chunk in rest:
        yield chunk


class Models:
    """GET /v1/models and /v1/models/NAME."""

    def __init__(self, requests: HttpRequests) -> None:
        self.requests = requests
        self.bases = requests.bases
        self.created = int(time.time())

    async def list(self, request: Request) -> Response:
        self.requests.admit(request)
        found = await asyncio.to_thread(lambda: [(service, self.visible(service, request)) for service in self.bases])
        models, aliases = [], []
        for service, entries in found:
            models += [self.model_json(service, None)]
            models += [self.model_json(service, entry, learns=self.learns(request, entry)) for entry in entries]
        for alias in self.bases.first.aliases:
            known = self.known(alias, found)
            aliases += [self.model_json(*known[0], alias)] if len(known) == 1 else []
        return JSONResponse({"object": "list", "data": models + aliases})

    async def retrieve(self, request: Request) -> Response:
        self.requests.admit(request)
        name = request.path_params["name"]
        visible = ((service, self.visible(service, request)) for service in self.bases)  # looked at for adapters alone
        known = await asyncio.to_thread(self.known, name, visible)
        if not known:
            raise self.bases.unknown_model(name, metadata_of(request))
        if len(known) > 1:
            raise ambiguous(self.bases.place(name)[1], [service for service, _ in known])
        return JSONResponse(self.model_json(*known[0], name if name in self.bases.first.aliases else ""))

    def known(
        self, name: str, visible: Iterable[tuple[RecognitionService, Sequence[AdapterEntry]]]
    ) -> Sequence[tuple[RecognitionService, AdapterEntry | None]]:
        """Services and entries (None: the base) among the visible ones that a name may mean."""
        named, names = self.bases.place(name)
        if not names:
            return [(named or self.bases.first, None)]
        return [
            (service, entry)
            for service, entries in visible
            for entry in entries
            if named in (None, service) and names == (entry.name,)
        ]

    def visible(self, service: RecognitionService, request: Request) -> tuple[AdapterEntry, ...]:
        """Usable adapters of a base that the caller may use. Raises AccessError."""
        return tuple(service.visible_adapters(metadata_of(request)))

    def learns(self, request: Request, entry: AdapterEntry) -> bool:
        """Tell whether an adapter would learn from the caller's corrections."""
        if not self.requests.settings.learn or entry.source == "model":
            return False
        try:
            first = self.bases.first
            first.guard.authorise_learning(metadata_of(request), entry.name, base=first.base_name)
        except AccessError:
            return False
        return True

    def model_json(
        self, service: RecognitionService, entry: AdapterEntry | None, alias: str = "", *, learns: bool = False
    ) -> dict[str, Any]:
        """JSON of a model; entry: None for the base. alias: its name in place of its own."""
        base = model_name(service.base, ())
        names = () if entry is None else (entry.name,)
        shown: dict[str, Any] = {
            "id": alias or model_name(service.base, names),
            "object": "model",
            "created": self.created,
            "owned_by": "overtone",
            "root": base,
            "parent": None if entry is None else base,
            "language": service.language,
        }
        if entry is not None:
            shown["adapter"] = {
                "name": entry.name,
                "kind": entry.kind,
                "parameters": entry.parameters,
                "digest": entry.digest,
                "training": training_of(entry.card),
                **({"learns": True} if learns else {}),
            }
        return shown


def training_of(card: Mapping[str, Any]) -> dict[str, float]:
    """Hours of speech and word error rates (0..1) of a training, as far as the card tells them; no names and paths."""
    before, after = reached_rates(card)
    found = {"hours": rate(part(card, "data"), "hours"), "wer_before": before, "wer_after": after}
    return {key: value for key, value in found.items() if value is not None}
