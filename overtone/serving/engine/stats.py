"""What the engine is told, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How rows are gathered into batches."""

    max_batch: int = 16
    """Rows of one forward."""
    max_wait: float = 0.008
    """Seconds that a row waits for company while the worker is idle."""
    max_queue: int = 256
    """Rows that wait at most; the last quarter is kept for streams and for groups with little waiting."""
    batch_seconds: float = 120.0
    """Audio of one forward, padding included."""
    stream_patience: float = 0.15
    """Seconds that an offline batch may keep streams waiting, as far as the measured speed foretells."""
    threads: int | None = None
    """Threads of the worker's computations; None is as many as the thread that makes the engine would take."""


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """A snapshot for health and metrics; counts are since the start."""

    alive: bool
    """Whether the worker runs."""
    draining: bool
    waiting: int
    """Rows in the queue now."""
    running: int
    """Rows in the forward now."""
    running_seconds: float
    """How long that forward has lasted."""
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
    """What `EngineState` counts, as it changes."""

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
