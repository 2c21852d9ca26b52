"""What went wrong -> an HTTP status, with the error envelope of OpenAI's interface."""

from __future__ import annotations

import math
from typing import Any

import grpc
from starlette.responses import JSONResponse

from overtone.errors import AdapterError, AudioError, OvertoneError
from overtone.serving.auth.access import AccessError
from overtone.serving.errors import DeadlineError, DrainingError, OverloadError, WorkerError
from overtone.serving.riva.errors import RivaError

STATUSES: dict[type[OvertoneError], int] = {
    OverloadError: 429,
    DrainingError: 503,
    DeadlineError: 504,
    WorkerError: 500,
    AdapterError: 404,
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
"""Nobody reads this answer; it stands in the log."""


class HttpError(OvertoneError):
    """An answer with a status of its own."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


def invalid(message: str, param: str | None = None) -> HttpError:
    return HttpError(400, message, param=param)


def status_of(error: BaseException) -> int:
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, AudioError | AccessError):
        return FAULTS[error.fault]
    if isinstance(error, RivaError):
        return 504 if error.code is grpc.StatusCode.DEADLINE_EXCEEDED else 400
    if isinstance(error, OvertoneError):
        return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 400)
    return 500


def type_of(status: int) -> str:
    """OpenAI's `type`."""
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return named.get(status, "server_error" if status >= 500 else "invalid_request_error")


def envelope(error: BaseException) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`. What is not meant for the client stays in the log."""
    status = status_of(error)
    message = str(error) if isinstance(error, OvertoneError) else "The server failed on this request; its log says why."
    if len(message) > MESSAGE_LENGTH:
        message = f"{message[:MESSAGE_LENGTH]} …"
    code = getattr(error, "code", None) if isinstance(error, HttpError) else None
    return {
        "error": {
            "message": message,
            "type": type_of(status),
            "param": getattr(error, "param", None),
            "code": code or CODES.get(status),
        }
    }


def error_response(error: BaseException, *, with_detail: bool = False) -> JSONResponse:
    """with_detail: repeat the message where clients of FastAPI services look for it, NVIDIA's among them."""
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
