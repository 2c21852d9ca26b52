"""Affinity: which replicas a request is sent to, best first. Plain Python, the same in routers and simulation.

Every adapter has some homes among the replicas, by rendezvous hashing: routers agree on them without talking. A request
goes to a replica that holds its adapters and is not overloaded, else to the least busy home, which loads them. So a
popular adapter spreads over its homes as its load grows, and an unpopular one stays in one place.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b

HOMES = 4
"""Replicas that may hold one adapter, unless all of them are overloaded."""
FULL_BATCHES = 1
"""Batches' worth of requests at a replica from which on it is overloaded, where others have less to do. With two,
simulated 99th percentiles are 60 % longer, and hardly more requests find their adapter loaded."""
MOST_CACHED = 100_000
"""Adapters whose homes are remembered."""


def weight(replica: str, adapter: str) -> bytes:
    """Rendezvous weight: the replica with the largest is an adapter's first home."""
    return blake2b(f"{replica}/{adapter}".encode(), digest_size=8).digest()


class Homes:
    """Homes of adapters among the present replicas, remembered until the replicas change."""

    def __init__(self, count: int = HOMES) -> None:
        self.count = count
        self.replicas: frozenset[str] = frozenset()
        self._known: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def settle(self, replicas: Sequence[str]) -> None:
        """Take note of the present replicas."""
        if self.replicas != frozenset(replicas):
            self.replicas = frozenset(replicas)
            self._known.clear()

    def of(self, adapter: str) -> tuple[str, ...]:
        """Homes of an adapter, the first one first."""
        found = self._known.get(adapter)
        if found is None:
            ranked = sorted(self.replicas, key=lambda replica: weight(replica, adapter), reverse=True)
            found = self._known[adapter] = tuple(ranked[: self.count])
            if len(self._known) > MOST_CACHED:
                self._known.popitem(last=False)
        return found


class HeldAdapters:
    """Adapters that each replica holds, as far as is known: told by it, and sent to it since."""

    def __init__(self) -> None:
        self._told: dict[str, frozenset[str]] = {}
        self._sent: dict[str, OrderedDict[str, None]] = {}
        self._capacity: dict[str, int] = {}

    def keep(self, replicas: Sequence[str]) -> None:
        """Forget the replicas that are gone."""
        for known in (self._told, self._sent, self._capacity):
            for replica in known.keys() - set(replicas):
                del known[replica]

    def tell(self, replica: str, adapters: Sequence[str], capacity: int) -> None:
        """Note what a replica says that it holds; what was sent to it meanwhile may not be in that yet."""
        told = frozenset(adapters)
        if told != self._told.get(replica):
            self._told[replica] = told
            sent = self._sent.get(replica, OrderedDict())
            for adapter in told & sent.keys():
                del sent[adapter]
        self._capacity[replica] = capacity

    def send(self, replica: str, adapters: Sequence[str]) -> None:
        """Note adapters that a replica is about to load."""
        sent = self._sent.setdefault(replica, OrderedDict())
        told = self._told.get(replica, frozenset())
        for adapter in adapters:
            if adapter not in told:
                sent[adapter] = None
                sent.move_to_end(adapter)
        while len(sent) > self._capacity.get(replica, 64):
            sent.popitem(last=False)

    def holds(self, replica: str, adapters: Sequence[str]) -> bool:
        """Tell whether a replica holds all of these."""
        told, sent = self._told.get(replica, frozenset()), self._sent.get(replica, OrderedDict())
        return all(adapter in told or adapter in sent for adapter in adapters)


def is_overloaded(busy: int, least: int, max_batch: int) -> bool:
    """Tell whether a replica has more to do than its next batches hold, and others have clearly less."""
    return busy >= FULL_BATCHES * max_batch and busy >= 2 * least


def choose(
    busy: Mapping[str, int],
    adapters: Sequence[str],
    *,
    homes: Homes,
    held: HeldAdapters,
    max_batch: int = 16,
    chance: random.Random | None = None,
) -> list[str]:
    """Replicas in the order in which a request with these adapters should be tried; none where there are none.

    busy: requests that each replica has, queued or running.
    """
    if not busy:
        return []
    spare = two_choices(busy, chance or random.Random())
    if not adapters:
        return spare
    candidates = [replica for replica in homes.of("+".join(adapters)) if replica in busy]
    least = min(busy[replica] for replica in (*candidates, *spare))
    holders = [replica for replica in candidates if held.holds(replica, adapters)]
    free = [replica for replica in holders if not is_overloaded(busy[replica], least, max_batch)]
    if free:
        first = min(free, key=lambda replica: busy[replica])
        return [first, *(replica for replica in candidates if replica != first)]
    order = {replica: rank for rank, replica in enumerate(candidates)}
    calm = [replica for replica in candidates if not is_overloaded(busy[replica], least, max_batch)]
    # An idle home and one with a little to do are alike: the first one keeps the adapter in one place.
    ranked = sorted(calm, key=lambda replica: (busy[replica] // max_batch, order[replica]))
    return ranked or spare


def two_choices(busy: Mapping[str, int], chance: random.Random) -> list[str]:
    """Two replicas by chance, the less busy one first."""
    found = chance.sample(list(busy), min(2, len(busy)))
    return sorted(found, key=lambda replica: busy[replica])
