"""Adapters that lie elsewhere (`s3://`, `hf://`, `file://`, all that fsspec opens): a local mirror of a folder of them.

The mirror is an ordinary folder, which the store watches. Only the files of an adapter are fetched, within the limits
of an upload; each adapter appears whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import threading
import zipfile
from collections.abc import Container, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from overtone.adapters.adapter import check_name
from overtone.errors import AdapterError, UsageError
from overtone.files import remove_folder, replace_file, replace_folder
from overtone.serving.adapter_store.upload import MAX_BYTES, OPTIONAL

LOG = logging.getLogger("overtone.serving.adapter_store.store")
STAMPS = ".stamps.json"
USER = re.compile(r"(://)[^/@]*@")
MARKS = ("size", "ETag", "etag", "LastModified", "mtime", "blob_id", "last_commit", "generation", "created")
"""Facts of a listing that change with a file, by their names in various file systems."""


def open_place(uri: str) -> tuple[Any, str]:
    """File system of fsspec and path of a URI. Raises UsageError for a kind that cannot be opened."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"{without_user(uri)} cannot be opened: {told(error, uri)}") from error
    return system, str(path).rstrip("/")


def without_user(uri: str) -> str:
    """A URI for people: without the name and the password of its user."""
    return USER.sub(r"\1", uri)


def told(error: Exception, uri: str) -> str:
    """Words of an error, without the name and the password in the URI that it is about."""
    return str(error).replace(uri, without_user(uri))


def cache_folder(uri: str) -> Path:
    """Folder of a URI's mirror in the user's cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return root / "overtone" / "adapters" / hashlib.sha256(uri.encode()).hexdigest()[:16]


class AdapterMirror:
    """A local copy of a folder of adapters. Several processes may share it: each adapter is replaced in one step."""

    def __init__(self, uri: str, folder: Path | None = None, *, poll_seconds: float = 10.0) -> None:
        """Fetch what is there, and look again every `poll_seconds` (0 does not). Raises UsageError where it cannot."""
        self.uri = uri
        self.system, self.root = open_place(uri)
        self.folder = folder or cache_folder(uri)
        self.trouble = ""
        self.left_out: dict[str, str] = {}
        """Adapters that cannot be fetched, with the reason that was told."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.stamps = read_stamps(self.folder / STAMPS)
            self.sync()
        except Exception as error:  # file systems raise what they like
            raise UsageError(
                f"{without_user(uri)} cannot be read: {type(error).__name__}: {told(error, uri)}"
            ) from error
        self._closed = threading.Event()
        if poll_seconds > 0:
            threading.Thread(target=self._watch, args=(poll_seconds,), name="overtone-mirror", daemon=True).start()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()

    def sync(self) -> None:
        """Fetch adapters that are new or changed, remove those that are gone. Raises what the file system raises."""
        found = self.look()
        self.remove_gone(found)
        for name, files in found.items():
            stamp = stamp_of(files)
            if self.stamps.get(name) == stamp and (self.folder / name).is_dir():
                continue
            try:
                contents = {file: self.fetch(info, MAX_BYTES[file]) for file, info in files.items()}
                replace_folder(self.folder / name, lambda place, contents=contents: write_files(place, contents))  # type: ignore[misc]
            except Exception as error:  # file systems raise what they like; the other adapters go on
                self.leave_out(name, error)
                continue
            self.left_out.pop(name, None)
            self.note_stamp(name, stamp)

    def leave_out(self, name: str, error: Exception) -> None:
        """Tell once that an adapter cannot be fetched; what was fetched of it before is served on."""
        reason = f"{type(error).__name__}: {told(error, self.uri)}"
        if self.left_out.get(name) != reason:
            LOG.warning("adapter '%s' of %s is left out: %s", name, without_user(self.uri), reason)
        self.left_out[name] = reason

    def remove_gone(self, found: Container[str]) -> None:
        """Remove every adapter that is not found any more, those that another process has fetched too."""
        for place in list(self.folder.iterdir()):
            if place.is_dir() and not place.name.startswith(".") and place.name not in found:
                with suppress(FileNotFoundError):  # another process has done it
                    remove_folder(place)
                self.left_out.pop(place.name, None)
                self.note_stamp(place.name, None)

    def note_stamp(self, name: str, stamp: str | None) -> None:
        """Keep the stamp of an adapter, so that a process that ends meanwhile fetches nothing twice; None forgets."""
        if stamp is None:
            self.stamps.pop(name, None)
        else:
            self.stamps[name] = stamp
        with replace_file(self.folder / STAMPS) as file:
            file.write(json.dumps(self.stamps).encode())

    def look(self) -> dict[str, dict[str, Mapping[str, Any]]]:
        """Files of each adapter, as the file system lists them, in one listing."""
        self.system.invalidate_cache()
        if not self.system.exists(self.root):  # rather than that all adapters were deleted
            raise FileNotFoundError(f"there is nothing at {without_user(self.uri)}")
        found: dict[str, dict[str, Mapping[str, Any]]] = {}
        for path, info in self.system.find(self.root, maxdepth=2, detail=True).items():
            parts = PurePosixPath(path).relative_to(PurePosixPath(self.root)).parts
            if len(parts) != 2 or parts[1] not in MAX_BYTES or not is_name(parts[0]):
                continue
            found.setdefault(parts[0], {})[parts[1]] = {**info, "name": path}
        needed = MAX_BYTES.keys() - set(OPTIONAL)
        return {name: files for name, files in found.items() if needed <= files.keys()}

    def fetch(self, info: Mapping[str, Any], most: int) -> bytes:
        """Content of a file. Raises AdapterError where it is too large."""
        return read_limited(self.system, str(info["name"]), most)

    def _watch(self, poll_seconds: float) -> None:
        while not self._closed.wait(poll_seconds):
            try:
                self.sync()
                trouble = ""
            except Exception as error:  # it is away for a while: what was fetched is served on
                trouble = f"{type(error).__name__}: {told(error, self.uri)}"
            if trouble and trouble != self.trouble:
                LOG.warning(
                    "%s cannot be looked at, its adapters stay as they were: %s", without_user(self.uri), trouble
                )
            self.trouble = trouble


