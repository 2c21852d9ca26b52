"""Joints: places in a file where another recording begins, as `cat` leaves them.

They are found in whole files and in bytes as they come. FFmpeg takes such a file for one that ends, or is damaged,
where the second recording begins; joined MP3, AAC and WebM it reads itself.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import ClassVar, Protocol

from overtone.audio.kinds import FLAC, MP4, OGG, Kind
from overtone.audio.pcm import UNKNOWN_SIZE

Bytes = bytearray | memoryview


class Joints(Protocol):
    """A search for joints that goes on as bytes come."""

    @property
    def held(self) -> int:
        """So many bytes at the end of those that came may begin another recording."""

    def find(self, data: Bytes, first: int, *, ended: bool = False) -> list[int]:
        """New joints, each the place of a recording's first byte in the file.

        data: the bytes of the file from byte `first` to the last that came; only what was held before has to be there.
        ended: nothing comes after them.
        """


class NoJoints:
    """A kind whose recordings are never taken apart."""

    held = 0

    def find(self, data: Bytes, first: int, *, ended: bool = False) -> list[int]:
        """None."""
        return []


class FlacJoints:
    """FLAC: the mark of a file, and the header of the block of 34 bytes that describes it."""

    HEADER = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
    held = 7

    def __init__(self) -> None:
        self._next = 1

    def find(self, data: Bytes, first: int, *, ended: bool = False) -> list[int]:
        """New joints; see `Joints`."""
        found = [first + match.start() for match in self.HEADER.finditer(data, max(0, self._next - first))]
        self._next = max(self._next, first + len(data) - self.held)
        return found


class OggJoints:
    """Ogg: a page that begins a track of sound, after one that begins none."""

    PAGE = re.compile(rb"OggS\x00(.).{20}(?:\x01.(OpusHead|\x01vorbis|\x7fFLAC|Speex   ))?", re.DOTALL)
    BEGINS = 2
    """The bit of a page's type that marks the first page of a track."""
    held = 35

    def __init__(self) -> None:
        self._next = 0
        self._is_head = True
        """True if the page before began a track."""

    def find(self, data: Bytes, first: int, *, ended: bool = False) -> list[int]:
        """New joints; see `Joints`."""
        found = []
        end = len(data) - self.held
        for match in self.PAGE.finditer(data, max(0, self._next - first)):
            if match.start() >= end and not ended:
                break
            is_head = bool(match[1][0] & self.BEGINS)
            if is_head and match[2] and not self._is_head:
                found.append(first + match.start())
            self._is_head = is_head
            self._next = first + match.start() + 1
        self._next = max(self._next, first + end)
        return found


class RiffJoints:
    """WAV and AIFF: chunks that tell their sizes. Where the next chunk should begin, another file may."""

    FORMS: ClassVar = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">", b"FORM": ">"}
    """The first bytes of a file -> the order of bytes in its numbers."""
    TYPES = (b"WAVE", b"AIFF", b"AIFC")
    HEADER = 12
    """Bytes before the first chunk."""
    CHUNK = 8
    """Bytes of a chunk before its content."""
    LOOK = 1 + 24
    """Bytes that tell what begins somewhere: perhaps one of padding, and the sizes in a file of over 4 GB."""

    def __init__(self) -> None:
        self._next: int | None = 0
        """The byte after the last chunk; None where nothing can follow."""
        self._padding = 0
        """1 after a chunk of odd size: most writers, but not all, add a byte."""
        self._end = 0
        self._order = "<"
        self._form_size = self._long_size = 0

    @property
    def held(self) -> int:
        """See `Joints`."""
        return 0 if self._next is None else max(0, self._end - self._next)

    def find(self, data: Bytes, first: int, *, ended: bool = False) -> list[int]:
        """New joints; see `Joints`."""
        found: list[int] = []
        self._end = first + len(data)
        while self._next is not None:
            place = self._next - first
            head = bytes(data[place : place + self.LOOK])
            if len(head) < self.LOOK and not (ended and len(head) > self.HEADER):
                break
            padding = 0 if self._begins_file(head) else self._padding
            head, begin = head[padding:], self._next + padding
            if self._begins_file(head):
                if begin:
                    found.append(begin)
                self._order = self.FORMS[head[:4]]
                (self._form_size,) = struct.unpack_from(f"{self._order}I", head, 4)
                self._next, self._padding = begin + self.HEADER, 0
            else:
                self._next = self._after(head, begin)
        return found

    def _begins_file(self, head: bytes) -> bool:
        return head[:4] in self.FORMS and head[8:12] in self.TYPES

    def _after(self, head: bytes, begin: int) -> int | None:
        """The byte after the chunk that begins so; None where no chunk does, or one without an end."""
        name = head[:4]
        if not (name.isascii() and name.decode("ascii").isprintable()):
            return None
        size: int = struct.unpack_from(f"{self._order}I", head, 4)[0]
        if name == b"ds64" and len(head) >= 24:
            (self._long_size,) = struct.unpack_from("<Q", head, self.CHUNK + 8)
        if name == b"data":
            size = self._long_size if size == 0xFFFF_FFFF else size
            is_told = size > 0 or self.HEADER < self._form_size < UNKNOWN_SIZE
            if not is_told or (size >= UNKNOWN_SIZE and size != self._long_size):
                return None
        self._padding = size % 2
        return begin + self.CHUNK + size


class Wave64Joints:
    """Wave64: a file tells its size."""

    MARK = b"riff\x2e\x91\xcf\x11"
    LOOK = 24
    held = 0

    def find(self, data: Bytes, first: int, *, ended: bool = False) -> list[int]:
        """The joints of a whole file; see `Joints`."""
        found, place = [], 0
        while bytes(data[place : place + len(self.MARK)]) == self.MARK and place + self.LOOK <= len(data):
            if place:
                found.append(place)
            (size,) = struct.unpack_from("<Q", data, place + 16)
            place += max(self.LOOK, size + -size % 8)
        return found


class Mp4Joints:
    """MP4: boxes that tell their sizes. One that tells the type of a file comes first in it."""

    LOOK = 16
    SOUND = (b"moov", b"mdat", b"moof")

    def __init__(self) -> None:
        self._next: int | None = 0
        self._end = 0
        self._has_sound = False
        """True if the file that the next box belongs to has more than a type."""

    @property
    def held(self) -> int:
        """See `Joints`."""
        return 0 if self._next is None else max(0, self._end - self._next)

    def find(self, data: Bytes, first: int, *, ended: bool = False) -> list[int]:
        """New joints; see `Joints`."""
        found: list[int] = []
        self._end = first + len(data)
        while self._next is not None and self._next + self.LOOK <= self._end:
            size, name, long_size = struct.unpack_from(">I4sQ", data, self._next - first)
            if name == b"ftyp" and self._has_sound:
                found.append(self._next)
            self._has_sound = name in self.SOUND or (self._has_sound and name != b"ftyp")
            size = long_size if size == 1 else size
            self._next = self._next + size if size >= 8 else None
        return found


FINDERS: dict[str, Callable[[], Joints]] = {
    FLAC.name: FlacJoints, OGG.name: OggJoints, MP4.name: Mp4Joints, "WAV": RiffJoints, "AIFF": RiffJoints,
    "Wave64": Wave64Joints,
}  # fmt: skip


def has_joints(kind: Kind) -> bool:
    """True if recordings of that kind are taken apart."""
    return kind.name in FINDERS


def joints_of(kind: Kind) -> Joints:
    """A search for the joints of one file of that kind."""
    return FINDERS.get(kind.name, NoJoints)()
