"""The contract of NeMo's adapter tests, against NeMo's names over our models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf, open_dict
from torch import Tensor

import overtone.compat.nemo as nemo_asr
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.checkpoints.load import load_model, save_model
from overtone.compat.nemo import (
    ASRModel,
    LinearAdapterConfig,
    MultiHeadAttentionAdapterConfig,
    RelPositionMultiHeadAttentionAdapterConfig,
    ResidualAddAdapterStrategyConfig,
    adapter_mixins,
)
from overtone.errors import AdapterError, CheckpointError, ConfigError, UsageError
from support.fixtures import fixture_file, fixture_models, recordings
from support.nemo_samples import parts_of, piece_tokenizer, shake, small_model

WIDTH = 16
LINEAR = LinearAdapterConfig(in_features=WIDTH, dim=4)


@pytest.fixture
def model() -> ASRModel:
    return ASRModel(small_model())


def said(model: ASRModel) -> Tensor:
    """log_probs of noise with the enabled adapters."""
    waveforms = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_signal=waveforms, input_signal_length=torch.tensor([8000, 7000]))[0]


def trained(model: ASRModel, *names: str) -> ASRModel:
    """Adapters with values that act, enabled in this order."""
    for name in names:
        model.add_adapter(name, LINEAR)
        shake(model.model, name.rpartition(":")[2])
    return model


# Adding


@pytest.mark.parametrize("name", ["an4", "encoder:an4", "decoder:an4", "encoder+decoder:an4"])
@pytest.mark.parametrize("position", ["pre", "post"])
def test_a_new_adapter_is_identity_and_enabled(model: ASRModel, name: str, position: str) -> None:
    before = said(model)
    model.add_adapter(name, replace(LINEAR, norm_position=position))
    assert model.is_adapter_available()
    assert model.get_enabled_adapters() == ["an4"]
    assert torch.equal(said(model), before)
    module = name.rpartition(":")[0]
    assert model.cfg.adapters.global_cfg.adapter_meta_cfg.modules.an4 == module
    assert (model.encoder.get_adapter_module("an4") is not None) == ("decoder" not in module or "encoder" in module)
    assert (model.decoder.get_adapter_module("an4") is not None) == ("decoder" in module)


def test_names_are_unique(model: ASRModel) -> None:
    model.add_adapter("an4", LINEAR)
    for name in ("an4", "decoder:an4"):
        with pytest.raises(AdapterError, match="exists already"):
            model.add_adapter(name, LINEAR)
    with pytest.raises(AdapterError, match="cannot be an adapter's name"):
        model.add_adapter("global_cfg", LINEAR)
    assert model.model.adapters.names == ["an4"]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("joint:an4", LINEAR, "'joint' has no adapters in this model"),
        ("text:an4", LINEAR, "Allowed: '', 'encoder', 'decoder'"),
        ("an4", replace(LINEAR, in_features=WIDTH + 1), "in_features is 17; the layers have 16"),
        (
            "decoder:an4",
            RelPositionMultiHeadAttentionAdapterConfig(n_head=1, n_feat=WIDTH),
            "has no point in the decoder",
        ),
        ("an4", {"_target_": "os.system", "in_features": WIDTH}, "_target_ is os.system"),
        ("an4", {**vars(LINEAR), "colour": 3}, "colour"),
        ("an4", "linear", "is no configuration"),
    ],
)
def test_what_cannot_be_added(model: ASRModel, name: str, config: Any, message: str) -> None:
    with pytest.raises((AdapterError, CheckpointError, UsageError), match=message):
        model.add_adapter(name, config)
    assert not model.is_adapter_available()
    assert "adapters" not in model.cfg or list(model.cfg.adapters) == ["global_cfg"]


@pytest.mark.parametrize("projection", [None, -1, 8])
def test_attention_adapters(model: ASRModel, projection: int | None) -> None:
    before = said(model)
    model.add_adapter("rel", RelPositionMultiHeadAttentionAdapterConfig(n_head=2, n_feat=WIDTH, proj_dim=projection))
    model.add_adapter("abs", MultiHeadAttentionAdapterConfig(n_head=2, n_feat=WIDTH, proj_dim=projection))
    assert torch.equal(said(model), before)
    assert model.get_adapter_cfg("rel").proj_dim == projection


def test_accepted_kinds(model: ASRModel) -> None:
    assert model.adapter_module_names == ["", "encoder", "decoder"]
    assert {kind.__name__ for kind in model.decoder.get_accepted_adapter_types()} == {"LinearAdapter"}
    assert {"LinearAdapter", "TinyAttentionAdapter"} <= {
        kind.__name__ for kind in model.encoder.get_accepted_adapter_types()
    }
    children = [child for child in model.children() if hasattr(child, "get_accepted_adapter_types")]
    assert len(children) == 2


# Enabling


def test_all_are_disabled_and_one_enabled(model: ASRModel) -> None:
    base = said(model)
    trained(model, "first", "second")
    both = said(model)
    model.set_enabled_adapters(enabled=False)
    assert model.get_enabled_adapters() == []
    assert torch.equal(said(model), base)
    model.set_enabled_adapters("first")
    first = said(model)
    assert not torch.equal(first, base)
    model.set_enabled_adapters(enabled=True)
    assert torch.equal(said(model), both)
    with model.model.adapters.use("first+second"):
        waveforms = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(model.model(waveforms, torch.tensor([8000, 7000]))[0], both), "a chain, in their order"


def test_encoder_and_decoder_are_enabled_apart(model: ASRModel) -> None:
    trained(model, "encoder:ear", "decoder:mouth")
    both = said(model)
    model.set_enabled_adapters("decoder:mouth", enabled=False)
    assert model.get_enabled_adapters() == ["ear"]
    assert not torch.equal(said(model), both)
    model.set_enabled_adapters("mouth", enabled=True)
    assert torch.equal(said(model), both)


def test_flags_by_configuration(model: ASRModel) -> None:
    trained(model, "first", "second")
    config = OmegaConf.create(OmegaConf.to_container(model.cfg.adapters))
    config.first.enabled = False
    model.update_adapter_cfg(config)
    assert model.get_enabled_adapters() == ["second"]
    with open_dict(model.cfg):
        model.cfg.adapters.second.enabled = False
    assert model.get_enabled_adapters() == []
    config.third = {"enabled": True}
    with pytest.raises(AdapterError, match="'third', which the model does not have"):
        model.update_adapter_cfg(config)


def test_adapters_that_nemo_lacks_are_left_alone(tmp_path: Path) -> None:
    """A LoRA of a model folder is not enabled by NeMo's names, and stays usable by our own."""
    own = small_model()
    own.adapters.add("low", LoraAdapter(rank=2))
    own.adapters.add("an4", LinearAdapter(dim=4))
    model = ASRModel.restore_from(save_model(own, tmp_path / "folder"))
    assert isinstance(model, ASRModel)
    assert model.get_enabled_adapters() == ["an4"]
    assert model.get_adapter_cfg("low") is None
    with pytest.raises(CheckpointError, match="low"):
        model.set_enabled_adapters("low")
    model.set_enabled_adapters(enabled=False)
    assert model.get_enabled_adapters() == []
    with model.model.adapters.use("low"):
        said(model)


