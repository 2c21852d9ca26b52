"""Sound of a file, opened by its first bytes: WAV files of plain samples here, all others by FFmpeg.

Legend: S samples, C channels.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Protocol

from overtone.audio.containers import FileView, Readable, Source, Track
from overtone.audio.joined import JoinedRecordings, bounds_of
from overtone.audio.kinds import HEADER_BYTES, MP3, WAV, Kind, kind_of, tag_bytes
from overtone.audio.pcm import BLOCK, LONGEST_WAV_HEADER, Block, WavLayout, decode_samples, read_wav_layout
from overtone.errors import AudioError, DataError

LFS_POINTER = b"version https://git-lfs"
"""The beginning of a text that Git leaves in the place of a large file."""


class Held(Protocol):
    """A recording in memory. Its text is its name in messages."""

    def open(self) -> AbstractContextManager[Source]:
        """Its sound. Raises AudioError."""

    def digest(self) -> bytes:
        """Digest of what is held, which tells it from others of its name. Raises DataError and OSError."""


class WavFile:
    """A WAV file of plain samples. What its header says of their number is not believed past the file's end."""

    def __init__(self, file: Readable, layout: WavLayout) -> None:
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
def open_file(path: Path) -> Iterator[Source]:
    """The sound of a file. Raises AudioError and OSError."""
    with path.open("rb") as file, sound_of(file) as source:
        yield source


@contextmanager
def sound_of(file: IO[bytes]) -> Iterator[Source]:
    """The sound of an open file, which stays open. Several recordings may lie in it. Raises AudioError."""
    kind, first = kind_in(file)
    bounds = bounds_of(file, kind, first)
    if len(bounds) > 1:
        yield JoinedRecordings(file, bounds, sound_of_one)
        return
    file.seek(0)
    with sound_of_one(file) as source:
        yield source


@contextmanager
def sound_of_one(file: Readable) -> Iterator[Source]:
    """The sound of an open file of one recording, which stays open. Raises AudioError."""
    source = source_of(file)
    try:
        yield source
    finally:
        if isinstance(source, Track):
            source.close()


@contextmanager
def open_source(place: Path | Held) -> Iterator[Source]:
    """The open recording. Raises DataError that names it, also in the place of an AudioError."""
    if isinstance(place, Path):
        file_status(place)
    try:
        with open_file(place) if isinstance(place, Path) else place.open() as source:
            yield source
    except AudioError as error:
        reason = str(error).partition(" cannot be decoded: ")[2] or str(error)
        raise unreadable(place, reason) from error
    except PermissionError as error:
        raise DataError(
            f"{place}: reading it is not permitted. Change the file's permissions, or leave it out."
        ) from error
    except (OSError, MemoryError) as error:
        raise unreadable(place, getattr(error, "strerror", None) or str(error)) from error


def source_of(file: Readable) -> Source:
    """The reader of a recording, chosen by its first bytes. Raises AudioError for bytes that begin no audio."""
    kind, first = kind_in(file)
    if kind is WAV and not first:
        file.seek(0)
        layout = _wav_layout(file)
        if layout is not None and layout.coding:
            return WavFile(file, layout)
    return Track(FileView(file, first, has_size=kind is not MP3), kind)


def kind_in(file: Readable) -> tuple[Kind, int]:
    """The kind of a file, and the byte where it begins, after its tags. Raises AudioError."""
    first, start = 0, file.read(HEADER_BYTES)
    while skipped := tag_bytes(start):
        first += skipped
        file.seek(first)
        start = file.read(HEADER_BYTES)
    kind = kind_of(start) or (MP3 if first or start[:3] == b"ID3" else None)
    if kind is None and (start + file.read(len(LFS_POINTER))).startswith(LFS_POINTER):
        raise AudioError("a Git LFS pointer stands in its place; fetch it with `git lfs pull`")
    if kind is None:
        raise AudioError("nothing in its first bytes is known")
    return kind, first


def _wav_layout(file: Readable) -> WavLayout | None:
    """The layout of a WAV file, read as far as needed; None where its header is longer than ours are, or RIFX."""
    start = file.read(4096)
    if start[:4] == b"RIFX":
        return None
    layout = read_wav_layout(start)
    if layout is None:
        start += file.read(LONGEST_WAV_HEADER - len(start))
        layout = read_wav_layout(start)
    if layout is None and len(start) < LONGEST_WAV_HEADER:
        raise AudioError("it ends before its samples begin")
    return layout


def file_status(path: Path) -> os.stat_result:
    """The status of a file that is there and not empty. Raises DataError."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise DataError(f"{path}: no such audio file. Check the path.") from error
        if isinstance(error, PermissionError):
            raise DataError(f"{path}: its folder may not be read. Change the permissions, or leave it out.") from error
        raise unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: not a file. Name an audio file.")
    if status.st_size == 0:
        raise DataError(f"{path}: the file is empty. Replace it or leave it out.")
    return status


def unreadable(place: Path | Held, reason: str) -> DataError:
    """The error for a recording that cannot be read for that reason."""
    reason = reason.rstrip(".")
    return DataError(
        f"{place}: cannot be read as audio ({reason[:1].lower()}{reason[1:]}). "
        "Convert it to WAV, FLAC, Ogg (Vorbis, Opus), MP3, M4A or WebM, or leave it out."
    )
