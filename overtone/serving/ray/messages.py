"""Messages between a front and the replicas of a base: jobs, errors as values, and what a replica tells of itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from overtone.errors import OvertoneError
from overtone.serving.adapter_store.store import AdapterEntry
from overtone.serving.engine.stats import EngineState
from overtone.serving.errors import WorkerError
from overtone.serving.recognition.request import Call, RecognitionRequest

LOG = logging.getLogger("overtone.serving.ray")
FAILED = "The replica failed on this request; its log says why."


@dataclass(frozen=True, kw_only=True)
class Job:
    """One recording or stream, as a replica is told of it: plain values, for they travel between machines."""

    request: RecognitionRequest
    adapters: tuple[str, ...] = ()
    """Adapters in the order in which they act; empty for the base."""
    digests: tuple[str, ...] = ()
    """Content that the front knows of each adapter; a replica that knows another one looks at its folder first."""
    tenant: str = ""
    rank: int = 0
    """Rank in the replica's queue."""
    audio_seconds: float = 0.0
    seconds_left: float | None = None
    """Time until the deadline: clocks of machines differ."""

    @property
    def deadline(self) -> float | None:
        """The deadline as this process's `time.monotonic()`."""
        return None if self.seconds_left is None else time.monotonic() + self.seconds_left

    @property
    def call(self) -> Call:
        """Record of the call in a replica."""
        return Call(
            method="",
            adapter="+".join(self.adapters),
            tenant=self.tenant,
            rank=self.rank,
            audio_seconds=self.audio_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error that a replica answers with: a value, so that it arrives as the error that it is."""

    kind: type[OvertoneError]
    message: str
    facts: dict[str, Any] = field(default_factory=dict)

    def error(self) -> OvertoneError:
        """The error itself, without where it was raised."""
        error = self.kind.__new__(self.kind, self.message)
        error.args = (self.message,)
        vars(error).update(self.facts)
        return error


def failure_of(error: Exception) -> Failure:
    """The error as a value. One that is not ours is logged, and becomes a WorkerError."""
    if isinstance(error, OvertoneError):
        return Failure(kind=type(error), message=str(error), facts=dict(vars(error)))
    LOG.error("a request failed", exc_info=error)
    return Failure(kind=WorkerError, message=FAILED)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """First answer of a stream: which replica computes it, and under which number."""

    replica: str
    stream: int
    keeps_words: bool
    """As `streaming.stream.Stream.keeps_words`."""


@dataclass(frozen=True, kw_only=True)
class Fronts:
    """Fronts that share quotas, as a replica knows them, or all replicas of a base together."""

    count: int
    settled: bool
    """False from a replica that is so young that some fronts may not have met it yet."""


@dataclass(frozen=True, kw_only=True)
class ReplicaState:
    """Word of a replica about itself, every few seconds, for routing, health and metrics."""

    engine: EngineState
    adapters: tuple[str, ...]
    """Names whose newest version is in the model."""
    capacity: int
    """Adapters that fit into the model at a time."""
    max_batch: int
    store: Mapping[str, float]
    """Counts of the adapter store."""
    streams: int = 0
    """Streams that are open."""


def cached_names(entries: list[AdapterEntry]) -> tuple[str, ...]:
    """Names of the adapters that are in the model."""
    return tuple(entry.name for entry in entries if entry.state == "resident")
