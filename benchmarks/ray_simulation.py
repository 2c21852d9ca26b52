"""Simulation of many replicas and adapters, event by event, with the router that the cluster runs.

python -m benchmarks.ray_simulation                    # tables of the results page
python -m benchmarks.ray_simulation --like-the-cluster # three replicas and 1000 adapters, to be set beside a run

A replica takes up to 16 waiting rows into a forward as soon as it is idle; a forward takes a fixed time and some for
each row. An adapter that a replica does not hold is loaded first, which takes a while and lets others go on. Requests
come at random; adapters are asked for by Zipf's law. The numbers of a replica are those of `benchmarks/RAY.md`.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import itertools
import random
import statistics
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from overtone.serving.ray.affinity import HeldAdapters, Homes, choose

MAX_BATCH = 16
FORWARD, ROW, LOAD, REPORT = 0.020, 0.005, 0.010, 2.0
"""Seconds: of a forward, of each of its rows, of loading an adapter, and between two words of a replica."""


@dataclass(kw_only=True)
class Settings:
    replicas: int
    adapters: int = 100_000
    capacity: int = 512
    load: float = 0.6
    """Share of the replicas' largest throughput that comes."""
    skew: float = 1.0
    """Zipf's exponent."""
    homes: int = 4
    requests: int = 12_000
    warm: int = 8_000
    """Requests before those that are counted."""
    routing: str = "affinity"
    """Or `random`: the less busy of two, whatever they hold."""


@dataclass(eq=False, kw_only=True)
class SimulatedReplica:
    name: str
    capacity: int
    held: OrderedDict[int, None] = field(default_factory=OrderedDict)
    waiting: deque[tuple[float, bool]] = field(default_factory=deque)
    running: bool = False

    def has(self, adapter: int) -> bool:
        """Whether the adapter is loaded; it counts as used."""
        if adapter not in self.held:
            return False
        self.held.move_to_end(adapter)
        return True

    def keep(self, adapter: int) -> None:
        """Load an adapter; the least recently used makes way."""
        self.held[adapter] = None
        self.held.move_to_end(adapter)
        if len(self.held) > self.capacity:
            self.held.popitem(last=False)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    hits: float
    """Share of the requests whose adapter was loaded."""
    median: float
    last: float
    """Seconds from a request to its answer, the median and the 99th percentile."""
    batch: float
    """Mean rows of a forward."""
    loads: float
    """Loads of adapters a second and replica."""
    copies: float
    """Replicas that hold an adapter, of those that any holds."""


def fill(replicas: dict[str, SimulatedReplica], homes: Homes, settings: Settings) -> None:
    """Load the most popular adapters where they would lie after a long while, the most popular last."""
    if settings.routing == "random":
        for replica in replicas.values():
            replica.held.update(dict.fromkeys(reversed(range(min(settings.capacity, settings.adapters)))))
        return
    most = min(settings.adapters, settings.capacity * settings.replicas)
    for adapter in reversed(range(most)):
        replicas[homes.of(str(adapter))[0]].keep(adapter)


