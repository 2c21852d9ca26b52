"""Adapters by the words that a user types: names, chains, folders and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.checkpoints.adapters import enable_adapters, find_adapter
from overtone.checkpoints.load import load_model
from overtone.checkpoints.nemo.adapters import save_adapters
from overtone.errors import AdapterError
from overtone.models.asr_model import AsrModel
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
    assert find_adapter(model, text) is None


def test_names_chains_and_paths(model: AsrModel, folder: Path) -> None:
    assert find_adapter(model, "noise+medical") == "noise+medical"
    assert find_adapter(model, "@file") == "@file"
    assert find_adapter(model, str(folder / "apart")) == "apart"
    assert find_adapter(model, f"medical+{folder / 'apart'}") == "medical+apart"  # resident by now: not loaded twice
    assert model.adapters.names == ["medical", "noise", "apart"]


def test_a_path_whose_name_is_taken_gets_a_free_one(model: AsrModel, folder: Path) -> None:
    add_trained(model, "apart", seed=9)
    assert find_adapter(model, str(folder / "apart")) == "apart-2"


def test_an_adapters_file_of_nemo(model: AsrModel) -> None:
    base = load_model(fixture_file("conformer_ctc_bpe/model.nemo"))
    path = fixture_file("conformer_ctc_bpe/adapters_an4.pt")
    assert find_adapter(base, str(path)) == "an4"


def test_of_an_adapters_file_those_act_that_it_has_enabled(tmp_path: Path) -> None:
    """As a training leaves it: the new adapter enabled, those that the model had before not."""
    model = nemo_model()
    for name in ("older", "mine"):
        model.adapters.add(name, LinearAdapter(dim=4))
        shake(model, name)
    enable_adapters(model, ["mine"])
    path = str(tmp_path / "adapters.pt")
    save_adapters(model, path)
    assert find_adapter(model, path) == find_adapter(model, path) == "mine"  # the model's own is the same one
    assert model.adapters.names == ["older", "mine"]
    other = nemo_model()
    other.adapters.add("mine", LinearAdapter(dim=4))
    assert find_adapter(other, path) == find_adapter(other, f"mine-2+{path}").partition("+")[0] == "mine-2"
    assert other.adapters.names == ["mine", "mine-2"]
    assert other.adapters["mine-2"].digest() == model.adapters["mine"].digest()
    save_adapters(model, path, ["older"])
    assert find_adapter(nemo_model(), path) == "older"


def test_an_adapters_file_with_none_enabled_names_what_it_holds(tmp_path: Path) -> None:
    model = nemo_model()
    for name in ("first", "second", "third"):
        model.adapters.add(name, LinearAdapter(dim=4))
    enable_adapters(model, ["third"])
    save_adapters(model, tmp_path / "adapters.pt", ["first", "second"])
    with pytest.raises(AdapterError, match=r"none of its adapters enabled; it holds first, second\."):
        find_adapter(nemo_model(), str(tmp_path / "adapters.pt"))


def test_a_name_of_the_model_comes_before_a_folder_of_that_name(
    model: AsrModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = small_model()
    add_trained(other, "medical", seed=5)
    other.adapters.save("medical", tmp_path / "medical")
    monkeypatch.chdir(tmp_path)
    assert find_adapter(model, "medical") == "medical"
    assert find_adapter(model, "./medical") == "medical-2"


def test_neither_name_nor_path(model: AsrModel, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="Did you mean 'medical'"):
        find_adapter(model, "medcal")
    with pytest.raises(
        AdapterError,
        match=r"expected a folder with adapter\.yaml or PEFT's adapter_config\.json, or a \.pt file of NeMo\.$",
    ):
        find_adapter(model, str(tmp_path))


def test_of_a_run_s_folder_the_adapters_below_it_are_named(model: AsrModel, folder: Path) -> None:
    (folder / "run").mkdir()
    saved = (folder / "apart").rename(folder / "run" / "apart-best")
    for run in (folder / "run", folder):
        with pytest.raises(AdapterError, match=f"is not an adapter; .* Below it are {saved}"):
            find_adapter(model, str(run))
