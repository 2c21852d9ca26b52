"""Places that cannot be written, and what is said of them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from overtone.errors import UsageError
from overtone.files import check_file, check_folder, write_failure


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
