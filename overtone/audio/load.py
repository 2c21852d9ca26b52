"""Recordings on disk: files of any container, rate and channel count -> mono float32 samples.

WAV files of plain samples are read here; FFmpeg reads all others. Lengths are counted: a header is only a hint.
Legend: S samples.
"""

from __future__ import annotations

import math
import os
import stat
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from overtone.audio.containers import FileView, Track
from overtone.audio.kinds import HEADER_BYTES, MP3, kind_of, tag_bytes
from overtone.audio.pcm import BLOCK, EMPTY, Block, Resampler, WavLayout, decode_samples, join_blocks, read_wav_layout
from overtone.errors import AudioError, DataError

Waveform = NDArray[np.float32]
"""[S], full scale 1"""
Channels = tuple[int, ...]
"""Numbers of channels, from 0."""
SAMPLE_RATE = 16_000
"""Hz; what models are trained with unless they say otherwise."""
LONGEST_WAV_HEADER = 1 << 20
"""Bytes before the samples of a WAV file; FFmpeg reads files with a longer header."""
LOWEST_RATE = 1_000
"""Hz; a header of 1 Hz would make hours of a file of a megabyte."""


def load_audio(
    path: str | Path,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    sample_rate: int = SAMPLE_RATE,
    channel: int | Channels | None = None,
) -> NDArray[np.float32]:
    """The samples [S] of a recording in -1..1, channels averaged, at `sample_rate` Hz.

    offset, duration: seconds; only that part is read. A duration past the end stops at the end.
    channel: the number of one from 0, or of several whose mean is taken; None is all of them.
    16-bit samples are their integer / 32768, exactly, unless they are resampled.
    Raises DataError, naming the path, for a file that is missing, not audio, silent of samples, or not finite.
    """
    with AudioReader(path, offset=offset, duration=duration, sample_rate=sample_rate, channel=channel) as reader:
        return reader.read()


def audio_duration(path: str | Path) -> float:
    """Seconds of sound in a file, counted. Raises DataError, naming the path, for one that is missing or not audio."""
    path = Path(path)
    status = _status(path)
    return _count_seconds(path, status.st_mtime_ns, status.st_size)


class AudioReader:
    """A recording, or a part of it, that is read in windows: cheap where they come in order, each a slice of the whole.

    It holds the samples of one window, and one open file. A context manager; not for two threads at a time.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        offset: float = 0.0,
        duration: float | None = None,
        sample_rate: int = SAMPLE_RATE,
        channel: int | Channels | None = None,
    ) -> None:
        """offset, duration: seconds, as in `load_audio`, and `channel`. Opens nothing.

        Raises DataError for a part that cannot be.
        """
        self.path = Path(path)
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


class Source(Protocol):
    """An open file of sound."""

    def blocks(self, start: float = 0.0) -> Iterator[Block]:
        """The samples from `start` seconds to the end. Raises AudioError."""

    def seconds(self) -> float:
        """Seconds of sound, counted. Raises AudioError."""


class WavFile:
    """A WAV file of plain samples. What its header says of their number is not believed past the file's end."""

    def __init__(self, file: IO[bytes], layout: WavLayout) -> None:
        self._file = file
        self._layout = layout
        there = file.seek(0, os.SEEK_END) - layout.first
        size = there if layout.size is None else min(there, layout.size)
        self._frames = max(0, size) // layout.frame_bytes

    def blocks(self, start: float = 0.0) -> Iterator[Block]:
        """The samples from `start` seconds to the end."""
        layout = self._layout
        frame = min(self._frames, round(start * layout.rate))
        self._file.seek(layout.first + frame * layout.frame_bytes)
        while frame < self._frames:
            count = min(max(1, BLOCK // layout.channels), self._frames - frame)
            data = self._file.read(count * layout.frame_bytes)
            data = data[: len(data) - len(data) % layout.frame_bytes]
            if not data:
                return
            yield Block(decode_samples(data, layout.coding).reshape(-1, layout.channels), layout.rate)
            frame += count

    def seconds(self) -> float:
        """Seconds of sound in the file."""
        return self._frames / self._layout.rate


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """The open file. AudioError becomes a DataError that names it."""
    _status(path)
    try:
        with path.open("rb") as file:
            source = _source(file)
            try:
                yield source
            finally:
                if isinstance(source, Track):
                    source.close()
    except AudioError as error:
        reason = str(error).partition(" cannot be decoded: ")[2] or str(error)
        raise _unreadable(path, reason) from error
    except (OSError, MemoryError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def _source(file: IO[bytes]) -> Source:
    """The reader of a file, chosen by its first bytes."""
    first, start = 0, file.read(HEADER_BYTES)
    if start[:4] in (b"RIFF", b"RF64") and start[8:12] == b"WAVE":
        layout = _wav_layout(file, start)
        if layout is not None and layout.coding:
            return WavFile(file, layout)
    while skipped := tag_bytes(start):
        first += skipped
        file.seek(first)
        start = file.read(HEADER_BYTES)
    kind = kind_of(start) or (MP3 if first or start[:3] == b"ID3" else None)
    if kind is None:
        raise AudioError("nothing in its first bytes is known")
    return Track(FileView(file, first, has_size=kind is not MP3), kind)


def _wav_layout(file: IO[bytes], start: bytes) -> WavLayout | None:
    """The layout of a WAV file, read as far as needed; None where its header is longer than ours are."""
    start += file.read(4096 - len(start))
    layout = read_wav_layout(start)
    if layout is None:
        start += file.read(LONGEST_WAV_HEADER - len(start))
        layout = read_wav_layout(start)
    if layout is None and len(start) < LONGEST_WAV_HEADER:
        raise AudioError("it ends before its samples begin")
    return layout


def _status(path: Path) -> os.stat_result:
    """The status of a file that is there and not empty. Raises DataError."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise DataError(f"{path}: no such audio file. Check the path.") from error
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: not a file. Name an audio file.")
    if status.st_size == 0:
        raise DataError(f"{path}: the file is empty. Replace it or leave it out.")
    return status


@lru_cache(maxsize=4096)
def _count_seconds(path: Path, changed: int, size: int) -> float:
    """Seconds of sound in a file that was changed at that time and has that size; both only tell versions apart."""
    with open_source(path) as source:
        seconds = source.seconds()
    if seconds <= 0.0:
        raise DataError(f"{path}: the recording holds no samples, or is cut short. Replace it or leave it out.")
    return seconds


def _unreadable(path: Path, reason: str) -> DataError:
    reason = reason.rstrip(".")
    return DataError(
        f"{path}: cannot be read as audio ({reason[:1].lower()}{reason[1:]}). "
        "Convert it to WAV, FLAC, Ogg (Vorbis, Opus), MP3, M4A or WebM, or leave it out."
    )
