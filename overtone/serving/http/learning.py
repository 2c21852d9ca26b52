"""Corrections over HTTP: transcripts that somebody has put right, the state of their learning, and the way back.

An adapter is learnt by whoever may: the administrator, tenants whose entry says so, and without tokens everybody.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from overtone.adapters.adapter import check_name
from overtone.learning.corrections import Correction
from overtone.learning.reading import LONGEST_SECONDS, languages_of, whole_numbers, writable_texts
from overtone.serving.errors import AccessError, RequestError
from overtone.serving.http.admin import run_or_400
from overtone.serving.http.bodies import form_file, read_body, read_form
from overtone.serving.http.errors import HttpError
from overtone.serving.http.requests import HttpRequests, call_of, metadata_of
from overtone.serving.learning import LearningJobs
from overtone.serving.recognition.request import Call, RecognitionRequest
from overtone.tokenizers import Tokenizer

LARGEST_JSON = 2**20
MOST_TEXTS = 1000
"""Corrections of one request."""
HALF_A_PAIR = re.compile("[\ud800-\udfff]")
CLOSED = "This server does not learn; start it with --learn and a folder of adapters."


class Learning:
    """Endpoints under /v1/adapters/NAME."""

    def __init__(self, requests: HttpRequests, jobs: LearningJobs | None) -> None:
        """jobs: None for a server that does not learn."""
        self.requests = requests
        self.service = requests.service
        self.jobs = jobs

    async def correct(self, request: Request) -> Response:
        """POST …/corrections: a form with `text` and the recording in `file`, or JSON with texts alone."""
        jobs, name, call = await self.admit(request)
        with self.requests.begin(call.tenant):
            model = self.service.engine.model
            tokenizer = await asyncio.to_thread(run_or_400, jobs.tokenizer_of, name, model)
            if request.headers.get("content-type", "").startswith("multipart/form-data"):
                corrections = await self.of_form(request, call, tokenizer)
            else:
                corrections = await self.of_json(request, tokenizer)
            new = await asyncio.to_thread(run_or_400, jobs.add, name, corrections)
        jobs.start(name)
        return JSONResponse({**await self.described(jobs, name), "new": new}, 202)

    async def state(self, request: Request) -> Response:
        """GET …/learning: versions, corrections, and what the learner does."""
        jobs, name, _ = await self.admit(request)
        return JSONResponse(await self.described(jobs, name))

    async def back(self, request: Request) -> Response:
        """POST …/back: the version before, in the place of this one."""
        jobs, name, _ = await self.admit(request)
        await asyncio.to_thread(jobs.back, name)
        await asyncio.to_thread(self.service.store.scan)
        return JSONResponse(await self.described(jobs, name))

    async def described(self, jobs: LearningJobs, name: str) -> dict[str, Any]:
        """State of an adapter's learning as JSON."""
        return {"object": "adapter.learning", "name": name, **await asyncio.to_thread(jobs.state, name)}

    async def admit(self, request: Request) -> tuple[LearningJobs, str, Call]:
        """Jobs, adapter and call of a request that may learn. Raises AccessError, HttpError and AdapterError."""
        metadata, guard = metadata_of(request), self.service.guard
        name: str = run_or_400(check_name, request.path_params["name"])
        tenant = guard.authorise_learning(metadata, name, base=self.service.base_name)
        call = self.requests.admit(request) if tenant or guard.tenants is None else call_of(request)
        if self.jobs is None:
            raise AccessError(CLOSED)
        if name in self.service.store:
            entry = await asyncio.to_thread(self.service.store.entry, name)
            if entry.source == "model":
                raise HttpError(400, f"'{name}' came with the model's file; adapters of the folder learn.")
            if entry.reason:
                raise HttpError(400, f"'{name}' cannot learn: {entry.reason}", code="invalid_adapter")
        return self.jobs, name, call

    async def of_form(self, request: Request, call: Call, tokenizer: Tokenizer) -> list[Correction]:
        """The correction of a form. Raises RequestError, HttpError, AudioError and DataError."""
        most, seconds = self.requests.settings.limits.max_bytes, self.requests.settings.idle_seconds
        async with read_form(request, most=most, seconds=seconds) as (request, form):
            text, language = form.get("text", ""), form.get("language", "")
            if not isinstance(text, str) or not isinstance(language, str) or not text.strip():
                raise RequestError("'text' is missing: the transcript as it should be.", "text")
            samples = None
            if any(isinstance(value, UploadFile) for value in form.values()):
                samples = await self.service.decode(form_file(form).file, RecognitionRequest(), call)
                length = samples.size / self.service.engine.sample_rate
                if length > LONGEST_SECONDS:
                    raise RequestError(
                        f"{length:.0f} s are too long for one correction; {LONGEST_SECONDS:g} s are allowed. "
                        "Cut the recording, or send the text alone.",
                        "file",
                    )
        (written,) = self.written(tokenizer, [(text, language or None)])
        return [
            Correction(
                text=written,
                language=language or None,
                samples=None if samples is None else whole_numbers(samples),
            )
        ]

    async def of_json(self, request: Request, tokenizer: Tokenizer) -> list[Correction]:
        """The corrections of a JSON body, texts without recordings. Raises RequestError, HttpError and DataError."""
        body = await read_body(request, most=LARGEST_JSON, seconds=self.requests.settings.idle_seconds)
        try:
            content = json.loads(body)
            rows = [(own["text"], own.get("language")) for own in content["corrections"]]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            rows = []
        if not 0 < len(rows) <= MOST_TEXTS or not all(
            isinstance(text, str) and text.strip() and isinstance(language, str | None) for text, language in rows
        ):
            raise RequestError(
                f'A form with \'text\' and \'file\' is needed, or JSON: {{"corrections": [{{"text": "…"}}]}}, at most '
                f"{MOST_TEXTS}.",
                "corrections",
            )
        texts = self.written(tokenizer, rows)
        return [Correction(text=text, language=language) for text, (_, language) in zip(texts, rows, strict=True)]

    def written(self, tokenizer: Tokenizer, rows: Sequence[tuple[str, str | None]]) -> list[str]:
        """Texts in the letters of a tokenizer. Raises RequestError, or DataError for what it cannot write."""
        if any(HALF_A_PAIR.search(f"{text}{language}") for text, language in rows):
            raise RequestError("A text holds half a surrogate pair. Write the character in full.", "text")
        languages = languages_of(tokenizer, self.service.engine.model)
        if wrong := next((own for _, own in rows if own is not None and own not in languages), None):
            known = ", ".join(languages) or "none: leave it out"
            raise RequestError(f"'language' is '{wrong[:20]}'; the model's transcripts have {known}.", "language")
        found = writable_texts(tokenizer, rows, policy="refuse")
        if any(text is None for text in found):
            raise RequestError("A text holds nothing that the model can write.", "text")
        return [text for text in found if text is not None]
