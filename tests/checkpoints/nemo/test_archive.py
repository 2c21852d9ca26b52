"""Archives: what a good one gives, and how every kind of bad one is refused."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from overtone.checkpoints.nemo.archive import Limits, open_archive, write_archive
from overtone.errors import CheckpointError
from support.disk import full_disk

CONTENT = {"model_config.yaml": b"a: 1\n", "model_weights.ckpt": bytes(range(256)) * 40, "sub/x.txt": b""}


def tar_bytes(members: list[tuple[str, bytes]], change: Callable[[tarfile.TarInfo], None] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            if change is not None:
                change(entry)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def read_all(path: Path, limits: Limits | None = None) -> dict[str, bytes]:
    with open_archive(path, limits=limits or Limits()) as archive:
        return {name: archive.read(name) for name in archive.names}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.nemo"


def refused(path: Path, *words: str, limits: Limits | None = None) -> None:
    """One clear error that names the file, and nothing written beside it."""
    with pytest.raises(CheckpointError) as caught:
        read_all(path, limits)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message, message
    assert [entry.name for entry in path.parent.iterdir()] == ([path.name] if path.exists() else [])


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("packed", [False, True])
def test_plain_and_gzipped_with_and_without_dot(path: Path, prefix: str, packed: bool) -> None:
    content = tar_bytes([(prefix + name, data) for name, data in CONTENT.items()])
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read_all(path) == CONTENT
    with open_archive(path) as archive, archive.open("model_weights.ckpt") as file:
        file.seek(256)
        assert file.read(3) == bytes([0, 1, 2])
        assert "model_config.yaml" in archive
        assert archive.size("sub/x.txt") == 0


def test_written_archive_reads_back_and_looks_as_nemo_writes_it(path: Path) -> None:
    write_archive(path, [(name, io.BytesIO(data) if "ckpt" in name else data) for name, data in CONTENT.items()])
    assert read_all(path) == CONTENT
    with tarfile.open(path, "r:") as tar:
        assert tar.getnames() == [".", *(f"./{name}" for name in CONTENT)]
        assert {member.mtime for member in tar} == {0}
    before = path.read_bytes()
    write_archive(path, list(CONTENT.items()))
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def link(kind: bytes, target: str) -> Callable[[tarfile.TarInfo], None]:
    def change(entry: tarfile.TarInfo) -> None:
        entry.type, entry.linkname, entry.size = kind, target, 0

    return change


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "link to '/etc/passwd'"),
        (tarfile.LNKTYPE, "link to '/etc/passwd'"),
        (tarfile.CHRTYPE, "special file"),
        (tarfile.FIFOTYPE, "special file"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
    ],
)
def test_links_and_special_files_are_refused(path: Path, kind: bytes, words: str) -> None:
    path.write_bytes(tar_bytes([("model_config.yaml", b"")], link(kind, "/etc/passwd")))
    refused(path, "model_config.yaml", words)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\evil", "C:evil", "./../evil"])
def test_names_that_leave_the_archive_are_refused(path: Path, name: str) -> None:
    path.write_bytes(tar_bytes([("model_config.yaml", b"x"), (name, b"x")]))
    refused(path, name, "outside of the archive")


def test_double_members_are_refused(path: Path) -> None:
    path.write_bytes(tar_bytes([("x", b"1"), ("./x", b"2")]))
    refused(path, "'./x' occurs twice")


def test_too_many_members_and_too_many_bytes_are_refused(path: Path) -> None:
    path.write_bytes(tar_bytes([(f"f{number}", b"12345") for number in range(6)]))
    refused(path, "more than 5 members", limits=Limits(members=5))
    refused(path, "at most 20 are allowed", limits=Limits(total_bytes=20))
    refused(path, "'f0' has 5 bytes", limits=Limits(small_file_bytes=4))


def test_a_bomb_stops_early(path: Path) -> None:
    path.write_bytes(gzip.compress(tar_bytes([("x", bytes(4_000_000))])))
    assert path.stat().st_size < 10_000
    refused(path, "unpacks to more than", limits=Limits(small_file_bytes=1_000_000))


@pytest.mark.parametrize("size", [10**15, -1])
def test_a_false_size_is_refused(path: Path, size: int) -> None:
    content = bytearray(tar_bytes([("x", b"123"), ("y", b"456")]))
    entry = tarfile.TarInfo("x")
    entry.size = size
    content[:512] = entry.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(bytes(content))
    refused(path)


@pytest.mark.parametrize("packed", [False, True])
def test_truncation_anywhere_is_refused(path: Path, packed: bool) -> None:
    content = tar_bytes(list(CONTENT.items()))
    content = gzip.compress(content) if packed else content[: 512 * 23 + 100]
    for cut in (len(content) // 2, len(content) - 20 if packed else 1100, 600 if not packed else 12, 100, 1):
        path.write_bytes(content[:cut])
        refused(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>not found</html>" * 30, "neither a tar nor a gzipped tar"),
        (b"PK\x03\x04" + bytes(600), "neither a tar nor a gzipped tar"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (bytes(10240), "holds no files"),
        (gzip.compress(b"hello" * 1000), "neither a tar nor"),
    ],
)
def test_foreign_files_are_named_as_such(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    refused(path, "" if content[:2] == b"\x1f\x8b" else words)


def test_what_is_not_there_is_said(path: Path) -> None:
    refused(path, "does not exist")
    path.mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        read_all(path)
    file = path / "m.nemo"
    write_archive(file, [("a.txt", b"")])
    with open_archive(file) as archive, pytest.raises(CheckpointError, match=r"holds no 'model_config.yaml'.*a\.txt"):
        archive.read("model_config.yaml")


def test_a_full_disk_leaves_the_old_file(path: Path) -> None:
    write_archive(path, [("x", b"old")])
    with full_disk(100_000), pytest.raises(CheckpointError, match="Cannot write"):
        write_archive(path, [("x", bytes(1_000_000))])
    assert read_all(path) == {"x": b"old"}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Cannot write"):
        write_archive(tmp_path / "file" / "model.nemo", [("x", b"")])
