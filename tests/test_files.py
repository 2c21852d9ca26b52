"""Files: what is read, what is written whole or not at all, and what is said of places that cannot be written."""

from __future__ import annotations

import errno
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from overtone import files
from overtone.errors import UsageError
from overtone.files import (
    check_file,
    check_folder,
    clean_leftovers,
    lock,
    read_regular,
    replace_file,
    replace_folder,
    write_failure,
)


def chained() -> RuntimeError:
    """As PyTorch raises it: over the system's own error, with words that are no help."""
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")  # noqa: B904
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        chained(),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_alike_whoever_found_it(tmp_path: Path, error: Exception) -> None:
    place = tmp_path / "not/yet/there"
    said = f"Cannot write {place}: No space left on device. Free some space there."
    assert write_failure(place, error) == said
    assert "(3.5 MB are needed, " in write_failure(place, error, needed=3_500_000)


def test_other_reasons_are_told_by_the_system_or_in_general() -> None:
    assert write_failure("a", PermissionError(errno.EACCES, "x")) == (
        "Cannot write a: Permission denied. Check the path and its permissions."
    )
    assert "it could not be written to its end" in write_failure("a", RuntimeError("[enforce fail]"))
    assert write_failure("a", OSError("no more"), other=", or go").endswith(
        "no more. Check the disk and its free space, or go."
    )


def test_a_place_is_tried_without_being_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    check_file(tmp_path / "file")
    check_file(tmp_path / "some/folder/file")
    check_folder(tmp_path / "some/folder")
    with pytest.raises(UsageError, match="it is a folder"):
        check_file(tmp_path)
    with pytest.raises(UsageError, match=r"Cannot write .*file: Not a directory"):
        check_file(tmp_path / "file/below")
    with pytest.raises(UsageError, match=r"Cannot write .*file: Not a directory"):
        check_folder(tmp_path / "file")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


# Regular files


@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "place"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            server.bind(str(path))
        with pytest.raises(OSError, match="regular file is needed" if kind != "socket" else "."):
            read_regular(path, at_most=10)


def test_a_regular_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "place"
    path.write_bytes(b"12345")
    assert read_regular(path, at_most=5) == b"12345"
    with pytest.raises(OSError, match="larger than the 4 bytes"):
        read_regular(path, at_most=4)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, at_most=4)


# Whole or not at all


def fill_with(text: str) -> Callable[[Path], None]:
    """Write two files with a text."""

    def fill(folder: Path) -> None:
        for name in ("a", "b"):
            (folder / name).write_text(text)

    return fill


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture(params=["one step", "two steps"])
def _steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a file system that can swap folders."""
    if request.param == "two steps":

        def refuse(first: Path, second: Path) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(files, "exchange", refuse)


@pytest.mark.usefixtures("_steps")
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "below/folder"
    for text in ("old", "new"):
        replace_folder(folder, fill_with(text))
        assert content(folder) == {"a": text, "b": text}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_is_replaced_is_there_at_every_moment(tmp_path: Path) -> None:
    """It is looked at before and after every call, those of the system included: a kill may come at any of them."""
    folder, other = tmp_path / "folder", tmp_path / "other"
    for place in (folder, other):
        replace_folder(place, fill_with("old"))
    try:
        files.exchange(folder, other)
    except OSError as error:
        pytest.skip(f"this file system cannot swap folders: {error}")
    seen: set[str] = set()

    def look(*_: object) -> None:
        seen.add((folder / "a").read_text() if (folder / "a").exists() else "nothing")

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        replace_folder(folder, fill_with("new"))
    finally:
        sys.setprofile(before)
    assert seen == {"old", "new"}


@pytest.mark.usefixtures("_steps")
def test_what_cannot_be_written_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    replace_folder(folder, fill_with("old"))

    def fail(fresh: Path) -> None:
        (fresh / "a").write_text("new")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        replace_folder(folder, fail)
    assert content(folder) == {"a": "old", "b": "old"}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    replace_folder(tmp_path / "folder", fill_with("old"))
    (tmp_path / "link").symlink_to("folder")
    replace_folder(tmp_path / "link", fill_with("new"))
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "folder") == {"a": "new", "b": "new"}


def test_a_folder_does_not_take_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError):  # noqa: PT011 (the system's own words)
        replace_folder(tmp_path / "file", fill_with("new"))
    assert content(tmp_path) == {"file": "old"}


def test_leftovers_of_killed_processes_are_removed_by_the_next_writer(tmp_path: Path) -> None:
    """What a living process writes is left to it, and so are files with names of another form."""
    dead, alive, other = (tmp_path / f".file.{digit * 16}.tmp" for digit in "abc")
    for place in (dead, alive, other):
        place.write_text("half")
    other = other.rename(tmp_path / ".file.mine.tmp")
    (tmp_path / ".other.dddddddddddddddd.tmp").mkdir()
    with alive.open() as held:
        assert lock(held.fileno(), wait=False)
        with replace_file(tmp_path / "file") as file:
            file.write(b"whole")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"file", alive.name, other.name, ".other.dddddddddddddddd.tmp"}
    clean_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", other.name}


def test_a_folder_whose_replacement_was_cut_off_comes_back(tmp_path: Path) -> None:
    """On a file system that cannot swap folders."""
    aside = tmp_path / ".folder.0123456789abcdef.old"
    replace_folder(aside, fill_with("old"))
    clean_leftovers(tmp_path, "folder")
    assert content(tmp_path / "folder") == {"a": "old", "b": "old"}


KILLED = """
import sys
from pathlib import Path
from overtone.files import replace_file, replace_folder

place = Path(sys.argv[1])
def fill(folder):
    for name in "ab":
        (folder / name).write_text(text)
for number in range(10**9):
    text = str(number)
    replace_folder(place / "folder", fill)
    print(flush=True)
    with replace_file(place / "file") as file:
        file.write(b"x" * 100_000)
    print(flush=True)
"""


def test_a_kill_at_any_moment_leaves_what_was_or_what_will_be(tmp_path: Path) -> None:
    drawn = random.Random(0)
    for text in ("", "0"):
        replace_folder(tmp_path / "folder", fill_with(text))
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(1 + drawn.randrange(20)):
                assert writer.stdout.readline()
            sum(range(drawn.randrange(100_000)))  # so that the kill falls into any part of the next write
            writer.kill()
        assert len(set(content(tmp_path / "folder").values())) == 1
        assert set(content(tmp_path / "folder")) == {"a", "b"}
        assert (tmp_path / "file").stat().st_size == 100_000
    clean_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}
