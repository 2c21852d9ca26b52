"""The section `tokenizer` of a configuration."""

from __future__ import annotations

from typing import Any

import pytest

from overtone.checkpoints.nemo.config import translate
from overtone.errors import CheckpointError

MODULES = "nemo.collections.asr.modules"


def piece_config(**tokenizer: Any) -> dict[str, Any]:
    """As little as a model over pieces needs."""
    section = {"dir": "tokenizers/x", "type": "bpe", "model_path": "nemo:ab_tokenizer.model"} | tokenizer
    return {
        "target": "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE",
        "preprocessor": {"_target_": f"{MODULES}.AudioToMelSpectrogramPreprocessor", "features": 80},
        "encoder": {"_target_": f"{MODULES}.ConformerEncoder", "feat_in": 80, "n_layers": 2, "d_model": 32},
        "decoder": {"_target_": f"{MODULES}.ConvASRDecoder", "feat_in": 32, "num_classes": -1, "vocabulary": []},
        "tokenizer": section,
    }


def test_tokenizers_of_pieces() -> None:
    description = translate(piece_config())
    assert description.tokenizer.member == "ab_tokenizer.model"
    assert description.settings["decoder"]["classes"] is None
    assert translate(piece_config(model_path=None)).tokenizer.member == "tokenizer.model"
    assert translate(piece_config(model_path="/data/there/tok.model")).tokenizer.member == "tok.model"
    for key, value, words in (
        ("type", "unigram", "type is unigram"),
        ("type", "agg", "langs is null"),
        ("langs", {"en": {}}, r"langs\.en\.type is null"),
        ("langs", {"en": "x"}, "a section with a tokenizer for each language"),
        ("langs", {"en": {"type": "wpe"}}, r"langs\.en\.type is wpe.*Supported: bpe"),
        ("langs", {"en": {"type": "bpe"}, "es": {"type": "bpe"}}, "two languages name the same file"),
        ("custom_tokenizer", {"_target_": "os.system"}, "custom_tokenizer"),
    ):
        with pytest.raises(CheckpointError, match=words):
            translate(piece_config(**{key: value}))
    with pytest.raises(CheckpointError, match="custom_tokenizer"):
        translate(piece_config(type="agg", langs={"en": {"type": "bpe"}}, custom_tokenizer={"_target_": "x"}))


def test_tokenizers_of_words_and_of_several_languages() -> None:
    source = translate(piece_config(type="wpe", vocab_path="nemo:cd_vocab.txt")).tokenizer
    assert (source.kind, source.member) == ("wordpiece", "cd_vocab.txt")
    assert translate(piece_config(type="wpe")).tokenizer.member == "vocab.txt"
    parts = {"es": {"type": "bpe", "model_path": "nemo:b_tokenizer.model"}, "en": {"type": "bpe", "dir": "x"}}
    source = translate(piece_config(type="agg", langs=parts)).tokenizer
    assert source.kind == "aggregate"
    assert [(name, part.member) for name, part in source.parts] == [
        ("es", "b_tokenizer.model"),
        ("en", "tokenizer.model"),
    ]
