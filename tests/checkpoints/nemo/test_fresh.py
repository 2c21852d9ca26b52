"""Models with fresh weights from NeMo's configurations: every family, drawn as NeMo draws."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import yaml

from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.fresh import build_fresh
from overtone.errors import CheckpointError, ConfigError
from overtone.models.asr_model import AsrModel
from overtone.tokenizers import AggregateTokenizer, CharTokenizer, SentencePieceTokenizer, Tokenizer
from support.nemo_samples import WORDS, piece_tokenizer

MODULES = "nemo.collections.asr.modules"
CHARACTERS = CharTokenizer(list(" abcdefg"))
CONFORMER: dict[str, Any] = {
    "_target_": f"{MODULES}.ConformerEncoder",
    "feat_in": "${model.preprocessor.features}",
    "n_layers": 2,
    "d_model": "${model.model_defaults.enc_hidden}",
    "n_heads": 2,
    "conv_kernel_size": 5,
    "subsampling_factor": 4,
}
BLOCK = {"kernel": [5], "stride": [2], "dilation": [1], "dropout": 0.0, "separable": True, "se": True}
CITRINET: dict[str, Any] = {
    "_target_": f"{MODULES}.ConvASREncoder",
    "feat_in": "${model.preprocessor.features}",
    "activation": "relu",
    "jasper": [
        {**BLOCK, "filters": filters, "repeat": 1, "residual": False, "se_reduction_ratio": 4} for filters in (32, 64)
    ],
}
CTC_DECODER = {"_target_": f"{MODULES}.ConvASRDecoder", "feat_in": None, "num_classes": -1, "vocabulary": []}
TRANSDUCER: dict[str, Any] = {
    "decoder": {
        "_target_": f"{MODULES}.RNNTDecoder",
        "normalization_mode": None,
        "random_state_sampling": False,
        "blank_as_pad": True,
        "prednet": {
            "pred_hidden": "${model.model_defaults.pred_hidden}",
            "pred_rnn_layers": 2,
            "t_max": None,
            "dropout": 0.2,
        },
    },
    "joint": {
        "_target_": f"{MODULES}.RNNTJoint",
        "log_softmax": None,
        "preserve_memory": False,
        "fuse_loss_wer": True,
        "fused_batch_size": 4,
        "jointnet": {"joint_hidden": 12, "activation": "relu", "dropout": 0.2},
    },
    "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 7}},
    "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.003, "clamp": -1.0}},
    "rnnt_reduction": "mean_volume",
}
TDT: dict[str, Any] = {
    "decoding": {"strategy": "greedy_batch", "model_type": "tdt", "durations": "${model.model_defaults.tdt_durations}"},
    "loss": {
        "loss_name": "tdt",
        "tdt_kwargs": {"durations": "${model.model_defaults.tdt_durations}", "sigma": 0.02, "omega": 0.1},
    },
}
HYBRID: dict[str, Any] = {
    "aux_ctc": {"ctc_loss_weight": 0.2, "use_cer": False, "ctc_reduction": "mean_volume", "decoder": CTC_DECODER}
}


def write_config(folder: Path, *changes: dict[str, Any], prompted: bool = False, tdt: bool = False) -> Path:
    """A training configuration of NeMo's, with references and places that a user fills in."""
    defaults = {"enc_hidden": 16, "pred_hidden": 10, "tdt_durations": [0, 1, 2], "num_tdt_durations": 3}
    if prompted:
        languages = {"en-US": 0, "auto": 3}
        defaults |= {"initialize_prompt_feature": True, "num_prompts": 4, "prompt_dictionary": languages}  # type: ignore[dict-item]
    if not tdt:
        del defaults["tdt_durations"]
    model: dict[str, Any] = {
        "sample_rate": 16000,
        "model_defaults": defaults,
        "tokenizer": {"dir": "???", "type": "bpe"},
        "train_ds": {"manifest_filepath": "???"},
        "preprocessor": {"_target_": f"{MODULES}.AudioToMelSpectrogramPreprocessor", "features": 40},
    }
    for change in changes:
        model |= copy.deepcopy(change)
    if tdt:
        model["joint"]["num_extra_outputs"] = "${model.model_defaults.num_tdt_durations}"
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "model": model, "trainer": {"max_epochs": 1}}))
    return path


