"""What went wrong -> a gRPC status."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import grpc

from overtone.errors import AudioError, OvertoneError
from overtone.serving.auth.access import AccessError
from overtone.serving.errors import DeadlineError, DrainingError, OverloadError, WorkerError

Code = grpc.StatusCode

CODES: dict[type[OvertoneError], Any] = {
    OverloadError: Code.RESOURCE_EXHAUSTED,
    DrainingError: Code.UNAVAILABLE,
    DeadlineError: Code.DEADLINE_EXCEEDED,
    WorkerError: Code.INTERNAL,
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


class RivaError(OvertoneError):
    """An answer with a status of its own."""

    def __init__(self, code: Any, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> RivaError:
    return RivaError(Code.INVALID_ARGUMENT, message)


def sound(message: Any) -> Any:
    """A message that could be read (`messages.reader`)."""
    if message is None:
        raise invalid("the request is damaged: its bytes are not those of the message that this method takes")
    return message


def status_of(error: BaseException) -> Any:
    if isinstance(error, RivaError):
        return error.code
    if isinstance(error, AudioError | AccessError):
        return FAULTS[error.fault]
    if isinstance(error, OvertoneError):
        return next((code for kind, code in CODES.items() if isinstance(error, kind)), Code.INVALID_ARGUMENT)
    return Code.INTERNAL


MESSAGE_LENGTH = 1000
"""Characters of a message: it travels in a header, whose size is limited, and may quote the request."""


async def abort(context: Any, error: Exception) -> NoReturn:
    """End the call. What is not meant for the client stays in the log."""
    message = str(error) if isinstance(error, OvertoneError) else "The server failed on this request; its log says why."
    if len(message) > MESSAGE_LENGTH:
        message = f"{message[:MESSAGE_LENGTH]} …"
    seconds = getattr(error, "retry_after", 0.0)
    trailing = (("retry-after", str(math.ceil(seconds))),) if seconds else ()
    await context.abort(status_of(error), message, trailing)
    raise AssertionError("abort raises")
