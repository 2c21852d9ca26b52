"""Utterances to batches. The batches of a run are a pure function of (manifests, settings, seed, epoch, step).

A `BatchPlan` lists the batches of an epoch as indices of utterances; nothing else decides what a batch holds, so that
a run can go on at any step, whatever the number of worker processes.

Legend: B batch, S samples, U target tokens.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from overtone.audio import load_audio
from overtone.errors import DataError
from overtone.manifest import Utterance

if TYPE_CHECKING:
    from lhotse import CutSet

POOL_BATCHES = 32
"""Batches' worth of shuffled utterances that are sorted by duration before they are cut into batches: little padding,
and still another neighbourhood every epoch."""

CACHE_BYTES = 256 * 2**20
"""Memory for decoded audio, shared by the worker processes; what fits is read from disk only once."""

SHORTER_SECONDS, SHORTER_SHARE = 0.1, 0.02
"""By so much, or by this share, a recording may be shorter than its manifest says: what codecs and rounding cut off."""

SHOWN = 5
"""Examples in a message."""


class Batch(NamedTuple):
    """Utterances side by side, padded with zeros."""

    waveforms: Tensor
    """[B, S] float32"""
    lengths: Tensor
    """[B] int64, samples"""
    targets: Tensor
    """[B, U] int64, token ids"""
    target_lengths: Tensor
    """[B] int64, tokens"""
    texts: list[str]
    """The transcripts."""
    ids: list[str]
    """`manifest:line` of each utterance."""


class Example(NamedTuple):
    waveform: NDArray[np.float32]
    """[S]"""
    tokens: NDArray[np.int64]
    """[U]"""
    text: str
    id: str


# Choosing utterances


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Utterances of allowed duration, and how many are not."""

    utterances: tuple[Utterance, ...]
    too_short: int = 0
    too_long: int = 0
    left_out_hours: float = 0.0

    @property
    def hours(self) -> float:
        return sum(utterance.duration for utterance in self.utterances) / 3600


def keep_durations(
    utterances: Sequence[Utterance], *, minimum: float | None = None, maximum: float | None = None
) -> Kept:
    """Leave out what is shorter than `minimum` or longer than `maximum` seconds."""
    low, high = minimum or 0.0, math.inf if maximum is None else maximum
    kept = tuple(utterance for utterance in utterances if low <= utterance.duration <= high)
    short = sum(utterance.duration < low for utterance in utterances)
    seconds = sum(utterance.duration for utterance in utterances) - sum(u.duration for u in kept)
    return Kept(
        utterances=kept,
        too_short=short,
        too_long=len(utterances) - len(kept) - short,
        left_out_hours=seconds / 3600,
    )


def unusable_transcripts(
    utterances: Sequence[Utterance], tokens: Sequence[Sequence[int]], *, seconds_per_frame: float
) -> dict[int, str]:
    """Index -> what is wrong, for transcripts that no CTC path can write.

    A path needs a frame for each token, and one for the blank between two equal tokens.
    """
    problems = {}
    for index, (utterance, ids) in enumerate(zip(utterances, tokens, strict=True)):
        frames = math.ceil(utterance.duration / seconds_per_frame)
        needed = len(ids) + sum(first == second for first, second in pairwise(ids))
        if not (utterance.text or "").strip():
            problems[index] = "the transcript is empty"
        elif not ids:
            problems[index] = "the model can write nothing of the transcript"
        elif needed > frames:
            problems[index] = f"{needed} frames are needed for {len(ids)} tokens, {utterance.duration} s give {frames}"
    return problems


def refuse_unusable(utterances: Sequence[Utterance], problems: dict[int, str], *, key: str) -> None:
    """Raises DataError that names the first of them; `key` is the setting that leaves them out."""
    if not problems:
        return
    first = [f"  {name_of(utterances[index])}: {problem}" for index, problem in list(problems.items())[:SHOWN]]
    more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise DataError(
        f"{len(problems)} of {len(utterances)} utterances cannot be trained on:\n" + "\n".join(first) + more + "\n"
        f"Correct the manifest, or leave them out with {key}=drop."
    )


