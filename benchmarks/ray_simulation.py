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
    waiting: deque[tuple[float, int, bool]] = field(default_factory=deque)
    ongoing: int = 0
    running: bool = False
    batches: int = 0
    rows: int = 0

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


def simulate(settings: Settings, seed: int = 0) -> Outcome:
    """Run one simulation."""
    chance = random.Random(seed)
    replicas = {
        f"r{number}": SimulatedReplica(name=f"r{number}", capacity=settings.capacity)
        for number in range(settings.replicas)
    }
    homes, known = Homes(settings.homes), HeldAdapters()
    homes.settle(tuple(replicas))
    fill(replicas, homes, settings)
    for name, replica in replicas.items():
        known.tell(name, tuple(map(str, replica.held)), settings.capacity)
    rate = settings.load * settings.replicas * MAX_BATCH / (FORWARD + ROW * MAX_BATCH)
    weights = list(itertools.accumulate((number + 1) ** -settings.skew for number in range(settings.adapters)))
    busy = dict.fromkeys(replicas, 0)
    order = itertools.count()
    events: list[tuple[float, int, str, tuple]] = [(0.0, next(order), "arrive", ())]
    events += [(chance.random() * REPORT, next(order), "tell", (name,)) for name in replicas]
    heapq.heapify(events)
    arrived = hits = 0
    seconds: list[float] = []
    began = ended = 0.0
    rows = batches = 0

    def start(replica: SimulatedReplica, now: float) -> None:
        if replica.running or not replica.waiting:
            return
        batch = [replica.waiting.popleft() for _ in range(min(MAX_BATCH, len(replica.waiting)))]
        replica.running = True
        if batch[0][2]:
            nonlocal rows, batches
            rows, batches = rows + len(batch), batches + 1
        heapq.heappush(events, (now + FORWARD + ROW * len(batch), next(order), "done", (replica.name, batch)))

    total = settings.warm + settings.requests
    while len(seconds) < settings.requests:
        now, _, kind, facts = heapq.heappop(events)
        if kind == "arrive":
            adapter = bisect.bisect_left(weights, chance.random() * weights[-1])
            name = str(adapter)
            wanted = (name,) if settings.routing == "affinity" else ()
            chosen = choose(busy, wanted, homes=homes, held=known, max_batch=MAX_BATCH, chance=chance)[0]
            known.send(chosen, wanted)
            busy[chosen] += 1
            counted = arrived >= settings.warm
            if counted and not began:
                began = now
            arrived += 1
            replica = replicas[chosen]
            if replica.has(adapter):
                hits += counted
                replica.waiting.append((now, adapter, counted))
                start(replica, now)
            else:
                heapq.heappush(events, (now + LOAD, next(order), "loaded", (chosen, adapter, now, counted)))
            if arrived < total * 2:
                heapq.heappush(events, (now + chance.expovariate(rate), next(order), "arrive", ()))
        elif kind == "loaded":
            chosen, adapter, then, counted = facts
            replicas[chosen].keep(adapter)
            replicas[chosen].waiting.append((then, adapter, counted))
            start(replicas[chosen], now)
        elif kind == "done":
            chosen, batch = facts
            replica = replicas[chosen]
            replica.running = False
            busy[chosen] -= len(batch)
            seconds += [now - then for then, _, counted in batch if counted]
            ended = now
            start(replica, now)
        else:
            (name,) = facts
            known.tell(name, tuple(map(str, replicas[name].held)), settings.capacity)
            heapq.heappush(events, (now + REPORT, next(order), "tell", (name,)))
    counted_requests = max(1, arrived - settings.warm)
    seconds.sort()
    held = [adapter for replica in replicas.values() for adapter in replica.held]
    return Outcome(
        hits=hits / counted_requests,
        median=statistics.median(seconds),
        last=seconds[int(0.99 * len(seconds))],
        batch=rows / max(1, batches),
        loads=(1 - hits / counted_requests) * counted_requests / max(1e-9, ended - began) / settings.replicas,
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