def test_what_cannot_be_enabled(model: ASRModel) -> None:
    with pytest.raises(AdapterError, match="has no adapters to enable"):
        model.set_enabled_adapters(enabled=False)
    model.add_adapter("an4", LINEAR)
    for name, message in (("an5", "Did you mean 'an4'"), ("global_cfg", "is no adapter"), ("text:an4", "Allowed")):
        with pytest.raises(AdapterError, match=message):
            model.set_enabled_adapters(name)
    assert model.get_adapter_cfg("an5") is None
    assert model.get_adapter_module("an5") is None
    assert model.get_adapter_module("an4") is model.model.adapters["an4"]


@pytest.mark.parametrize(
    "name", [name for name in ("conformer_ctc_bpe", "fastconformer_ctc_bpe") if name in fixture_models()]
)
def test_numbers_are_those_of_nemo(name: str) -> None:
    """Each combination that was enabled in NeMo gives NeMo's log-probabilities."""
    import numpy as np

    model = ASRModel.restore_from(fixture_file(f"{name}/adapted.nemo"))
    assert isinstance(model, ASRModel)
    for chain in (["an4"], ["an4", "two"], []):
        model.set_enabled_adapters(enabled=False)
        for adapter in chain:
            model.set_enabled_adapters(adapter)
        reference = np.load(fixture_file(f"{name}/ref_{'+'.join(chain) or 'none'}.npz"))
        for index in (index for index in range(3) if f"logp_{index}" in reference):
            with torch.no_grad():
                log_probs, _, best = model(*recordings(index))
            wanted = torch.from_numpy(reference[f"logp_{index}"])
            torch.testing.assert_close(log_probs.reshape(wanted.shape), wanted, atol=1e-3, rtol=0)
            assert torch.equal(best.reshape(-1), wanted.reshape(-1, wanted.shape[-1]).argmax(-1))


