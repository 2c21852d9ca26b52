"""A `.nemo` file: a tar, plain or gzipped, of a configuration, weights and tokenizer files.

Reading trusts nothing: only plain files under plain names, each once, within limits of number and size.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from overtone.adapters.storage import LFS_POINTER
from overtone.budgets import HeaderReader
from overtone.errors import CheckpointError
from overtone.files import open_regular, replace_file, write_failure

GZIP_MAGIC = b"\x1f\x8b"
CHECKPOINT_MAGICS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")
"""Beginnings of what torch.save writes: a zip, or a pickle of old."""
BLOCK = 1 << 20
DAMAGES = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError, zlib.error)
"""Errors of the readers of tar and gzip for damaged files, OSError aside."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on what a file may hold."""

    members: int = 1000
    """Number of files and folders."""
    total_bytes: int = 20 * 2**30
    """Bytes of all contents, unpacked."""
    small_file_bytes: int = 64 * 2**20
    """Bytes of a tokenizer file, or of any other that is read whole."""
    config_bytes: int = 10 * 2**20
    """Bytes of the configuration."""
    expansion: int = 200
    """The largest ratio of unpacked to gzipped bytes, once past `small_file_bytes`."""


LIMITS = Limits()


class Archive:
    """The files of an opened `.nemo` by name (without `./`); `open_archive` checks and opens one."""

    def __init__(self, path: Path, file: IO[bytes], members: dict[str, tarfile.TarInfo], limits: Limits) -> None:
        self.path = path
        self._file = file
        self._members = members
        self._limits = limits

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self._member(name).size

    def open(self, name: str) -> IO[bytes]:
        """A member as a seekable file, valid while the archive is open."""
        member = self._member(name)
        return cast(
            "IO[bytes]", io.BufferedReader(cast("io.RawIOBase", Part(self._file, member.offset_data, member.size)))
        )

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        """Read a member whole. Raises CheckpointError for more than `at_most` bytes, or the limit for small files."""
        limit = self._limits.small_file_bytes if at_most is None else at_most
        if self.size(name) > limit:
            raise CheckpointError(
                f"{self.path}: '{name}' has {self.size(name)} bytes, more than the {limit} allowed for such a file."
            )
        with self.open(name) as file:
            return file.read()

    def _member(self, name: str) -> tarfile.TarInfo:
        if name not in self._members:
            raise CheckpointError(
                f"{self.path} holds no '{name}'; it holds {', '.join(self._members) or 'nothing'}. "
                "It is damaged or no .nemo of a single model."
            )
        return self._members[name]


class Part:
    """A part of a file as a raw file; what is read goes straight to the reader's memory."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self.file, self.start, self.size = file, start, size
        self.position = 0
        self.closed = False

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """The file itself stays open."""
        self.closed = True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place in the part, or behind it. Raises OSError for one before it."""
        position = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence] + offset
        if position < 0:
            raise OSError(errno.EINVAL, f"{position} is no place in a file")
        self.position = position
        return position

    def readall(self) -> bytes:
        """Read what is left. Raises EOFError where the file has shrunk."""
        content = bytearray(max(0, self.size - self.position))
        self.readinto(content)
        return bytes(content)

    def readinto(self, buffer: Any) -> int:
        """Read what is there and fits, and return the number of bytes. Raises EOFError where the file has shrunk."""
        wanted = min(len(buffer), max(0, self.size - self.position))
        self.file.seek(self.start + self.position)
        count: int = self.file.readinto(memoryview(buffer)[:wanted])  # type: ignore[attr-defined]
        if count < wanted:
            raise EOFError("it has become shorter while it was read")
        self.position += count
        return count


class Unpacked:
    """The files of a `.nemo` that was unpacked into a folder, by name; hidden ones are left out."""

    def __init__(self, path: Path, limits: Limits = LIMITS) -> None:
        """Raises CheckpointError for links and other special files, for too many files, and too many bytes."""
        self.path = path
        self._limits = limits
        self._sizes: dict[str, int] = {}
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if file.is_symlink() or not (file.is_file() or file.is_dir()):
                raise CheckpointError(f"{file} is a link or a special file; only plain files are accepted.")
            if file.is_file() and not any(part.startswith(".") for part in Path(name).parts):
                self._sizes[name] = file.stat().st_size
            if len(self._sizes) > limits.members:
                raise CheckpointError(f"{path} holds more than {limits.members} files; it is refused.")
        if sum(self._sizes.values()) > limits.total_bytes:
            raise CheckpointError(f"{path} holds more than {limits.total_bytes} bytes; it is refused.")

    @property
    def names(self) -> list[str]:
        return list(self._sizes)

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def open(self, name: str) -> IO[bytes]:
        """A file, open for reading. Raises CheckpointError where it cannot be."""
        try:
            return open_regular(self.path / name)
        except OSError as error:
            raise CheckpointError(f"{self.path / name} cannot be read: {error.strerror or error}.") from error

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        """Read a file whole. Raises CheckpointError for more than `at_most` bytes, or the limit for small files."""
        limit = self._limits.small_file_bytes if at_most is None else at_most
        with self.open(name) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise CheckpointError(f"{self.path / name} has more than the {limit} bytes allowed for such a file.")
        return content


@contextmanager
def open_unpacked(path: Path) -> Iterator[Unpacked]:
    """The files of a folder. Raises CheckpointError, as `Unpacked`."""
    yield Unpacked(path)


