"""Files: places to write to, and messages where writing fails."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from overtone.errors import UsageError

FULL = (errno.ENOSPC, errno.EDQUOT)


def write_failure(place: str | Path, error: Exception, *, needed: int | None = None, other: str = "") -> str:
    """The message for a failure to write: its reason, and what to do.

    place: the file or folder. needed: its bytes, where they are known. other: how to choose another place.
    """
    number = system_error(error)
    if number is None:
        reason = str(error).rstrip(".") if isinstance(error, OSError) else "it could not be written to its end"
        return f"Cannot write {place}: {reason}. Check the disk and its free space{other}."
    if number not in FULL:
        return f"Cannot write {place}: {os.strerror(number)}. Check the path and its permissions{other}."
    room = f" ({needed / 1e6:.1f} MB are needed, {free_bytes(Path(place)) / 1e6:.1f} MB are free)" if needed else ""
    return f"Cannot write {place}: {os.strerror(number)}{room}. Free some space there{other}."


def open_beside(path: Path) -> tuple[IO[bytes], Path]:
    """Open a new file under a hidden name in the folder of the path, with the permissions that the umask leaves."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            return temporary.open("xb"), temporary
        except FileExistsError:
            continue


def system_error(error: BaseException | None) -> int | None:
    """The system's error number; None where there is none.

    PyTorch raises an error of its own over the system's, and safetensors has the number in its message.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        match = re.search(r"\(os error (\d+)\)", str(error))
        if match is not None:
            return int(match[1])
        error = error.__cause__ or error.__context__
    return None


def free_bytes(place: Path) -> int:
    """Free bytes on the disk of the place, which need not exist."""
    return shutil.disk_usage(first_existing(place)).free


def first_existing(place: Path) -> Path:
    """The place, or the nearest folder above it that exists."""
    place = place.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def check_not_input(output: Path, inputs: Iterable[str | Path]) -> None:
    """Raises UsageError where the output is the same file as one of the inputs, under whatever name."""
    for given in inputs:
        place = Path(given)
        if place.resolve() == output.resolve() or (place.exists() and output.exists() and place.samefile(output)):
            raise UsageError(f"The output {output} is an input as well; nothing was written. Choose another place.")


def check_file(path: Path) -> None:
    """Check that a file can be written at the path, and leave nothing behind. Raises UsageError where it cannot."""
    if path.is_dir():
        raise UsageError(f"Cannot write {path}: it is a folder. Name a file.")
    if not path.exists():
        check_folder(path.parent)
    elif not os.access(path, os.W_OK):
        raise UsageError(write_failure(path, PermissionError(errno.EACCES, "")))


def check_folder(folder: Path) -> None:
    """Check that files can be written into the folder, which need not exist. Raises UsageError where they cannot."""
    try:
        with tempfile.TemporaryFile(dir=first_existing(folder)):
            pass
    except OSError as error:
        raise UsageError(write_failure(folder, error)) from error
