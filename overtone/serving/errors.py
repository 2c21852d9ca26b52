"""Errors of requests. `riva/errors.py` and `http/errors.py` map each to a status.

OvertoneError
├── RequestError       the request is malformed, or asks for something that is not allowed
├── UnsupportedError   the request asks for something that this server cannot do
├── LanguageError      the model understands another language
├── UnknownModelError  there is no such model or adapter
├── AccessError        no valid token, not this tenant's adapter, or too many requests
├── OverloadError      a queue or the model is full; try again after `retry_after` seconds
├── DrainingError      the server is shutting down
├── DeadlineError      the request's deadline came before its turn
├── IdleError          the client sent nothing for too long
└── WorkerError        the worker failed on this request, also when it was tried again alone
AdapterError and AudioError (of overtone.errors) are about adapters and audio that cannot be used.
"""

from __future__ import annotations

from typing import Literal

from overtone.errors import OvertoneError

NO_NUMBERS = "The computation of this request did not give numbers (NaN), so that no answer can be believed."


class RequestError(OvertoneError):
    """The request is malformed, or asks for something that is not allowed. param: the field, where it is known."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedError(OvertoneError):
    """The request asks for something that this server cannot do; another answer would mislead."""


class LanguageError(OvertoneError):
    """The model does not understand the language. asked, own: BCP-47 tags."""

    def __init__(self, asked: str, own: str) -> None:
        super().__init__(f"The language '{asked[:40]}' is not understood here; this model's is {own}.")
        self.asked = asked
        self.param = "language"


class UnknownModelError(OvertoneError):
    """There is no such model. available: names of those that there are, in one line."""

    def __init__(self, name: str, available: str) -> None:
        super().__init__(f"The model '{name[:200]}' does not exist. Available: {available}.")
        self.available = available
        self.param = "model"


class AccessError(OvertoneError):
    """No valid token, an adapter that is not this tenant's, or too many requests. retry_after: seconds, 0 if vain."""

    def __init__(
        self,
        message: str,
        *,
        fault: Literal["unauthenticated", "forbidden", "rate"] = "forbidden",
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.fault: Literal["unauthenticated", "forbidden", "rate"] = fault
        self.retry_after = retry_after


class OverloadError(OvertoneError):
    """Nothing was queued. retry_after: seconds after which a new try is worth while."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DrainingError(OvertoneError):
    """The server finishes its work and takes nothing new."""

    def __init__(self, message: str = "The server is shutting down; ask another one, or again later.") -> None:
        super().__init__(message)


class DeadlineError(OvertoneError):
    """The deadline of the request came before its turn."""


class IdleError(OvertoneError):
    """The client sent nothing for too long, or took nothing of its answer."""

    def __init__(self, seconds: float, done: str = "sent") -> None:
        super().__init__(f"Nothing was {done} for {seconds:g} seconds; the connection is closed.")


class WorkerError(OvertoneError):
    """The worker failed on this request."""
