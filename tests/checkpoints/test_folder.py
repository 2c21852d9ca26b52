"""Models as folders, and models by name."""

from __future__ import annotations

import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.checkpoints import load as loading
from overtone.checkpoints.folder import read_native, write_native
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.model import read_nemo
from overtone.checkpoints.nemo.yaml import read_yaml, write_yaml
from overtone.errors import CheckpointError
from overtone.models.asr_model import AsrModel
from support.disk import full_disk
from support.fixtures import fixture_file
from support.nemo_samples import heard, piece_tokenizer, shake, small_model


def adapted(model: AsrModel) -> AsrModel:
    model.adapters.add("low", LoraAdapter(rank=2, targets=("q", "v")))
    model.adapters.add("an4", LinearAdapter(dim=4))
    model.adapters.add("a.late", TinyAttentionAdapter(heads=2), layers=[1]).card["hours"] = 1.5
    for name in model.adapters.names:
        shake(model, name)
    return model


@pytest.mark.parametrize("tokenizer", ["characters", "pieces"])
def test_a_model_with_every_kind_of_adapter_comes_back(tmp_path: Path, tokenizer: str) -> None:
    model = adapted(small_model(piece_tokenizer() if tokenizer == "pieces" else None, name="own"))
    model.adapters.file_choice = ("low", "an4")
    write_native(model, tmp_path / "model")
    names = sorted(path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*.*"))
    assert {"model_config.yaml", "model.safetensors", "adapters/a.late/adapter.yaml"} <= set(names)
    again = read_native(tmp_path / "model")
    assert again.name == "own"
    assert again.fingerprint() == model.fingerprint()
    assert again.tokenizer.digest() == model.tokenizer.digest()
    assert again.adapters.names == ["low", "an4", "a.late"]
    assert again.adapters.file_choice == ("low", "an4")
    assert again.adapters["a.late"].card == {"hours": 1.5}
    assert again.adapters["a.late"].points == ["encoder.layers.1.after_attention"]
    for choice in (None, "low", "an4", "a.late", "a.late+low"):
        assert torch.equal(heard(again, choice), heard(model, choice))
    assert read_native(tmp_path / "model", adapters=False).adapters.names == []


@pytest.mark.parametrize("model", ["conformer_ctc_bpe", "conformer_ctc_char", "fastconformer_ctc_bpe"])
def test_fingerprints_agree_between_all_forms_of_one_base(tmp_path: Path, model: str) -> None:
    plain = read_nemo(fixture_file(f"{model}/model.nemo"))
    forms = {"adapted": read_nemo(fixture_file(f"{model}/adapted.nemo"))}
    for name, form in {"plain": plain, **forms}.items():
        save_model(form, tmp_path / name)
        save_model(form, tmp_path / f"{name}.nemo")
    for path in tmp_path.iterdir():
        forms[path.name] = load_model(path)
    assert {name: form.fingerprint() for name, form in forms.items()} == dict.fromkeys(forms, plain.fingerprint())
    assert forms["adapted.nemo"].adapters.names == forms["adapted"].adapters.names
    with torch.no_grad():
        plain.decoder.projection.bias[0] += 1e-6
    assert plain.fingerprint() != forms["plain"].fingerprint()


def test_a_nemo_through_a_folder_is_the_same_nemo(tmp_path: Path) -> None:
    from support.nemo_samples import parts_of

    source = fixture_file("conformer_ctc_bpe/adapted.nemo")
    model = read_nemo(source)
    model.adapters["an4"].nemo["enabled"] = False  # type: ignore[index]
    save_model(model, tmp_path / "folder")
    save_model(load_model(tmp_path / "folder"), tmp_path / "again.nemo")
    (config, tensors, files), (config_again, tensors_again, files_again) = map(
        parts_of, (source, tmp_path / "again.nemo")
    )
    config["adapters"]["an4"]["enabled"] = False
    assert config_again == config
    assert files_again == files
    assert tensors_again.keys() == tensors.keys()
    assert all(torch.equal(tensors_again[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_half_precision_storage(tmp_path: Path, storage: Any) -> None:
    model = small_model()
    write_native(model, tmp_path / "half", storage=storage)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["encoder.layers.0.self_attn.linear_q.weight"].dtype == getattr(torch, storage)
    assert stored["encoder.layers.0.norm_out.weight"].dtype == torch.float32
    assert stored["preprocessor.featurizer.fb"].dtype == torch.float32
    half = read_native(tmp_path / "half")
    assert {tensor.dtype for tensor in half.base_state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(heard(half), heard(model), rtol=0, atol=0.2)
    assert half.fingerprint() != model.fingerprint()

    # Of values that half precision holds, every form of storage gives the same base.
    half.adapters.add("an4", LinearAdapter(dim=2))
    write_native(half, tmp_path / "again", storage=storage)
    save_model(half, tmp_path / "whole.nemo")
    assert load_model(tmp_path / "again").fingerprint() == half.fingerprint()
    assert load_model(tmp_path / "whole.nemo").fingerprint() == half.fingerprint()

    model.adapters.add("an4", LinearAdapter(dim=2))
    with pytest.raises(CheckpointError, match=f"Storing small in {storage} would change its base"):
        write_native(model, tmp_path / "no", storage=storage)
    assert not (tmp_path / "no").exists()


def test_what_overflows_in_half_precision_stays_whole(tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.decoder.projection.weight[0, 0] = 1e6
    write_native(model, tmp_path / "half", storage="float16")
    assert read_native(tmp_path / "half").decoder.projection.weight[0, 0].item() == 1e6
    with pytest.raises(CheckpointError, match="storage 'int8' is unknown"):
        write_native(model, tmp_path / "no", storage="int8")  # type: ignore[arg-type]


def test_tied_biases_are_stored_and_tied_again(tmp_path: Path) -> None:
    model = small_model(untie_biases=False)
    write_native(model, tmp_path / "tied")
    again = read_native(tmp_path / "tied")
    assert again.fingerprint() == model.fingerprint()
    assert again.encoder.layers[0].self_attn.pos_bias_u is again.encoder.layers[1].self_attn.pos_bias_u


def test_adapter_folders_can_be_copied_in_and_taken_out(tmp_path: Path) -> None:
    model = adapted(small_model())
    write_native(model, tmp_path / "model")
    model.adapters.save("an4", tmp_path / "model" / "adapters" / "copy")
    shutil.rmtree(tmp_path / "model" / "adapters" / "low")
    (tmp_path / "model" / "README.md").write_text("notes")
    again = read_native(tmp_path / "model")
    assert again.adapters.names == ["an4", "a.late", "copy"]
    assert torch.equal(heard(again, "copy"), heard(model, "an4"))


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        (LinearAdapter(dim=8), "encoder"),
        (LinearAdapter(dim=4, activation="relu"), "encoder"),
        (LinearAdapter(dim=4), "encoder+decoder"),
        (TinyAttentionAdapter(heads=2), "encoder"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_adapter_put_in_another_ones_place_is_told_to_nemo_as_it_is(
    tmp_path: Path, kind: Kind, modules: str
) -> None:
    """The configuration beside it still speaks of the one before, of which only `enabled` stays."""
    model = small_model()
    model.adapters.add("an4", LinearAdapter(dim=4))
    save_model(model, tmp_path / "first.nemo")
    model = load_model(tmp_path / "first.nemo")
    model.adapters["an4"].nemo["enabled"] = False  # type: ignore[index]
    save_model(model, tmp_path / "model")
    newer = small_model()
    newer.adapters.add("an4", kind, modules=modules)
    shake(newer, "an4")
    newer.adapters.save("an4", tmp_path / "model" / "adapters" / "an4", overwrite=True)
    save_model(load_model(tmp_path / "model"), tmp_path / "again.nemo")
    again = load_model(tmp_path / "again.nemo")
    assert again.adapters["an4"].digest() == newer.adapters["an4"].digest()
    assert torch.equal(heard(again, "an4"), heard(newer, "an4"))
    assert again.adapters["an4"].nemo["enabled"] is False  # type: ignore[index]


def test_an_adapter_of_another_base_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    model, other = adapted(small_model()), small_model(use_bias=False)
    write_native(other, tmp_path / "other")
    model.adapters.save("an4", tmp_path / "other" / "adapters" / "an4")
    with pytest.raises(CheckpointError) as caught:
        read_native(tmp_path / "other")
    assert model.fingerprint() in str(caught.value)
    assert other.fingerprint() in str(caught.value)
    assert read_native(tmp_path / "other", adapters=False).fingerprint() == other.fingerprint()


def test_existing_folders_are_kept(tmp_path: Path) -> None:
    first, second = small_model(), small_model(use_bias=False)
    save_model(first, tmp_path / "model")
    with pytest.raises(CheckpointError, match="exists already"):
        save_model(second, tmp_path / "model")
    assert load_model(tmp_path / "model").fingerprint() == first.fingerprint()
    save_model(second, tmp_path / "model", overwrite=True)
    assert load_model(tmp_path / "model").fingerprint() == second.fingerprint()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("1")
    with pytest.raises(CheckpointError, match="no folder of a model, so it is not overwritten"):
        save_model(first, tmp_path / "thesis", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "thesis"]


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_files_are_open_to_whom_the_umask_leaves_them(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save_model(adapted(small_model()), tmp_path / "model")
        save_model(small_model(), tmp_path / "model.nemo")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2 + 2 * 3 + 1
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    first, second = small_model(), small_model(use_bias=False)
    save_model(first, tmp_path / "model")
    with full_disk(20_000), pytest.raises(CheckpointError, match=r"File too large\. Check"):
        save_model(second, tmp_path / "model", overwrite=True)
    with full_disk(20_000), pytest.raises(CheckpointError, match=r"File too large\. Check"):
        save_model(second, tmp_path / "fresh")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert load_model(tmp_path / "model").fingerprint() == first.fingerprint()


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    model = small_model()

    def broken(name: str) -> Path:
        save_model(model, tmp_path / name)
        return tmp_path / name

    folder = broken("truncated")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated, damaged or no safetensors"):
        load_model(folder)
    folder = broken("missing")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("encoder.layers.0.norm_out.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"Missing: encoder\.layers\.0\.norm_out\.bias"):
        load_model(folder)
    folder = broken("escaping")
    config = read_yaml((folder / "model_config.yaml").read_bytes(), "x")
    config["overtone"]["files"] = ["../secret"]
    (folder / "model_config.yaml").write_text(write_yaml(config))
    with pytest.raises(CheckpointError, match="points outside"):
        load_model(folder)
    folder = broken("config")
    (folder / "model_config.yaml").write_text("a: [")
    with pytest.raises(CheckpointError, match="no plain YAML"):
        load_model(folder)


# Names


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and an empty working folder."""
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_cached_and_embedded_models_are_found_by_name(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(small_model(), shelf / "cache" / "folder")
    save_model(small_model(use_bias=False), shelf / "cache" / "file.nemo")
    assert load_model("folder").fingerprint() == small_model().fingerprint()
    assert load_model("file").name == "file"
    monkeypatch.setattr(loading, "embedded_folder", lambda name: shelf / "cache" / "folder")
    assert load_model("fundamental").fingerprint() == small_model().fingerprint()
    save_model(small_model(layers=1), "fundamental")
    assert load_model("./fundamental").fingerprint() != load_model("fundamental").fingerprint()
    monkeypatch.delenv("OVERTONE_CACHE")
    assert loading.cache_folder() == Path.home() / ".cache" / "overtone"


def test_a_folder_around_one_nemo_is_that_model(shelf: Path) -> None:
    save_model(small_model(), shelf / "around" / "x.nemo")
    assert load_model(shelf / "around").name == "x"
    save_model(small_model(), shelf / "around" / "y.nemo")
    with pytest.raises(CheckpointError, match=r"2 \.nemo files lie in it"):
        load_model(shelf / "around")
    with pytest.raises(
        CheckpointError, match=r"no model folder: model_config\.yaml and model\.safetensors are missing"
    ):
        load_model(shelf / "here")


@pytest.mark.parametrize("name", ["fundamentl", "gone.nemo", "models/gone.nemo", "../x", "a/b/c", ""])
def test_what_is_not_found_is_said_with_every_place(shelf: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(name)
    message = str(caught.value)
    if name == "":
        assert "no model folder" in message
        return
    assert f"No model '{name}'" in message
    assert "the file or folder" in message
    assert ("Did you mean 'fundamental'?" in message) == (name == "fundamentl")
    assert (str(shelf / "cache" / name) in message) == (name == "fundamentl")


def hub(monkeypatch: pytest.MonkeyPatch, download: Any) -> list[tuple[str, list[str]]]:
    """A hub library that records what it is asked for."""
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(download())

    library = types.ModuleType("huggingface_hub")
    library.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    return asked


def test_hub_names_are_fetched(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(small_model(), shelf / "nemo" / "x.nemo")
    asked = hub(monkeypatch, lambda: shelf / "nemo")
    assert load_model("nvidia/stt_en_conformer_ctc_small").name == "x"
    assert load_model("stt_en_conformer_ctc_small").name == "x"
    assert asked == [("nvidia/stt_en_conformer_ctc_small", ["*.nemo"])] * 2
    save_model(small_model(), shelf / "native")
    asked = hub(monkeypatch, lambda: shelf / "native")
    assert load_model("someone/model").fingerprint() == small_model().fingerprint()
    assert [patterns[0] for _, patterns in asked] == ["*.nemo", "*.yaml"]


def test_without_hub_library_or_network_the_error_is_clear(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'overtone\[hub\]'"):
        load_model("nvidia/some-model")

    def offline() -> Path:
        raise ConnectionError("Cannot reach the hub\nand a long story")

    hub(monkeypatch, offline)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError) as caught:
        load_model("nvidia/some-model")
    message = str(caught.value)
    assert "the file or folder nvidia/some-model" in message
    assert "(HF_HUB_OFFLINE is set): Cannot reach the hub. Check name and network" in message


@pytest.mark.parametrize("key", ["files", "adapters", "file_choice"])
def test_names_that_are_no_list_are_refused(tmp_path: Path, key: str) -> None:
    save_model(small_model(), tmp_path / "model")
    path = tmp_path / "model/model_config.yaml"
    config = yaml.safe_load(path.read_text("utf-8"))
    config["overtone"][key] = 5
    path.write_text(yaml.safe_dump(config), "utf-8")
    with pytest.raises(CheckpointError, match=rf"overtone\.{key} is 5; a list of names is needed"):
        load_model(tmp_path / "model")


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    """Their content would be written into the next copy of the model. A hub's cache is made of links."""
    save_model(small_model(), tmp_path / "model")
    path = tmp_path / "model/model_config.yaml"
    config = yaml.safe_load(path.read_text("utf-8"))
    config["overtone"]["files"] = ["notes.txt"]
    path.write_text(yaml.safe_dump(config), "utf-8")
    (tmp_path / "secret").write_text("secret")
    link = tmp_path / "model/notes.txt"
    link.symlink_to("../secret")
    with pytest.raises(CheckpointError, match=r"notes\.txt leads out of the folder, to .*secret"):
        load_model(tmp_path / "model")
    hub = tmp_path / "hub"
    (hub / "snapshots").mkdir(parents=True)
    (hub / "blobs").mkdir()
    link.unlink()
    (tmp_path / "model").rename(hub / "snapshots/1")
    (tmp_path / "secret").rename(hub / "blobs/abc")
    (hub / "snapshots/1/notes.txt").symlink_to("../../blobs/abc")
    assert load_model(hub / "snapshots/1").checkpoint_files == {"notes.txt": b"secret"}
