"""Plans of batches from the settings of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from overtone.config.dataset import DatasetSettings
from overtone.config.sources import SourceList
from overtone.data.batching import BatchPlan, Bucketing
from overtone.data.epochs import EpochOrder, share_out
from overtone.data.manifest import Utterance
from overtone.errors import DataError

ROUND_ROBIN = "round-robin"


def plan_batches(
    chosen: DatasetSettings,
    listed: SourceList,
    utterances: Sequence[Utterance],
    *,
    seed: int,
    shuffle: bool | None = None,
    limit: int | float = 1.0,
) -> BatchPlan:
    """Plan the batches of a set. shuffle: None is as chosen. limit: share or number of an epoch's batches.

    Raises DataError where a part has no utterances left, or the buckets are too short for one.
    """
    durations = tuple(utterance.duration for utterance in utterances)
    shuffles = chosen.shuffle if shuffle is None else shuffle
    bins, sizes = chosen.bucket_duration_bins, chosen.bucket_batch_size
    if shuffles and sizes is not None and bins is not None and max(durations) > bins[-1]:
        longer = sum(duration > bins[-1] for duration in durations)
        raise DataError(
            f"{longer} utterances are longer than the last of bucket_duration_bins, {bins[-1]} s. Give another bucket, "
            "or leave them out with max_duration."
        )
    return BatchPlan(
        durations=durations,
        batch_size=chosen.batch_size,
        batch_duration=chosen.batch_duration,
        buckets=chosen.num_buckets,
        bucketing=Bucketing(
            wanted=chosen.use_bucketing,
            bins=bins,
            sizes=sizes,
            quadratic_duration=chosen.quadratic_duration,
        ),
        order=order_epochs(chosen, listed, utterances) if shuffles else None,
        part_sizes=size_parts(chosen, listed.parts) if shuffles else None,
        parts_in_order=chosen.bucketing_batch_size is not None and chosen.bucketing_strategy == "fixed_order",
        shuffle=shuffles,
        drop_last=chosen.drop_last,
        limit=limit,
        seed=seed,
    )


def order_epochs(chosen: DatasetSettings, listed: SourceList, utterances: Sequence[Utterance]) -> EpochOrder | None:
    """The order of each epoch; None where every utterance comes once and none lies in a shard.

    Raises DataError where a part that has a share has no utterances.
    """
    archives: dict[object, int] = {}
    shards = [-1 if one.archive is None else archives.setdefault(one.archive, len(archives)) for one in utterances]
    counts = count_parts(chosen, listed, Counter(utterance.part for utterance in utterances))
    if not archives and counts is None and chosen.bucketing_batch_size is None:
        return None
    return EpochOrder(
        parts=np.array([utterance.part for utterance in utterances], np.int64),
        counts=counts,
        in_turn=chosen.is_concat and chosen.concat_sampling_technique == ROUND_ROBIN,
        shards=np.array(shards, np.int64) if archives else None,
        window=chosen.shuffle_n,
        scatter=bool(archives) and chosen.tarred_shard_strategy == "scatter",
    )


def count_parts(chosen: DatasetSettings, listed: SourceList, sizes: Counter[int]) -> tuple[int, ...] | None:
    """Utterances of each part in an epoch; None: all of them once. sizes: utterances that each part has.

    Raises DataError where one has none.
    """
    there = [sizes[part] for part in range(listed.parts)]
    if listed.weights is None and not chosen.is_concat and chosen.bucketing_weights is None:
        return None
    if 0 in there:
        source = next(source for source in listed.sources if source.part == there.index(0))
        raise DataError(f"{source.key}: no utterance is left of one of the sets to be mixed. Leave it out.")
    if chosen.bucketing_weights is not None:
        return tuple(size * times for size, times in zip(there, chosen.bucketing_weights, strict=True))
    if listed.weights is not None:
        return share_out(sum(there), listed.weights)
    total = max(1, round(sum(there) * chosen.concat_sampling_scale))
    if chosen.concat_sampling_technique == "random" and chosen.concat_sampling_probabilities is not None:
        return share_out(total, chosen.concat_sampling_probabilities)
    if chosen.concat_sampling_technique == ROUND_ROBIN:
        return share_out(total, [1.0] * len(there))
    return share_out(total, [size ** (1 / chosen.concat_sampling_temperature) for size in there])


def size_parts(chosen: DatasetSettings, parts: int) -> tuple[int, ...] | None:
    """Utterances of a batch of each part; None where all parts have the same, together."""
    sizes = chosen.bucketing_batch_size
    if sizes is None or isinstance(sizes, tuple):
        return sizes
    return tuple(sizes * (parts - part) for part in range(parts))
