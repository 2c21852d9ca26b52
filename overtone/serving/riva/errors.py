"""Errors of requests -> gRPC statuses."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import grpc

from overtone.errors import AudioError, OutputError, OvertoneError
from overtone.serving.errors import (
    AccessError,
    DeadlineError,
    DrainingError,
    IdleError,
    OverloadError,
    UnsupportedError,
    WorkerError,
)

Code = grpc.StatusCode

CODES: dict[type[OvertoneError], Any] = {
    UnsupportedError: Code.UNIMPLEMENTED,
    OverloadError: Code.RESOURCE_EXHAUSTED,
    DrainingError: Code.UNAVAILABLE,
    DeadlineError: Code.DEADLINE_EXCEEDED,
    IdleError: Code.DEADLINE_EXCEEDED,
    WorkerError: Code.INTERNAL,
    OutputError: Code.INTERNAL,
}
"""Every other OvertoneError is a mistake of the request: INVALID_ARGUMENT."""

FAULTS: dict[str, Any] = {
    "malformed": Code.INVALID_ARGUMENT,
    "unsupported": Code.INVALID_ARGUMENT,
    "too_large": Code.RESOURCE_EXHAUSTED,
    "unauthenticated": Code.UNAUTHENTICATED,
    "forbidden": Code.PERMISSION_DENIED,
    "rate": Code.RESOURCE_EXHAUSTED,
}

LOST_CODES = (Code.UNAVAILABLE, Code.CANCELLED)
"""Codes that a caller gets where the other side has gone."""

MESSAGE_LENGTH = 1000
"""Characters of a message: it travels in a header, whose size is limited, and may quote the request."""


def is_lost(error: BaseException) -> bool:
    """Tell whether an error of a call of gRPC says that the other side has gone."""
    return isinstance(error, grpc.aio.AioRpcError) and error.code() in LOST_CODES


class RivaError(OvertoneError):
    """An answer with a status of its own."""

    def __init__(self, code: Any, message: str) -> None:
        super().__init__(message)
        self.code = code


def unavailable(language: str, kind: str, more: str = "") -> RivaError:
    """Error in Riva's own words, which its clients look for; `more` follows them. kind: `offline` or `online`."""
    message = f"Error: Unavailable model requested. Lang: {language}, Type: {kind}{more}"
    return RivaError(Code.INVALID_ARGUMENT, message)


def status_of(error: BaseException) -> Any:
    """gRPC status of an error."""
    if isinstance(error, RivaError):
        return error.code
    if isinstance(error, AudioError | AccessError):
        return FAULTS[error.fault]
    if isinstance(error, OvertoneError):
        return next((code for kind, code in CODES.items() if isinstance(error, kind)), Code.INVALID_ARGUMENT)
    return Code.INTERNAL


async def abort(context: Any, error: Exception) -> NoReturn:
    """End the call with an error's status. Messages that are not for the client stay in the log."""
    message = str(error) if isinstance(error, OvertoneError) else "The server failed on this request; its log says why."
    if len(message) > MESSAGE_LENGTH:
        message = f"{message[:MESSAGE_LENGTH]} …"
    seconds = getattr(error, "retry_after", 0.0)
    before = context.trailing_metadata() or ()
    trailing = (*before, ("retry-after", str(math.ceil(seconds)))) if seconds else ()
    await context.abort(status_of(error), message, trailing)
    raise AssertionError("abort raises")