class Simulation:
    """Events of one simulation, and what is counted of them."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings = settings
        self.chance = random.Random(seed)
        names = [f"r{number}" for number in range(settings.replicas)]
        self.replicas = {name: SimulatedReplica(name=name, capacity=settings.capacity) for name in names}
        self.homes, self.known = Homes(settings.homes), HeldAdapters()
        self.homes.settle(tuple(names))
        fill(self.replicas, self.homes, settings)
        for name, replica in self.replicas.items():
            self.known.tell(name, tuple(map(str, replica.held)), settings.capacity)
        self.rate = settings.load * settings.replicas * MAX_BATCH / (FORWARD + ROW * MAX_BATCH)
        powers = ((number + 1) ** -settings.skew for number in range(settings.adapters))
        self.weights = list(itertools.accumulate(powers))
        self.busy = dict.fromkeys(names, 0)
        self.order = itertools.count()
        self.events: list[Any] = []
        self.arrived = self.hits = self.rows = self.batches = 0
        self.began = self.now = 0.0
        self.seconds: list[float] = []

    def plan(self, after: float, work: Any, *facts: Any) -> None:
        """Let something happen after so many seconds."""
        heapq.heappush(self.events, (self.now + after, next(self.order), work, facts))

    def run(self) -> None:
        """Run until enough requests are answered."""
        self.plan(0.0, self.arrive)
        for name in self.replicas:
            self.plan(self.chance.random() * REPORT, self.tell, name)
        while len(self.seconds) < self.settings.requests:
            self.now, _, work, facts = heapq.heappop(self.events)
            work(*facts)

    def arrive(self) -> None:
        """A request comes, and is sent to a replica."""
        adapter = bisect.bisect_left(self.weights, self.chance.random() * self.weights[-1])
        wanted = (str(adapter),) if self.settings.routing == "affinity" else ()
        options = {"homes": self.homes, "held": self.known, "max_batch": MAX_BATCH, "chance": self.chance}
        chosen = choose(self.busy, wanted, **options)[0]
        self.known.send(chosen, wanted)
        self.busy[chosen] += 1
        counted = self.arrived >= self.settings.warm
        self.began = self.began or (self.now if counted else 0.0)
        self.arrived += 1
        replica = self.replicas[chosen]
        if replica.has(adapter):
            self.hits += counted
            self.wait(replica, self.now, counted)
        else:
            self.plan(LOAD, self.load, replica, adapter, self.now, counted)
        self.plan(self.chance.expovariate(self.rate), self.arrive)

    def load(self, replica: SimulatedReplica, adapter: int, then: float, counted: bool) -> None:
        """An adapter is loaded; its request waits for a forward."""
        replica.keep(adapter)
        self.wait(replica, then, counted)

    def wait(self, replica: SimulatedReplica, then: float, counted: bool) -> None:
        replica.waiting.append((then, counted))
        self.start(replica)

    def start(self, replica: SimulatedReplica) -> None:
        """Begin a forward, if the replica is idle."""
        if replica.running or not replica.waiting:
            return
        batch = [replica.waiting.popleft() for _ in range(min(MAX_BATCH, len(replica.waiting)))]
        replica.running = True
        self.rows += len(batch)
        self.batches += 1
        self.plan(FORWARD + ROW * len(batch), self.answer, replica, batch)

    def answer(self, replica: SimulatedReplica, batch: list[tuple[float, bool]]) -> None:
        """A forward ends."""
        replica.running = False
        self.busy[replica.name] -= len(batch)
        self.seconds += [self.now - then for then, counted in batch if counted]
        self.start(replica)

    def tell(self, name: str) -> None:
        """A replica tells of itself."""
        self.known.tell(name, tuple(map(str, self.replicas[name].held)), self.settings.capacity)
        self.plan(REPORT, self.tell, name)


def simulate(settings: Settings, seed: int = 0) -> Outcome:
    """Run one simulation."""
    simulation = Simulation(settings, seed)
    simulation.run()
    counted = simulation.arrived - settings.warm
    seconds = sorted(simulation.seconds)
    held = [adapter for replica in simulation.replicas.values() for adapter in replica.held]
    spent = simulation.now - simulation.began
    return Outcome(
        hits=simulation.hits / counted,
        median=statistics.median(seconds),
        last=seconds[int(0.99 * len(seconds))],
        batch=simulation.rows / simulation.batches,
        loads=(counted - simulation.hits) / spent / settings.replicas,
        copies=len(held) / max(1, len(set(held))),
    )


def row(name: str, outcome: Outcome) -> str:
    """A line of a table."""
    return (
        f"| {name} | {100 * outcome.hits:.1f} % | {1000 * outcome.median:.0f} ms | {1000 * outcome.last:.0f} ms "
        f"| {outcome.batch:.1f} | {outcome.loads:.1f} | {outcome.copies:.2f} |"
    )


HEAD = """| | adapter found loaded | median | p99 | rows of a forward | loads/s and replica | copies |
|---|--:|--:|--:|--:|--:|--:|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--like-the-cluster", action="store_true")
    if parser.parse_args().like_the_cluster:
        print(HEAD)
        for capacity in (64, 400):
            settings = Settings(replicas=3, adapters=1000, capacity=capacity, load=0.6)
            print(row(f"3 × {capacity}, 1000 adapters", simulate(settings)), flush=True)
        return
    print(HEAD)
    for replicas in (10, 100, 1000):
        size = {"requests": 10_000 + 20 * replicas, "warm": 5_000 + 20 * replicas}
        for routing in ("affinity", "random"):
            outcome = simulate(Settings(replicas=replicas, routing=routing, **size))
            print(row(f"{replicas} replicas, {routing}", outcome), flush=True)
    for load in (0.3, 0.8, 0.9, 0.95):
        print(row(f"100 replicas, {100 * load:.0f} % load", simulate(Settings(replicas=100, load=load))), flush=True)
    for capacity in (64, 256, 2048):
        print(row(f"100 replicas of {capacity}", simulate(Settings(replicas=100, capacity=capacity))), flush=True)
    for homes in (1, 2, 16):
        print(row(f"100 replicas, {homes} homes", simulate(Settings(replicas=100, homes=homes))), flush=True)
    for skew in (0.7, 1.3):
        print(row(f"100 replicas, Zipf {skew}", simulate(Settings(replicas=100, skew=skew))), flush=True)


if __name__ == "__main__":
    main()
