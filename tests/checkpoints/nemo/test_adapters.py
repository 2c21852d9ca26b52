"""NeMo's `adapters.pt`, both ways, with names compared whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.adapters.strategies import ResidualAdd
from overtone.checkpoints.nemo.adapters import adapter_hosts, load_adapters, read_adapters_pt, save_adapters
from overtone.checkpoints.nemo.model import read_nemo
from overtone.errors import AdapterError, CheckpointError
from support.disk import full_disk
from support.fixtures import fixture_file
from support.nemo_samples import heard, shake, small_model

MODELS = ["conformer_ctc_bpe", "conformer_ctc_char", "fastconformer_ctc_bpe"]
NAMES = ["an4", "two", "rel", "wide", "mhsa", "dec", "both"]


@pytest.mark.parametrize("model", MODELS)
def test_tensors_are_those_that_nemo_saved(model: str) -> None:
    stored = read_adapters_pt(fixture_file(f"{model}/adapters.pt"))
    flat = dict(np.load(fixture_file(f"{model}/adapters_flat.npz")))
    assert [adapter.name for adapter in stored] == NAMES
    found = {
        f"{modules}{adapter.name}|{index}|{adapter.name}.{parameter}": tensor
        for adapter in stored
        for modules in [f"{adapter.described.modules}:" if adapter.described.modules else ""]
        for index, host in enumerate(adapter.hosts)
        for parameter, tensor in host.items()
    }
    assert found.keys() == flat.keys()
    for key, tensor in found.items():
        assert np.array_equal(tensor.numpy(), flat[key]), key


@pytest.mark.parametrize("model", MODELS)
def test_a_base_with_adapters_loaded_is_the_adapted_model(model: str) -> None:
    base = read_nemo(fixture_file(f"{model}/model.nemo"))
    adapted = read_nemo(fixture_file(f"{model}/adapted.nemo"))
    fingerprint = base.fingerprint()
    loaded = load_adapters(base, fixture_file(f"{model}/adapters.pt"))
    assert [adapter.name for adapter in loaded] == base.adapters.names == adapted.adapters.names == NAMES
    assert base.fingerprint() == fingerprint
    for name in NAMES:
        own, other = base.adapters[name], adapted.adapters[name]
        assert own.kind == other.kind
        assert own.nemo == other.nemo
        assert own.digest() == other.digest()
    assert torch.equal(heard(base, "an4+two+dec+both"), heard(adapted, "an4+two+dec+both"))


def test_one_adapter_of_a_file_with_the_configuration_of_many() -> None:
    model = read_nemo(fixture_file("conformer_ctc_char/model.nemo"))
    (adapter,) = load_adapters(model, fixture_file("conformer_ctc_char/adapters_an4.pt"))
    assert adapter.name == "an4"
    assert model.adapters.names == ["an4"]
    assert len(load_adapters(model, fixture_file("conformer_ctc_char/adapters.pt"), ["decoder:dec", "two"])) == 2
    assert model.adapters.names == ["an4", "dec", "two"]


def test_names_that_contain_each_other_load() -> None:
    """NeMo cannot read this file back: it takes `attn8` and `absattn` for parts of `attn`."""
    model = read_nemo(fixture_file("_name_collision/model.nemo"))
    path = fixture_file("_name_collision/adapters.pt")
    stored = {adapter.name: adapter for adapter in read_adapters_pt(path)}
    assert {"attn", "attn8", "absattn"} <= stored.keys()
    names = {name: set(adapter.hosts[0]) for name, adapter in stored.items()}
    assert names["attn"] == names["attn8"] == names["absattn"] | {"linear_pos.weight", "pos_bias_u", "pos_bias_v"}
    load_adapters(model, path, ["attn"])
    assert model.adapters.names == ["attn"]
    load_adapters(model, path, ["attn8", "absattn"])
    said = [heard(model, name) for name in (None, "attn", "attn8", "absattn")]
    for index, log_probs in enumerate(said):
        assert not any(torch.equal(log_probs, other) for other in said[:index])


def adapted_model() -> Any:
    model = small_model()
    model.adapters.add("an4", LinearAdapter(dim=4, activation="relu", dropout=0.1), strategy=ResidualAdd(l2_lambda=0.5))
    model.adapters.add("an4_v2", LinearAdapter(dim=3, norm_position="post"), modules="encoder+decoder")
    model.adapters.add("attn", TinyAttentionAdapter(heads=2, projection=None))
    model.adapters.add("absattn", TinyAttentionAdapter(heads=2, projection=4, position="abs_pos"), layers=[1])
    for name in model.adapters.names:
        shake(model, name)
    return model


def test_what_is_saved_loads_as_it_was(tmp_path: Path) -> None:
    model = adapted_model()
    save_adapters(model, tmp_path / "adapters.pt")
    again = small_model()
    load_adapters(again, tmp_path / "adapters.pt")
    assert again.adapters.names == model.adapters.names
    for choice in ("an4", "an4_v2", "attn", "absattn", "attn+an4_v2+absattn+an4"):
        torch.testing.assert_close(heard(again, choice), heard(model, choice), rtol=0, atol=1e-6)
    for name in ("an4", "an4_v2"):
        assert again.adapters[name].kind == model.adapters[name].kind
        assert again.adapters[name].strategy == model.adapters[name].strategy
        assert again.adapters[name].digest() == model.adapters[name].digest()
    assert again.adapters["attn"].kind == TinyAttentionAdapter(heads=2, projection=None, position="rel_pos")
    assert again.adapters["absattn"].points == ["encoder.layers.0.after_attention", "encoder.layers.1.after_attention"]


def test_the_layout_is_nemos(tmp_path: Path) -> None:
    """What `torch.load` gives NeMo: states in the order of the hosts, and omegaconf objects under `__cfg__`."""
    model = adapted_model()
    save_adapters(model, tmp_path / "two.pt", ["an4_v2", "an4"])
    content = torch.load(tmp_path / "two.pt", weights_only=False)
    assert list(content) == ["encoder+decoder:an4_v2", "an4", "__cfg__"]
    assert [list(state) for state in content["an4"]] == [
        [f"an4.module.{part}" for part in ("0.weight", "0.bias", "1.weight", "3.weight")]
    ] * 2
    assert len(content["encoder+decoder:an4_v2"]) == 3
    assert torch.equal(content["an4"][1]["an4.module.1.weight"], model.adapters["an4"].at(
        "encoder.layers.1.after_block"
    ).tensors()["down.weight"])  # fmt: skip
    section = content["__cfg__"]
    assert type(section).__name__ == "DictConfig"
    assert dict(section["global_cfg"]["adapter_meta_cfg"]["modules"]) == {"an4_v2": "encoder+decoder", "an4": ""}
    assert section.an4.adapter_strategy.l2_lambda == 0.5
    assert section.an4.in_features == 16
    assert "attn" not in section


def test_a_layer_that_is_left_out_gets_an_adapter_that_does_nothing() -> None:
    model = small_model()
    for name, kind in (
        ("pre", LinearAdapter(dim=3)),
        ("post", LinearAdapter(dim=3, norm_position="post")),
        ("attn", TinyAttentionAdapter(heads=2, projection=4)),
    ):
        adapter = model.adapters.add(name, kind, layers="last:1")
        shake(model, name)
        first, last = adapter_hosts(model, adapter).values()
        zero = [key for key, tensor in first.items() if not bool(tensor.any())]
        assert (
            zero
            == {
                "pre": ["module.3.weight"],
                "post": ["module.3.weight", "module.3.bias"],
                "attn": ["linear_out.weight", "linear_out.bias"],
            }[name]
        )
        assert all(bool(tensor.any()) for tensor in last.values())


def test_all_or_none_are_loaded(tmp_path: Path) -> None:
    model = adapted_model()
    save_adapters(model, tmp_path / "adapters.pt")
    again = small_model()
    again.adapters.add("attn", LinearAdapter(dim=2))
    with pytest.raises(AdapterError, match="'attn' exists already"):
        load_adapters(again, tmp_path / "adapters.pt")
    assert again.adapters.names == ["attn"]
    with pytest.raises(AdapterError, match=r"no adapter 'an4_v1'\. Did you mean 'an4_v2'\?"):
        load_adapters(again, tmp_path / "adapters.pt", ["an4", "an4_v1"])
    assert again.adapters.names == ["attn"]


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    save_adapters(adapted_model(), tmp_path / "adapters.pt")
    wider = small_model(width=32)
    with pytest.raises(CheckpointError, match=r"module\.0\.weight has shape \[16\], expected \[32\]"):
        load_adapters(wider, tmp_path / "adapters.pt", ["an4"])
    deeper = small_model(layers=3)
    with pytest.raises(CheckpointError, match="tensors for 2 places, this model has 3"):
        load_adapters(deeper, tmp_path / "adapters.pt", ["an4"])
    absolute = small_model(position="abs_pos")
    with pytest.raises((CheckpointError, AdapterError), match="relative positions"):
        load_adapters(absolute, tmp_path / "adapters.pt", ["attn"])
    assert wider.adapters.names == deeper.adapters.names == absolute.adapters.names == []


def test_what_cannot_be_saved_is_said(tmp_path: Path) -> None:
    model = small_model()
    path = tmp_path / "adapters.pt"
    with pytest.raises(AdapterError, match="no adapters to save"):
        save_adapters(model, path)
    model.adapters.add("low", LoraAdapter(rank=2))
    with pytest.raises(CheckpointError, match="kind lora, which NeMo does not have"):
        save_adapters(model, path)
    with pytest.raises(AdapterError, match="'lox' is unknown"):
        save_adapters(model, path, ["lox"])
    (tmp_path / "file").write_text("")
    model.adapters.add("an4", LinearAdapter(dim=2))
    with pytest.raises(CheckpointError, match="Cannot write"):
        save_adapters(model, tmp_path / "file" / "adapters.pt", ["an4"])
    with full_disk(1000), pytest.raises(CheckpointError, match=r"File too large\. Check"):
        save_adapters(model, path, ["an4"])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]


BROKEN = {
    "no configuration": ({"an4": []}, "holds no '__cfg__'"),
    "tensors only": (torch.ones(2), "holds no '__cfg__'"),
    "an unknown name": ({"an5": [], "__cfg__": {"an4": {}}}, "tensors of adapter 'an5', but no configuration"),
    "no list": ({"an4": {}, "__cfg__": {"an4": {}}}, "no list of state dictionaries"),
    "no tensors": ({"an4": [{"an4.x": 1}], "__cfg__": {"an4": {}}}, "something else than tensors"),
    "a configuration that is none": ({"__cfg__": [1]}, "a mapping of names is needed"),
    "a name that is called nothing": ({"an4": [], "__cfg__": {"an4": 3}}, "malformed"),
}


@pytest.mark.parametrize(("content", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "adapters.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=str(path)) as caught:
        read_adapters_pt(path)
    assert words in str(caught.value)


def test_missing_and_truncated_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_adapters_pt(tmp_path / "adapters.pt")
    content = fixture_file("conformer_ctc_char/adapters.pt").read_bytes()
    (tmp_path / "adapters.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_adapters_pt(tmp_path / "adapters.pt")


def test_the_short_names_of_nemos_classes_are_the_same_classes(tmp_path: Path) -> None:
    """NeMo's packages export them once more, and its documents name them so."""
    save_adapters(adapted_model(), tmp_path / "adapters.pt")
    content = torch.load(tmp_path / "adapters.pt", weights_only=False)
    for name in ("an4", "attn", "absattn"):
        for section in (content["__cfg__"][name], content["__cfg__"][name].adapter_strategy):
            package, _, class_name = section["_target_"].rpartition(".")
            section["_target_"] = f"{package.rpartition('.')[0]}.{class_name}"
    torch.save(content, tmp_path / "short.pt")
    long, short = small_model(), small_model()
    load_adapters(long, tmp_path / "adapters.pt")
    load_adapters(short, tmp_path / "short.pt")
    assert [adapter.digest() for adapter in short.adapters] == [adapter.digest() for adapter in long.adapters]
    assert [adapter.kind for adapter in short.adapters] == [adapter.kind for adapter in long.adapters]


def test_kinds_that_are_not_supported_are_refused_by_name(tmp_path: Path) -> None:
    model = adapted_model()
    save_adapters(model, tmp_path / "adapters.pt", ["an4"])
    content = torch.load(tmp_path / "adapters.pt", weights_only=False)
    for key, value, words in (
        ("_target_", "my.package.Adapter", "_target_ is my.package.Adapter"),
        ("dim", "wide", "dim is wide"),
        ("activation", "maxout", "'maxout' is unknown"),
        ("norm_position", "both", "norm_position is both"),
    ):
        changed = {**content, "__cfg__": content["__cfg__"].copy()}
        changed["__cfg__"]["an4"][key] = value
        torch.save(changed, tmp_path / "changed.pt")
        again = small_model()
        with pytest.raises(CheckpointError, match=words):
            load_adapters(again, tmp_path / "changed.pt")
        assert again.adapters.names == []
