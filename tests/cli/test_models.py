"""What a user types, told apart: adapters by name and path, settings and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.checkpoints.load import load_model
from overtone.checkpoints.nemo.adapters import save_adapters
from overtone.cli.models import choose
from overtone.cli.overrides import is_override
from overtone.errors import AdapterError
from overtone.models.asr_model import AsrModel
from overtone.training.model import disable_others
from support.fixtures import fixture_file
from support.nemo_samples import shake
from support.nemo_samples import small_model as nemo_model
from support.small_models import add_trained, small_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds `apart/`, an adapter of the model."""
    model = small_model()
    add_trained(model, "apart", seed=5)
    model.adapters.save("apart", tmp_path / "apart")
    return tmp_path


@pytest.fixture
def model() -> AsrModel:
    model = small_model()
    add_trained(model, "medical")
    add_trained(model, "noise", seed=2)
    return model


@pytest.mark.parametrize("text", [None, "null", "none", "None", "base"])
def test_words_for_the_base(model: AsrModel, text: str | None) -> None:
    assert choose(model, text) is None


def test_names_chains_and_paths(model: AsrModel, folder: Path) -> None:
    assert choose(model, "noise+medical") == "noise+medical"
    assert choose(model, "@file") == "@file"
    assert choose(model, str(folder / "apart")) == "apart"
    assert choose(model, f"medical+{folder / 'apart'}") == "medical+apart"  # resident by now: not loaded twice
    assert model.adapters.names == ["medical", "noise", "apart"]


def test_a_path_whose_name_is_taken_gets_a_free_one(model: AsrModel, folder: Path) -> None:
    add_trained(model, "apart", seed=9)
    assert choose(model, str(folder / "apart")) == "apart-2"


def test_an_adapters_file_of_nemo(model: AsrModel) -> None:
    base = load_model(fixture_file("conformer_ctc_bpe/model.nemo"))
    path = fixture_file("conformer_ctc_bpe/adapters_an4.pt")
    assert choose(base, str(path)) == "an4"


def test_of_an_adapters_file_those_act_that_it_has_enabled(tmp_path: Path) -> None:
    """As a training leaves it: the new adapter enabled, those that the model had before not."""
    model = nemo_model()
    for name in ("older", "mine"):
        model.adapters.add(name, LinearAdapter(dim=4))
        shake(model, name)
    disable_others(model, "mine")
    path = str(tmp_path / "adapters.pt")
    save_adapters(model, path)
    assert choose(model, path) == choose(model, path) == "mine"  # the model's own is the same one
    assert model.adapters.names == ["older", "mine"]
    other = nemo_model()
    other.adapters.add("mine", LinearAdapter(dim=4))
    assert choose(other, path) == choose(other, f"mine-2+{path}").partition("+")[0] == "mine-2"
    assert other.adapters.names == ["mine", "mine-2"]
    assert other.adapters["mine-2"].digest() == model.adapters["mine"].digest()
    save_adapters(model, path, ["older"])
    assert choose(nemo_model(), path) == "older"


def test_an_adapters_file_with_none_enabled_names_what_it_holds(tmp_path: Path) -> None:
    model = nemo_model()
    for name in ("first", "second", "third"):
        model.adapters.add(name, LinearAdapter(dim=4))
    disable_others(model, "third")
    save_adapters(model, tmp_path / "adapters.pt", ["first", "second"])
    with pytest.raises(AdapterError, match=r"none of its adapters enabled; it holds first, second\."):
        choose(nemo_model(), str(tmp_path / "adapters.pt"))


def test_a_name_of_the_model_comes_before_a_folder_of_that_name(
    model: AsrModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = small_model()
    add_trained(other, "medical", seed=5)
    other.adapters.save("medical", tmp_path / "medical")
    monkeypatch.chdir(tmp_path)
    assert choose(model, "medical") == "medical"
    assert choose(model, "./medical") == "medical-2"


def test_neither_name_nor_path(model: AsrModel, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="Did you mean 'medical'"):
        choose(model, "medcal")
    with pytest.raises(AdapterError, match=r"a folder with adapter\.yaml"):
        choose(model, str(tmp_path))


@pytest.mark.parametrize(
    ("word", "is_one"),
    [
        ("model.nemo_model=a.nemo", True),
        ("+model.x=1", True),
        ("++delete_ckpt_after_train=True", True),
        ("~trainer.strategy", True),
        ("model.train_ds.manifest_filepath=[a.json,b.json]", True),
        ("model.nemo", False),
        ("data/a=b/test.json", True),
        ("--adapter", False),
        ("./a=b.json", False),
    ],
)
def test_settings_are_told_from_paths(word: str, is_one: bool) -> None:
    assert is_override(word) is is_one


def test_a_file_is_a_file_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.json").touch()
    assert not is_override("a=b.json")


def test_a_setting_may_be_longer_than_the_name_of_a_file() -> None:
    assert is_override(f"model.train_ds.manifest_filepath=[{','.join(['train.json'] * 1000)}]")
