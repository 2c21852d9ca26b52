"""Settings and state of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Limits of batches and of the queue."""

    max_batch: int = 16
    """Rows of one forward."""
    max_wait: float = 0.008
    """Seconds that a row waits for company while the worker is idle."""
    max_queue: int = 256
    """Rows that wait at most; the last quarter is kept for streams, for high priorities, and for groups with
    little waiting."""
    batch_seconds: float = 120.0
    """Audio of one forward, padding included."""
    stream_patience: float = 0.15
    """Seconds that an offline batch may keep streams waiting, predicted from the measured speed."""
    threads: int | None = None
    """Threads of the worker's computations; None is as many as the thread that makes the engine has."""


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """A snapshot for health and metrics; counts are since the start."""

    alive: bool
    """The worker runs."""
    draining: bool
    waiting: int
    """Rows in the queue now."""
    running: int
    """Rows in the forward now."""
    running_seconds: float
    """Seconds since the beginning of that forward."""
    rows: int
    batches: int
    mixed_batches: int
    """Batches with more than one adapter choice."""
    audio_seconds: float
    padded_seconds: float
    forward_seconds: float
    rejected: int
    cancelled: int
    expired: int
    failed: int
    """Rows answered with an error of the forward."""
    restarts: int
    """Times that the worker died and was started again."""


@dataclass(kw_only=True)
class Counts:
    """Counts of `EngineState` while they change."""

    rows: int = 0
    batches: int = 0
    mixed_batches: int = 0
    audio_seconds: float = 0.0
    padded_seconds: float = 0.0
    forward_seconds: float = 0.0
    rejected: int = 0
    cancelled: int = 0
    expired: int = 0
    failed: int = 0
    restarts: int = 0


def add_states(states: Sequence[EngineState]) -> EngineState:
    """State of several engines as one: alive where all are, draining where one is, counts together."""
    names = [entry.name for entry in fields(EngineState)]
    sums = {name: sum(getattr(state, name) for state in states) for name in names}
    return EngineState(
        **sums
        | {
            "alive": all(state.alive for state in states),
            "draining": any(state.draining for state in states),
            "running_seconds": max((state.running_seconds for state in states), default=0.0),
        }
    )
