"""`.nemo` files: read with the numbers they were written with, written so that nothing else changes."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.keys import nemo_key
from overtone.checkpoints.nemo.model import load_base, read_nemo, write_nemo
from overtone.errors import CheckpointError
from support.disk import full_disk
from support.fixtures import fixture_file
from support.nemo_samples import LETTERS, edit_nemo, heard, parts_of, piece_tokenizer, shake, small_model

CTC_MODELS = ["conformer_ctc_bpe", "conformer_ctc_char", "fastconformer_ctc_bpe"]
COMBINATIONS = ["none", "an4", "two", "an4+two", "rel", "wide", "mhsa", "an4+rel", "dec", "both", "all"]


@pytest.fixture(scope="module")
def reference_mel() -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's own features [3, 80, T] and frames [3], so that files and nets alone are measured."""
    arrays = np.load(fixture_file("mel/reference.npz"))
    mel = torch.zeros(3, 80, arrays["mel_2"].shape[2])
    for row in range(3):
        mel[row, :, : arrays[f"mel_{row}"].shape[2]] = torch.from_numpy(arrays[f"mel_{row}"][0])
    return mel, torch.from_numpy(arrays["mel_len_b"])


@pytest.mark.parametrize("model", CTC_MODELS)
def test_log_probs_equal_the_reference(model: str, reference_mel: tuple[torch.Tensor, torch.Tensor]) -> None:
    base, adapted = (read_nemo(fixture_file(f"{model}/{file}.nemo")) for file in ("model", "adapted"))
    for recogniser, combination in [(base, "base")] + [(adapted, combination) for combination in COMBINATIONS]:
        choice = {"base": None, "none": None, "all": "@file"}.get(combination, combination)
        expected = np.load(fixture_file(f"{model}/ref_{combination}.npz"))
        with torch.no_grad(), recogniser.adapters.use(choice):
            log_probs, frames = recogniser.recognise(*reference_mel)
        assert frames.tolist() == expected["enc_len_b"].tolist()
        for row, count in enumerate(frames.tolist()):
            found = log_probs[row, :count]
            assert found.argmax(-1).tolist() == expected["ctc_argmax_b"][row, :count].tolist(), combination
            if "logp_b" in expected:
                # Seven random adapters in a row amplify rounding: NeMo itself differs by 2e-4 between machines.
                tolerance = 5e-4 if combination == "all" else 5e-5
                np.testing.assert_allclose(found.numpy(), expected["logp_b"][row, :count], rtol=0, atol=tolerance)


@pytest.mark.parametrize("model", CTC_MODELS)
@pytest.mark.parametrize("file", ["model", "adapted"])
def test_an_unchanged_model_is_written_unchanged(tmp_path: Path, model: str, file: str) -> None:
    source = fixture_file(f"{model}/{file}.nemo")
    read = read_nemo(source)
    write_nemo(read, tmp_path / "again.nemo")
    (config, tensors, files), (config_again, tensors_again, files_again) = map(
        parts_of, (source, tmp_path / "again.nemo")
    )
    assert config_again == config
    assert list(map(str, config_again)) == list(map(str, config))
    assert files_again == files
    assert tensors_again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert tensors_again[key].dtype == tensor.dtype
        assert torch.equal(tensors_again[key], tensor), key
    assert read_nemo(tmp_path / "again.nemo").fingerprint() == read.fingerprint()


def test_an_adapted_file_has_the_base_of_the_plain_one() -> None:
    path = fixture_file("conformer_ctc_char/adapted.nemo")
    adapted, bare = read_nemo(path), read_nemo(path, adapters=False)
    assert adapted.adapters.names == ["an4", "two", "rel", "wide", "mhsa", "dec", "both"]
    assert bare.adapters.names == []
    assert adapted.fingerprint() == bare.fingerprint()
    assert torch.equal(heard(adapted), heard(bare))
    assert adapted.name == "adapted"
    assert isinstance(adapted.adapters["two"].kind, LinearAdapter)
    assert adapted.adapters["two"].kind == LinearAdapter(dim=6, activation="relu", norm_position="post")
    assert adapted.adapters["wide"].kind == TinyAttentionAdapter(heads=2, projection=8, position="rel_pos")
    assert adapted.adapters["mhsa"].kind == TinyAttentionAdapter(heads=2, projection=None, position="abs_pos")
    assert adapted.adapters["both"].modules_text == "encoder+decoder"


