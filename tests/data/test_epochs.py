"""Orders of epochs: every utterance once, or by shares over the epochs; shards one after the other; processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from overtone.data.batching import BatchPlan, StepSampler
from overtone.data.epochs import EpochOrder, Share, share_out
from overtone.errors import ConfigError

PARTS = np.repeat([0, 1], [5, 20])
SHARDS = np.repeat(np.arange(10), 10)


def order_of(**keys: object) -> EpochOrder:
    return EpochOrder(parts=PARTS, **keys)  # type: ignore[arg-type]


def test_shares_hold_in_every_epoch_and_over_all() -> None:
    """A small part comes again and again, each of its utterances as often as every other."""
    order = order_of(counts=share_out(25, [0.5, 0.5]))
    assert order.counts == (13, 12)
    epochs = [order.indices(0, epoch) for epoch in range(5)]
    for epoch in epochs:
        assert Counter(PARTS[epoch].tolist()) == {0: 13, 1: 12}
    times = Counter(np.concatenate(epochs).tolist())
    assert {times[index] for index in range(5)} == {13}
    assert {times[index] for index in range(5, 25)} == {3}
    assert [epoch.tolist() for epoch in epochs] == [order_of(counts=(13, 12)).indices(0, n).tolist() for n in range(5)]
    assert epochs[0].tolist() != order.indices(1, 0).tolist()


def test_parts_in_turn() -> None:
    order = order_of(counts=(4, 6), in_turn=True)
    assert PARTS[order.indices(0, 3)].tolist() == [0, 1] * 4 + [1, 1]


@pytest.mark.parametrize(
    ("total", "weights", "counts"),
    [(10, [1, 1, 1], (4, 3, 3)), (7, [0.7, 0.3], (5, 2)), (3, [100, 1], (3, 0)), (25, [2, 3], (10, 15))],
)
def test_whole_numbers_near_to_weights(total: int, weights: list[float], counts: tuple[int, ...]) -> None:
    assert share_out(total, weights) == counts


def test_shards_come_one_after_the_other() -> None:
    order = EpochOrder(parts=np.zeros(100, np.int64), shards=SHARDS, window=20)
    first, second = order.indices(0, 0), order.indices(0, 1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(100))
    for epoch in (first, second):
        assert [len(set(SHARDS[epoch[start : start + 20]])) for start in range(0, 100, 20)] == [2] * 5
    assert [set(SHARDS[first[:20]])] != [set(SHARDS[second[:20]])]
    whole = EpochOrder(parts=np.zeros(100, np.int64), shards=SHARDS, window=0).indices(0, 0)
    assert [whole[start : start + 10].tolist() for start in range(0, 100, 10)] == [
        list(range(shard * 10, shard * 10 + 10)) for shard in SHARDS[whole[::10]]
    ]


@pytest.mark.parametrize("processes", [2, 3, 10])
def test_each_process_has_shards_of_its_own(processes: int) -> None:
    order = EpochOrder(parts=np.zeros(100, np.int64), shards=SHARDS, scatter=True)
    taken = [order.indices(0, 0, Share(rank, processes)) for rank in range(processes)]
    assert sorted(np.concatenate(taken).tolist()) == list(range(100))
    shards = [set(SHARDS[own].tolist()) for own in taken]
    assert sum(map(len, shards)) == 10
    plan = BatchPlan(durations=tuple(1.0 + n / 100 for n in range(100)), batch_size=4, order=order)
    shares = plan.shares(0, processes)
    assert {len(share) for share in shares} == {plan.length(0, processes)}
    assert sorted({index for share in shares for batch in share for index in batch}) == list(range(100))
    for own, share in zip(shards, shares, strict=True):
        assert {int(SHARDS[index]) for batch in share for index in batch} == own


def test_fewer_shards_than_processes() -> None:
    order = EpochOrder(parts=np.zeros(100, np.int64), shards=SHARDS, scatter=True)
    with pytest.raises(ConfigError, match=r"10 shards cannot be split over 11 processes.*replicate"):
        order.indices(0, 0, Share(0, 11))


def test_fewer_utterances_of_a_part_than_processes() -> None:
    shards = np.where(PARTS == 1, np.arange(25) // 5, -1)
    with pytest.raises(ConfigError, match="has 5 utterances, which cannot be split over 6 processes"):
        order_of(counts=(13, 12), shards=np.where(PARTS == 1, np.arange(25), -1), scatter=True).indices(
            0, 0, Share(5, 6)
        )
    replicated = order_of(counts=(13, 12), shards=shards)
    assert len(replicated.indices(0, 0, Share(5, 6))) == 5
    unused = order_of(counts=(0, 12), shards=np.where(PARTS == 1, np.arange(25), -1), scatter=True)
    assert len(unused.indices(0, 0, Share(5, 6))) == 2


def test_batches_of_one_part() -> None:
    """Sizes of their own; one part after the other where that is asked for."""
    durations = tuple(1.0 + n / 25 for n in range(25))
    for in_order in (False, True):
        plan = BatchPlan(durations=durations, order=order_of(), part_sizes=(2, 7), parts_in_order=in_order)
        for epoch in range(3):
            batches = plan.batches(epoch)
            assert sorted(index for batch in batches for index in batch) == list(range(25))
            parts = [set(PARTS[batch].tolist()) for batch in batches]
            assert all(len(each) == 1 for each in parts)
            assert Counter(map(len, batches)) == {2: 2, 1: 1, 7: 2, 6: 1}
            assert not in_order or parts == [{0}] * 3 + [{1}] * 3


def test_a_run_goes_on_at_any_step() -> None:
    """The batches from a step on are those of the whole run, with shares and shards too."""
    shards = np.where(PARTS == 1, np.arange(25) // 5, -1)
    order = order_of(counts=(13, 12), shards=shards, window=4, scatter=True)
    plan = BatchPlan(durations=tuple(1.0 + n / 25 for n in range(25)), batch_size=3, order=order)
    for rank, processes in ((0, 1), (0, 2), (1, 2)):
        whole = list(StepSampler(plan, total=40, rank=rank, processes=processes))
        assert len(whole) == 40
        for start in (1, 7, 20, 39):
            assert list(StepSampler(plan, total=40, start=start, rank=rank, processes=processes)) == whole[start:]
