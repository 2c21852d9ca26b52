"""What a request may be told instead of an answer.

OvertoneError
├── OverloadError      a queue or the shelf is full; come back after `retry_after` seconds
├── DrainingError        the server is shutting down
├── DeadlineError  the request's deadline came before its turn
└── WorkerError      the worker failed on this request, also when it was tried again alone
AudioError and AdapterError (of overtone.errors) tell of audio and adapters that are not accepted.
"""

from __future__ import annotations

from overtone.errors import OvertoneError


class OverloadError(OvertoneError):
    """Nothing was queued. `retry_after`: seconds after which a new try is worth while."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DrainingError(OvertoneError):
    """The server finishes what it has and takes nothing new."""


class DeadlineError(OvertoneError):
    """The deadline of the request came before its turn."""


class WorkerError(OvertoneError):
    """The worker failed on this request."""