def name_of(utterance: Utterance) -> str:
    return f"{utterance.manifest}:{utterance.line}"


# Batches


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchPlan:
    """Which utterances stand together in which batch of which epoch.

    With `batch_duration`, lhotse's duration buckets decide; otherwise every batch has `batch_size` utterances of
    similar duration (only the last one of an epoch may have fewer).
    """

    durations: tuple[float, ...]
    """Seconds of each utterance."""
    batch_size: int | None = 16
    """Utterances, at most."""
    batch_duration: float | None = None
    """Seconds of audio, at most (one utterance longer than that stands alone)."""
    buckets: int = 20
    """Duration buckets, with batch_duration."""
    shuffle: bool = True
    drop_last: bool = False
    limit: int | float = 1.0
    """Share (a fraction) or number (a whole number) of an epoch's batches that are used."""
    seed: int = 0

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch in order, each a list of indices of utterances."""
        return _batches(self, epoch)

    def length(self, epoch: int, processes: int = 1) -> int:
        """Batches of an epoch for each of so many processes."""
        if self.batch_duration is None or not self.shuffle:
            epoch = 0  # all are equally long
        return math.ceil(_length(self, epoch) / processes)

    def seconds(self, batch: Iterable[int]) -> float:
        """Audio of a batch, without padding."""
        return sum(self.durations[index] for index in batch)


@lru_cache(maxsize=65_536)
def _length(plan: BatchPlan, epoch: int) -> int:
    return len(_batches(plan, epoch))


@lru_cache(maxsize=4)
def _batches(plan: BatchPlan, epoch: int) -> list[list[int]]:
    generator = np.random.default_rng([plan.seed, epoch])
    if plan.batch_duration is not None:
        batches = _bucketed(plan, epoch)
        if plan.shuffle:
            batches = [batches[index] for index in generator.permutation(len(batches))]
    else:
        batches = _of_equal_size(plan, generator)
    whole = isinstance(plan.limit, int)
    limit = plan.limit if whole else max(1, int(len(batches) * plan.limit)) if plan.limit else 0
    return batches[: int(limit)]


def _of_equal_size(plan: BatchPlan, generator: np.random.Generator) -> list[list[int]]:
    size, durations = plan.batch_size or len(plan.durations), np.asarray(plan.durations)
    order = generator.permutation(len(durations)) if plan.shuffle else np.arange(len(durations))
    if plan.shuffle:
        pools = [order[start : start + size * POOL_BATCHES] for start in range(0, len(order), size * POOL_BATCHES)]
        order = np.concatenate([pool[np.argsort(durations[pool], kind="stable")] for pool in pools])
    batches: list[list[int]] = [order[start : start + size].tolist() for start in range(0, len(order), size)]
    if plan.drop_last and len(batches) > 1 and len(batches[-1]) < size:
        batches.pop()
    if plan.shuffle:
        batches = [batches[index] for index in generator.permutation(len(batches))]
    return batches


def _bucketed(plan: BatchPlan, epoch: int) -> list[list[int]]:
    from lhotse.dataset.sampling import DynamicBucketingSampler, SimpleCutSampler

    buckets = min(plan.buckets, len(set(plan.durations)) // 2)
    of_buckets = {"num_buckets": buckets} if buckets > 1 else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about cuts that lie in memory
        sampler = (DynamicBucketingSampler if of_buckets else SimpleCutSampler)(
            bare_cuts(plan.durations),
            max_duration=plan.batch_duration,
            max_cuts=plan.batch_size,
            shuffle=plan.shuffle,
            drop_last=plan.drop_last,
            seed=plan.seed,
            world_size=1,
            rank=0,
            **of_buckets,
        )
        sampler.set_epoch(epoch)
        return [[int(cut.id) for cut in batch] for batch in sampler]


def bare_cuts(durations: Sequence[float]) -> CutSet:
    """Lhotse cuts that carry an index and a duration, which is all that its samplers look at."""
    from lhotse import CutSet, MonoCut

    return CutSet(
        [MonoCut(id=str(index), start=0.0, duration=duration, channel=0) for index, duration in enumerate(durations)]
    )


class Place(NamedTuple):
    """Where an epoch begins."""

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
        while first < self.total and (batches := self.share(epoch)):
            yield from batches[max(0, self.start - first) : self.total - first]
            epoch, first = epoch + 1, first + len(batches)

    def share(self, epoch: int) -> list[list[int]]:
        """This process's batches of an epoch; all processes have equally many, the first ones again if need be."""
        batches = self.plan.batches(epoch)
        even = batches + batches[: -len(batches) % self.processes]
        return even[self.rank :: self.processes]


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of everything random in one step: dropout, augmentation and dither do not depend on the steps before."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


