"""What a caller may know of: the same at every door."""

from __future__ import annotations

from collections.abc import Iterator

from overtone.serving.adapter_store.names import model_name
from overtone.serving.adapter_store.store import Shelf, ShelfEntry
from overtone.serving.auth.access import AccessError, Authorise, Metadata

LISTED = 20
"""Model names in a message."""


def visible(shelf: Shelf, authorise: Authorise, metadata: Metadata) -> Iterator[ShelfEntry]:
    """The usable adapters that the caller may use. Raises AccessError where the token itself is not good."""
    for entry in shelf.names():
        if entry.state == "refused":
            continue
        try:
            authorise(metadata, entry.name)
        except AccessError as error:
            if error.fault == "forbidden":
                continue
            raise
        yield entry


def available(shelf: Shelf, authorise: Authorise, metadata: Metadata, *, base: str) -> str:
    """The names of the base and of these adapters, for a message. base: the base's name."""
    names = [model_name(base, ()), *(model_name(base, [entry.name]) for entry in visible(shelf, authorise, metadata))]
    return ", ".join(names[:LISTED]) + (f" … {len(names)} in all" if len(names) > LISTED else "")
