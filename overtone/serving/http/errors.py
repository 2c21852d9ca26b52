"""Errors of requests -> HTTP statuses, with the error envelope of OpenAI's interface."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

from overtone.errors import AdapterError, AudioError, OutputError, OvertoneError
from overtone.serving.errors import (
    AccessError,
    DeadlineError,
    DrainingError,
    IdleError,
    OverloadError,
    UnknownModelError,
    WorkerError,
)

STATUSES: dict[type[OvertoneError], int] = {
    OverloadError: 429,
    DrainingError: 503,
    DeadlineError: 504,
    WorkerError: 500,
    OutputError: 500,
    IdleError: 408,
    AdapterError: 404,
    UnknownModelError: 404,
}
"""Every other OvertoneError is a mistake of the request: 400."""

FAULTS = {
    "malformed": 400,
    "unsupported": 415,
    "too_large": 413,
    "unauthenticated": 401,
    "forbidden": 403,
    "rate": 429,
}

CODES = {
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    503: "unavailable",
    504: "deadline_exceeded",
}
MESSAGE_LENGTH = 1000
"""Characters of a message, which may quote the request."""
CLIENT_GONE = 499
"""Status of an answer that nobody reads; it stands in the log."""


class HttpError(OvertoneError):
    """An answer with a status of its own."""

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def status_of(error: BaseException) -> int:
    """HTTP status of an error."""
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, AudioError | AccessError):
        return FAULTS[error.fault]
    if isinstance(error, OvertoneError):
        return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 400)
    return 500


def type_of(status: int) -> str:
    """OpenAI's `type` of an error."""
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return named.get(status, "server_error" if status >= 500 else "invalid_request_error")


def code_of(error: BaseException, status: int) -> str | None:
    """OpenAI's `code` of an error."""
    if isinstance(error, UnknownModelError):
        return "model_not_found"
    return (error.code if isinstance(error, HttpError) else None) or CODES.get(status)


def envelope(error: BaseException) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`. Messages that are not for the client stay in the log."""
    status = status_of(error)
    message = str(error) if isinstance(error, OvertoneError) else "The server failed on this request; its log says why."
    if len(message) > MESSAGE_LENGTH:
        message = f"{message[:MESSAGE_LENGTH]} …"
    return {
        "error": {
            "message": message,
            "type": type_of(status),
            "param": getattr(error, "param", None),
            "code": code_of(error, status),
        }
    }


def error_response(error: BaseException, *, with_detail: bool = False) -> JSONResponse:
    """Answer to a request that failed.

    with_detail: repeat the message where clients of FastAPI services look for it, NVIDIA's among them.
    """
    status, content = status_of(error), envelope(error)
    if with_detail:
        content["detail"] = content["error"]["message"]
    headers = {}
    seconds = getattr(error, "retry_after", 0.0)
    if seconds:
        headers["Retry-After"] = str(math.ceil(seconds))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (408, 413):
        headers["Connection"] = "close"
    return JSONResponse(content, status, headers=headers)
