"""Models in the Hugging Face layout compute what transformers computes, and come back from it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.checkpoints.huggingface.model import KEYS, layout_key, read_huggingface
from overtone.checkpoints.huggingface.peft import read_peft
from overtone.checkpoints.huggingface.tokenizer import write_model
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.keys import nemo_key
from overtone.errors import CheckpointError, OvertoneError
from overtone.models.asr_model import AsrModel
from support.families import family_model
from support.fixtures import HERE, fixture_file

FOLDER = HERE / "fixtures" / "huggingface"
KINDS = ("ctc", "rnnt", "tdt")
FRAMES = (10, 7)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    with np.load(FOLDER / "expected.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def emissions(model: AsrModel, expected: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        values, lengths = model.recognise(expected["features"].transpose(1, 2), expected["frames"])
    assert tuple(lengths.tolist()) == FRAMES
    return values


def assert_rows_equal(own: Tensor, theirs: Tensor, *, atol: float = 1e-4) -> None:
    for row, frames in enumerate(FRAMES):
        torch.testing.assert_close(own[row, :frames], theirs[row, :frames], atol=atol, rtol=0.0)


def copy_of(kind: str, folder: Path) -> Path:
    return Path(shutil.copytree(FOLDER / kind, folder / kind))


def change_json(path: Path, *keys: str, value: Any) -> None:
    content = place = json.loads(path.read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_ctc_computes_what_transformers_does(expected: dict[str, Tensor]) -> None:
    model = load_model(FOLDER / "ctc")
    assert_rows_equal(emissions(model, expected), expected["ctc"])


def test_features_are_those_of_its_extractor(expected: dict[str, Tensor]) -> None:
    mel, frames = load_model(FOLDER / "ctc").preprocessor(expected["waves"], expected["samples"])
    assert frames.tolist() == expected["frames"].tolist()
    for row, count in enumerate(frames.tolist()):
        own, theirs = mel[row, :, :count].T, expected["features"][row, :count]
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("kind", ["rnnt", "tdt"])
def test_transducers_score_and_decode_as_transformers_does(kind: str, expected: dict[str, Tensor]) -> None:
    model = load_model(FOLDER / kind)
    assert model.decoder.embed.weight[-1].abs().max() > 0.1  # type: ignore[union-attr]
    frames = emissions(model, expected)
    with torch.no_grad():
        predictions = model.joint.pred(model.decoder(torch.tensor([[5, 9], [7, 7]])))  # type: ignore[operator,union-attr]
        assert_rows_equal(model.joint(frames, predictions), expected[kind])  # type: ignore[operator]
    found = model.transcribe(expected["waves"], expected["samples"])
    for row, hypothesis in enumerate(found):
        assert list(hypothesis.ids) == expected[f"{kind}_tokens_{row}"].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_written_and_read_again_is_the_same(kind: str, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    model = load_model(FOLDER / kind)
    save_model(model, tmp_path / "again", layout="huggingface")
    again = load_model(tmp_path / "again")
    assert again.fingerprint() == model.fingerprint()
    assert again.tokenizer.digest() == model.tokenizer.digest()
    theirs, ours = load_file(FOLDER / kind / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    for place in (("encoder_config",), ()):
        old, new = (json.loads((f / "config.json").read_text()) for f in (FOLDER / kind, tmp_path / "again"))
        for key in place:
            old, new = old[key], new[key]
        ignored = ("layerdrop", "transformers_version", "encoder_config")
        assert {k: v for k, v in new.items() if k in old and k not in ignored} == {
            k: v for k, v in old.items() if k in new and k not in ignored
        }


@pytest.mark.parametrize("kind", KINDS)
def test_a_nemo_of_the_same_weights_has_the_same_fingerprint(kind: str, tmp_path: Path) -> None:
    model = load_model(FOLDER / kind)
    save_model(model, tmp_path / "same.nemo")
    nemo = load_model(tmp_path / "same.nemo")
    assert nemo.fingerprint() == model.fingerprint()
    assert nemo.tokenizer.digest() == model.tokenizer.digest()
    save_model(nemo, tmp_path / "back", layout="huggingface")
    assert load_model(tmp_path / "back").fingerprint() == model.fingerprint()


def test_the_embedded_model_keeps_fingerprint_and_tokenizer(tmp_path: Path) -> None:
    model = load_model("fundamental")
    save_model(model, tmp_path / "fundamental", layout="huggingface")
    (tmp_path / "fundamental" / "tokenizer.model").unlink()
    again = load_model(tmp_path / "fundamental")
    assert again.fingerprint() == model.fingerprint()
    assert again.tokenizer.digest() == model.tokenizer.digest()


@pytest.mark.parametrize("name", ["fastconformer_ctc_bpe", "fastconformer_tdt_bpe"])
def test_a_model_of_nemo_through_the_layout_is_the_same(name: str, tmp_path: Path) -> None:
    model = load_model(fixture_file(f"{name}/model.nemo"))
    save_model(model, tmp_path / "hf", layout="huggingface")
    again = load_model(tmp_path / "hf")
    for key, tensor in model.base_state_dict().items():
        torch.testing.assert_close(again.base_state_dict()[key], tensor, atol=1e-6, rtol=1e-6)


def test_the_table_of_keys_is_one_to_one() -> None:
    for kind in KINDS:
        keys = [nemo_key(name) for name in load_model(FOLDER / kind).base_state_dict()]
        assert len({layout_key(key) for key in keys}) == len(keys)
    assert len({nemo for nemo, _ in KEYS}) == len(KEYS)


def test_several_files_of_weights_are_one_model(tmp_path: Path) -> None:
    folder = copy_of("ctc", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(sorted(tensors))}
    for name in set(places.values()):
        save_file({key: tensors[key] for key, place in places.items() if place == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert load_model(folder).fingerprint() == load_model(FOLDER / "ctc").fingerprint()
    index.write_text(json.dumps({"weight_map": {**places, "left": next(iter(places.values()))}}))
    with pytest.raises(CheckpointError, match="Missing: left"):
        load_model(folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "../ctc/model.safetensors")}))
    with pytest.raises(CheckpointError, match="points outside"):
        load_model(folder)


def test_settings_of_the_features_lie_in_one_of_two_files(tmp_path: Path) -> None:
    folder = copy_of("ctc", tmp_path)
    features = json.loads((folder / "processor_config.json").read_text())["feature_extractor"]
    (folder / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match="no settings of the features"):
        load_model(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(features))
    assert load_model(folder).fingerprint() == load_model(FOLDER / "ctc").fingerprint()


def test_half_precision_is_written_and_read(tmp_path: Path) -> None:
    save_model(load_model(FOLDER / "ctc"), tmp_path / "half", layout="huggingface", storage="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["encoder.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert load_model(tmp_path / "half").encoder.layers[0].self_attn.linear_q.weight.dtype == torch.float32  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("model_type",), "wav2vec2", "Supported: parakeet_ctc, parakeet_rnnt, parakeet_tdt"),
        (("model_type",), ["parakeet_ctc"], "Supported: parakeet_ctc"),
        (("vocab_size",), "many", "config.json.vocab_size is many"),
        (("pad_token_id",), 3, "the last of vocab_size"),
        (("strange",), 1, "config.json.strange is 1; this key is unknown"),
        (("encoder_config", "hidden_act"), "gelu", "encoder_config.hidden_act is gelu.*Supported: silu"),
        (("encoder_config", "intermediate_size"), 33, "a multiple of hidden_size 16"),
        (("encoder_config", "convolution_bias"), False, "the same as attention_bias"),
        (("encoder_config", "num_attention_heads"), 5, "a divisor of hidden_size"),
        (("encoder_config", "conv_kernel_size"), 4, "an odd number"),
        (("encoder_config", "subsampling_factor"), 6, "a power of 2"),
        (("encoder_config", "num_mel_bins"), 64, "they must be equal"),
        (("encoder_config", "num_hidden_layers"), 900, "cannot be the 900 layers"),
        (("encoder_config", "num_hidden_layers"), 3, "Missing: encoder.layers.2"),
        (("encoder_config", "hidden_size"), 65536, "intermediate_size is 32"),
        (("encoder_config", "subsampling_conv_channels"), 65536, "encoder.subsampling.* has shape"),
        (("encoder_config",), [], "a mapping of keys is needed"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(
    keys: tuple[str, ...], value: Any, words: str, tmp_path: Path
) -> None:
    folder = copy_of("ctc", tmp_path)
    change_json(folder / "config.json", *keys, value=value)
    with pytest.raises(CheckpointError, match=words):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("win_length", 600, "at most n_fft"),
        ("padding_value", 1.0, "padding_value is 1.0"),
        ("feature_extractor_type", "WhisperFeatureExtractor", "Supported: ParakeetFeatureExtractor"),
        ("n_fft", 10**9, "n_fft is 1000000000"),
    ],
)
def test_other_features_are_refused_by_their_key(key: str, value: Any, words: str, tmp_path: Path) -> None:
    folder = copy_of("ctc", tmp_path)
    change_json(folder / "processor_config.json", "feature_extractor", key, value=value)
    with pytest.raises(CheckpointError, match=words):
        load_model(folder)


def test_durations_that_cannot_be_are_refused(tmp_path: Path) -> None:
    folder = copy_of("tdt", tmp_path)
    change_json(folder / "config.json", "durations", value=[0, 0])
    with pytest.raises(CheckpointError, match=r"durations is .0, 0."):
        load_model(folder)


def test_damaged_and_missing_files_are_told(tmp_path: Path) -> None:
    folder = copy_of("ctc", tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no matter")
    with pytest.raises(CheckpointError, match=r"has no model.safetensors.*a pickle that is not read"):
        load_model(folder)
    folder = copy_of("rnnt", tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be read"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged or no JSON"):
        load_model(folder)


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = copy_of("ctc", tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    del content["model"]["vocab"]["ould"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"has no token [0-9]+, and 1 of 128 are missing"):
        load_model(folder)
    (folder / "tokenizer.model").write_bytes(write_model([("<unk>", 0.0, 2), ("a", 0.0, 1)], 2, b""))
    with pytest.raises(CheckpointError, match="has 2 pieces, the model 128 tokens"):
        load_model(folder)
    (folder / "tokenizer.model").write_text("nothing of that kind")
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        load_model(folder)


def test_what_the_layout_has_no_place_for_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"encoder.subsampling is striding"):
        save_model(family_model("conformer"), tmp_path / "no", layout="huggingface")
    with pytest.raises(CheckpointError, match="CharTokenizer has no form"):
        save_model(family_model("fastconformer"), tmp_path / "no", layout="huggingface")
    model = load_model(FOLDER / "ctc")
    model.adapters.add("medical", LinearAdapter(dim=4))
    with pytest.raises(CheckpointError, match="'medical' is of kind linear; PEFT's folders hold LoRA alone"):
        save_model(model, tmp_path / "no", layout="huggingface")
    with pytest.raises(CheckpointError, match=r"would be a .nemo"):
        save_model(model, tmp_path / "no.nemo", layout="huggingface")
    with pytest.raises(CheckpointError, match=r"layout 'onnx' is unknown. Allowed: huggingface"):
        save_model(model, tmp_path / "no", layout="onnx")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("citrinet_ctc_bpe", "no place for an encoder of kind jasper"),
        ("conformer_tdt_stateless_bpe", "no place for a stateless prediction network"),
        ("fastconformer_hybrid_rnnt_ctc_bpe", "no place for a hybrid of two heads"),
        ("fastconformer_cache_aware_ctc_bpe", "which the Hugging Face layout has no place for"),
    ],
)
def test_models_that_the_layout_does_not_have_are_not_written(name: str, words: str, tmp_path: Path) -> None:
    model = load_model(fixture_file(f"{name}/model.nemo"))
    with pytest.raises(CheckpointError, match=words):
        save_model(model, tmp_path / "no", layout="huggingface")


def places_in(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value, the first of a long mapping or list."""
    entries = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    for key, value in entries[:25] if len(place) < 2 else entries[:4]:
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from places_in(value, (*place, key))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("tdt", "config.json"),
        ("ctc", "processor_config.json"),
        ("ctc", "tokenizer.json"),
        ("lora", "adapter_config.json"),
    ],
)
def test_whatever_a_key_holds_the_error_is_ours(kind: str, name: str, tmp_path: Path) -> None:
    folder, base = copy_of(kind, tmp_path), load_model(FOLDER / "ctc")
    original, refused = json.loads((folder / name).read_text()), 0
    for place in places_in(original):
        for value in (None, [], {}, -1, 3.5, float("inf"), "x", 2**70, [{}]):
            changed = inner = copy.deepcopy(original)
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            (folder / name).write_text(json.dumps(changed))
            try:
                read_peft(base, folder) if kind == "lora" else read_huggingface(folder)
            except OvertoneError as error:
                refused += str(folder) in str(error)
    assert refused > 20


