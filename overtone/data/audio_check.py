"""Check of a set's recordings before the work begins: faults are known in minutes, not hours."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from overtone.audio.load import audio_duration
from overtone.data.dataset import length_problem, read_utterance
from overtone.data.manifest import Utterance
from overtone.errors import DataError

AudioCheck = Literal["none", "headers", "full"]
THREADS = 16
"""Threads that open files; most of the time they wait for the disk."""


def audio_problems(utterances: Sequence[Utterance], *, how: AudioCheck, sample_rate: int) -> dict[int, str]:
    """Check the recordings: index -> the fault.

    how: `headers` opens every file (missing, empty, no audio, shorter than the manifest says), `full` decodes every
    utterance (damage inside, samples that are NaN or infinite).
    """
    if how == "none":
        return {}
    with ThreadPoolExecutor(THREADS, thread_name_prefix="overtone-audio-check") as threads:
        if how == "full":
            found = list(threads.map(partial(_fault_in_samples, sample_rate=sample_rate), utterances))
        else:
            paths = list(dict.fromkeys(utterance.audio_path for utterance in utterances))
            headers = dict(zip(paths, threads.map(_header, paths), strict=True))
            found = [_fault_in_header(headers[utterance.audio_path], utterance) for utterance in utterances]
    return {index: problem for index, problem in enumerate(found) if problem is not None}


def _header(path: Path) -> float | str:
    """Seconds, or the fault."""
    try:
        return audio_duration(path)
    except DataError as error:
        return str(error)


def _fault_in_header(header: float | str, utterance: Utterance) -> str | None:
    """The fault of an utterance in a file with this header; None if there is none."""
    return header if isinstance(header, str) else length_problem(utterance, header - utterance.offset)


def _fault_in_samples(utterance: Utterance, *, sample_rate: int) -> str | None:
    """The fault of an utterance once it is decoded; None if there is none."""
    try:
        read_utterance(utterance, sample_rate)
    except DataError as error:
        return str(error)
    return None
