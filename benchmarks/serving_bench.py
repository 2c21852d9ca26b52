"""What the load test measures, and what its measurements share: clips, clients and servers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving_adapters import SMOKE_STRENGTH, STRENGTH, adapter_name
from benchmarks.serving_clients import Answer, Clients
from benchmarks.serving_process import ServeProcess


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured. Seconds unless said otherwise."""

    registered: tuple[int, ...] = (1, 16, 64, 256, 1000)
    """Adapters in the folder."""
    rounds: int = 6
    window: float = 4.0
    """Of one measurement of throughput."""
    lead: float = 0.5
    """Of a window that does not count."""
    in_flight: int = 48
    """Requests at any time while throughput is measured."""
    zipf: float = 1.1
    clip: float = 4.0
    clips: int = 16
    talk: float = 12.0
    """Of a stream."""
    loads: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
    """Arrivals as shares of the throughput that was measured, a tenth of them streams."""
    arrivals: float = 10.0
    stream_share: float = 0.1
    streams: tuple[int, ...] = (4, 8, 16, 24, 32, 48, 64, 96)
    """At a time; no more is tried once the goal is missed twice."""
    goal: float = 0.3
    """Latency of chunks that 95 % must keep."""
    switches: int = 60
    """Requests of each kind, one after the other."""
    idle: float = 4.0
    dim: int = 32
    """Of the adapters."""
    strength: float = STRENGTH


SMOKE = Plan(
    registered=(4,),
    rounds=1,
    window=1.0,
    lead=0.1,
    in_flight=4,
    clip=1.0,
    clips=3,
    talk=1.5,
    loads=(0.2,),
    arrivals=1.0,
    streams=(2,),
    switches=4,
    idle=0.2,
    dim=4,
    strength=SMOKE_STRENGTH,
)

JUDGED = Plan(registered=(16, 1000))
"""What the goals speak of."""


@dataclass(kw_only=True)
class Bench:
    """What all measurements share."""

    plan: Plan
    model: str
    dtype: str
    threads: int
    folder: Path
    clients: Clients
    clips: list[str]
    talks: list[str]
    answers: list[Answer] = field(default_factory=list)
    """All there were, to be compared in the end."""

    @contextmanager
    def server(
        self, registered: int, *options: str, capacity: int | None = None, threads: int | None = None
    ) -> Iterator[ServeProcess]:
        """A server with so many adapters in its folder, by default with room for all, and threads as the bench says."""
        with tempfile.TemporaryDirectory(dir=self.folder) as directory:
            store = Path(directory) / "adapters"
            store.mkdir()
            for index in range(registered):
                (store / adapter_name(index)).symlink_to(self.folder / "versions" / adapter_name(index))
            room = str(capacity or max(registered, 1))
            words = ("--dtype", self.dtype, "--capacity", room, *options)
            with ServeProcess(
                self.model, store, *words, log=Path(directory) / "log", threads=threads or self.threads
            ) as process:  # fmt: skip
                yield process

    def do(self, server: ServeProcess, **job: Any) -> tuple[float, list[Answer]]:
        began, answers = self.clients.do(grpc=server.grpc, **job)
        self.answers += answers
        return began, answers