# Loading


class SpeechDataset(Dataset[Any]):
    """Utterance by index: its samples and tokens. What cannot be read comes as the error itself, since worker
    processes would wrap a raised one into a traceback."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        tokens: Sequence[Sequence[int]],
        *,
        sample_rate: int,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.utterances = utterances
        self.tokens = tokens
        self.sample_rate = sample_rate
        self.room = cache_bytes
        self.cache: dict[int, NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Example | DataError:
        utterance = self.utterances[index]
        try:
            waveform = self.load(index)
        except DataError as error:
            return DataError(f"{name_of(utterance)}: {error}")
        tokens = np.asarray(self.tokens[index], np.int64)
        return Example(waveform, tokens, utterance.text or "", name_of(utterance))

    def load(self, index: int) -> NDArray[np.float32]:
        """The samples [S] of one utterance."""
        if index in self.cache:
            return self.cache[index]
        utterance = self.utterances[index]
        waveform = load_audio(
            utterance.audio_path,
            offset=utterance.offset,
            duration=utterance.duration,
            sample_rate=self.sample_rate,
        )
        seconds = waveform.size / self.sample_rate
        if seconds < utterance.duration - max(SHORTER_SECONDS, SHORTER_SHARE * utterance.duration):
            raise DataError(
                f"{utterance.manifest}:{utterance.line}: the manifest says {utterance.duration:g} s, but "
                f"{utterance.audio_path} holds {seconds:g} s from there. Correct 'duration' (or 'offset')."
            )
        if waveform.nbytes <= self.room:
            self.room -= waveform.nbytes
            self.cache[index] = waveform
        return waveform


def collate(examples: Sequence[Example | DataError]) -> Batch | DataError:
    """Examples side by side, or the first error among them."""
    whole: list[Example] = []
    for example in examples:
        if isinstance(example, DataError):
            return example
        whole.append(example)
    lengths = torch.tensor([len(example.waveform) for example in whole])
    target_lengths = torch.tensor([len(example.tokens) for example in whole])
    waveforms = torch.zeros(len(whole), int(lengths.max()))
    targets = torch.zeros(len(whole), max(1, int(target_lengths.max())), dtype=torch.int64)
    for row, example in enumerate(whole):
        waveforms[row, : len(example.waveform)] = torch.from_numpy(example.waveform)
        targets[row, : len(example.tokens)] = torch.from_numpy(example.tokens)
    return Batch(
        waveforms,
        lengths,
        targets,
        target_lengths,
        [example.text for example in whole],
        [example.id for example in whole],
    )


def make_loader(
    dataset: SpeechDataset, batches: Sampler[list[int]] | Sequence[list[int]], *, workers: int, pin_memory: bool
) -> DataLoader[Batch | DataError]:
    """A loader of the given batches, in their order, with `workers` processes that read ahead."""
    dataset.room //= max(1, workers)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
