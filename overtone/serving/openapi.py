"""OpenAPI description of the HTTP interface."""

from __future__ import annotations

from typing import Any

from overtone.serving.adapter_store.names import model_name
from overtone.serving.openai.responses import FORMATS
from overtone.serving.recognition.bases import Bases
from overtone.version import __version__

JSON_ERRORS = {"400": "mistaken", "401": "no valid token", "403": "not allowed", "429": "too much", "503": "closing"}


def describe_api(bases: Bases) -> dict[str, Any]:
    """Document at /openapi.json."""
    kept = "several frozen bases" if bases.are_several else "one frozen base"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Overtone",
            "version": __version__,
            "description": f"Speech recognition with {kept} and many adapters; each request chooses its own.",
        },
        "paths": {**public_paths(bases), **admin_paths()},
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "admin": {"type": "http", "scheme": "bearer", "description": "The administrator's token."},
            },
            "schemas": {"Error": error_schema(), "Adapter": adapter_schema()},
        },
    }


def public_paths(bases: Bases) -> dict[str, Any]:
    """Paths without the administration."""
    return {
        "/v1/audio/transcriptions": {"post": transcription(bases)},
        "/v1/models": {"get": operation("The base and the adapters that the caller may use.")},
        "/v1/models/{name}": {"get": operation("One of them.", named=True, errors={"404": "unknown"})},
        "/v1/realtime/transcription_sessions": {
            "post": operation("A session for the WebSocket /v1/realtime, with its settings and, with tokens, a secret.")
        },
        "/v1/realtime/client_secrets": {
            "post": operation("A secret that opens OpenAI's realtime sessions for a while, with their settings.")
        },
        "/v1/realtime": {
            "get": {
                "summary": "WebSocket: audio in, transcripts out, as OpenAI's and NVIDIA's realtime clients speak it.",
                "responses": {"101": {"description": "switching to the WebSocket protocol"}},
            }
        },
        **learning_paths(),
        "/v1/health/live": {"get": operation("Whether the process answers.", open=True)},
        "/v1/health/ready": {"get": operation("Whether requests are welcome.", open=True)},
        "/v1/metrics": {"get": operation("Metrics for Prometheus.", media="text/plain")},
        "/openapi.json": {"get": operation("This document.", open=True)},
    }


def lora(summary: str) -> dict[str, Any]:
    """Operation on the adapter that a JSON body names."""
    text = {"type": "string"}
    body = {"type": "object", "required": ["lora_name"], "properties": {"lora_name": text, "lora_path": text}}
    content = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation(summary, admin=True) | {"requestBody": content}


def learning_paths() -> dict[str, Any]:
    """Paths of learning from corrections."""
    one, text = "/v1/adapters/{name}", {"type": "string"}
    fields = {"text": text, "language": text, "file": {**text, "format": "binary"}}
    errors = {"413": "too large", "415": "unknown kind of audio"}
    correct = operation("A transcript put right, with its recording.", named=True, success="202", errors=errors)
    rows = {"type": "array", "items": {"type": "object", "properties": {"text": text, "language": text}}}
    correct["requestBody"] = {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "required": ["text"], "properties": fields}},
            "application/json": {"schema": {"type": "object", "properties": {"corrections": rows}}},
        },
    }
    return {
        f"{one}/corrections": {"post": correct},
        f"{one}/learning": {"get": operation("Versions, corrections, and the state of learning.", named=True)},
        f"{one}/back": {"post": operation("The version before, in the place of this one.", named=True)},
    }


def admin_paths() -> dict[str, Any]:
    """Paths of the administration."""
    one = "/v1/admin/adapters/{name}"
    upload = operation("Place or replace it: a zip or tar(.gz) of its folder.", named=True, admin=True, success="201")
    archive = {"schema": {"type": "string", "format": "binary"}}
    upload["requestBody"] = {"required": True, "content": {"application/octet-stream": archive}}
    return {
        "/v1/admin/adapters": {"get": operation("All adapters with state and reason.", admin=True)},
        "/v1/admin/scan": {"post": operation("Look at the folder of adapters now.", admin=True)},
        one: {
            "get": operation("One adapter.", named=True, admin=True),
            "put": upload,
            "delete": operation("Delete it from the folder.", named=True, admin=True, success="204"),
        },
        "/v1/load_lora_adapter": {"post": lora("Load an adapter, as vLLM: from the store, or a URI into it.")},
        "/v1/unload_lora_adapter": {"post": lora("Take an adapter out of the model, as vLLM; it stays in the store.")},
        f"{one}/load": {"post": operation("Load it into the model.", named=True, admin=True)},
        f"{one}/unload": {"post": operation("Take it out of the model.", named=True, admin=True)},
    }


def transcription(bases: Bases) -> dict[str, Any]:
    """Operation of a transcription, with the fields of its form."""
    base = model_name(bases.first.base, ())
    names = "; ".join(f"{own.base}, {own.base}+ADAPTER" for own in bases)
    text = {"type": "string"}
    fields = {
        "file": {
            **text,
            "format": "binary",
            "description": "WAV, FLAC, Ogg, MP3, M4A/MP4, WebM, AAC or AMR, of any rate; of films, the sound.",
        },
        "model": {**text, "default": base, "description": f"{names}, or an adapter's name."},
        "adapter": {**text, "description": "The adapter, where the model's name cannot say it."},
        "language": {**text, "default": bases.first.language},
        "response_format": {**text, "enum": list(FORMATS), "default": "json"},
        "timestamp_granularities[]": {"type": "array", "items": {**text, "enum": ["word", "segment"]}},
        "stream": {"type": "boolean", "default": False, "description": "Server-sent events as it goes."},
        "speech_contexts": {**text, "description": 'JSON: [{"phrases": ["…"], "boost": 10}]'},
        "profanity_filter": {"type": "boolean", "default": False},
        "prompt": {**text, "description": "Without effect."},
        "temperature": {"type": "number", "description": "Without effect."},
    }
    schema = {"type": "object", "required": ["file"], "properties": fields}
    errors = {"404": "unknown model", "413": "too large", "415": "unknown kind of audio", "504": "took too long"}
    described = operation("The transcript of a recording.", errors=errors)
    described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    return described


def operation(
    summary: str,
    *,
    named: bool = False,
    admin: bool = False,
    open: bool = False,
    media: str = "application/json",
    success: str = "200",
    errors: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Operation with its answers. open: it asks for no token. errors: texts of statuses besides the usual ones."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    failures = {} if open else {**JSON_ERRORS, **(errors or {})}
    content: dict[str, Any] = {} if success == "204" else {"content": {media: {}}}
    described: dict[str, Any] = {
        "summary": summary,
        "security": [] if open else [{"admin": []}] if admin else [{"token": []}, {}],
        "responses": {
            success: {"description": "done", **content},
            **{code: {"description": text, "content": error} for code, text in sorted(failures.items())},
        },
    }
    if named:
        described["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return described


def error_schema() -> dict[str, Any]:
    """Schema of an error."""
    fields = {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")}
    return {"type": "object", "properties": {"error": {"type": "object", "properties": fields}}}


def adapter_schema() -> dict[str, Any]:
    """Schema of an adapter in the administration."""
    names = ("name", "state", "reason", "kind", "digest", "source")
    return {
        "type": "object",
        "properties": {**{name: {"type": "string"} for name in names}, "parameters": {"type": "integer"}},
    }