CTC = {"decoder": CTC_DECODER}
FAMILIES: dict[str, tuple[tuple[dict[str, Any], ...], dict[str, bool], list[str]]] = {
    "EncDecCTCModel": (({"encoder": CONFORMER}, CTC), {}, ["ctc"]),
    "EncDecRNNTModel": (({"encoder": CONFORMER}, TRANSDUCER), {}, ["rnnt"]),
    "EncDecRNNTModel over convolutions": (({"encoder": CITRINET}, TRANSDUCER), {}, ["rnnt"]),
    "EncDecRNNTModel with durations": (({"encoder": CONFORMER}, TRANSDUCER, TDT), {"tdt": True}, ["rnnt"]),
    "EncDecHybridRNNTCTCModel": (
        ({"encoder": CONFORMER}, TRANSDUCER, TDT, HYBRID),
        {"tdt": True},
        ["rnnt", "ctc", "hybrid"],
    ),
    "EncDecRNNTBPEModelWithPrompt": (({"encoder": CONFORMER}, TRANSDUCER), {"prompted": True}, ["rnnt"]),
    "EncDecHybridRNNTCTCBPEModelWithPrompt": (
        ({"encoder": CONFORMER}, TRANSDUCER, HYBRID),
        {"prompted": True},
        ["rnnt", "ctc", "hybrid"],
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_built_written_and_read(family: str, tmp_path: Path) -> None:
    changes, options, heads = FAMILIES[family]
    path = write_config(tmp_path, *changes, **options)
    tokenizer: Tokenizer = piece_tokenizer() if options.get("prompted") else CHARACTERS
    model = build_fresh(path, tokenizer, seed=1)
    assert list(model.heads) == heads
    assert str(model.config["target"]).endswith("." + family.partition(" ")[0])
    again = load_model(save_model(model, tmp_path / "fresh.nemo"))
    assert again.fingerprint() == model.fingerprint()
    assert again.settings == model.settings
    assert build_fresh(path, tokenizer, seed=1).fingerprint() == model.fingerprint()
    assert build_fresh(path, tokenizer, seed=2).fingerprint() != model.fingerprint()
    waveforms = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    for head in heads:
        if head != "hybrid":
            with model.decoding_with(head):
                assert len(model.transcribe(waveforms, torch.tensor([8000, 6000]))) == 2
    if "joint" in model.parts:
        assert model.settings["transducer"]["reduction"] == "mean_volume"
        assert model.settings["joint"]["durations"] == ((0, 1, 2) if options.get("tdt") else ())
    if "ctc_decoder" in model.parts:
        weights = model.settings["transducer"]
        assert (weights["ctc_weight"], weights["ctc_reduction"]) == (0.2, "mean_volume")


def test_a_vocabulary_of_pieces(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"encoder": CONFORMER}, TRANSDUCER, TDT, HYBRID, tdt=True)
    tokenizer = piece_tokenizer()
    model = build_fresh(path, tokenizer, seed=0)
    again = load_model(save_model(model, tmp_path / "fresh.nemo"))
    assert again.tokenizer.vocabulary == tokenizer.vocabulary
    assert again.joint.joint_net[-1].weight.shape[0] == tokenizer.size + 1 + 3  # type: ignore[index,union-attr]
    assert again.decoder.embed.weight.shape[0] == tokenizer.size + 1  # type: ignore[union-attr]


def fresh(folder: Path, *changes: dict[str, Any]) -> AsrModel:
    return build_fresh(write_config(folder, *changes), CHARACTERS, seed=3)


def test_forget_gates_begin_at_one(tmp_path: Path) -> None:
    lstm = fresh(tmp_path, {"encoder": CONFORMER}, TRANSDUCER).decoder.lstm
    for layer in (0, 1):
        own, recurrent = (getattr(lstm, f"bias_{name}_l{layer}") for name in ("ih", "hh"))
        assert (own[10:20] == 1).all()
        assert (recurrent[10:20] == 0).all()
        for gate in (slice(0, 10), slice(20, 40)):
            assert (own[gate].abs() < 10**-0.5).all()
            assert recurrent[gate].abs().max() > 0


def test_memories_may_be_long(tmp_path: Path) -> None:
    transducer = copy.deepcopy(TRANSDUCER)
    transducer["decoder"]["prednet"]["t_max"] = 50
    lstm = fresh(tmp_path, {"encoder": CONFORMER}, transducer).decoder.lstm
    bias = lstm.bias_hh_l1
    assert ((bias[10:20].exp() >= 1) & (bias[10:20].exp() <= 49)).all()
    assert torch.equal(bias[:10], -bias[10:20])
    assert (bias[20:] == 0).all()
    transducer["decoder"]["prednet"]["t_max"] = 1
    with pytest.raises(CheckpointError, match=r"prednet\.t_max is 1.*null, or a whole number of tokens from 3 on"):
        fresh(tmp_path, {"encoder": CONFORMER}, transducer)


SPREADS = {
    None: (6 / (64 + 9)) ** 0.5,
    "xavier_uniform": (6 / (64 + 9)) ** 0.5,
    "xavier_normal": None,
    "kaiming_uniform": (6 / 64) ** 0.5,
    "kaiming_normal": None,
    "tds_uniform": 2 / 64**0.5,
    "tds_normal": None,
}
DEVIATIONS = {"xavier_normal": (2 / (64 + 9)) ** 0.5, "kaiming_normal": (2 / 64) ** 0.5, "tds_normal": 2 / 64**0.5}


@pytest.mark.parametrize("mode", SPREADS)
def test_weights_are_drawn_as_the_mode_says(mode: str | None, tmp_path: Path) -> None:
    chosen = {} if mode is None else {"init_mode": mode}
    model = fresh(tmp_path, {"encoder": CITRINET, "decoder": {**CTC_DECODER, **chosen}})
    weight, limit = model.decoder.projection.weight, SPREADS[mode]  # type: ignore[union-attr]
    if limit is not None:
        assert 0.95 * limit < weight.abs().max() <= limit
    else:
        assert mode is not None
        assert float(weight.detach().std()) == pytest.approx(DEVIATIONS[mode], rel=0.15)


def test_convolutional_encoders_are_drawn_too(tmp_path: Path) -> None:
    encoder = fresh(tmp_path, {"encoder": {**CITRINET, "init_mode": "kaiming_uniform"}}, CTC).encoder
    weights = [
        module.weight
        for module in encoder.modules()  # type: ignore[attr-defined]
        if isinstance(module, torch.nn.Conv1d | torch.nn.Linear)
    ]
    assert len(weights) > 4
    for weight in weights:
        limit = (6 / weight[0].numel()) ** 0.5
        assert 0.8 * limit < weight.abs().max() <= limit


def test_what_cannot_be_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"decoder\.init_mode is ones.*xavier_uniform, xavier_normal"):
        fresh(tmp_path, {"encoder": CONFORMER, "decoder": {**CTC_DECODER, "init_mode": "ones"}})
    with pytest.raises(ConfigError, match="have no models over characters; give a sentencepiece model"):
        build_fresh(write_config(tmp_path, {"encoder": CONFORMER}, TRANSDUCER, prompted=True), CHARACTERS, seed=0)
    with pytest.raises(CheckpointError, match=r"num_extra_outputs is 0, which is not supported yet\. Supported: 3"):
        fresh(
            tmp_path,
            {"encoder": CONFORMER},
            TRANSDUCER,
            {"model_defaults": {"enc_hidden": 16, "pred_hidden": 10, "tdt_durations": [0, 1, 2]}},
        )
    with pytest.raises(ConfigError, match=r"model\.init: .*absent\.yaml cannot be read"):
        build_fresh(tmp_path / "absent.yaml", CHARACTERS, seed=0)