def is_name(name: str) -> bool:
    """Tell whether a folder is named as an adapter may be."""
    try:
        return check_name(name) == name
    except AdapterError:
        return False


def stamp_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Text that changes with any of an adapter's files."""
    marks = {file: [str(info.get(mark)) for mark in MARKS] for file, info in sorted(files.items())}
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()


def read_stamps(path: Path) -> dict[str, str]:
    """Stamps that an earlier process has written; none where they are damaged: then all is fetched anew."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    is_good = isinstance(found, dict) and all(is_name(name) and isinstance(stamp, str) for name, stamp in found.items())
    return found if is_good else {}


def read_limited(system: Any, path: str, most: int) -> bytes:
    """Content of a file of another file system. Raises AdapterError for more than `most` bytes."""
    with system.open(path, "rb") as file:
        data: bytes = file.read(most + 1)
    if len(data) > most:
        raise AdapterError(f"{PurePosixPath(path).name} has more than {most} bytes.")
    return data


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the files of an adapter."""
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def fetch_archive(uri: str) -> bytes:
    """One adapter's files, packed as `AdapterStore.put` takes them. Raises AdapterError where it cannot be read."""
    try:
        system, root = open_place(uri)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, most in MAX_BYTES.items():
                path = f"{root}/{name}"
                if name not in OPTIONAL or system.exists(path):
                    archive.writestr(name, read_limited(system, path, most))
    except AdapterError:
        raise
    except Exception as error:  # file systems raise what they like
        raise AdapterError(f"{without_user(uri)} cannot be read: {type(error).__name__}: {told(error, uri)}") from error
    return packed.getvalue()