@contextmanager
def open_archive(path: Path, *, limits: Limits = LIMITS) -> Iterator[Archive]:
    """The files of a `.nemo`; nothing is written to disk but a private copy of a gzipped one.

    Raises CheckpointError, naming the file and the cause, where it is missing, foreign, truncated or unsafe.
    """
    with ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(open_regular(path))
            if file.read(2) == GZIP_MAGIC:
                file = stack.enter_context(_unpacked(path, limits))
            file.seek(0)
            headers = HeaderReader(file)
            tar = stack.enter_context(tarfile.open(fileobj=cast("IO[bytes]", headers), mode="r:"))
            members = _checked_members(path, tar, _size_of(file), limits)
            file.seek(tar.offset)
            headers.at_most = None
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                # Where no header can be read, the tar reader takes the archive to be at its end.
                raise CheckpointError(f"{path} is truncated or damaged after '{list(members)[-1]}'.")
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist.") from error
        except IsADirectoryError as error:
            raise CheckpointError(f"{path} is a folder, not a .nemo file.") from error
        except OSError as error:
            cause = "it is truncated or damaged" if isinstance(error, gzip.BadGzipFile) else error.strerror or error
            raise CheckpointError(f"{path} cannot be read: {cause}.") from error
        except DAMAGES as error:
            raise CheckpointError(_damage(path, error)) from error
        yield Archive(path, file, members, limits)


def write_archive(path: Path, members: Iterable[tuple[str, bytes | IO[bytes]]], *, needed: int | None = None) -> None:
    """A plain tar with `./` before every name, as NeMo writes it; the file appears whole or not at all.

    needed: bytes of disk that it takes, where they are known, for a message.
    Raises CheckpointError where it cannot be written; what was there before stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            folder = tarfile.TarInfo("./")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
            for member, content in members:
                _add(tar, member, content)
    except OSError as error:
        raise CheckpointError(write_failure(path, error, needed=needed)) from error


def _add(tar: tarfile.TarFile, name: str, content: bytes | IO[bytes]) -> None:
    entry = tarfile.TarInfo(f"./{name}")
    entry.mode = 0o644
    if isinstance(content, bytes):
        with tempfile.SpooledTemporaryFile(max_size=len(content) + 1) as file:
            file.write(content)
            file.seek(0)
            entry.size = len(content)
            tar.addfile(entry, file)
    else:
        entry.size = _size_of(content)
        content.seek(0)
        tar.addfile(entry, content)


def _size_of(file: IO[bytes]) -> int:
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    return size


@contextmanager
def _unpacked(path: Path, limits: Limits) -> Iterator[IO[bytes]]:
    """A gzipped file unpacked into a private temporary one, stopped as soon as it grows past the limits."""
    allowed = min(limits.total_bytes, max(limits.small_file_bytes, limits.expansion * path.stat().st_size))
    with tempfile.TemporaryFile() as copy:
        with gzip.open(path, "rb") as packed:
            size = 0
            while block := packed.read(BLOCK):
                size += len(block)
                if size > allowed:
                    raise CheckpointError(
                        f"{path} unpacks to more than {allowed} bytes, more than a model of its size can."
                    )
                copy.write(block)
        yield copy


def _checked_members(path: Path, tar: tarfile.TarFile, file_size: int, limits: Limits) -> dict[str, tarfile.TarInfo]:
    members: dict[str, tarfile.TarInfo] = {}
    total = 0
    for number, member in enumerate(tar, start=1):
        if number > limits.members:
            raise CheckpointError(f"{path} holds more than {limits.members} members; it is refused.")
        name = plain_name(path, member.name)
        if member.isdir():
            continue
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            raise CheckpointError(
                f"{path}: member '{member.name}' is a {_kind(member)}; only plain files are accepted."
            )
        if name in members or name == "":
            raise CheckpointError(f"{path}: member '{member.name}' occurs twice; it is refused.")
        total += max(member.size, 0)
        if member.size < 0 or total > limits.total_bytes:
            raise CheckpointError(
                f"{path}: member '{member.name}' claims {member.size} bytes, {total} together; "
                f"at most {limits.total_bytes} are allowed."
            )
        if member.offset_data + member.size > file_size:
            raise CheckpointError(f"{path} is truncated: '{name}' ends {member.size} bytes later than the file.")
        members[name] = member
    if not members:
        raise CheckpointError(f"{path} holds no files; it is truncated or no .nemo file.")
    return members


def plain_name(path: Path, name: str) -> str:
    """A member's name without `./`. Raises CheckpointError for a name that leads out of the archive (or folder)."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or any(sign in name for sign in "\\:\0"):
        raise CheckpointError(
            f"{path}: member '{name}' points outside of the archive; only plain relative names are accepted."
        )
    return "/".join(parts)


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"link to '{member.linkname}'"
    if member.issparse():
        return "sparse file"
    return "device or other special file"


def _damage(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(LFS_POINTER):
        return f"{path} is a Git LFS pointer, not the model itself; fetch it with `git lfs pull`."
    if not start:
        return f"{path} is empty."
    if start.startswith(CHECKPOINT_MAGICS):
        return (
            f"{path} is no .nemo file: neither a tar nor a gzipped tar, but a checkpoint of PyTorch's or Lightning's. "
            "In NeMo: MODEL_CLASS.load_from_checkpoint(PATH).save_to('model.nemo'), such as EncDecCTCModelBPE."
        )
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return f"{path} is compressed by zstd; unpack it, or pack it as a plain tar."
    if b"ustar" not in start and not start.startswith(GZIP_MAGIC):
        return f"{path} is no .nemo file: neither a tar nor a gzipped tar."
    return f"{path} is truncated or damaged: {error}."
