"""Batches of utterances of which most need no audio any more: what is kept of them is read instead, ahead of the step.

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
from overtone.training.prefix_cache.store import Kept, PrefixStore

BATCHES_AHEAD = 2
"""What every reading thread has in hand."""
NO_AUDIO = np.zeros(0, np.float32)
SEED_DIGITS = 15
"""Of a key, in base 16: they fit into 63 bits."""


class Row(NamedTuple):
    """One utterance."""

    key: str
    """Under which it is kept; empty where its file is gone."""
    seed: int | None
    """Of what is random in it; None where nothing is."""
    kept: Kept | None
    waveform: Tensor | None
    """[S], where nothing is kept yet."""


class PrefixBatch(NamedTuple):
    """What a step needs of a batch; the same names mean the same as in `Batch`."""

    rows: list[Row]
    lengths: Tensor
    """[B] int64, samples as the manifest tells"""
    targets: Tensor
    """[B, U] int64"""
    target_lengths: Tensor
    """[B] int64"""
    texts: list[str]
    ids: list[str]


class PrefixLoader:
    """The given batches in their order, read by threads: they see what the steps have kept meanwhile."""

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
        """The batch, or the first error in it."""
        rows, examples = [], []
        for wanted in batch:
            row = self.row(wanted)
            if isinstance(row, DataError):
                return row
            index = index_of(wanted)
            utterance, tokens = self.dataset.utterances[index], np.asarray(self.dataset.tokens[index], np.int64)
            rows.append(row)
            examples.append(Example(NO_AUDIO, tokens, utterance.text or "", name_of(utterance)))
        whole = collate(examples)
        assert isinstance(whole, Batch)
        seconds = torch.tensor([self.dataset.utterances[index_of(wanted)].duration for wanted in batch])
        return PrefixBatch(
            rows=rows,
            lengths=(seconds * self.dataset.sample_rate).round().long(),
            targets=whole.targets,
            target_lengths=whole.target_lengths,
            texts=whole.texts,
            ids=whole.ids,
        )

    def row(self, wanted: int | Draw) -> Row | DataError:
        index = index_of(wanted)
        drawn = wanted.key if isinstance(wanted, Draw) else ()
        key = key_of(self.dataset.utterances[index], self.plan, drawn)
        kept = self.store.get(key) if key else None
        seed = int(key[:SEED_DIGITS], 16) if drawn and key else None
        if kept is not None:
            return Row(key, seed, kept, None)
        example = self.dataset[index if seed is None else Draw(index, (seed,))]
        if isinstance(example, DataError):
            return example
        return Row(key, seed, None, torch.from_numpy(example.waveform))


def index_of(wanted: int | Draw) -> int:
    return wanted if isinstance(wanted, int) else wanted[0]


def key_of(utterance: Utterance, plan: PrefixPlan, drawn: Sequence[int]) -> str:
    """SHA-256 of which audio it is, and which draw of what is random; empty where the file is not there."""
    path = utterance.audio_path.absolute()
    try:
        file = path.stat()
    except OSError:
        return ""
    audio = [str(path), file.st_size, file.st_mtime_ns, utterance.offset, utterance.duration]
    return digest([audio, [plan.draws, plan.seed, *drawn] if drawn else None])


def turns(sampler: StepSampler, variants: int) -> Iterator[list[int] | list[Draw]]:
    """The batches of a sampler; with several variants, each epoch with the next one."""
    place = sampler.place
    for step, batch in enumerate(sampler, start=sampler.start):
        place = place_of(sampler.plan, step, processes=sampler.processes, near=place)
        yield batch if variants == 1 else [Draw(index, (place.epoch % variants,)) for index in batch]
