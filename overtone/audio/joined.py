"""FLAC files that were joined: several recordings after each other, each with a header of its own.

FFmpeg takes such a file for one that is damaged where the second recording begins. Chained Ogg and joined MP3 it reads
itself.
"""

from __future__ import annotations

import io
import mmap
import os
import re
from collections.abc import Iterator
from typing import IO

from overtone.audio.containers import Track
from overtone.audio.kinds import FLAC
from overtone.audio.pcm import Block

FLAC_HEADER = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
"""The beginning of a FLAC recording: its mark, and the block of 34 bytes that describes it."""
HEADER_BYTES = 8
KNOWN_FILES = 1024
"""Files whose recordings are remembered, so that each is searched once."""

known: dict[tuple[int, ...], tuple[int, ...]] = {}


class Stretch:
    """The bytes of a file from `first` to `last`, as FFmpeg sees a file."""

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


class JoinedTracks:
    """The sound of FLAC recordings after each other."""

    def __init__(self, file: IO[bytes], bounds: list[tuple[int, int]]) -> None:
        """bounds: the first byte of each recording, and one past its last."""
        self._file = file
        self._bounds = bounds

    def blocks(self, start: float = 0.0) -> Iterator[Block]:
        """The samples from `start` seconds to the end. Raises AudioError."""
        for first, last in self._bounds:
            if start > 0.0:
                seconds = self._seconds(first, last)
                if start >= seconds:
                    start -= seconds
                    continue
            track = Track(Stretch(self._file, first, last), FLAC)
            try:
                yield from track.blocks(start)
            finally:
                track.close()
            start = 0.0

    def seconds(self) -> float:
        """Seconds of sound, counted. Raises AudioError."""
        return sum(self._seconds(first, last) for first, last in self._bounds)

    def _seconds(self, first: int, last: int) -> float:
        track = Track(Stretch(self._file, first, last), FLAC)
        try:
            return track.seconds()
        finally:
            track.close()


def bounds_of(file: IO[bytes], first: int) -> list[tuple[int, int]]:
    """The first byte of each FLAC recording in a file, and one past its last; the first recording begins at `first`."""
    if isinstance(file, io.BytesIO):
        content = file.getvalue()
        return paired(starts_in(content, first), len(content))
    status = os.fstat(file.fileno())
    key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, first)
    if key not in known:
        if len(known) >= KNOWN_FILES:
            known.clear()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            known[key] = starts_in(view, first)
    return paired(known[key], status.st_size)


def starts_in(content: bytes | mmap.mmap, first: int) -> tuple[int, ...]:
    """The first byte of each recording."""
    found = (match.start() for match in FLAC_HEADER.finditer(content, first + 1))
    return (first, *found)


def paired(starts: tuple[int, ...], end: int) -> list[tuple[int, int]]:
    """Each beginning with the next one, or the end."""
    return list(zip(starts, (*starts[1:], end), strict=True))