# Canary


def special_pieces(size: int = 0) -> SentencePieceTokenizer:
    """A sentencepiece model with the special tokens of prompts, and `size` pieces of words beside them."""
    names = ("startoftranscript", "endoftext", "startofcontext", "en", "de", "transcribe", "translate", "emo:undefined")
    flags = [f"{no}{flag}" for flag in ("pnc", "itn", "timestamp", "diarize") for no in ("", "no")]
    symbols = ["<pad>", *(f"<|{name}|>" for name in (*names, *flags))]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([WORDS] * 5 if size else symbols),
        model_writer=buffer,
        vocab_size=len(symbols) + (size or 2),
        model_type="bpe",
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        user_defined_symbols=symbols,
        minloglevel=2,
    )
    return SentencePieceTokenizer(buffer.getvalue())


def canary(*, between: int = 2, **changes: Any) -> dict[str, Any]:
    """The sections of NeMo's configuration of such models, small."""
    shared = {"num_attention_heads": 2, "pre_ln": True, "ffn_dropout": 0.1}
    model: dict[str, Any] = {
        "encoder": {**CONFORMER, "d_model": "${model.model_defaults.asr_enc_hidden}"},
        "label_smoothing": 0.1,
        "use_loss_mask_for_prompt": False,
        "prompt_format": "canary",
        "prompt_defaults": None,
        "model_defaults": {"asr_enc_hidden": 16, "lm_enc_hidden": 24, "lm_dec_hidden": 24},
        "transf_encoder": {
            "_target_": f"{MODULES}.transformer.transformer_encoders.TransformerEncoder",
            "num_layers": between,
            "hidden_size": "${model.model_defaults.lm_enc_hidden}",
            "inner_size": "${multiply:${model.model_defaults.lm_enc_hidden}, 4}",
            **shared,
        },
        "transf_decoder": {
            "_target_": f"{MODULES}.transformer.get_nemo_transformer",
            "pre_ln_final_layer_norm": True,
            "config_dict": {
                "max_sequence_length": 128,
                "num_token_types": 0,
                "learn_positional_encodings": True,
                "hidden_size": "${model.model_defaults.lm_dec_hidden}",
                "inner_size": "${multiply:${model.model_defaults.lm_dec_hidden}, 4}",
                "num_layers": 2,
                "vocab_size": "None",
                **shared,
            },
        },
        "head": {
            "_target_": "nemo.collections.asr.parts.submodules.token_classifier.TokenClassifier",
            "num_layers": 1,
            "hidden_size": "${model.transf_decoder.config_dict.hidden_size}",
            "num_classes": "None",
        },
        "decoding": {"strategy": "beam", "beam": {"beam_size": 1, "len_pen": 0.0, "max_generation_delta": 20}},
        "loss": {
            "_target_": "nemo.collections.common.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss",
            "label_smoothing": "${model.label_smoothing}",
            "pad_id": None,
        },
    }
    return model | changes


