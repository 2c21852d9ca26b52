"""Files: reading what may be no file, writing whole or not at all, and messages where writing fails.

What is being written has a hidden name of its own, `.NAME.0123456789abcdef.tmp`, and is locked by its writer. What a
killed process has left under such a name is locked by nobody, and the next writer of NAME removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from overtone.errors import UsageError

FULL = (errno.ENOSPC, errno.EDQUOT)
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of a file system that cannot swap two folders."""
TEMPORARY, REPLACED = "tmp", "old"
"""Ends of hidden names: what is being written, and what is just being replaced where folders cannot be swapped."""
LEFTOVER = re.compile(rf"\.(?P<name>.+)\.[0-9a-f]{{16}}\.(?P<end>{TEMPORARY}|{REPLACED})")
AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2
"""Constants of Linux's renameat2 and of macOS's renamex_np."""


# Reading


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading.

    Raises OSError, at once, for what is none: a FIFO would keep the caller waiting, and a device never ends.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return open(number, "rb")  # noqa: PTH123 (a descriptor is no path)
    os.close(number)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = "a FIFO" if stat.S_ISFIFO(mode) else "a device or socket"
    raise OSError(errno.EINVAL, f"it is {kind}, and a regular file is needed", str(path))


def read_regular(path: Path, *, at_most: int) -> bytes:
    """Read a regular file. Raises OSError for what is none, and for more bytes than allowed."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size <= at_most:
            content = file.read(at_most + 1)  # it may grow meanwhile
            if len(content) <= at_most:
                return content
    raise OSError(errno.EFBIG, f"it is larger than the {at_most} bytes allowed for such a file", str(path))


# Writing


@contextmanager
def replace_path(path: Path) -> Iterator[Path]:
    """Give an empty file to write to, by its path; after the block it takes the place of `path`, whole or not at all.

    It has the permissions that the umask leaves. Raises OSError.
    """
    clean_leftovers(path.parent, path.name)
    temporary, number = new_temporary(path, lambda place: os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        os.close(number)
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """The same file, open for writing. Raises OSError."""
    with replace_path(path) as temporary, temporary.open("r+b") as file:
        yield file


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Put a folder that `fill` writes in the place of another or of none, in one step: whole or not at all.

    Of a link its target is replaced. Raises OSError, and what `fill` raises.
    """
    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target) as fresh:
        fill(fresh)
        sync_tree(fresh)
        try:
            fresh.rename(target)  # where nothing is there, or an empty folder
        except OSError:
            if not target.is_dir():
                raise
            swap_folders(fresh, target)
        sync(target.parent)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside a path, under a hidden name of its own, that is removed after the block. Raises OSError."""
    clean_leftovers(path.parent, path.name)
    folder, number = new_temporary(path, make_folder)
    try:
        yield folder
    finally:
        os.close(number)
        shutil.rmtree(folder, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, in one step as seen from outside; of a link, the link. Raises OSError."""
    if folder.is_symlink():
        folder.unlink()
        return
    clean_leftovers(folder.parent, folder.name)
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.{TEMPORARY}")
    folder.rename(aside)
    shutil.rmtree(aside)


def new_temporary(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Make a file or folder beside a path, under a hidden name of its own, locked; its path and its descriptor."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.{TEMPORARY}")
        number = make(temporary)
        lock(number, wait=True)
        if is_at(number, temporary):  # nobody took it for a leftover before it was locked
            return temporary, number
        os.close(number)


def make_folder(place: Path) -> int:
    """Make a folder and open it."""
    place.mkdir()
    return os.open(place, os.O_RDONLY)


def swap_folders(first: Path, second: Path) -> None:
    """Swap two folders in one step, or, on a file system that cannot, in two. Raises OSError.

    A process that is killed between the two leaves the second one under a hidden name; `clean_leftovers` puts it back.
    """
    try:
        exchange(first, second)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        aside = second.with_name(f".{second.name}.{secrets.token_hex(8)}.{REPLACED}")
        second.rename(aside)
        try:
            first.rename(second)
        except OSError:
            aside.rename(second)
            raise
        aside.rename(first)


def exchange(first: Path, second: Path) -> None:
    """Swap two paths in one step of the system. Raises OSError where it, or the file system, has no such step."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        failed = library.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, RENAME_SWAP)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))


def sync_tree(folder: Path) -> None:
    """Have the system write a folder and everything in it to the disk."""
    for place, _, files in os.walk(folder):
        for name in files:
            if not (path := Path(place, name)).is_symlink():
                sync(path)
        sync(Path(place))


def sync(path: Path) -> None:
    """Have the system write a file or folder to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def clean_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in a folder under hidden names; of one file or folder, where it is named.

    A folder whose replacement was cut off gets its name back. What cannot be removed stays.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        found = LEFTOVER.fullmatch(entry.name)
        if found is None or name not in (None, found["name"]) or entry.is_symlink():
            continue
        path, own = Path(entry.path), folder / found["name"]
        if found["end"] == REPLACED and not own.exists():
            path.rename(own)
        else:
            remove_leftover(path)


def remove_leftover(path: Path) -> None:
    """Remove a file or folder, unless a process has locked it, or locks are unknown there."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        if lock(number, wait=False) and is_at(number, path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(number)


def lock(number: int, *, wait: bool) -> bool:
    """Lock an open file for this process; the lock ends with the last copy of the descriptor, however the process ends.

    False where the system or the file system has no locks. Raises BlockingIOError where another process has locked it.
    """
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def lock_byte(number: int, place: int, *, wait: bool) -> bool:
    """Lock one byte of an open file for this process, so that one file has as many locks as are needed.

    False where another process has locked it; True too where the system or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.lockf(number, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def unlock_byte(number: int, place: int) -> None:
    """End the lock of `lock_byte`."""
    try:
        import fcntl

        fcntl.lockf(number, fcntl.LOCK_UN, 1, place)
    except (ImportError, OSError):
        return


def is_at(number: int, path: Path) -> bool:
    """True if an open file is the one at the path."""
    try:
        return os.path.samestat(os.fstat(number), path.stat(follow_symlinks=False))
    except OSError:
        return False


# Messages


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
