"""Adapters in files and folders: listed, removed, renamed, copied, enabled, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.checkpoints.adapter_places import copy_between, find_place
from overtone.checkpoints.load import load_model, save_model
from overtone.errors import AdapterError, CheckpointError, UsageError
from overtone.models.asr_model import AsrModel
from support.nemo_samples import heard, parts_of, shake, small_model


@pytest.fixture
def model() -> AsrModel:
    """A model with two adapters, `an4` and `an4_v2`."""
    model = small_model()
    for name in ("an4", "an4_v2"):
        model.adapters.add(name, LinearAdapter(dim=4))
        shake(model, name)
    return model


@pytest.fixture(params=["model.nemo", "model"])
def path(request: pytest.FixtureRequest, tmp_path: Path, model: AsrModel) -> Path:
    """The model as a `.nemo`, and as a folder with a README in it; `an4` is enabled."""
    path = save_model(model, tmp_path / request.param, enabled=["an4"])
    if path.is_dir():
        (path / "README.md").write_text("mine")
    return path


def names(path: Path) -> list[str]:
    return [entry.name for entry in find_place(path).entries()]


def flags(path: Path) -> dict[str, bool]:
    """NeMo's flags of a `.nemo`."""
    return {name: entry["enabled"] for name, entry in parts_of(path)[0]["adapters"].items() if name != "global_cfg"}


def test_entries(path: Path) -> None:
    first, second = find_place(path).entries()
    assert (first.name, first.kind, first.modules, first.layers) == ("an4", "linear", "encoder", "all")
    assert (first.enabled, second.enabled) == (True, False)
    assert first.parameters == 2 * (16 * 4 * 2 + 2 * 16)


def test_every_action_leaves_the_rest_as_it_was(path: Path, model: AsrModel) -> None:
    """Names are exact: `an4` is renamed, `an4_v2` is not; base, values, order and choice stay."""
    find_place(path).rename("an4", "cardiology")
    find_place(path).copy("an4_v2", "third")
    again = load_model(path)
    assert again.adapters.names == ["cardiology", "an4_v2", "third"]
    assert again.adapters.file_choice == ("cardiology",)
    assert again.fingerprint() == model.fingerprint()
    for new, old in (("cardiology", "an4"), ("an4_v2", "an4_v2"), ("third", "an4_v2"), (None, None)):
        assert torch.equal(heard(again, new), heard(model, old))
    find_place(path).remove(["cardiology", "an4_v2"])
    assert names(path) == ["third"]
    assert load_model(path).adapters.file_choice == ()
    if path.is_dir():
        assert (path / "README.md").read_text() == "mine"
        assert [folder.name for folder in (path / "adapters").iterdir()] == ["third"]


def test_what_is_enabled(path: Path) -> None:
    place = find_place(path)
    place.enable(["an4_v2", "an4"])
    assert load_model(path).adapters.file_choice == ("an4", "an4_v2"), "in the order of the model, as NeMo chains them"
    place.enable([])
    assert load_model(path).adapters.file_choice == ()
    if path.suffix == ".nemo":
        assert flags(path) == {"an4": False, "an4_v2": False}