def test_existing_folders_are_kept(tmp_path: Path) -> None:
    model, folder = load_model(FOLDER / "ctc"), copy_of("ctc", tmp_path)
    with pytest.raises(CheckpointError, match="exists already"):
        save_model(model, folder, layout="huggingface")
    save_model(model, folder, layout="huggingface", overwrite=True)
    assert load_model(folder).fingerprint() == model.fingerprint()
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="no folder of a model in the Hugging Face layout"):
        save_model(model, tmp_path / "mine", layout="huggingface", overwrite=True)


def test_lora_adapters_come_along(tmp_path: Path) -> None:
    model = load_model(FOLDER / "ctc")
    adapter = model.adapters.add("medical", LoraAdapter(rank=2, targets=("k", "out")), layers="last:1")
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    save_model(model, tmp_path / "adapted", layout="huggingface")
    again = load_model(tmp_path / "adapted")
    assert again.adapters.names == ["medical"]
    assert again.adapters["medical"].digest() == adapter.digest()
    assert not load_model(tmp_path / "adapted", adapters=False).adapters.names


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_is_written(kind: str, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is no dependency")
    names = {"ctc": "ParakeetForCTC", "rnnt": "ParakeetForRNNT", "tdt": "ParakeetForTDT"}
    model = load_model(FOLDER / kind)
    save_model(model, tmp_path / "model", layout="huggingface")
    theirs, report = getattr(transformers, names[kind]).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "model")
    waves = [wave[:samples].numpy() for wave, samples in zip(expected["waves"], expected["samples"], strict=True)]
    inputs = processor(waves, sampling_rate=16_000)
    assert_rows_equal(inputs["input_features"], expected["features"])
    with torch.no_grad():
        encoded = theirs.eval().encoder(inputs["input_features"], inputs["attention_mask"]).last_hidden_state
        own, _ = model.encoder(expected["features"].transpose(1, 2), expected["frames"])
    assert_rows_equal(encoded, own)
    for row, hypothesis in enumerate(model.transcribe(expected["waves"], expected["samples"])):
        generated = theirs.generate(**processor(waves[row], sampling_rate=16_000), max_new_tokens=400)
        tokens = generated if kind == "ctc" else generated.sequences
        assert processor.decode(tokens[0], skip_special_tokens=True) == hypothesis.text
    text = "the doctor said nine more words"
    assert processor.tokenizer(text).input_ids == model.tokenizer.encode(text)
    assert processor.tokenizer.decode(model.tokenizer.encode(text), group_tokens=False) == text
