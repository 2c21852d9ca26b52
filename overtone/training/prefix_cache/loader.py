"""Batches of utterances whose activations are cached: these are read instead of the audio, ahead of the step.

Legend: B batch, S samples, T time, D width, U target tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from overtone.data.batching import Draw, StepSampler, place_of
from overtone.data.dataset import Batch, Example, SpeechDataset, collate, name_of
from overtone.data.manifest import Utterance
from overtone.errors import DataError
from overtone.training.prefix_cache.plan import PrefixPlan, digest
from overtone.training.prefix_cache.store import Activations, PrefixStore

BATCHES_AHEAD = 2
"""Batches that every thread reads ahead."""
NO_AUDIO = np.zeros(0, np.float32)
SEED_DIGITS = 15
"""Digits of a key, in base 16, that make a seed: they fit into 63 bits."""


class CachedUtterance(NamedTuple):
    """One utterance of a batch."""

    key: str
    """Key of its activations; empty where its file is gone"""
    seed: int | None
    """Seed of what is random in it; None where nothing is"""
    activations: Activations | None
    waveform: Tensor | None
    """[S], where there are no activations yet"""


class PrefixBatch(NamedTuple):
    """A batch without waveforms; the same names mean the same as in `Batch`."""

    utterances: list[CachedUtterance]
    lengths: Tensor
    """[B] int64, samples by the durations of the manifest"""
    targets: Tensor
    """[B, U] int64"""
    target_lengths: Tensor
    """[B] int64"""
    texts: list[str]
    ids: list[str]
    languages: Sequence[str | None] = ()


class PrefixLoader:
    """The given batches in their order, read by threads: they see what the steps have cached meanwhile."""

    def __init__(
        self,
        dataset: SpeechDataset,
        batches: Iterable[Sequence[int | Draw]],
        *,
        length: int,
        plan: PrefixPlan,
        store: PrefixStore,
        threads: int,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.length = length
        self.plan = plan
        self.store = store
        self.threads = max(1, threads)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[PrefixBatch | DataError]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="prefix")
        waiting: deque[Future[PrefixBatch | DataError]] = deque()
        try:
            for batch in self.batches:
                waiting.append(pool.submit(self.read, batch))
                if len(waiting) > self.threads * BATCHES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, batch: Sequence[int | Draw]) -> PrefixBatch | DataError:
        """Read a batch; return the first error in it in its place."""
        utterances, examples = [], []
        for wanted in batch:
            cached = self.read_utterance(wanted)
            if isinstance(cached, DataError):
                return cached
            index = index_of(wanted)
            utterance, tokens = self.dataset.utterances[index], np.asarray(self.dataset.tokens[index], np.int64)
            utterances.append(cached)
            examples.append(Example(NO_AUDIO, tokens, utterance.text or "", name_of(utterance)))
        whole = collate(examples)
        assert isinstance(whole, Batch)
        seconds = torch.tensor([self.dataset.utterances[index_of(wanted)].duration for wanted in batch])
        return PrefixBatch(
            utterances=utterances,
            lengths=(seconds * self.dataset.sample_rate).round().long(),
            targets=whole.targets,
            target_lengths=whole.target_lengths,
            texts=whole.texts,
            ids=whole.ids,
        )

    def read_utterance(self, wanted: int | Draw) -> CachedUtterance | DataError:
        """Read the activations, or the waveform where there are none yet."""
        index = index_of(wanted)
        drawn = wanted.key if isinstance(wanted, Draw) else ()
        key = make_key(self.dataset.utterances[index], self.plan, drawn)
        activations = self.store.get(key) if key else None
        seed = int(key[:SEED_DIGITS], 16) if drawn and key else None
        if activations is not None:
            return CachedUtterance(key, seed, activations, None)
        example = self.dataset[index if seed is None else Draw(index, (seed,))]
        if isinstance(example, DataError):
            return example
        return CachedUtterance(key, seed, None, torch.from_numpy(example.waveform))


def index_of(wanted: int | Draw) -> int:
    return wanted if isinstance(wanted, int) else wanted[0]


def make_key(utterance: Utterance, plan: PrefixPlan, drawn: Sequence[int]) -> str:
    """Return the SHA-256 of which audio it is, and which draw of what is random; empty where the file is gone."""
    try:
        file = utterance.file.stat()
    except OSError:
        return ""
    path = utterance.audio_path.absolute()
    audio = [str(path), file.st_size, file.st_mtime_ns, utterance.offset, utterance.duration]
    return digest([audio, [plan.draws, plan.seed, *drawn] if drawn else None])


def cycle_variants(sampler: StepSampler, variants: int) -> Iterator[list[int] | list[Draw]]:
    """Yield the batches of a sampler; with several variants, each epoch with the next one."""
    place = sampler.place
    for step, batch in enumerate(sampler, start=sampler.start):
        place = place_of(sampler.plan, step, processes=sampler.processes, near=place)
        yield batch if variants == 1 else [Draw(index, (place.epoch % variants,)) for index in batch]
