"""Data set of utterances: the choice of usable ones, their audio and tokens, and batches of them.

Legend: B batch, S samples, U target tokens.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from overtone.audio.load import AudioReader, Waveform, audio_duration
from overtone.audio.sources import Held
from overtone.data.batching import Draw
from overtone.data.manifest import Utterance, length_problem
from overtone.errors import DataError
from overtone.nets.layers import pad_rows

Perturb = Callable[[Waveform, np.random.Generator], Waveform]
"""A random change of a waveform [S]; it may become longer or shorter."""

CACHE_BYTES = 256 * 2**20
"""Memory for decoded audio, shared by the worker processes; what fits is read from disk only once."""

AudioCheck = Literal["none", "headers", "full"]
CHECK_THREADS = 16
"""Threads that open files; most of the time they wait for the disk."""

SHOWN = 5
"""Examples in a message."""


class Batch(NamedTuple):
    """A batch of utterances, padded with zeros."""

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
    languages: Sequence[str | None] = ()
    """The language of each utterance, where its manifest names one."""


class Example(NamedTuple):
    """One utterance, read."""

    waveform: NDArray[np.float32]
    """[S]"""
    tokens: NDArray[np.int64]
    """[U]"""
    text: str
    id: str
    language: str | None = None


# Choosing utterances


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Utterances of allowed duration, and the number of others."""

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
    utterances: Sequence[Utterance],
    tokens: Sequence[Sequence[int]],
    *,
    seconds_per_frame: float,
    frames_needed: Callable[[Sequence[int]], int],
    most_tokens: Callable[[str | None], int | None] | None = None,
) -> dict[int, str]:
    """Index -> the fault, for transcripts that the model cannot learn.

    frames_needed: tokens -> the fewest encoder frames that they can be learnt from. most_tokens: of a transcript in a
    language, or with a task.
    """
    problems = {}
    for index, (utterance, ids) in enumerate(zip(utterances, tokens, strict=True)):
        frames = math.ceil(utterance.duration / seconds_per_frame)
        needed = frames_needed(ids)
        most = None if most_tokens is None else most_tokens(utterance.language)
        if not (utterance.text or "").strip():
            problems[index] = "the transcript is empty"
        elif not ids:
            problems[index] = "the model can write nothing of the transcript"
        elif most is not None and len(ids) > most:
            problems[index] = f"too long: {len(ids)} tokens, and the model reads {most} at most"
        elif needed > frames:
            problems[index] = (
                f"too short for its transcript: {len(ids)} tokens need {needed} frames, "
                f"{utterance.duration} s give {frames}"
            )
    return problems


def audio_problems(utterances: Sequence[Utterance], *, how: AudioCheck, sample_rate: int) -> dict[int, str]:
    """Check the recordings: index -> the fault.

    how: `headers` counts the seconds of every file (missing, empty, no audio, shorter than the manifest says), `full`
    decodes every utterance (damage inside, samples that are NaN or infinite).
    """
    if how == "none":
        return {}
    with ThreadPoolExecutor(CHECK_THREADS, thread_name_prefix="overtone-audio-check") as threads:
        if how == "full":
            found = list(threads.map(partial(_fault_in_samples, sample_rate=sample_rate), utterances))
        else:
            recordings = list(dict.fromkeys(utterance.recording for utterance in utterances))
            headers = dict(zip(recordings, threads.map(_header, recordings), strict=True))
            found = [_fault_in_header(headers[utterance.recording], utterance) for utterance in utterances]
    return {index: problem for index, problem in enumerate(found) if problem is not None}


def _header(recording: Path | Held) -> float | str:
    """Seconds, or the fault."""
    try:
        return audio_duration(recording)
    except DataError as error:
        return str(error)


def _fault_in_header(header: float | str, utterance: Utterance) -> str | None:
    """The fault of an utterance in a file of so many seconds, or with a fault of its own; None if there is none."""
    if isinstance(header, str):
        return header
    return length_problem(utterance.audio_path, utterance.duration, header - utterance.offset)


def _fault_in_samples(utterance: Utterance, *, sample_rate: int) -> str | None:
    """The fault of an utterance once it is decoded; None if there is none."""
    try:
        read_utterance(utterance, sample_rate)
    except DataError as error:
        return str(error)
    return None


