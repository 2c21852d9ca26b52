"""Batches by the keys of NeMo's bucketing and mixing: every utterance once, within the limits of its bucket."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overtone.config import DatasetSettings, SourceList, list_sources
from overtone.data.batching import BatchPlan
from overtone.data.manifest import Utterance
from overtone.data.plans import plan_batches
from overtone.errors import DataError

SECONDS = tuple(np.random.default_rng(3).uniform(1.0, 9.0, 90).round(3).tolist())
BINS = (3.0, 6.0, 9.0)


def utterances(parts: list[int] | None = None) -> list[Utterance]:
    return [
        Utterance(
            audio_path=Path("a.wav"),
            duration=seconds,
            text="a",
            line=number,
            manifest=Path("m.json"),
            part=parts[number] if parts else 0,
        )
        for number, seconds in enumerate(SECONDS)
    ]


def plan(listed: SourceList | None = None, parts: list[int] | None = None, **keys: Any) -> BatchPlan:
    return plan_batches(DatasetSettings(**keys), listed or SourceList(), utterances(parts), seed=0)


def check_each_once(made: BatchPlan) -> list[list[int]]:
    first, second = made.batches(0), made.batches(1)
    for batches in (first, second):
        assert sorted(index for batch in batches for index in batch) == list(range(len(SECONDS)))
    assert first != second
    return first


def bucket(index: int) -> int:
    return int(np.searchsorted(BINS, SECONDS[index]))


def test_bins() -> None:
    batches = check_each_once(plan(batch_duration=30.0, batch_size=None, bucket_duration_bins=BINS))
    assert {len({bucket(index) for index in batch}) for batch in batches} == {1}
    assert max(sum(SECONDS[index] for index in batch) for batch in batches) <= 30.0


def test_a_batch_size_for_each_bucket() -> None:
    sizes = (12, 6, 3)
    batches = check_each_once(plan(use_bucketing=True, bucket_duration_bins=BINS, bucket_batch_size=sizes))
    for batch in batches:
        (number,) = {bucket(index) for index in batch}
        assert len(batch) <= sizes[number]
    assert {len(batch) for batch in batches} >= set(sizes)
    with pytest.raises(DataError, match=r"\d+ utterances are longer than the last of bucket_duration_bins, 6\.0 s"):
        plan(use_bucketing=True, bucket_duration_bins=(3.0, 6.0), bucket_batch_size=(12, 6))


@pytest.mark.parametrize("buckets", [None, False])
def test_long_utterances_count_more(buckets: bool | None) -> None:
    keys = {"batch_duration": 30.0, "batch_size": None, "use_bucketing": buckets}
    plain = check_each_once(plan(**keys))
    squared = check_each_once(plan(**keys, quadratic_duration=10.0))
    cost = [sum(SECONDS[index] + SECONDS[index] ** 2 / 10.0 for index in batch) for batch in squared]
    assert max(cost) <= 1.1 * 30.0  # lhotse stops when a batch is nearly full
    assert len(squared) > len(plain)


def test_buckets_of_a_batch_size() -> None:
    """A batch's utterances are of similar duration, without a limit in seconds."""
    batches = check_each_once(plan(use_bucketing=True, batch_size=5, num_buckets=4))
    assert max(map(len, batches)) == 5
    spread = [max(SECONDS[i] for i in batch) - min(SECONDS[i] for i in batch) for batch in batches]
    assert max(spread) < 4.0


def mixed(**keys: Any) -> BatchPlan:
    parts = [0] * 20 + [1] * 70
    given = {"manifest_filepath": ("a", "b"), **keys}
    return plan(list_sources(DatasetSettings(**given)), parts, **given)


def counts(made: BatchPlan) -> dict[int, int]:
    return dict(Counter(int(index >= 20) for batch in made.batches(0) for index in batch))


def test_shares() -> None:
    assert counts(mixed(manifest_filepath=(("a", 1), ("b", 2)))) == {0: 30, 1: 60}
    assert counts(mixed(is_concat=True, concat_sampling_temperature=1)) == {0: 20, 1: 70}
    assert counts(mixed(is_concat=True, concat_sampling_temperature=1e6)) == {0: 45, 1: 45}
    scaled = mixed(is_concat=True, concat_sampling_technique="round-robin", concat_sampling_scale=2)
    assert counts(scaled) == {0: 90, 1: 90}
    chances = {"concat_sampling_technique": "random", "concat_sampling_probabilities": (0.9, 0.1)}
    assert counts(mixed(is_concat=True, **chances)) == {0: 81, 1: 9}
    tarred = {"tarred_audio_filepaths": ("a", "b")}
    assert counts(mixed(**tarred, bucketing_weights=(3, 1))) == {0: 60, 1: 70}


def test_batch_sizes_of_tarred_sets() -> None:
    """A number is that of the last set, the one before has twice as many."""
    made = mixed(tarred_audio_filepaths=("a", "b"), bucketing_batch_size=5)
    assert made.part_sizes == (10, 5)
    for batch in check_each_once(made):
        (part,) = {int(index >= 20) for index in batch}
        assert len(batch) == (10, 5)[part]


def test_a_set_that_nothing_is_left_of() -> None:
    listed = list_sources(DatasetSettings(manifest_filepath=(("a", 1), ("b", 2))))
    with pytest.raises(DataError, match="no utterance is left of one of the sets to be mixed"):
        plan(listed, [0] * 90)
