"""The utterances of an epoch in order, where shares or shards decide: a pure function of settings, seed and epoch.

Each part goes through its utterances again and again, in a new order every time, whatever the epochs: its share of an
epoch begins where that of the epoch before ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from overtone.errors import ConfigError

Indices = NDArray[np.int64]
"""[N] indices of utterances, or numbers of parts or shards"""


class Share(NamedTuple):
    """The utterances that one of several processes takes."""

    rank: int = 0
    processes: int = 1


WHOLE = Share()


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochOrder:
    """The order of the utterances of every epoch."""

    parts: Indices
    """[N] part of each utterance, numbered from 0."""
    counts: tuple[int, ...] | None = None
    """Utterances of each part in an epoch; None: all of them once."""
    in_turn: bool = False
    """One utterance of each part after the other, instead of by chance."""
    shards: Indices | None = None
    """[N] number of the shard that holds each utterance, −1 for those in none; None: no shards."""
    window: int = 2048
    """Utterances of shards that are shuffled together."""
    scatter: bool = False
    """Several processes have shards of their own."""

    def indices(self, seed: int, epoch: int, share: Share = WHOLE) -> Indices:
        """The utterances of an epoch in order, [N'], or those that a share of it has. Raises ConfigError as `owned`."""
        own = owned(self, share)
        if self.counts is None:
            return self.shuffled(np.flatnonzero(own), np.random.default_rng([seed, epoch]))
        drawn = [
            self.draw(np.flatnonzero(own & (self.parts == part)), split(count, share), seed, epoch, part)
            for part, count in enumerate(self.counts)
        ]
        sizes = [len(each) for each in drawn]
        turns = take_turns(sizes) if self.in_turn else np.repeat(np.arange(len(sizes)), sizes)
        if not self.in_turn:
            turns = np.random.default_rng([seed, epoch]).permutation(turns)
        order = np.empty(len(turns), np.int64)
        for part, indices in enumerate(drawn):
            order[turns == part] = indices
        return order

    def identity(self) -> dict[str, Any]:
        """Return all that decides the order, beside the utterances."""
        return {
            "counts": None if self.counts is None else list(self.counts),
            "parts": hashlib.sha256(self.parts.tobytes()).hexdigest(),
            "in_turn": self.in_turn,
            "shards": None if self.shards is None else hashlib.sha256(self.shards.tobytes()).hexdigest(),
            "window": self.window,
            "scatter": self.scatter,
        }

    def draw(self, members: Indices, count: int, seed: int, epoch: int, part: int) -> Indices:
        """The next `count` utterances of a part, whose utterances are the members [M]."""
        first, drawn = epoch * count, []
        while count > 0:
            turn, place = divmod(first, len(members))
            piece = self.shuffled(members, np.random.default_rng([seed, turn, part]))[place : place + count]
            drawn.append(piece)
            first, count = first + len(piece), count - len(piece)
        return np.concatenate(drawn) if drawn else members[:0]

    def shuffled(self, members: Indices, generator: np.random.Generator) -> Indices:
        """The members [M] in a new order: shard after shard, where they lie in some, so many shuffled together."""
        shards = self.shards
        if shards is None or not (shards[members] >= 0).any():
            return members[generator.permutation(len(members))]
        own = shards[members]
        places = np.empty(int(shards.max()) + 2, np.int64)
        places[generator.permutation(len(places))] = np.arange(len(places))
        ordered = members[np.argsort(places[own], kind="stable")]
        for start in range(0, len(ordered), self.window) if self.window else ():
            ordered[start : start + self.window] = generator.permutation(ordered[start : start + self.window])
        return ordered


@lru_cache(maxsize=64)
def owned(order: EpochOrder, share: Share) -> NDArray[np.bool_]:
    """[N] true for the utterances that a process may take.

    Raises ConfigError for fewer shards than processes, or fewer utterances of a part that is drawn from.
    """
    if share.processes == 1 or not order.scatter or order.shards is None:
        return np.ones(len(order.parts), bool)
    own = np.zeros(len(order.parts), bool)
    for part in np.unique(order.parts):
        members = np.flatnonzero(order.parts == part)
        shards = np.unique(order.shards[members])
        if shards[0] < 0:  # files of their own
            if len(members) < share.processes and order.counts is not None and order.counts[part] > 0:
                raise ConfigError(
                    f"A part of the data has {len(members)} utterances, which cannot be split over {share.processes} "
                    "processes. Give it more, or leave it out; or give tarred_shard_strategy=replicate, with which all "
                    "processes read all parts."
                )
            own[members[share.rank :: share.processes]] = True
            continue
        if len(shards) < share.processes:
            raise ConfigError(
                f"{len(shards)} shards cannot be split over {share.processes} processes. Give "
                "tarred_shard_strategy=replicate, with which all processes read all shards, or more shards."
            )
        mine = np.array_split(shards, share.processes)[share.rank]
        own[members[np.isin(order.shards[members], mine)]] = True
    return own


def split(count: int, share: Share) -> int:
    """The part of a count that each process takes, rounded up."""
    return -(-count // share.processes)


def take_turns(sizes: Sequence[int]) -> Indices:
    """[N] the parts in turn, those with utterances left: 0, 1, 2, 0, 1, 2, 0, 2, 2."""
    return np.concatenate([np.flatnonzero(np.asarray(sizes) > turn) for turn in range(max(sizes, default=0))])


def share_out(total: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers that add up to `total`, as near to the weights as they can be (largest remainders)."""
    exact = np.asarray(weights, float) / sum(weights) * total
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[index] += 1
    return tuple(int(count) for count in counts)
