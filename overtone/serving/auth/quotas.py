"""Quotas: how much all clients together may ask of an adapter, and the priority of its requests.

A file of quotas names adapters; `others` is for each adapter that it does not name. `BASE:ADAPTER` is the adapter of
one of several bases, which is then counted apart from those of the same name:

    adapters:
      medical:
        requests_per_minute: 600         # each line is optional
        audio_seconds_per_minute: 3600
        sessions: 16                     # recordings and streams at a time
        priority: high                   # high, normal or low
      de:medical:
        sessions: 8
    others:
      sessions: 4
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from overtone.errors import AdapterError, UsageError, did_you_mean
from overtone.safe_yaml import read_values
from overtone.serving.auth.guard import check_place, read_text
from overtone.serving.auth.rates import RATES, Usage, read_count, read_priority, read_rate
from overtone.serving.errors import AccessError, DrainingError, OverloadError

NOT_TAKEN = (AdapterError, DrainingError, OverloadError)
"""Errors of a server that has no room for a request, or does not have its adapter: nothing was computed."""


@dataclass(frozen=True, kw_only=True)
class Quota:
    """One entry of the file of quotas."""

    requests_per_minute: float = math.inf
    audio_seconds_per_minute: float = math.inf
    sessions: float = math.inf
    """Recordings and streams at a time."""
    priority: str = ""
    """Key of PRIORITIES; empty leaves it to the tenant."""


@dataclass(frozen=True, kw_only=True)
class QuotaTable:
    """Content of a file of quotas."""

    adapters: Mapping[str, Quota] = field(default_factory=dict)
    """By `ADAPTER`, of all bases together, or `BASE:ADAPTER`."""
    others: Quota = field(default_factory=Quota)
    """Quota of each adapter that is not named."""

    def of(self, adapter: str) -> Quota:
        """Quota of an adapter."""
        return self.adapters.get(adapter, self.others)


class Quotas:
    """Use of each adapter, against its quota. Thread-safe. A request with several adapters is counted in each, once.

    Adapters are named as `names` gives them.
    """

    def __init__(self, table: QuotaTable | None = None) -> None:
        """table: None limits nothing."""
        self.table = table or QuotaTable()
        self._lock = threading.Lock()
        self._servers = 1
        self._usage: dict[str, Usage] = {}

    def renew(self, table: QuotaTable | None) -> None:
        """Take other quotas from now on; what is open goes on and counts, with fresh rates where limits changed."""
        with self._lock:
            self.table = table or QuotaTable()
            for name, usage in self._usage.items():
                usage.limit(self.table.of(name))

    def share(self, servers: int) -> None:
        """Take a part of each quota alone, where so many servers share them."""
        with self._lock:
            self._servers = servers
            for usage in self._usage.values():
                usage.share(servers)

    def names(self, adapters: Sequence[str], base: str) -> tuple[str, ...]:
        """Names under which adapters of a base are counted: `BASE:ADAPTER` where the quotas have it, else `ADAPTER`."""
        table = self.table.adapters
        return tuple(own if (own := f"{base}:{name}") in table else name for name in adapters)

    def priorities(self, adapters: Sequence[str]) -> tuple[str, ...]:
        """Priority of each adapter, empty where it has none."""
        return tuple(self.table.of(name).priority for name in adapters)

    def admit(self, adapters: Sequence[str]) -> None:
        """Raises AccessError where an adapter's quota leaves no room for another request now."""
        with self._lock:
            for name in adapters:
                check_room(name, self._used(name))

    @contextmanager
    def session(self, adapters: Sequence[str], *, audio_seconds: float = 0.0) -> Iterator[None]:
        """One of the places of each adapter, for a recording or a stream; a request is charged, and so much audio.

        What the server could not take on is not charged. Raises AccessError as `admit`; nothing is charged then.
        """
        with self._lock:
            used = {name: self._used(name) for name in adapters}
            for name, usage in used.items():
                check_room(name, usage)
            for usage in used.values():
                usage.open += 1
                usage.requests.take(1)
                usage.audio.take(audio_seconds)
        try:
            yield
        except NOT_TAKEN:
            with self._lock:
                for usage in used.values():
                    usage.requests.give(1)
                    usage.audio.give(audio_seconds)
            raise
        finally:
            with self._lock:
                for usage in used.values():
                    usage.open -= 1

    def charge(self, adapters: Sequence[str], *, audio_seconds: float) -> None:
        """Count audio of a session that is open."""
        with self._lock:
            for name in {*adapters}:
                self._used(name).audio.take(audio_seconds)

    def _used(self, adapter: str) -> Usage:
        """Use of an adapter; the lock is held."""
        found = self._usage.get(adapter)
        if found is None:
            found = self._usage[adapter] = Usage(self.table.of(adapter), servers=self._servers)
        return found


def check_room(adapter: str, usage: Usage) -> None:
    """Raises AccessError where an adapter's quota leaves no room for another request now."""
    if usage.open >= usage.places:
        raise AccessError(
            f"The adapter '{adapter}' has {usage.open} recordings and streams running, as many as its quota allows; "
            "try again when one has ended.",
            fault="rate",
            retry_after=1.0,
        )
    seconds = usage.wait()
    if seconds > 0:
        raise AccessError(
            f"The adapter '{adapter}' has used up its quota of a minute; try again in {math.ceil(seconds)} s.",
            fault="rate",
            retry_after=seconds,
        )


# Files


def read_quotas(path: Path) -> QuotaTable:
    """Quotas of a file. Raises UsageError, naming the file and the entry."""
    text = read_text(path, "quotas")
    try:
        data = read_values(text)
    except ValueError as error:
        raise UsageError(f"{path} is no YAML of plain values: {error}.") from error
    try:
        return read_table(data)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read_table(data: Any) -> QuotaTable:
    """Quotas of a file's content. Raises UsageError."""
    known = sorted(entry.name for entry in fields(QuotaTable))
    if not isinstance(data, dict) or not data:
        raise UsageError(f"keys are expected: {', '.join(known)}.")
    for key in data.keys() - {*known}:
        raise UsageError(f"'{key}' is unknown.{did_you_mean(str(key), known)} Known: {', '.join(known)}.")
    named = data.get("adapters", {})
    if not isinstance(named, dict):
        raise UsageError("'adapters' must name adapters, with an entry for each.")
    adapters = {}
    for name, entry in named.items():
        if not isinstance(name, str):
            raise UsageError(f"adapter '{name}': a name must be a text; put it in quotes.")
        try:
            adapters[check_place(name)] = read_quota(entry, f"adapter '{name}'")
        except AdapterError as error:
            raise UsageError(f"adapter '{name}': {error}") from error
    return QuotaTable(adapters=adapters, others=read_quota(data.get("others", {}), "'others'"))


def read_quota(entry: Any, where: str) -> Quota:
    """Quota of an entry. where: its place, for the message. Raises UsageError."""
    known = sorted(each.name for each in fields(Quota))
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: an entry of {', '.join(known)} is expected.")
    for key in entry.keys() - {*known}:
        raise UsageError(f"{where}: '{key}' is unknown.{did_you_mean(str(key), known)}")
    values: dict[str, Any] = {key: read_rate(entry[key], f"{where}: '{key}'") for key in RATES & entry.keys()}
    if "sessions" in entry:
        values["sessions"] = read_count(entry["sessions"], f"{where}: 'sessions'")
    if "priority" in entry:
        values["priority"] = read_priority(entry["priority"], f"{where}: 'priority'")
    return Quota(**values)
