"""Recordings inside tar archives: their places are listed once, and each is read from its place.

An archive is never unpacked, and nothing but plain files in it is taken.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from overtone.audio.containers import Source
from overtone.audio.sources import sound_of
from overtone.budgets import HeaderReader
from overtone.errors import AudioError, DataError

COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))
"""First bytes of compressed files, and the name of the compression."""
DAMAGES = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)
"""Errors of the reader of tar for damaged files, OSError aside."""
HEADERS_TOLD = 1 << 16
"""Bytes that an archive of few members is read beyond its own: the reader looks at a place more than once."""


@dataclass(frozen=True)
class ArchiveMember:
    """A recording that lies in an archive."""

    archive: Path
    name: str
    """Its name inside."""
    first: int
    """Bytes before its content."""
    size: int
    """Bytes of its content."""

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    @contextmanager
    def open(self) -> Iterator[Source]:
        """Its sound. Raises AudioError and OSError."""
        with self.archive.open("rb") as archive:
            archive.seek(self.first)
            content = archive.read(self.size)
        if len(content) < self.size:
            raise AudioError("its archive has become shorter meanwhile")
        with sound_of(io.BytesIO(content)) as source:
            yield source

    def digest(self) -> bytes:
        """SHA-256 of its place in the archive, whose own content tells the rest."""
        return hashlib.sha256(f"{self} {self.first} {self.size}".encode()).digest()


def list_members(archive: Path) -> dict[str, ArchiveMember]:
    """The files in an archive by name, in order.

    Raises DataError, naming the archive, for one that is missing, torn, compressed or no archive, and for one that
    holds links or one name twice.
    """
    members: dict[str, ArchiveMember] = {}
    end = 0
    try:
        size = archive.stat().st_size
        check_first_bytes(archive)
        with archive.open("rb") as file, open_headers(file, size) as content:
            for entry in content:
                end = entry.offset_data + (entry.size if entry.isreg() else 0)
                if entry.isdir():
                    continue
                name = entry.name.removeprefix("./")
                if not entry.isreg() or entry.issparse():
                    raise DataError(f"{archive}: '{name}' is a link or a device. Pack the files themselves.")
                if name in members:
                    raise DataError(f"{archive}: '{name}' is there twice. Pack the archive anew.")
                if end > size or entry.size < 0:
                    raise DataError(f"{archive}: torn, it ends inside '{name}'. Fetch or pack it anew.")
                members[name] = ArchiveMember(archive, name, entry.offset_data, entry.size)
        check_end(archive, end)
    except FileNotFoundError as error:
        raise DataError(f"{archive}: no such archive. Check the path, and that every shard is there.") from error
    except DAMAGES as error:
        torn = f"torn after '{next(reversed(members))}'" if members else "torn, or no tar archive"
        raise DataError(f"{archive}: {torn} ({error}). Fetch or pack it anew.") from error
    except OSError as error:
        raise DataError(f"{archive}: the archive cannot be read ({error.strerror}).") from error
    if not members:
        raise DataError(f"{archive}: there is no file in it. Pack it anew, or leave it out.")
    return members


def open_headers(file: IO[bytes], size: int) -> tarfile.TarFile:
    """The tar in a file of so many bytes, its members to be listed alone. Raises what DAMAGES holds."""
    return tarfile.open(fileobj=cast("IO[bytes]", HeaderReader(file, total=2 * size + HEADERS_TOLD)), mode="r:")


def check_first_bytes(archive: Path) -> None:
    """Raises DataError for a compressed archive: its members have no places to be read from."""
    with archive.open("rb") as file:
        start = file.read(8)
    for mark, name in COMPRESSED:
        if start.startswith(mark):
            raise DataError(f"{archive}: compressed with {name}. Decompress it; the audio inside stays as it is.")


def check_end(archive: Path, end: int) -> None:
    """Raises DataError where more than the end of an archive follows its last member, `end` bytes from its start."""
    with archive.open("rb") as file:
        file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        rest = file.read(tarfile.BLOCKSIZE)
    if rest.strip(b"\0"):
        raise DataError(f"{archive}: damaged, no file begins after {end} bytes. Fetch or pack it anew.")
