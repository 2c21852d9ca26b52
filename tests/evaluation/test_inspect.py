"""Inspection: models, adapter folders and NeMo's adapter files, as data and as text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.adapters.storage import WORDS
from overtone.adapters.word_text import make_words
from overtone.checkpoints.load import save_model
from overtone.checkpoints.nemo.adapters import save_adapters
from overtone.errors import AdapterError, CheckpointError, UsageError
from overtone.evaluation.inspect import AdaptersInspection, ModelInspection, as_text, inspect
from overtone.models.asr_model import AsrModel
from support.fixtures import fixture_file
from support.small_models import add_trained, small_model


@pytest.fixture
def model() -> AsrModel:
    model = small_model()
    add_trained(model, "medical")
    add_trained(model, "noise", TinyAttentionAdapter())
    model.adapters["medical"].card = {"steps": 300, "wer": {"base": 0.25, "adapter": 0.125}}
    return model


def test_a_model_in_memory(model: AsrModel) -> None:
    found = inspect(model)
    assert isinstance(found, ModelInspection)
    assert found.parameters == sum(tensor.numel() for tensor in model.base_parameters())
    assert sum(part.parameters for part in found.parts) == found.parameters
    assert found.fingerprint == model.fingerprint()
    assert [adapter.name for adapter in found.adapters] == ["medical", "noise"]
    assert found.architecture.startswith("Conformer-CTC: 2 layers of width 32")
    assert found.tokenizer["size"] == 28
    assert found.bytes is None


def test_every_point_is_counted_with_the_kinds_that_act_there(model: AsrModel) -> None:
    found = inspect(model)
    assert isinstance(found, ModelInspection)
    assert sum(group.count for group in found.points) == len(model.adapters.points)
    kinds = {group.pattern: group.kinds for group in found.points}
    assert kinds["encoder.layers.*.after_block"] == ["linear"]
    assert kinds["encoder.layers.*.after_attention"] == ["tiny_attn"]
    assert kinds["encoder.layers.*.self_attn.q"] == ["lora"]
    assert kinds["decoder.input"] == ["linear"]


@pytest.mark.parametrize("name", ["model", "model.nemo"])
def test_a_model_on_disk_is_the_same_model(model: AsrModel, tmp_path: Path, name: str) -> None:
    save_model(model, tmp_path / name)
    found, memory = inspect(tmp_path / name), inspect(model)
    assert isinstance(found, ModelInspection)
    assert isinstance(memory, ModelInspection)
    assert (found.fingerprint, found.points) == (memory.fingerprint, memory.points)
    assert [part.parameters for part in found.parts] == [part.parameters for part in memory.parts]
    assert [adapter.digest for adapter in found.adapters] == [adapter.digest for adapter in memory.adapters]
    assert found.bytes is not None
    assert found.bytes > 4 * found.parameters


def test_an_adapter_folder_needs_no_base(model: AsrModel, tmp_path: Path) -> None:
    model.adapters.add("low", LoraAdapter(rank=2), layers="last:1")
    folder = model.adapters.save("low", tmp_path / "low")
    found = inspect(folder)
    assert isinstance(found, AdaptersInspection)
    (adapter,) = found.adapters
    assert adapter.kind == "lora"
    assert adapter.settings["rank"] == 2
    assert adapter.layers == "last:1"
    assert adapter.points == model.adapters["low"].points
    assert adapter.parameters == model.adapters["low"].parameter_count()
    assert adapter.base_fingerprint == model.fingerprint()
    assert inspect(folder / "adapter.yaml") == found


def test_adapters_of_nemo(model: AsrModel, tmp_path: Path) -> None:
    save_adapters(model, tmp_path / "adapters.pt")
    found = inspect(tmp_path / "adapters.pt")
    assert isinstance(found, AdaptersInspection)
    assert [(adapter.name, adapter.kind) for adapter in found.adapters] == [
        ("medical", "linear"),
        ("noise", "tiny_attn"),
    ]
    counts = [model.adapters[name].parameter_count() for name in ("medical", "noise")]
    assert [adapter.parameters for adapter in found.adapters] == counts


def test_a_model_that_nemo_adapted() -> None:
    found = inspect(fixture_file("conformer_ctc_bpe/adapted.nemo"))
    assert isinstance(found, ModelInspection)
    assert "an4" in found.file_choice
    assert {adapter.kind for adapter in found.adapters} == {"linear", "tiny_attn"}
    base = inspect(fixture_file("conformer_ctc_bpe/model.nemo"))
    assert isinstance(base, ModelInspection)
    assert base.fingerprint == found.fingerprint


def test_json_is_plain(model: AsrModel, tmp_path: Path) -> None:
    for source in (model, model.adapters.save("noise", tmp_path / "noise")):
        data = inspect(source).to_json()
        assert json.loads(json.dumps(data))["adapters"][-1]["name"] == "noise"


def test_text_tells_what_matters(model: AsrModel, tmp_path: Path) -> None:
    text = as_text(inspect(model))
    assert model.fingerprint() in text
    assert "medical" in text
    assert "card.wer.adapter  0.125" in text
    assert "linear: dim 4" in text
    assert "Adapters: none." in as_text(inspect(small_model()))
    text = as_text(inspect(model.adapters.save("medical", tmp_path / "medical")))
    assert "made for" in text
    assert model.fingerprint() in text


def test_words_are_told_with_size_weights_and_phrases(tmp_path: Path) -> None:
    model = small_model()
    tokenizer = model.tokenizer
    sequences = [tokenizer.encode(text) for text in ("press the pound key", "hold the line")]
    part = make_words(tokenizer, sequences=sequences, phrases=[("pound key", 10.0)], weight=0.3, token_bonus=0.5)
    assert part.ngram is not None
    add_trained(model, "medical")
    model.adapters["medical"].words = part
    folder, line = (
        model.adapters.save("medical", tmp_path / "medical"),
        f"order 6, {len(part.ngram):,} n-grams, weight 0.3",
    )
    for source in (model, folder):
        found = inspect(source)
        assert found.adapters[0].words == {"bytes": (folder / WORDS).stat().st_size, **part.describe()}
        assert f"{line}, token bonus 0.5, 1 phrases, " in as_text(found)
    assert "words" not in [line.split()[0] for line in as_text(inspect(small_model())).splitlines() if line]
    (folder / WORDS).write_bytes(b"")
    with pytest.raises(AdapterError, match="damaged"):
        inspect(folder)


def test_what_is_neither_is_one_clear_error(model: AsrModel, tmp_path: Path) -> None:
    folder = model.adapters.save("medical", tmp_path / "medical")
    with pytest.raises(UsageError, match="Name the folder"):
        inspect(folder / "adapter.safetensors")
    (folder / "adapter.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(AdapterError, match=r"adapter\.safetensors"):
        inspect(folder)
    with pytest.raises(CheckpointError, match="missing"):
        inspect(tmp_path / "missing.nemo")
