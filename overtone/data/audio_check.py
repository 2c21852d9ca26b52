"""Check of a set's recordings before a long run: missing, damaged, shorter than the manifest says."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from overtone.audio.load import audio_duration
from overtone.data.dataset import read_utterance
from overtone.data.manifest import Utterance, length_problem
from overtone.errors import DataError

AudioCheck = Literal["none", "headers", "full"]
THREADS = 16
"""They wait for the disk most of the time."""


def audio_problems(utterances: Sequence[Utterance], *, how: AudioCheck, sample_rate: int) -> dict[int, str]:
    """Index -> what is wrong with the recording.

    how: `headers` opens every file and counts its seconds (missing, empty, no audio, shorter than the manifest says),
    `full` decodes every utterance (damage inside, samples that are NaN or infinite).
    """
    if how == "none":
        return {}
    with ThreadPoolExecutor(THREADS, thread_name_prefix="overtone-audio-check") as threads:
        if how == "full":
            found = list(threads.map(partial(_decode_problem, sample_rate=sample_rate), utterances))
        else:
            paths = list(dict.fromkeys(utterance.audio_path for utterance in utterances))
            seconds = dict(zip(paths, threads.map(_seconds_or_problem, paths), strict=True))
            found = [_length_problem(seconds[utterance.audio_path], utterance) for utterance in utterances]
    return {index: problem for index, problem in enumerate(found) if problem is not None}


def _seconds_or_problem(path: Path) -> float | str:
    try:
        return audio_duration(path)
    except DataError as error:
        return str(error)


def _length_problem(seconds: float | str, utterance: Utterance) -> str | None:
    """The problem of an utterance in a file of so many seconds, or with a problem of its own."""
    if isinstance(seconds, str):
        return seconds
    return length_problem(utterance.audio_path, utterance.duration, seconds - utterance.offset)


def _decode_problem(utterance: Utterance, *, sample_rate: int) -> str | None:
    """The problem that decoding an utterance meets."""
    try:
        read_utterance(utterance, sample_rate)
    except DataError as error:
        return str(error)
    return None