# Freezing


def test_only_enabled_adapters_are_unfrozen(model: ASRModel) -> None:
    trained(model, "first", "second")
    model.set_enabled_adapters("first", enabled=False)
    model.freeze()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.unfreeze_enabled_adapters()
    learning = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert learning == {id(parameter) for parameter in model.model.adapters["second"].parameters()}
    norms = [module for module in model.modules() if "BatchNorm" in type(module).__name__]
    assert norms
    assert not any(norm.training for norm in norms)
    summary = model.summarize()
    assert summary.trainable_parameters == model.model.adapters["second"].parameter_count()
    assert summary.total_parameters == sum(x.numel() for x in model.model.parameters())
    assert "adapter second" in str(summary)
    with pytest.raises(UsageError, match="would change the base"):
        model.unfreeze_enabled_adapters(freeze_batchnorm=False)


# Files


def test_files_keep_what_is_enabled(model: ASRModel, tmp_path: Path) -> None:
    trained(model, "an4", "an4_v2")
    model.set_enabled_adapters("an4", enabled=False)
    model.save_to(tmp_path / "adapted.nemo")
    config = parts_of(tmp_path / "adapted.nemo")[0]["adapters"]
    assert (config["an4"]["enabled"], config["an4_v2"]["enabled"]) == (False, True)
    again = ASRModel.restore_from(tmp_path / "adapted.nemo")
    assert isinstance(again, ASRModel)
    assert again.get_enabled_adapters() == ["an4_v2"]
    assert torch.equal(said(again), said(model))
    again.set_enabled_adapters(enabled=False)
    again.save_to(tmp_path / "adapted.nemo")
    assert load_model(tmp_path / "adapted.nemo").adapters.file_choice == ()


@pytest.mark.parametrize("chosen", [None, "an4", "decoder:dec", ["an4", "an4_v2"]])
def test_adapters_alone(model: ASRModel, tmp_path: Path, chosen: Any) -> None:
    """Names are exact: `an4` does not take `an4_v2` along; what was enabled is enabled again."""
    trained(model, "an4", "an4_v2", "decoder:dec")
    model.set_enabled_adapters("an4_v2", enabled=False)
    model.save_adapters(tmp_path / "adapters.pt", name=chosen)
    fresh = ASRModel(small_model())
    fresh.load_adapters(tmp_path / "adapters.pt")
    wanted = {None: ["an4", "an4_v2", "dec"], "an4": ["an4"], "decoder:dec": ["dec"]}.get(
        chosen if not isinstance(chosen, list) else "", ["an4", "an4_v2"]
    )
    assert fresh.model.adapters.names == wanted
    assert fresh.get_enabled_adapters() == [name for name in wanted if name != "an4_v2"]
    for name in wanted:
        assert fresh.model.adapters[name].digest() == model.model.adapters[name].digest()
    with pytest.raises(AdapterError, match="exists already"):
        fresh.load_adapters(tmp_path / "adapters.pt")
    assert fresh.model.adapters.names == wanted


