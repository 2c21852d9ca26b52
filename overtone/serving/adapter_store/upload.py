"""Upload of an adapter: a zip or tar with its files -> a folder of the adapter store, checked before it appears."""

from __future__ import annotations

import bz2
import io
import lzma
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from overtone.adapters.storage import DESCRIPTION, PARAMETERS, WORDS, BaseIdentity, read_folder, replace_contents
from overtone.adapters.tokenizer_files import LARGEST_TOKENIZER, TOKENIZER_FILES
from overtone.errors import AdapterError
from overtone.files import temporary_folder
from overtone.serving.adapter_store.folder import read_version

MAX_BYTES = {
    DESCRIPTION: 4 * 2**20,
    PARAMETERS: 512 * 2**20,
    WORDS: 256 * 2**20,
    **dict.fromkeys(TOKENIZER_FILES, LARGEST_TOKENIZER),
}
"""Bytes that each file may unpack to."""
OPTIONAL = (WORDS, *TOKENIZER_FILES)
"""Files that an adapter may lack."""
MAX_MEMBERS = 64
MAX_UNPACKED = sum(MAX_BYTES.values()) + 2**20
"""Bytes of a whole tar."""
MAX_SECONDS = 60.0
"""Time to unpack a tar."""
MAX_DICTIONARY = 128 * 2**20
"""Bytes of memory that unpacking xz may take."""
PIECE = 2**16
"""Compressed bytes that are unpacked at a time."""
DAMAGES = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError,
)  # fmt: skip


class Unpacked:
    """A tar, read forward out of its compression. Raises AdapterError where that takes too many bytes or too long."""

    def __init__(self, archive: bytes) -> None:
        self._left = io.BytesIO(archive)
        self._decompressor = decompressor_of(self._left)
        self._bytes = 0
        self._ends = time.monotonic() + MAX_SECONDS

    def read(self, most: int) -> bytes:
        """Up to so many bytes; none at the end."""
        data = self._next(most)
        self._bytes += len(data)
        if self._bytes > MAX_UNPACKED:
            raise AdapterError(f"The archive unpacks to more than {MAX_UNPACKED} bytes; pack one adapter alone.")
        if time.monotonic() > self._ends:
            raise AdapterError(f"The archive takes longer than {MAX_SECONDS:g} s to unpack; pack one adapter alone.")
        return data

    def _next(self, most: int) -> bytes:
        """Up to so many bytes."""
        while self._decompressor is not None:
            decompressor = self._decompressor
            if decompressor.eof:  # another one may follow: some programs compress piece by piece
                self._left.seek(-len(decompressor.unused_data), io.SEEK_CUR)
                self._decompressor = decompressor_of(self._left)
                if self._decompressor is None:
                    self._left.seek(0, io.SEEK_END)
                continue
            given = self._left.read(PIECE) if decompressor.needs_input else b""
            data: bytes = decompressor.decompress(given, most)
            if data:
                return data
            if decompressor.needs_input and not given:
                raise EOFError("it is cut short")
        return self._left.read(most)


class Inflater:
    """Decompressor of gzip with the interface of the standard library's others."""

    def __init__(self) -> None:
        self._own = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._waiting = b""

    @property
    def eof(self) -> bool:
        """True once the end of the compressed data was met."""
        return self._own.eof

    @property
    def unused_data(self) -> bytes:
        """Bytes after the end of the compressed data."""
        return self._own.unused_data

    @property
    def needs_input(self) -> bool:
        """True if more bytes are wanted before anything can come out."""
        return not self._waiting

    def decompress(self, data: bytes, most: int) -> bytes:
        """Up to so many bytes of what the data unpack to. Raises zlib.error."""
        found = self._own.decompress(self._waiting + data, most)
        self._waiting = self._own.unconsumed_tail
        return found


def decompressor_of(file: io.BytesIO) -> Any:
    """Decompressor for what follows in a file, which stays where it is; None where that is plain."""
    begin = file.read(6)
    file.seek(-len(begin), io.SEEK_CUR)
    if begin.startswith(b"\x1f\x8b"):
        return Inflater()
    if begin.startswith(b"BZh"):
        return bz2.BZ2Decompressor()
    if begin == b"\xfd7zXZ\x00":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY)
    return None


def place(store: Path, name: str, archive: bytes, identity: BaseIdentity, lock: AbstractContextManager[object]) -> None:
    """Put the adapter of an archive into `store/name`, in place of what is there.

    lock: held while the folder is changed, and not while the archive is read. Raises AdapterError, before anything is
    changed, for an archive that is damaged, foreign or of another base.
    """
    contents = unpack(archive)
    try:
        store.mkdir(parents=True, exist_ok=True)
        with temporary_folder(store / name) as waiting:
            folder = waiting / name
            folder.mkdir()
            for file, content in contents.items():
                (folder / file).write_bytes(content)
            try:
                read_version(folder, identity)
                read_folder(folder, identity)
            except AdapterError as error:
                raise AdapterError(str(error).replace(str(folder), f"the upload '{name}'")) from error
            with lock:
                replace_contents(
                    store / name, {file: contents.get(file) for file in (*OPTIONAL, PARAMETERS, DESCRIPTION)}
                )
    except OSError as error:
        raise AdapterError(f"The folder of adapters cannot be written: {error.strerror or error}.") from error


def unpack(archive: bytes) -> dict[str, bytes]:
    """Read the files of an adapter, wherever they lie in the archive, and nothing else. Raises AdapterError."""
    contents: dict[str, bytes] = {}
    try:
        for name, file, size in members(archive):
            if name in contents:
                raise AdapterError(f"The archive holds {name} twice; pack one adapter alone.")
            limit = MAX_BYTES[name]
            content = b"" if size > limit else file.read(limit + 1)
            if size > limit or len(content) > limit:
                raise AdapterError(f"{name} is larger than the {limit} bytes allowed.")
            contents[name] = content
    except DAMAGES as error:
        raise AdapterError(f"The archive is damaged: {error}.") from error
    missing = [name for name in MAX_BYTES if name not in contents and name not in OPTIONAL]
    if missing:
        raise AdapterError(f"The archive holds no {' and no '.join(missing)}; pack the adapter's folder.")
    return contents


def members(archive: bytes) -> Iterator[tuple[str, IO[bytes], int]]:
    """Files of an adapter in an archive: plain name, open file, stated size. Raises AdapterError."""
    stream = io.BytesIO(archive)
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as packed:
            entries = packed.infolist()
            check_count(len(entries))
            for entry in entries:
                name = PurePosixPath(entry.filename).name
                if name in MAX_BYTES and not entry.is_dir():
                    with packed.open(entry) as file:
                        yield name, file, entry.file_size
        return
    try:
        tar = tarfile.open(fileobj=cast(IO[bytes], Unpacked(archive)), mode="r|")  # noqa: SIM115
    except DAMAGES as error:
        raise AdapterError("The upload is no archive; pack the adapter's folder as zip, tar or tar.gz.") from error
    with tar:
        for count, member in enumerate(tar, start=1):
            check_count(count)
            name = PurePosixPath(member.name).name
            if name in MAX_BYTES and member.isreg():
                extracted = tar.extractfile(member)
                assert extracted is not None
                yield name, extracted, member.size


def check_count(members: int) -> None:
    """Raises AdapterError for an archive of too many files."""
    if members > MAX_MEMBERS:
        raise AdapterError(f"The archive holds more than {MAX_MEMBERS} files; pack one adapter alone.")
