"""Upload of an adapter: a zip or tar with its files -> a folder of the adapter store, checked before it appears."""

from __future__ import annotations

import io
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from overtone.adapters.storage import DESCRIPTION, PARAMETERS, WORDS, BaseIdentity, read_folder, replace_contents
from overtone.errors import AdapterError
from overtone.serving.adapter_store.folder import read_version

MAX_BYTES = {DESCRIPTION: 4 * 2**20, PARAMETERS: 512 * 2**20, WORDS: 256 * 2**20}
"""Bytes that each file may unpack to."""
OPTIONAL = (WORDS,)
"""Files that an adapter may lack."""
MAX_MEMBERS = 64
DAMAGES = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError,
)  # fmt: skip


def place(store: Path, name: str, archive: bytes, identity: BaseIdentity) -> None:
    """Put the adapter of an archive into `store/name`, in place of what is there.

    Raises AdapterError, before anything is changed, for an archive that is damaged, foreign or of another base.
    """
    contents = unpack(archive)
    try:
        store.mkdir(parents=True, exist_ok=True)
        waiting = Path(tempfile.mkdtemp(prefix=".upload-", dir=store))
    except OSError as error:
        raise AdapterError(f"The folder of adapters cannot be written: {error.strerror or error}.") from error
    try:
        folder = waiting / name
        folder.mkdir()
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        try:
            read_version(folder, identity)
            read_folder(folder, identity)
        except AdapterError as error:
            raise AdapterError(str(error).replace(str(folder), f"the upload '{name}'")) from error
        replace_contents(store / name, {file: contents.get(file) for file in (WORDS, PARAMETERS, DESCRIPTION)})
    except OSError as error:
        raise AdapterError(f"The adapter cannot be written to its folder: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(waiting, ignore_errors=True)


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
    stream.seek(0)
    try:
        tar = tarfile.open(fileobj=stream, mode="r:*")  # noqa: SIM115
    except tarfile.TarError as error:
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
