"""The folder of an adapter: replaced as a whole, whatever else lies in it, and read only where it holds true files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from overtone.adapters import storage
from overtone.adapters.adapter import parameters_digest
from overtone.adapters.storage import DESCRIPTION, PARAMETERS
from overtone.errors import AdapterError
from support.families import KIND_CASES, add_trained, family_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter called `medical`, saved."""
    model = family_model()
    add_trained(model, "medical", KIND_CASES["linear_pre"])
    return model.adapters.save("medical", tmp_path / "medical")


# Numbers that are not finite


def test_numbers_that_are_not_finite_are_not_written_and_not_read(folder: Path) -> None:
    """Both messages name the place; the adapter that was there stays."""
    model = family_model()
    adapter = model.adapters.load(folder)
    before = (folder / PARAMETERS).read_bytes()
    with torch.no_grad():
        adapter.at("encoder.layers.1.after_block").tensors()["up.weight"][2, 1] = torch.inf
    place = r"inf in encoder\.layers\.1\.after_block\.up\.weight\[2, 1\], 1 of its \d+ numbers"
    with pytest.raises(AdapterError, match=f"Adapter 'medical' is not written: it holds {place}"):
        model.adapters.save("medical", folder, overwrite=True)
    assert (folder / PARAMETERS).read_bytes() == before

    tensors = adapter.tensors()
    save_file(tensors, folder / PARAMETERS)
    path = folder / DESCRIPTION
    description = yaml.safe_load(path.read_text("utf-8"))
    path.write_text(yaml.safe_dump({**description, "parameters_digest": parameters_digest(tensors)}), "utf-8")
    with pytest.raises(AdapterError, match=f"{PARAMETERS} holds {place}"):
        family_model().adapters.load(folder)


# Folders


def test_other_files_in_the_folder_of_an_adapter_stay(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    (folder / "notes/deep").mkdir(parents=True)
    (folder / "notes/deep/first.txt").write_text("first")
    (folder / "notes/link").symlink_to("deep/first.txt")
    family = family_model()
    family.adapters.save(family.adapters.load(folder).name, folder, overwrite=True)
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "notes/link").readlink() == Path("deep/first.txt")
    assert (folder / "notes/link").read_text() == "first"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_working_folder_stays_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    model = family_model()
    add_trained(model, "other", KIND_CASES["linear_pre"])
    model.adapters.save("other", ".", overwrite=True)
    assert model.adapters.load(".", name="again").digest() == model.adapters["other"].digest()
    assert family_model().adapters.load(folder).name == "other"


def test_a_folder_beside_which_nothing_can_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a disk begins at the folder: its files change one by one."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(storage, "replace_folder", refuse)
    model = family_model()
    add_trained(model, "other", KIND_CASES["linear_pre"])
    model.adapters.save("other", folder, overwrite=True)
    assert family_model().adapters.load(folder).name == "other"
    with pytest.raises(AdapterError, match="busy"):
        model.adapters.save("other", folder.parent / "new")


@pytest.mark.parametrize("name", [DESCRIPTION, PARAMETERS])
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_files_that_are_no_files_are_refused_at_once(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink()
    if kind == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(AdapterError, match=f"{name} cannot be read: it is a .*, and a regular file is needed"):
        family_model().adapters.load(folder)