def refuse_unusable(utterances: Sequence[Utterance], problems: dict[int, str], *, key: str) -> None:
    """Raises DataError that names the first problems; `key` is the setting that leaves such utterances out."""
    if not problems:
        return
    first = [f"  {name_of(utterances[index])}: {problem}" for index, problem in list(problems.items())[:SHOWN]]
    more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise DataError(
        f"{len(problems)} of {len(utterances)} utterances cannot be used:\n" + "\n".join(first) + more + "\n"
        f"Correct the manifest, or leave them out with {key}=drop."
    )


def name_of(utterance: Utterance) -> str:
    return f"{utterance.manifest}:{utterance.line}"


# Loading


class SpeechDataset(Dataset[Any]):
    """Samples and tokens of utterances by index.

    An utterance that cannot be read is the error itself: worker processes would wrap a raised one in a traceback.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        tokens: Sequence[Sequence[int]],
        *,
        sample_rate: int,
        cache_bytes: int = CACHE_BYTES,
        perturb: Perturb | None = None,
    ) -> None:
        self.utterances = utterances
        self.tokens = tokens
        self.sample_rate = sample_rate
        self.room = cache_bytes
        self.perturb = perturb
        """The augmentation of each waveform that is drawn for training."""
        self.references: Sequence[str] | None = None
        """The transcripts in the form that errors are counted in; None: as they are written."""
        self.cache: dict[int, Waveform] = {}

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, wanted: int | Draw) -> Example | DataError:
        index = wanted.utterance if isinstance(wanted, Draw) else wanted
        utterance = self.utterances[index]
        try:
            waveform = self.load(index)
            if self.perturb is not None and isinstance(wanted, Draw):
                waveform = self.perturb(waveform, np.random.default_rng(wanted.key))
        except DataError as error:
            return DataError(f"{name_of(utterance)}: {error}")
        tokens = np.asarray(self.tokens[index], np.int64)
        text = utterance.text or "" if self.references is None else self.references[index]
        return Example(waveform, tokens, text, name_of(utterance), utterance.language)

    def read_ahead(self, index: int) -> bool:
        """Read one utterance early, if the cache has room for it; True if it has.

        An utterance that cannot be read fails when it is asked for.
        """
        if self.utterances[index].duration * self.sample_rate * np.float32().nbytes > self.room:
            return False
        with suppress(DataError):
            self.load(index)
        return True

    def stop_caching(self) -> None:
        """Read every further waveform from disk each time."""
        self.room = 0

    def load(self, index: int) -> NDArray[np.float32]:
        """The samples [S] of one utterance."""
        if index in self.cache:
            return self.cache[index]
        waveform = read_utterance(self.utterances[index], self.sample_rate)
        if waveform.nbytes <= self.room:
            self.room -= waveform.nbytes
            self.cache[index] = waveform
        return waveform


def read_utterance(utterance: Utterance, sample_rate: int) -> Waveform:
    """Read the samples [S] of an utterance. Raises DataError for a recording that cannot be used."""
    with AudioReader(
        utterance.recording,
        offset=utterance.offset,
        duration=utterance.duration,
        sample_rate=sample_rate,
        channel=utterance.channel,
    ) as reader:
        waveform = reader.read()
    problem = length_problem(utterance.audio_path, utterance.duration, waveform.size / sample_rate)
    if problem is not None:
        raise DataError(problem)
    return waveform


def collate(examples: Sequence[Example | DataError]) -> Batch | DataError:
    """A batch of the examples, or the first error among them."""
    whole: list[Example] = []
    for example in examples:
        if isinstance(example, DataError):
            return example
        whole.append(example)
    waveforms, lengths = pad_rows([example.waveform for example in whole])
    target_lengths = torch.tensor([len(example.tokens) for example in whole])
    targets = torch.zeros(len(whole), max(1, int(target_lengths.max())), dtype=torch.int64)
    for row, example in enumerate(whole):
        targets[row, : len(example.tokens)] = torch.from_numpy(example.tokens)
    return Batch(
        waveforms,
        lengths,
        targets,
        target_lengths,
        [example.text for example in whole],
        [example.id for example in whole],
        [example.language for example in whole],
    )


def make_loader(
    dataset: SpeechDataset,
    batches: Sampler[list[int]] | Sampler[list[Draw]] | Sequence[list[int]],
    *,
    workers: int,
    pin_memory: bool,
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
        worker_init_fn=leave_interruptions if workers > 0 else None,
    )


def leave_interruptions(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: it is for the first one to say what is still read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