def test_one_of_a_file(model: ASRModel, tmp_path: Path) -> None:
    trained(model, "an4", "an4_v2")
    model.save_adapters(tmp_path / "adapters.pt")
    fresh = ASRModel(small_model())
    fresh.load_adapters(tmp_path / "adapters.pt", name="an4_v2")
    assert fresh.get_enabled_adapters() == ["an4_v2"]
    with pytest.raises(AdapterError, match="holds no adapter 'an5'"):
        fresh.load_adapters(tmp_path / "adapters.pt", name="an5")
    with pytest.raises(UsageError, match="loaded whole"):
        fresh.load_adapters(tmp_path / "adapters.pt", strict=False)
    with pytest.raises(AdapterError, match="no adapters to save"):
        ASRModel(small_model()).save_adapters(tmp_path / "none.pt")


def test_a_configuration_for_adapters_overrides(tmp_path: Path) -> None:
    """The step of NeMo's scripts that gives the encoder another class; another net is refused."""
    path = save_model(small_model(piece_tokenizer()), tmp_path / "base.nemo")
    config = ASRModel.restore_from(path, return_config=True)
    registered = adapter_mixins.get_registered_adapter(config.encoder._target_)
    assert registered is not None
    config.encoder._target_ = registered.adapter_class_path
    assert config.encoder._target_.endswith("ConformerEncoderAdapter")
    assert adapter_mixins.get_registered_adapter("nemo.Unknown") is None
    model = nemo_asr.models.ASRModel.from_pretrained(str(path), override_config_path=config)
    assert isinstance(model, ASRModel)
    assert model.cfg is config
    config.encoder.n_layers = 3
    with pytest.raises(ConfigError, match=r"encoder.n_layers is 3, the checkpoint's is 2"):
        ASRModel.restore_from(path, override_config_path=config)


# Recognition


def test_transcribe_uses_what_is_enabled(model: ASRModel, tmp_path: Path) -> None:
    import soundfile

    noise = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(1)).numpy()
    soundfile.write(tmp_path / "a.wav", noise, 16_000)
    base = model.transcribe([str(tmp_path / "a.wav")])[0]
    trained(model, "an4")
    adapted = model.transcribe([str(tmp_path / "a.wav")], timestamps=True)[0]
    assert adapted.text != base.text
    assert [word["word"] for word in adapted.timestamp["word"]] == adapted.text.split()
    model.set_enabled_adapters(enabled=False)
    assert model.transcribe([str(tmp_path / "a.wav")])[0] == base


def test_decoding(model: ASRModel) -> None:
    model.change_decoding_strategy(OmegaConf.create({"strategy": "greedy", "greedy": {"preserve_alignments": False}}))
    assert model.cfg.decoding.strategy == "greedy"
    for section, message in (
        ({"strategy": "beam"}, "Allowed: greedy, greedy_batch"),
        ({"strateg": "greedy"}, "Did you mean 'strategy'"),
        ({"preserve_alignments": True}, "is not supported"),
        ({"greedy": {"ngram_lm_model": "x.bin"}}, "greedy.ngram_lm_model"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.change_decoding_strategy(section)
    with pytest.raises(UsageError, match="Allowed: ctc"):
        model.change_decoding_strategy(decoder_type="rnnt")


# Settings


def test_settings_of_a_strategy(model: ASRModel) -> None:
    model.add_adapter("an4", replace(LINEAR, adapter_strategy=ResidualAddAdapterStrategyConfig(stochastic_depth=0.5)))
    assert model.model.adapters["an4"].strategy.stochastic_depth == 0.5


def test_sections_with_mistakes(model: ASRModel, tmp_path: Path) -> None:
    for key, call in (("lrr", model.setup_optimization), ("batch", model.setup_training_data)):
        with pytest.raises(ConfigError, match="unknown key"):
            call({key: 1})
    with pytest.raises(ConfigError, match="freq_mask"):
        model.from_config_dict({"freq_mask": 1})
    with pytest.raises(ConfigError, match="is_tarred"):
        model.setup_training_data({"manifest_filepath": str(tmp_path / "x"), "is_tarred": "maybe"})


def test_manifests(tmp_path: Path) -> None:
    nemo_asr.write_manifest(tmp_path / "m.json", [{"text": "ä", "duration": 1.5}])
    assert nemo_asr.read_manifest(tmp_path / "m.json") == [{"text": "ä", "duration": 1.5}]
    assert json.loads((tmp_path / "m.json").read_text("utf-8"))["text"] == "ä"
