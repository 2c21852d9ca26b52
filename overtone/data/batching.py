"""Batches: a pure function of (manifests, settings, seed, epoch, step).

A `BatchPlan` lists the batches of an epoch as indices of utterances; nothing else decides what a batch holds, so that
a run can go on at any step, whatever the number of worker processes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from overtone.data.epochs import WHOLE, EpochOrder, Indices, Share

if TYPE_CHECKING:
    from lhotse import CutSet

POOL_BATCHES = 32
"""Batches' worth of shuffled utterances that are sorted by duration before they are cut into batches: little padding,
and still another neighbourhood every epoch."""

FEWEST_POOLS = 4
"""An epoch has at least so many pools where it has as many batches: in a single pool the neighbours, which are those of
the same duration, would be the same in every epoch."""


@dataclass(frozen=True, kw_only=True)
class Bucketing:
    """Duration buckets, beside their number."""

    wanted: bool | None = None
    """None: where there is a batch_duration; true: without one too; false: never."""
    bins: tuple[float, ...] | None = None
    """Upper ends of the buckets, seconds; None: equally much audio in each."""
    sizes: tuple[int, ...] | None = None
    """Utterances of a batch of each bucket of the bins."""
    quadratic_duration: float | None = None
    """An utterance of d seconds counts as d + d² divided by this; None: as d."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchPlan:
    """The plan of all batches: utterances by epoch and batch.

    With `batch_duration`, lhotse's duration buckets decide; otherwise every batch has `batch_size` utterances of
    similar duration (only the last one of an epoch may have fewer).
    """

    durations: tuple[float, ...]
    """Seconds of each utterance."""
    batch_size: int | None = 16
    """Most utterances of a batch."""
    batch_duration: float | None = None
    """Most seconds of audio in a batch (one utterance longer than that is a batch of its own)."""
    buckets: int = 20
    """Number of duration buckets, with batch_duration."""
    bucketing: Bucketing = Bucketing()
    """More about these buckets."""
    order: EpochOrder | None = None
    """The utterances of each epoch; None: all, in a new order every time."""
    part_sizes: tuple[int, ...] | None = None
    """Utterances of a batch of each part, in place of batch_size: batches then hold utterances of one part."""
    parts_in_order: bool = False
    """Batches of one part after the other."""
    shuffle: bool = True
    drop_last: bool = False
    limit: int | float = 1.0
    """Share (a fraction) or number (a whole number) of an epoch's batches that are used."""
    seed: int = 0

    @property
    def fills_buckets(self) -> bool:
        """Lhotse's samplers make the batches."""
        return self.batch_duration is not None or bool(self.bucketing.wanted)

    @property
    def scatters(self) -> bool:
        """Several processes have batches of their own, of shards of their own."""
        return self.order is not None and self.order.scatter

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch in order, each a list of indices of utterances."""
        return _batches(self, epoch, WHOLE)

    def shares(self, epoch: int, processes: int) -> list[list[list[int]]]:
        """The batches of an epoch for each process: equally many, the shortest ones again if need be.

        In every step all of them have batches of about the same length: they wait for each other's gradients.
        """
        sorts = processes > 1 and self.shuffle and not self.parts_in_order
        if self.scatters and processes > 1:
            each = [_batches(self, epoch, Share(rank, processes)) for rank in range(processes)]
            count = max(map(len, each))
            whole = [list(islice(cycle(self.by_length(own) if sorts else own), count)) for own in each]
        else:
            batches = self.by_length(self.batches(epoch)) if sorts else self.batches(epoch)
            count = math.ceil(len(batches) / processes)
            dealt = list(islice(cycle(batches), count * processes))
            whole = [dealt[rank::processes] for rank in range(processes)]
        steps = np.arange(count)
        if sorts:
            steps = np.random.default_rng([self.seed, epoch, processes]).permutation(steps)
        return [[own[step] for step in steps] for own in whole]

    def by_length(self, batches: list[list[int]]) -> list[list[int]]:
        """The same batches, the shortest first."""
        return sorted(batches, key=lambda batch: (max(self.durations[index] for index in batch), len(batch)))

    def length(self, epoch: int, processes: int = 1) -> int:
        """Batches of an epoch for each of so many processes."""
        if not self.fills_buckets or not self.shuffle:
            epoch = 0  # all are equally long
        if self.scatters and processes > 1:
            return max(_length(self, epoch, Share(rank, processes)) for rank in range(processes))
        return math.ceil(_length(self, epoch, WHOLE) / processes)

    def more_identity(self) -> dict[str, Any]:
        """Return the rest that decides the batches, beside utterances, sizes and seed."""
        found: dict[str, Any] = {}
        if self.bucketing != Bucketing():
            found["bucketing"] = asdict(self.bucketing)
        if self.order is not None:
            found["order"] = self.order.identity()
        if self.part_sizes is not None:
            found["part_sizes"] = {"sizes": list(self.part_sizes), "in_order": self.parts_in_order}
        return found

    def seconds(self, batch: Iterable[int]) -> float:
        """Audio of a batch, without padding."""
        return sum(self.durations[index] for index in batch)


@lru_cache(maxsize=65_536)
def _length(plan: BatchPlan, epoch: int, share: Share) -> int:
    return len(_batches(plan, epoch, share))


@lru_cache(maxsize=8)
def _batches(plan: BatchPlan, epoch: int, share: Share) -> list[list[int]]:
    generator = np.random.default_rng([plan.seed, epoch])
    order = None if plan.order is None else plan.order.indices(plan.seed, epoch, share)
    if plan.fills_buckets:
        batches = _fill_buckets(plan, epoch, order)
        if plan.shuffle:
            batches = [batches[index] for index in generator.permutation(len(batches))]
    else:
        batches = _cut_equal_sizes(plan, generator, order)
    whole = isinstance(plan.limit, int)
    limit = plan.limit if whole else max(1, int(len(batches) * plan.limit)) if plan.limit else 0
    return batches[: int(limit)]


def _cut_equal_sizes(plan: BatchPlan, generator: np.random.Generator, order: Indices | None) -> list[list[int]]:
    durations = np.asarray(plan.durations)
    if order is None:
        order = generator.permutation(len(durations)) if plan.shuffle else np.arange(len(durations))
    if plan.part_sizes is None or plan.order is None:
        batches = _cut(plan, order, plan.batch_size or len(durations))
    else:
        parts = plan.order.parts[order]
        batches = [
            batch for part, size in enumerate(plan.part_sizes) for batch in _cut(plan, order[parts == part], size)
        ]
    if plan.shuffle and not plan.parts_in_order:
        batches = [batches[index] for index in generator.permutation(len(batches))]
    return batches


def _cut(plan: BatchPlan, order: Indices, size: int) -> list[list[int]]:
    """Batches of so many utterances out of the order [N]; where the plan shuffles, of similar duration."""
    durations = np.asarray(plan.durations)
    if plan.shuffle and len(order):
        pool_size = size * min(POOL_BATCHES, max(1, len(order) // (FEWEST_POOLS * size)))
        pools = [order[start : start + pool_size] for start in range(0, len(order), pool_size)]
        order = np.concatenate([pool[np.argsort(durations[pool], kind="stable")] for pool in pools])
    batches: list[list[int]] = [order[start : start + size].tolist() for start in range(0, len(order), size)]
    if plan.drop_last and len(batches) > 1 and len(batches[-1]) < size:
        batches.pop()
    return batches


def _fill_buckets(plan: BatchPlan, epoch: int, order: Indices | None) -> list[list[int]]:
    """Batches of lhotse's samplers, which see the utterances in the order [N], or as they are."""
    from lhotse.dataset.sampling import DynamicBucketingSampler, DynamicCutSampler, SimpleCutSampler
    from lhotse.dataset.sampling.dynamic_bucketing import FixedBucketBatchSizeConstraint

    chosen = plan.bucketing
    durations = plan.durations if order is None else [plan.durations[index] for index in order]
    buckets = 1 if chosen.wanted is False else min(plan.buckets, len(set(durations)) // 2)
    options: dict[str, Any] = {"max_duration": plan.batch_duration, "max_cuts": plan.batch_size}
    sampler_kind: Any = SimpleCutSampler
    if chosen.bins is not None or buckets > 1:
        sampler_kind = DynamicBucketingSampler
        options |= {"num_buckets": buckets} if chosen.bins is None else {"duration_bins": list(chosen.bins)}
    if chosen.quadratic_duration is not None:
        sampler_kind = DynamicCutSampler if sampler_kind is SimpleCutSampler else sampler_kind
        options["quadratic_duration"] = chosen.quadratic_duration
    if chosen.sizes is not None:
        constraint = FixedBucketBatchSizeConstraint(list(chosen.bins or ()), list(chosen.sizes))
        options |= {"max_duration": None, "max_cuts": None, "constraint": constraint}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about cuts that lie in memory
        sampler = sampler_kind(
            bare_cuts(durations),
            shuffle=plan.shuffle,
            drop_last=plan.drop_last,
            seed=plan.seed,
            world_size=1,
            rank=0,
            **options,
        )
        sampler.set_epoch(epoch)
        places = [[int(cut.id) for cut in batch] for batch in sampler]
    return places if order is None else [[int(order[place]) for place in batch] for batch in places]


def bare_cuts(durations: Sequence[float]) -> CutSet:
    """Lhotse cuts that carry an index and a duration, which is all that its samplers look at."""
    from lhotse import CutSet, MonoCut

    return CutSet(
        [MonoCut(id=str(index), start=0.0, duration=duration, channel=0) for index, duration in enumerate(durations)]
    )


class Place(NamedTuple):
    """The beginning of an epoch in the run."""

    epoch: int = 0
    first: int = 0
    """Batches of the run before it, for each process."""


def place_of(plan: BatchPlan, step: int, *, processes: int = 1, near: Place = Place()) -> Place:  # noqa: B008 (frozen)
    """The epoch that a batch of the run belongs to; `near` is a place at or before it, from which it is found."""
    epoch, first = near
    while step >= first + (length := plan.length(epoch, processes)) and length > 0:
        epoch, first = epoch + 1, first + length
    return Place(epoch, first)


class StepSampler(Sampler[list[int]]):
    """The batches of a whole run, epoch after epoch, from a given step on; every process takes its share."""

    def __init__(
        self,
        plan: BatchPlan,
        *,
        total: int,
        start: int = 0,
        near: Place = Place(),  # noqa: B008 (frozen)
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.plan = plan
        self.total = total
        """Batches of the run for this process, those before `start` included."""
        self.start = start
        self.place = place_of(plan, start, processes=processes, near=near)
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = self.place
        while first < self.total and (batches := self.plan.shares(epoch, self.processes)[self.rank]):
            yield from batches[max(0, self.start - first) : self.total - first]
            epoch, first = epoch + 1, first + len(batches)


class Draw(NamedTuple):
    """An utterance at its place in the run."""

    utterance: int
    """Index of the utterance."""
    key: tuple[int, ...]
    """Seed of all that chance does to it there, whatever process reads it."""


class Draws(Sampler[list[Draw]]):
    """The batches of a `StepSampler`, with a seed for every utterance of each."""

    def __init__(self, sampler: StepSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Draw]]:
        seed, rank = self.sampler.plan.seed, self.sampler.rank
        for step, batch in enumerate(self.sampler, start=self.sampler.start):
            yield [Draw(index, (seed, step, rank, place)) for place, index in enumerate(batch)]


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of everything random in one step: dropout, augmentation and dither do not depend on the steps before."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


# Rows of different length as one tensor
