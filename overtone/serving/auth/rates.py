"""Rates, places and priorities: limits that tenants and adapters have alike, and their use so far."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from typing import Any, Protocol

from overtone.errors import UsageError

RATES = {"requests_per_minute", "audio_seconds_per_minute"}
PRIORITIES = {"low": -1, "normal": 0, "high": 1}
"""Rank in the queue of each priority."""
LEAST_RATE = 1e-6
"""The lowest rate per minute: one request in two years. The share of a second of much lower ones would be 0."""


class Limits(Protocol):
    """Limits of a tenant or of an adapter."""

    @property
    def requests_per_minute(self) -> float: ...

    @property
    def audio_seconds_per_minute(self) -> float: ...

    @property
    def sessions(self) -> float: ...

    @property
    def priority(self) -> str: ...


class Allowance:
    """A rate that may be overdrawn: use is counted when it is known, and the next request waits for it."""

    def __init__(self, per_minute: float, *, servers: int = 1) -> None:
        """servers: that share the rate, each in equal parts."""
        self.rate = per_minute / servers / 60
        self.most = per_minute / servers
        self.left = self.most
        self.at = time.monotonic()

    def wait(self, needed: float) -> float:
        """Seconds until as much as needed is left; 0 if it is now."""
        if math.isinf(self.most):
            return 0.0
        now = time.monotonic()
        self.left = min(self.most, self.left + (now - self.at) * self.rate)
        self.at = now
        return max(0.0, (min(needed, self.most) - self.left) / self.rate)

    def take(self, amount: float) -> None:
        self.wait(0.0)
        if not math.isinf(self.most):
            self.left -= amount

    def become(self, other: Allowance) -> None:
        """Have the rate of another one, with as large a part of it left as now; what was overdrawn stays so."""
        self.wait(0.0)
        if not math.isinf(self.most):
            self.left *= other.most / self.most if self.left > 0 else 1.0
        self.rate, self.most = other.rate, other.most

    def give(self, amount: float) -> None:
        """Give back what was taken and not used."""
        self.left = min(self.most, self.left + amount)


class Usage:
    """Use of the server by one tenant, or of one adapter. Not thread-safe."""

    def __init__(self, limits: Limits, *, servers: int = 1) -> None:
        """servers: that share the limits."""
        self.open = 0
        """Calls, transcriptions and sessions that are open."""
        self.limits = limits
        self.servers = servers
        self.refill()

    @property
    def places(self) -> float:
        """Calls, transcriptions and sessions that may be open at a time: this server's part of them, at least one."""
        places = self.limits.sessions
        return places if math.isinf(places) else max(1, places // self.servers)

    def share(self, servers: int) -> None:
        """Take this server's part of the limits from now on, where so many share them."""
        self.servers = servers
        self.requests.become(Allowance(self.limits.requests_per_minute, servers=servers))
        self.audio.become(Allowance(self.limits.audio_seconds_per_minute, servers=servers))

    def limit(self, limits: Limits) -> None:
        """Set the limits, with fresh rates where a number of them is another one; what is open still counts."""
        changed = numbers_of(limits) != numbers_of(self.limits)
        self.limits = limits
        if changed:
            self.refill()

    def refill(self) -> None:
        """Begin with fresh rates."""
        self.requests = Allowance(self.limits.requests_per_minute, servers=self.servers)
        self.audio = Allowance(self.limits.audio_seconds_per_minute, servers=self.servers)

    def wait(self) -> float:
        """Seconds until another request may come; 0 if it is now."""
        return max(self.requests.wait(1.0), self.audio.wait(1.0))


def numbers_of(limits: Limits) -> tuple[float, ...]:
    """Rates and places of a tenant or an adapter, to be compared."""
    return (limits.requests_per_minute, limits.audio_seconds_per_minute, limits.sessions)


def rank_of(priorities: Iterable[str]) -> int:
    """Rank of a request: the lowest of the priorities that are given; empty ones are not."""
    return min((PRIORITIES[name] for name in priorities if name), default=PRIORITIES["normal"])


# Values of files


def read_rate(value: Any, where: str) -> float:
    """Rate of a tenant or an adapter. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST_RATE <= value <= sys.float_info.max:
        raise UsageError(f"{where} must be a number above 0, finite and at least {LEAST_RATE:f}.")
    return float(value)


def read_count(value: Any, where: str) -> int:
    """Number of places of a tenant or an adapter. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise UsageError(f"{where} must be a whole number above 0.")
    return value


def read_priority(value: Any, where: str) -> str:
    """Priority of a tenant or an adapter. Raises UsageError."""
    if not isinstance(value, str) or value not in PRIORITIES:
        raise UsageError(f"{where} must be one of {', '.join(PRIORITIES)}.")
    return value