def test_another_output(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "other.nemo"
    find_place(path, output=output).remove(["an4"])
    assert (names(path), names(output)) == (["an4", "an4_v2"], ["an4_v2"])
    assert flags(output) == {"an4_v2": False}
    with pytest.raises(CheckpointError, match="exists already"):
        find_place(path, output=output).remove(["an4"])


def test_save_model_says_what_is_enabled(model: AsrModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "one.nemo", enabled=["an4_v2"])
    assert flags(tmp_path / "one.nemo") == {"an4": False, "an4_v2": True}
    save_model(model, tmp_path / "all.nemo")
    assert flags(tmp_path / "all.nemo") == {"an4": True, "an4_v2": True}, "the model itself was not changed"
    with pytest.raises(AdapterError, match="an5"):
        save_model(model, tmp_path / "none.nemo", enabled=["an5"])
    assert not (tmp_path / "none.nemo").exists()
    with pytest.raises(CheckpointError, match="leave `enabled` out"):
        save_model(model, tmp_path / "hf", layout="huggingface", enabled=["an4"])


def test_an_adapter_goes_to_a_folder_and_into_another_model(path: Path, model: AsrModel, tmp_path: Path) -> None:
    copy_between(find_place(path), "an4", tmp_path / "alone", "medical")
    bare = save_model(small_model(), tmp_path / "bare.nemo")
    copy_between(find_place(tmp_path / "alone"), "medical", bare, "medical")
    copy_between(find_place(path), "an4_v2", bare, "second")
    again = load_model(bare)
    assert again.adapters.names == ["medical", "second"]
    assert again.adapters.file_choice == (), "what is copied in is not enabled by itself"
    assert torch.equal(heard(again, "medical"), heard(model, "an4"))
    other = save_model(small_model(layers=3), tmp_path / "other.nemo")
    with pytest.raises(AdapterError, match="made for another base"):
        copy_between(find_place(path), "an4", other, "an4")
    assert names(other) == []


def test_folders_of_adapters(model: AsrModel, tmp_path: Path) -> None:
    """Folders keep what else they hold; one is found by its own name, or by the adapter's."""
    store = tmp_path / "adapters"
    model.adapters.save("an4", store / "an4")
    model.adapters.save("an4_v2", store / "an4-best")
    (store / "an4" / "notes.txt").write_text("mine")
    place = find_place(store)
    place.rename("an4", "medical")
    place.copy("medical", "copy")
    assert (store / "copy" / "notes.txt").read_text() == "mine"
    place.rename("an4_v2", "legal")
    assert {entry.name: Path(str(entry.folder)).name for entry in place.entries()} == {
        "medical": "medical", "copy": "copy", "legal": "an4-best",
    }  # fmt: skip
    place.remove(["medical"])
    assert not (store / "medical").exists()
    fresh = small_model()
    fresh.adapters.load(store / "copy")
    assert torch.equal(heard(fresh, "copy"), heard(model, "an4"))
    copy_between(find_place(store / "copy"), "copy", store, "again")
    single = find_place(store / "an4-best")
    single.rename("legal", "law")
    assert [entry.name for entry in single.entries()] == ["law"]
    assert sorted(folder.name for folder in store.iterdir()) == ["again", "an4-best", "copy"]


def test_mistakes(path: Path, model: AsrModel, tmp_path: Path) -> None:
    before = names(path)
    for mistake, message in (
        (lambda place: place.remove(["an5"]), "Did you mean"),
        (lambda place: place.rename("an4", "an4_v2"), "exists already"),
        (lambda place: place.rename("an4", "base"), "cannot be an adapter's name"),
        (lambda place: place.copy("an4", "an4"), "exists already"),
        (lambda place: place.enable(["an4", "none"]), "unknown"),
    ):
        with pytest.raises(AdapterError, match=message):
            mistake(find_place(path))
        assert names(path) == before
    model.adapters.save("an4", tmp_path / "store/one")
    model.adapters.save("an4", tmp_path / "store/two")
    store = find_place(tmp_path / "store")
    with pytest.raises(AdapterError, match="Name one by its folder: one, two"):
        store.remove(["an4"])
    with pytest.raises(UsageError, match="without a model"):
        store.enable(["one"])
    with pytest.raises(AdapterError, match="exists already"):
        store.rename("one", "two")
    with pytest.raises(UsageError, match="does not exist"):
        find_place(tmp_path / "nothing")
    with pytest.raises(UsageError, match="overtone inspect"):
        find_place(tmp_path / "adapters.pt")


def test_an_adapter_that_nemo_lacks_stays_in_a_folder(tmp_path: Path) -> None:
    model = small_model()
    model.adapters.add("low", LoraAdapter(rank=2))
    path = save_model(model, tmp_path / "model")
    find_place(path).rename("low", "lower")
    find_place(path).enable(["lower"])
    assert load_model(path).adapters.file_choice == ("lower",)