def test_enabled_flags_are_kept_and_only_used_when_asked_for(tmp_path: Path) -> None:
    def switch(config: dict[str, Any]) -> None:
        for name in ("an4", "rel", "both"):
            config["adapters"][name]["enabled"] = False
        del config["adapters"]["dec"]["enabled"]

    path = edit_nemo(fixture_file("conformer_ctc_char/adapted.nemo"), tmp_path / "some.nemo", config=switch)
    model = read_nemo(path)
    assert model.adapters.file_choice == ("two", "wide", "mhsa", "dec")
    assert torch.equal(heard(model), heard(read_nemo(path, adapters=False)))
    assert torch.equal(heard(model, "@file"), heard(model, "two+wide+mhsa+dec"))
    nemo = model.adapters["an4"].nemo
    assert nemo is not None
    assert nemo["enabled"] is False
    nemo["enabled"] = True
    write_nemo(model, tmp_path / "again.nemo")
    flags = {name: entry.get("enabled") for name, entry in parts_of(tmp_path / "again.nemo")[0]["adapters"].items()}
    assert flags == {
        "global_cfg": None, "an4": True, "two": True, "rel": False, "wide": True, "mhsa": True, "dec": True,
        "both": False,
    }  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokenizer", ["characters", "pieces"])
def test_a_fresh_model_is_written_and_read(tmp_path: Path, tokenizer: str, packed: bool) -> None:
    model = small_model(piece_tokenizer() if tokenizer == "pieces" else None)
    path = tmp_path / "fresh.nemo"
    write_nemo(model, path)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    again = read_nemo(path)
    assert again.fingerprint() == model.fingerprint()
    assert again.tokenizer.vocabulary == model.tokenizer.vocabulary
    assert again.tokenizer.digest() == model.tokenizer.digest()
    assert torch.equal(heard(again), heard(model))
    assert int(again.encoder.layers[0].conv.batch_norm.num_batches_tracked) == 77
    assert again.name == "fresh"
    assert not again.training
    config, tensors, files = parts_of(path)
    assert tensors["decoder.decoder_layers.0.weight"].shape == (model.tokenizer.size + 1, 16, 1)
    assert config["decoder"]["vocabulary"] == model.tokenizer.vocabulary
    if tokenizer == "pieces":
        named = [str(config["tokenizer"][key]) for key in ("model_path", "vocab_path", "spe_tokenizer_vocab")]
        assert sorted(files) == sorted(name.removeprefix("nemo:") for name in named)
        assert files[named[0].removeprefix("nemo:")] == model.tokenizer.model_bytes
        assert len(files[named[2].removeprefix("nemo:")].decode().splitlines()) == model.tokenizer.size


ENCODERS = {
    "absolute": {"position": "abs_pos"},
    "tied": {"untie_biases": False},
    "depthwise": {"subsampling": "dw_striding", "subsampling_factor": 8, "subsampling_channels": 8},
    "stacking": {"subsampling": "stacking_norm"},
    "causal": {"conv_context": [4, 0], "causal_downsampling": True, "attention_context": [8, 0]},
    "chunked": {"attention_context": [8, 3], "attention_context_style": "chunked_limited"},
    "norms": {"conv_norm": "layer_norm", "use_bias": False, "scale_input": False},
    "groups": {"conv_norm": "group_norm4", "output_width": 12},
}


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_every_family_of_encoders_is_written_and_read(tmp_path: Path, encoder: dict[str, Any]) -> None:
    model = small_model(**encoder)
    write_nemo(model, tmp_path / "fresh.nemo")
    again = read_nemo(tmp_path / "fresh.nemo")
    assert again.fingerprint() == model.fingerprint()
    assert torch.equal(heard(again), heard(model))
    assert set(again.base_state_dict()) == set(model.base_state_dict())


