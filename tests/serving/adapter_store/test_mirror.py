"""Adapters of other file systems: a mirror of a folder of them, and one that is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest

from overtone.errors import AdapterError, UsageError
from overtone.serving.adapter_store.mirror import STAMPS, AdapterMirror, fetch_archive, read_stamps, without_user
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.engine.engine import Engine
from support.speaking_model import SpeakingModel, put_adapter

FILES = ("adapter.yaml", "adapter.safetensors")


@pytest.fixture
def uri() -> Iterator[str]:
    """A place of fsspec's file system in memory."""
    place = f"memory://{uuid4().hex}"
    yield place
    fsspec.filesystem("memory").rm(place, recursive=True)


def send(uri: str, name: str, folder: Path, *, seed: str = "") -> None:
    """Put an adapter at a place. seed: of its parameters; its name unless given."""
    put_adapter(SpeakingModel(), seed or name, folder)
    system = fsspec.filesystem("memory")
    for file in FILES:
        system.pipe(f"{uri}/{name}/{file}", (folder / (seed or name) / file).read_bytes())


def test_a_mirror_follows_what_is_added_changed_and_removed(uri: str, tmp_path: Path) -> None:
    send(uri, "swap", tmp_path)
    system = fsspec.filesystem("memory")
    system.pipe(f"{uri}/half/adapter.yaml", b"...")
    system.pipe(f"{uri}/.hidden/adapter.yaml", b"...")
    system.pipe(f"{uri}/swap/notes.txt", b"not fetched")
    mirror = AdapterMirror(uri, tmp_path / "mirror", poll_seconds=0)
    model = SpeakingModel()
    with Engine(model) as engine, AdapterStore(model, mirror.folder, lock=engine.lock, poll_seconds=0) as store:
        assert [(entry.name, entry.state) for entry in store.entries()] == [("swap", "ready")]
        assert sorted(path.name for path in (mirror.folder / "swap").iterdir()) == sorted(FILES)
        before = store.entry("swap").digest
        send(uri, "swap", tmp_path, seed="another")
        send(uri, "other", tmp_path)
        mirror.sync()
        store.scan()
        assert store.names() == {"swap", "other"}
        assert store.entry("swap").digest != before
        system.rm(f"{uri}/other", recursive=True)
        mirror.sync()
        store.scan()
        assert store.names() == {"swap"}


def test_a_mirror_fetches_nothing_twice(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send(uri, "swap", tmp_path)
    AdapterMirror(uri, tmp_path / "mirror", poll_seconds=0)

    def fail(*arguments: object) -> bytes:
        raise AssertionError("fetched again")

    monkeypatch.setattr("overtone.serving.adapter_store.mirror.read_limited", fail)
    AdapterMirror(uri, tmp_path / "mirror", poll_seconds=0)


def test_a_file_that_is_too_large_leaves_its_adapter_out(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(uri, "swap", tmp_path)
    monkeypatch.setitem(AdapterMirror.fetch.__globals__["MAX_BYTES"], "adapter.safetensors", 10)
    mirror = AdapterMirror(uri, tmp_path / "mirror", poll_seconds=0)
    assert not (mirror.folder / "swap").exists()


def test_one_bad_object_keeps_no_other_adapter_from_its_change(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that another process has fetched goes too, and so does one of the process before."""
    for name in ("bad", "gone", "late"):
        send(uri, name, tmp_path)
    mirror = AdapterMirror(uri, tmp_path / "mirror", poll_seconds=0)
    (mirror.folder / "foreign").mkdir()
    (mirror.folder / ".hidden").mkdir()
    fsspec.filesystem("memory").rm(f"{uri}/gone", recursive=True)
    for name in ("bad", "late"):
        send(uri, name, tmp_path, seed=f"another-{name}")
    fetch = mirror.fetch

    def refuse(info: Any, most: int) -> bytes:
        if "/bad/" in info["name"]:
            raise PermissionError("denied")
        return fetch(info, most)

    monkeypatch.setattr(mirror, "fetch", refuse)
    mirror.sync()
    assert {path.name for path in mirror.folder.iterdir() if path.is_dir()} == {"bad", "late", ".hidden"}
    late = (mirror.folder / "late/adapter.safetensors").read_bytes()
    assert late == (tmp_path / "another-late/adapter.safetensors").read_bytes()
    assert read_stamps(mirror.folder / STAMPS) == mirror.stamps
    assert list(mirror.left_out) == ["bad"]


def test_no_message_tells_the_password_of_a_uri() -> None:
    with pytest.raises(AdapterError, match="cannot be opened") as caught:
        fetch_archive("nothing://user:secret@host/adapters")
    assert "secret" not in str(caught.value)
    assert without_user("hf://org/name@main/a") == "hf://org/name@main/a"


@pytest.mark.parametrize("place", ["nothing://at/all", "file:///absent/folder/of/adapters"])
def test_a_place_that_cannot_be_read_is_said_at_once(place: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be"):
        AdapterMirror(place, tmp_path / "mirror", poll_seconds=0)


def test_one_adapter_is_fetched_as_an_upload(uri: str, tmp_path: Path) -> None:
    send(uri, "swap", tmp_path)
    model, folder = SpeakingModel(), tmp_path / "store"
    folder.mkdir()
    with Engine(model) as engine, AdapterStore(model, folder, lock=engine.lock, poll_seconds=0) as store:
        assert store.put("mine", fetch_archive(f"{uri}/swap")).state == "ready"
    with pytest.raises(AdapterError, match="cannot be read"):
        fetch_archive(f"{uri}/absent")