@pytest.mark.parametrize("form", ["canary", "canary2"])
@pytest.mark.parametrize("languages", [True, False])
def test_canary_is_built_written_and_read(form: str, languages: bool, tmp_path: Path) -> None:
    own = AggregateTokenizer({"spl_tokens": special_pieces(), "en": piece_tokenizer()})
    tokenizer: Tokenizer = own if languages else special_pieces(40)
    path = write_config(tmp_path, canary(prompt_format=form, between=2 if languages else 0))
    model = build_fresh(path, tokenizer, seed=1)
    assert list(model.heads) == ["aed"]
    assert model.settings["transf_decoder"]["inner"] == 4 * 24
    assert model.settings["transf_encoder"]["layers"] == (2 if languages else 0)
    assert model.settings["multitask"]["label_smoothing"] == 0.1
    assert model.config["tokenizer"]["custom_tokenizer"]["_target_"].endswith(
        ".CanaryTokenizer" if languages else ".CanaryBPETokenizer"
    )
    again = load_model(save_model(model, tmp_path / "fresh.nemo"))
    assert again.fingerprint() == model.fingerprint()
    assert again.settings == model.settings
    assert again.tokenizer.vocabulary == tokenizer.vocabulary
    assert build_fresh(path, tokenizer, seed=2).fingerprint() != model.fingerprint()
    waveforms = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    assert len(again.transcribe(waveforms, torch.tensor([8000, 6000]))) == 2


