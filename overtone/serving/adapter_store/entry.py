"""Entries of the adapter store as others see them, and the log of their changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from overtone.adapters.adapter import Adapter
from overtone.serving.adapter_store.folder import Version

LOG = logging.getLogger("overtone.serving.adapter_store.store")
State = Literal["ready", "resident", "refused"]


@dataclass(frozen=True, kw_only=True)
class AdapterEntry:
    """One name in the store."""

    name: str
    """Name of the folder, or the adapter's own where it came with the model's file."""
    state: State
    """`ready`: on disk; `resident`: in the model; `refused`: cannot be used, see `reason`."""
    reason: str
    """Why it, or its latest replacement, is refused; empty where all is well."""
    digest: str
    """`sha256:…` of its content; empty where refused and never read."""
    kind: str
    """linear, lora, …; empty where unknown."""
    parameters: int
    """Number of parameters; 0 where unknown."""
    card: Mapping[str, Any]
    """Card of the adapter: training data, WER."""
    source: Literal["folder", "model"]
    """A folder of the store, or the file of the model."""


def entry_of_model(adapter: Adapter, digest: str) -> AdapterEntry:
    """Entry of an adapter that came with the model's file."""
    return AdapterEntry(
        name=adapter.name,
        state="resident",
        reason="",
        digest=digest,
        kind=adapter.kind.name,
        parameters=adapter.parameter_count(),
        card=adapter.card,
        source="model",
    )


def entry_of_folder(name: str, version: Version | None, *, problem: str, in_model: bool) -> AdapterEntry:
    """Entry of a folder. version: the latest that was good. problem: fault of the folder's latest state."""
    return AdapterEntry(
        name=name,
        state="resident" if in_model else "refused" if problem or version is None else "ready",
        reason=problem,
        digest=version.digest if version else "",
        kind=version.kind if version else "",
        parameters=version.parameters if version else 0,
        card=version.card if version else {},
        source="folder",
    )


def log_change(event: str, name: str, *, is_news: bool = True, **facts: str) -> None:
    """Log a change: `added`, `replaced`, `removed`, `refused` or `usable again`. is_news: False for a first scan's."""
    level = logging.WARNING if event == "refused" else logging.INFO if is_news else logging.DEBUG
    reason = f": {facts['reason']}" if "reason" in facts else ""
    LOG.log(level, "adapter '%s' %s%s", name, event, reason, extra={"call": {"event": event, "adapter": name, **facts}})
