"""Adapters that are put on the shelf, taken out of the model and removed by hand."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from overtone.errors import AdapterError
from overtone.model import AsrModel
from serving_models import make_adapter, shelf_of, states, three_voices, tiny_model


@pytest.fixture
def model() -> AsrModel:
    return tiny_model()


@pytest.fixture
def folder(tmp_path: Path, model: AsrModel) -> Path:
    return three_voices(model, tmp_path / "shelf")


def packed(folder: Path, form: str) -> bytes:
    stream = io.BytesIO()
    if form == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in folder.iterdir():
                archive.write(path, f"top/{path.name}")
    else:
        with tarfile.open(fileobj=stream, mode=f"w:{form}") as archive:
            archive.add(folder, ".")
    return stream.getvalue()


@pytest.mark.parametrize("form", ["zip", "gz", ""])
def test_an_upload_is_served_at_once_and_replaces(model: AsrModel, folder: Path, tmp_path: Path, form: str) -> None:
    shelf = shelf_of(model, folder)
    made = make_adapter(model, tmp_path / "made", seed=20)
    entry = shelf.put("fresh", packed(made, form))
    assert entry.state == "ready"
    with shelf.acquire("fresh") as first:
        shelf.put("fresh", packed(make_adapter(model, tmp_path / "made", seed=21), form))
        with shelf.acquire("fresh") as second:
            assert first.digests != second.digests
    assert sorted(path.name for path in folder.iterdir()) == ["fresh", "voice0", "voice1", "voice2"]
    shelf.unload("fresh")
    assert states(shelf)["fresh"] == "ready"
    shelf.remove("fresh")
    assert "fresh" not in states(shelf)
    assert not (folder / "fresh").exists()


def test_uploads_that_are_bad_change_nothing(model: AsrModel, folder: Path, tmp_path: Path) -> None:
    shelf = shelf_of(model, folder)
    good = packed(folder / "voice1", "zip")
    foreign = packed(make_adapter(tiny_model(seed=1), tmp_path / "foreign"), "gz")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adapter.yaml", b" " * (5 << 20))
        archive.writestr("adapter.safetensors", b"")
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as tar:
        link = tarfile.TarInfo("adapter.yaml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name in ("../../escaped", "adapter.safetensors"):
            tar.addfile(tarfile.TarInfo(name))
    before = states(shelf)
    cases = {
        b"": "no archive",
        b"hello" * 100: "no archive",
        good[: len(good) // 2]: "archive",
        foreign: "another base",
        bomb.getvalue(): "larger than",
        evil.getvalue(): "holds no adapter.yaml",
    }
    for archive, message in cases.items():
        with pytest.raises(AdapterError, match=message):
            shelf.put("voice0", archive)
    for name in ("../up", "base", "a+b", "", "a/b", ".hidden"):
        with pytest.raises(AdapterError):
            shelf.put(name, good)
    assert states(shelf) == before
    assert not (tmp_path / "escaped").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["voice0", "voice1", "voice2"]


def test_unloading_waits_for_the_last_lease(model: AsrModel, folder: Path) -> None:
    shelf = shelf_of(model, folder)
    lease = shelf.acquire("voice0")
    shelf.unload("voice0")
    assert lease.choice in model.adapters
    lease.release()
    assert model.adapters.names == []