def test_transformers_are_drawn_as_nemo_draws_them(tmp_path: Path) -> None:
    model = build_fresh(write_config(tmp_path, canary()), special_pieces(40), seed=1)
    decoder: Any = model.transf_decoder
    head = decoder.head.weight  # [V, D], the embedding too
    limit = (6 / sum(head.shape)) ** 0.5
    assert 0.9 * limit < head.abs().max() <= limit
    assert head[0].abs().max() > 0
    positions = decoder.embedding.position_embedding.weight
    assert float(positions.detach().std()) == pytest.approx(24**-0.5, rel=0.1)
    for part in (decoder, model.transf_encoder.layers):  # type: ignore[union-attr]
        for module in part.modules():
            if isinstance(module, torch.nn.Linear):
                limit = (6 / sum(module.weight.shape)) ** 0.5
                assert 0.9 * limit < module.weight.abs().max() <= limit
                assert not module.bias.any()
    projection: Any = model.transf_encoder.projection  # type: ignore[union-attr]
    assert 0 < projection.bias.abs().max() <= 16**-0.5


def test_canary_that_cannot_be_built_is_refused(tmp_path: Path) -> None:
    pieces = special_pieces(40)
    for changes, message in (
        ({"prompt_format": "???"}, r"prompt_format is \?\?\?, .*Supported: canary, canary2"),
        ({"model_defaults": {"asr_enc_hidden": 16, "lm_enc_hidden": 24, "lm_dec_hidden": 32}}, "hidden_size is 24"),
        ({"transf_encoder": {**canary()["transf_encoder"], "mask_future": True}}, "transf_encoder.mask_future is true"),
        ({"head": {"hidden_size": 24, "num_layers": 2}}, "head.num_layers is 2"),
        ({"head": {"hidden_size": 32}}, "head.hidden_size is 32, .*Supported: 24, as transf_decoder"),
        ({"head": {"_target_": "torch.nn.Linear"}}, r"head._target_ is torch.nn.Linear, .*TokenClassifier"),
        ({"loss": {"_target_": "torch.nn.MSELoss"}}, r"loss._target_ is torch.nn.MSELoss"),
        ({"encoder": {**CONFORMER, "d_model": 32}}, "model_defaults.asr_enc_hidden is 16, .*Supported: 32"),
        ({"label_smoothing": "${multiply:2, x}"}, "label_smoothing is .* multiply is of two numbers"),
    ):
        with pytest.raises(CheckpointError, match=message):
            build_fresh(write_config(tmp_path, canary(**changes)), pieces, seed=0)
    path = write_config(tmp_path, canary())
    for tokenizer in (CHARACTERS, AggregateTokenizer({"en": pieces})):
        with pytest.raises(ConfigError, match=r"needs a vocabulary of pieces; give model\.tokenizer"):
            build_fresh(path, tokenizer, seed=0)
    with pytest.raises(ConfigError, match=r"has no <\|startoftranscript\|>, which prompts of the format canary need"):
        build_fresh(path, piece_tokenizer(), seed=0)