def test_tied_biases_are_one_tensor_and_must_be_equal_in_the_file(tmp_path: Path) -> None:
    write_nemo(small_model(untie_biases=False), tmp_path / "tied.nemo")
    again = read_nemo(tmp_path / "tied.nemo")
    first, second = (layer.self_attn.pos_bias_u for layer in again.encoder.layers)
    assert first is second

    def part(weights: dict[str, Any]) -> None:
        key = "encoder.layers.1.self_attn.pos_bias_u"
        weights[key] = weights[key] + 1

    path = edit_nemo(tmp_path / "tied.nemo", tmp_path / "untied.nemo", weights=part)
    with pytest.raises(CheckpointError, match="differs between layers"):
        read_nemo(path)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    def halve(weights: dict[str, Any]) -> None:
        for key, tensor in weights.items():
            weights[key] = tensor.half() if tensor.is_floating_point() else tensor

    write_nemo(small_model(), tmp_path / "whole.nemo")
    model = read_nemo(edit_nemo(tmp_path / "whole.nemo", tmp_path / "half.nemo", weights=halve))
    assert {tensor.dtype for tensor in model.base_state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(heard(model), heard(small_model()), rtol=0, atol=0.05)


def test_new_adapters_are_written_as_nemo_writes_them(tmp_path: Path) -> None:
    model = small_model()
    write_nemo(model, tmp_path / "base.nemo")
    model = read_nemo(tmp_path / "base.nemo")
    model.adapters.add("an4", LinearAdapter(dim=4))
    model.adapters.add("an4_v2", TinyAttentionAdapter(heads=2, projection=4), layers=[1])
    model.adapters.add("post", LinearAdapter(dim=3, norm_position="post"), modules="encoder+decoder", layers=[0])
    for name in model.adapters.names:
        shake(model, name)
    write_nemo(model, tmp_path / "adapted.nemo")
    config, tensors, _ = parts_of(tmp_path / "adapted.nemo")
    assert config["encoder"]["_target_"] == "nemo.collections.asr.modules.conformer_encoder.ConformerEncoderAdapter"
    assert config["adapters"]["global_cfg"] == {
        "adapter_meta_cfg": {"modules": {"an4": "", "an4_v2": "", "post": "encoder+decoder"}}
    }
    assert list(config["adapters"]["an4"]) == [
        "in_features", "dim", "activation", "norm_position", "dropout", "adapter_strategy", "_target_", "enabled",
    ]  # fmt: skip
    assert tensors["encoder.layers.1.adapter_layer.an4.module.1.weight"].shape == (4, 16)
    assert tensors["encoder.layers.0.adapter_layer.an4_v2.linear_q.weight"].shape == (4, 16)
    again = read_nemo(tmp_path / "adapted.nemo")
    assert again.adapters.names == ["an4", "an4_v2", "post"]
    assert again.adapters.file_choice == ("an4", "an4_v2", "post")
    for choice in (None, "an4", "an4_v2", "post", "an4+an4_v2+post"):
        torch.testing.assert_close(heard(again, choice), heard(model, choice), rtol=0, atol=1e-6)
    again.adapters.remove("an4")
    write_nemo(again, tmp_path / "fewer.nemo")
    assert read_nemo(tmp_path / "fewer.nemo").adapters.names == ["an4_v2", "post"]
    again.adapters.remove("an4_v2")
    again.adapters.remove("post")
    write_nemo(again, tmp_path / "none.nemo")
    assert not any("adapter" in key for key in parts_of(tmp_path / "none.nemo")[1])
    assert read_nemo(tmp_path / "none.nemo").fingerprint() == model.fingerprint()


def test_what_nemo_lacks_is_not_written(tmp_path: Path) -> None:
    model = small_model()
    model.adapters.add("low", LoraAdapter(rank=2))
    with pytest.raises(CheckpointError, match=r"'low' is of kind lora, which NeMo does not have\. Save it as"):
        write_nemo(model, tmp_path / "m.nemo")
    model.adapters.remove("low")
    for name in ("a.b", "global_cfg", "keys", "forward"):
        model.adapters.add(name, LinearAdapter(dim=2))
        with pytest.raises(CheckpointError, match=f"'{name}' cannot be an adapter's name in NeMo"):
            write_nemo(model, tmp_path / "m.nemo")
        model.adapters.remove(name)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.nemo"
    model = small_model(piece_tokenizer())
    model.adapters.add("an4", LinearAdapter(dim=4))
    write_nemo(model, path)
    return path


def drop(key: str) -> Any:
    return lambda weights: weights.pop(key)


def put(key: str, value: Any) -> Any:
    return lambda weights: weights.__setitem__(key, value)


def put_deep(*keys: str, value: Any) -> Any:
    def put_in(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return put_in


FILTERS = "preprocessor.featurizer.fb"
NORM = "encoder.layers.0.norm_conv.weight"
ADAPTER = "encoder.layers.1.adapter_layer.an4.module.1.weight"
BAD_FILES = {
    "a tensor missing": ({"weights": drop(NORM)}, f"Missing: {NORM}. Left over: none"),
    "a tensor left over": ({"weights": put("encoder.layers.0.x", torch.ones(1))}, "Left over: encoder.layers.0.x"),
    "a tensor of another shape": ({"weights": put(NORM, torch.ones(3))}, f"{NORM} has shape [3]"),
    "a tensor of whole numbers": ({"weights": put(NORM, torch.ones(16, dtype=torch.int64))}, "holds torch.int64"),
    "more layers": ({"config": put_deep("encoder", "n_layers", value=900)}, "the 900 layers of its"),
    "more layers of which the last is there": (
        {
            "config": put_deep("encoder", "n_layers", value=30),
            "weights": lambda w: [w.update({key.replace("s.1.", "s.29.", 1): w[key].clone()}) for key in list(w)],
        },
        "Missing: encoder.layers.10.",
    ),
    "a wider model": (
        {"config": lambda c: (c["encoder"].update(d_model=65536), c["decoder"].update(feat_in=65536))},
        "configuration asks for [65536",
    ),
    "a long window": ({"config": put_deep("preprocessor", "window_size", value=50.0)}, "featurizer.window"),
    "a long transform": ({"config": put_deep("preprocessor", "n_fft", value=999_999)}, "featurizer.fb"),
    "a transform that is too short": (
        {"config": put_deep("preprocessor", "n_fft", value=16), "weights": put(FILTERS, torch.ones(1, 40, 9))},
        "n_fft is 16, shorter than the window",
    ),
    "a strategy that is none": ({"config": put_deep("adapters", "an4", "adapter_strategy", value=[1])}, "is [1]"),
    "a target that is none": ({"config": put_deep("encoder", "_target_", value=[1])}, "encoder._target_ is [1]"),
    "more classes": ({"config": put_deep("decoder", "num_classes", value=10**6)}, "the tokenizer 40 symbols"),
    "no tokenizer": ({"config": put_deep("tokenizer", "model_path", value="nemo:x.model")}, "no 'x.model'"),
    "an adapter's tensor missing": ({"weights": drop(ADAPTER)}, "missing module.1.weight"),
    "an adapter's tensor left over": ({"weights": put(f"{ADAPTER}x", torch.ones(1))}, "left over module.1.weightx"),
    "an adapter's other shape": ({"weights": put(ADAPTER, torch.ones(2, 16))}, "expected [4, 16]"),
    "an adapter too wide": ({"config": put_deep("adapters", "an4", "dim", value=65536)}, "expected [65536, 16]"),
    "an adapter in one layer": (
        {"weights": lambda w: [w.pop(key) for key in list(w) if "layers.1.adapter" in key]},
        "tensors for encoder.layers.0; this model needs them for encoder.layers.0, encoder.layers.1",
    ),
    "an adapter without configuration": ({"config": lambda c: c.pop("adapters")}, "its weights those of an4"),
    "an adapter without tensors": (
        {"weights": lambda w: [w.pop(key) for key in list(w) if "adapter_layer" in key]},
        "the adapters an4, its weights those of none",
    ),
    "an adapter of another kind": ({"config": put_deep("adapters", "an4", "_target_", value="a.B")}, "_target_ is a.B"),
    "an adapter's unknown key": ({"config": put_deep("adapters", "an4", "gate", value=1)}, "an4.gate is 1"),
    "another strategy": (
        {"config": put_deep("adapters", "an4", "adapter_strategy", "_target_", value="x.ReturnResult")},
        "_target_ is x.ReturnResult",
    ),
    "an unknown activation": ({"config": put_deep("adapters", "an4", "activation", value="x")}, "activation 'x'"),
    "no weights": ({"files": drop("model_weights.ckpt")}, "holds no 'model_weights.ckpt'"),
    "no configuration": ({"files": drop("model_config.yaml")}, "holds no 'model_config.yaml'"),
    "weights that are none": ({"files": put("model_weights.ckpt", b"junk")}, "is no PyTorch file"),
    "a damaged tokenizer": (
        {"files": lambda files: files.update({key: b"x" for key in files if key.endswith("tokenizer.model")})},
        "is not a sentencepiece model",
    ),
    "a distributed checkpoint": (
        {"files": lambda files: (files.pop("model_weights.ckpt"), files.update({"w/metadata.json": b""}))},
        "distributed checkpoint",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edits", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_does_not_fit_itself_is_refused(
    tmp_path: Path, good: Path, edits: dict[str, Any], words: str
) -> None:
    path = edit_nemo(good, tmp_path / "bad.nemo", **edits)
    with pytest.raises(CheckpointError) as caught:
        read_nemo(path)
    assert words in str(caught.value)
    assert read_nemo(good).adapters.names == ["an4"]


def test_a_file_that_would_execute_something_executes_nothing(tmp_path: Path, good: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "executed"), "w")

    buffer = io.BytesIO()
    torch.save({"a": Evil()}, buffer, pickle_module=pickle)
    path = edit_nemo(good, tmp_path / "bad.nemo", files=put("model_weights.ckpt", buffer.getvalue()))
    with pytest.raises(CheckpointError, match=r"asks to call 'io\.open'; it is refused and nothing was executed"):
        read_nemo(path)
    assert not (tmp_path / "executed").exists()


def test_truncated_files_are_refused(tmp_path: Path, good: Path) -> None:
    content = good.read_bytes()
    for cut in (0, 700, len(content) // 2, len(content) - 12_000):
        (tmp_path / "cut.nemo").write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match=r"cut\.nemo"):
            read_nemo(tmp_path / "cut.nemo")


def test_a_training_configuration_around_it_is_taken_off(tmp_path: Path, good: Path) -> None:
    def wrap(config: dict[str, Any]) -> None:
        inner = dict(config)
        inner["decoder"] |= {"feat_in": "${model.encoder.d_model}"}
        config.clear()
        config |= {"name": "x", "model": inner, "trainer": {"devices": 1}}

    assert heard(read_nemo(edit_nemo(good, tmp_path / "x.nemo", config=wrap))).equal(heard(read_nemo(good)))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    model = small_model()
    path = tmp_path / "m.nemo"
    write_nemo(model, path)
    with torch.no_grad():
        model.decoder.projection.bias.add_(1)
    before = path.read_bytes()
    with full_disk(20_000), pytest.raises(CheckpointError, match=r"File too large\. Check"):
        write_nemo(model, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.nemo"]


def test_save_model_keeps_what_exists(tmp_path: Path) -> None:
    model = small_model()
    path = save_model(model, tmp_path / "m.nemo")
    with pytest.raises(CheckpointError, match="exists already"):
        save_model(model, path)
    assert load_model(save_model(model, path, overwrite=True)).tokenizer.vocabulary == LETTERS
    with pytest.raises(CheckpointError, match="holds float32"):
        save_model(model, tmp_path / "h.nemo", storage="float16")
    with pytest.raises(CheckpointError, match=r"not written as \.pt"):
        save_model(model, tmp_path / "m.pt")


def test_values_that_were_moved_into_the_model_are_no_longer_held() -> None:
    model = small_model()
    values = {nemo_key(name): torch.full_like(value, 2) for name, value in model.base_state_dict().items()}
    load_base(model, values, "somewhere")
    assert not values
    assert all((value == 2).all() for value in model.base_state_dict().values())
