"""Fields of settings with bounds, so that a wrong value is refused by name before a job starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any


def bounded(
    default: Any, *, at_least: float | None = None, at_most: float | None = None, above: float | None = None
) -> Any:
    """A number within limits; `above` excludes the limit itself."""
    limits = {"at_least": at_least, "at_most": at_most, "above": above}
    return field(default=default, metadata={name: x for name, x in limits.items() if x is not None})


def only(default: Any, *others: Any, instead: str) -> Any:
    """A field that others know and of which Overtone carries out these values alone; `instead` is the advice."""
    return field(default=default, metadata={"only": (default, *others), "instead": instead})


def one_of(default: Any, names: Sequence[str]) -> Any:
    """A word out of a list."""
    return field(default=default, metadata={"one_of": tuple(names)})


def target_of(names: Sequence[str]) -> Any:
    """A `_target_` string out of a list; the first is the default."""
    return field(default=names[0], metadata={"key": "_target_", "one_of": tuple(names)})


def section(kind: type, key: str | None = None) -> Any:
    """A node with fields of its own."""
    return field(default_factory=kind, metadata={"key": key} if key else {})
