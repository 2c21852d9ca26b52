"""Models with fresh weights from NeMo's configurations: every family, drawn as NeMo draws."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.fresh import build_fresh
from overtone.errors import CheckpointError, ConfigError
from overtone.models.asr_model import AsrModel
from overtone.tokenizers import CharTokenizer, Tokenizer
from support.nemo_samples import piece_tokenizer

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
