"""Recordings on disk: files of any container, rate and channel count -> mono float32 samples.

WAV files of plain samples are read here; FFmpeg reads all others. Lengths are counted: a header is only a hint.
Legend: S samples.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from overtone.audio.held import hold
from overtone.audio.pcm import EMPTY, Block, Resampler, join_blocks
from overtone.audio.sources import Held, file_status, open_source
from overtone.errors import AudioError, DataError

Waveform = NDArray[np.float32]
"""[S], full scale 1"""
Channels = tuple[int, ...]
"""Numbers of channels, from 0."""
SAMPLE_RATE = 16_000
"""Hz; what models are trained with unless they say otherwise."""
LOWEST_RATE = 1_000
"""Hz; a header of 1 Hz would make hours of a file of a megabyte."""


def load_audio(
    source: Any,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    sample_rate: int = SAMPLE_RATE,
    channel: int | Channels | None = None,
) -> NDArray[np.float32]:
    """The samples [S] of a recording in -1..1, channels averaged, at `sample_rate` Hz.

    source: a path, or a recording in memory as `hold` takes it: the bytes of a file, an open file, samples with their
    rate as (samples, rate), …; samples alone have `sample_rate`.
    offset, duration: seconds; only that part is read. A duration past the end stops at the end.
    channel: the number of one from 0, or of several whose mean is taken; None is all of them.
    16-bit samples are their integer / 32768, exactly, unless they are resampled.
    Raises DataError, naming the path, for a file that is missing, not audio, silent of samples, or not finite;
    UsageError for a source of another kind.
    """
    with AudioReader(
        hold(source, sample_rate), offset=offset, duration=duration, sample_rate=sample_rate, channel=channel
    ) as reader:
        return reader.read()


def audio_duration(path: str | Path | Held) -> float:
    """Seconds of sound in a file, counted. Raises DataError, naming the path, for one that is missing or not audio."""
    if not isinstance(path, str | Path):
        return _seconds_of(path)
    path = Path(path)
    status = file_status(path)
    return _count_seconds(path, status.st_mtime_ns, status.st_size)


class AudioReader:
    """A recording, or a part of it, that is read in windows: cheap where they come in order, each a slice of the whole.

    It holds the samples of one window, and one open file. A context manager; not for two threads at a time.
    """

    def __init__(
        self,
        path: str | Path | Held,
        *,
        offset: float = 0.0,
        duration: float | None = None,
        sample_rate: int = SAMPLE_RATE,
        channel: int | Channels | None = None,
    ) -> None:
        """offset, duration: seconds, as in `load_audio`, and `channel`. Opens nothing.

        Raises DataError for a part that cannot be.
        """
        self.path = Path(path) if isinstance(path, str | Path) else path
        self.offset = offset
        self.duration = duration
        self.sample_rate = sample_rate
        self.channels = (channel,) if isinstance(channel, int) else channel
        if not (math.isfinite(offset) and offset >= 0.0):
            raise DataError(f"{path}: offset is {offset}; seconds from the start, 0 or more, are needed.")
        if duration is not None and not (math.isfinite(duration) and duration > 0.0):
            raise DataError(f"{path}: duration is {duration}; more than 0 seconds are needed.")
        self._chunks: Generator[Waveform] | None = None
        self._held: Waveform = EMPTY
        self._first = 0
        """Place of the first held sample, counted from `offset` at `sample_rate`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, start: float = 0.0, stop: float | None = None) -> Waveform:
        """The samples [S] from `start` to `stop`, seconds after `offset`; None and a stop past the end are the end.

        Raises DataError, naming the path, for a file that cannot be read, and where there are no samples.
        """
        first = round(start * self.sample_rate)
        last = None if stop is None else max(first + 1, round(stop * self.sample_rate))
        if first < self._first:
            self.close()
        if self._chunks is None:
            self._chunks = self._convert()
        parts, begin, end = deque([self._held]), self._first, self._first + self._held.size
        while (last is None or end < last) and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            end += chunk.size
            while parts and begin + parts[0].size <= first:
                begin += parts.popleft().size
        filled = [part for part in parts if part.size]
        held = np.concatenate(filled) if len(filled) > 1 else filled[0] if filled else EMPTY
        self._held, self._first = held[max(0, first - begin) :], max(begin, min(first, end))
        if not self._held.size:
            ends = self.offset + end / self.sample_rate
            raise DataError(
                f"{self.path}: the recording ends after {ends:.3f} s; {self.offset + start:g} s is past it."
            )
        return self._held if last is None else self._held[: last - first]

    def close(self) -> None:
        """Close the file; `read` opens it again."""
        if self._chunks is not None:
            self._chunks.close()
        self._chunks, self._held, self._first = None, EMPTY, 0

    def _convert(self) -> Generator[Waveform]:
        """The part from its start on, chunk by chunk [S] at `sample_rate`."""
        resampler, read, made, rate = Resampler(self.sample_rate), 0, 0, 0
        with open_source(self.path) as source:
            for samples, rate in self._cut(join_blocks(self._choose(source.blocks(self.offset)))):
                if rate < LOWEST_RATE:
                    raise AudioError(f"it has {rate} Hz, and at least {LOWEST_RATE} Hz are needed")
                if not np.isfinite(samples).all():
                    bad = int(np.count_nonzero(~np.isfinite(samples)))
                    raise DataError(f"{self.path}: {bad} samples are NaN or infinite. Repair the file or leave it out.")
                chunk = resampler.push(Block(samples, rate))
                read, made = read + len(samples), made + chunk.size
                yield chunk
        if not read:
            raise DataError(self._why_nothing())
        chunk = resampler.finish()
        if not made + chunk.size:
            new = self.sample_rate
            raise DataError(f"{self.path}: {read} samples at {rate} Hz are nothing at {new} Hz. Leave it out.")
        yield chunk

    def _choose(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The chosen channels of the blocks. Raises DataError where the recording has fewer."""
        if self.channels is None:
            yield from blocks
            return
        for samples, rate in blocks:
            count = samples.shape[1]
            if not all(0 <= channel < count for channel in self.channels):
                chosen = ", ".join(map(str, self.channels))
                there = "one channel, number 0" if count == 1 else f"{count} channels, numbers 0 to {count - 1}"
                raise DataError(f"{self.path}: channel {chosen} was chosen, but the recording has {there}.")
            yield Block(samples[:, list(self.channels)], rate)

    def _cut(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The blocks that lie within the part's duration, the last one cut."""
        left: float | None = None
        for samples, rate in blocks:
            if self.duration is None:
                yield Block(samples, rate)
                continue
            if left is None:
                left = max(1, round(self.duration * rate)) / rate
            wanted = round(left * rate)
            yield Block(samples[:wanted], rate)
            left -= wanted / rate
            if len(samples) >= wanted:
                return
            left += (wanted - len(samples)) / rate

    def _why_nothing(self) -> str:
        """The message where the part holds no samples."""
        if not self.offset:
            return f"{self.path}: no samples could be decoded; the file is damaged. Replace it or leave it out."
        seconds = audio_duration(self.path)
        return (
            f"{self.path}: offset is {self.offset} s, but the recording ends after {seconds:.3f} s. Correct the offset."
        )


@lru_cache(maxsize=4096)
def _count_seconds(path: Path, changed: int, size: int) -> float:
    """Seconds of sound in a file that was changed at that time and has that size; both only tell versions apart."""
    return _seconds_of(path)


def _seconds_of(place: Path | Held) -> float:
    """Seconds of sound of a recording. Raises DataError."""
    with open_source(place) as source:
        seconds = source.seconds()
    if seconds <= 0.0:
        raise DataError(f"{place}: the recording holds no samples, or is cut short. Replace it or leave it out.")
    return seconds
