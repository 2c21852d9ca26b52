"""Who may ask for which adapter: what every door needs of the server's security."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from overtone.errors import OvertoneError

Metadata = Sequence[tuple[str, str | bytes]]
"""Headers with lower-case names, in their order; a name may come several times."""


class AccessError(OvertoneError):
    """A request without a valid token, for an adapter that is not its tenant's, or one too many.

    retry_after: seconds, where waiting helps.
    """

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


class Authorise(Protocol):
    def __call__(self, metadata: Metadata, adapter: str | None) -> str:
        """The tenant, who may use the adapter (None: the base); empty where there are no tenants.

        Quick, and free of consequences: it is also asked what a tenant may see. Raises AccessError.
        """


def open_to_all(metadata: Metadata, adapter: str | None) -> str:
    """A server without tokens."""
    return ""
