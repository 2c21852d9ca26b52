"""Files that were joined: several recordings after each other, each with a header of its own."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO

from overtone.audio.containers import Source, is_chained
from overtone.audio.joints import has_joints, joints_of
from overtone.audio.kinds import OGG, Kind
from overtone.audio.pcm import Block

KNOWN_FILES = 1024
"""Files whose recordings are remembered, so that each is searched once."""

known: dict[tuple[int, ...], tuple[int, ...]] = {}


class Stretch:
    """The bytes of a file from `first` to `last`, as a file of its own."""

    def __init__(self, file: IO[bytes], first: int, last: int) -> None:
        self._file, self._first, self._last = file, first, last
        self._place = first

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        left = self._last - self._place
        self._file.seek(self._place)
        data = self._file.read(left if size < 0 else min(size, left))
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, as files do."""
        base = {os.SEEK_SET: self._first, os.SEEK_CUR: self._place, os.SEEK_END: self._last}[whence]
        self._place = min(max(self._first, base + offset), self._last)
        return self.tell()

    def tell(self) -> int:
        """The place of the next byte."""
        return self._place - self._first

    def seekable(self) -> bool:
        """True if it can jump: always."""
        return True


class JoinedRecordings:
    """The sound of recordings that lie after each other in one file."""

    def __init__(
        self,
        file: IO[bytes],
        bounds: list[tuple[int, int]],
        open_one: Callable[[Stretch], AbstractContextManager[Source]],
    ) -> None:
        """bounds: the first byte of each recording, and one past its last. open_one: opens one of them."""
        self._parts = [(file, first, last) for first, last in bounds]
        self._open = open_one

    def blocks(self, start: float = 0.0) -> Iterator[Block]:
        """The samples from `start` seconds to the end. Raises AudioError."""
        for part in self._parts:
            if start > 0.0:
                with self._open(Stretch(*part)) as source:
                    seconds = source.seconds()
                if start >= seconds:
                    start -= seconds
                    continue
            with self._open(Stretch(*part)) as source:
                yield from source.blocks(start)
            start = 0.0

    def seconds(self) -> float:
        """Seconds of sound, counted. Raises AudioError."""
        total = 0.0
        for part in self._parts:
            with self._open(Stretch(*part)) as source:
                total += source.seconds()
        return total


def bounds_of(file: IO[bytes], kind: Kind, first: int) -> list[tuple[int, int]]:
    """The first byte of each recording in a file, and one past its last; the first recording begins at `first`."""
    if not has_joints(kind) or (kind is OGG and not is_chained(file)):
        return [(first, file.seek(0, os.SEEK_END))]
    if isinstance(file, io.BytesIO):
        with file.getbuffer() as content:
            return paired(starts_in(content, kind, first), len(content))
    status = os.fstat(file.fileno())
    key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, first)
    starts = known.get(key)  # another thread may clear it meanwhile
    if starts is None:
        if len(known) >= KNOWN_FILES:
            known.clear()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view, memoryview(view) as content:
            starts = known[key] = starts_in(content, kind, first)
    return paired(starts, status.st_size)


def starts_in(content: memoryview, kind: Kind, first: int) -> tuple[int, ...]:
    """The first byte of each recording."""
    with content[first:] as recordings:
        return (first, *(first + joint for joint in joints_of(kind).find(recordings, 0, ended=True)))


def paired(starts: tuple[int, ...], end: int) -> list[tuple[int, int]]:
    """Each beginning with the next one, or the end."""
    return list(zip(starts, (*starts[1:], end), strict=True))
