"""Checkpoints of the sizes that people use, with random weights: configurations of NeMo's, drawn by `model.init`.

python -m benchmarks.size_models parakeet-ctc-0.6b --folder FOLDER

writes FOLDER/parakeet-ctc-0.6b.nemo. The blank is made as likely as in a model that knows something.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from overtone.checkpoints.load import save_model
from overtone.checkpoints.nemo.fresh import build_fresh
from overtone.checkpoints.nemo.yaml import write_yaml
from overtone.models.asr_model import AsrModel
from overtone.tokenizers import SentencePieceTokenizer

MODULES = "nemo.collections.asr.modules"
SILENT = 0.75
"""Share of the frames where the blank is the likeliest."""
KERNELS = [(11, 13, 15, 17, 19, 21), (13, 15, 17, 19, 21, 23, 25), (25, 27, 29, 31, 33, 35, 37, 39)]
"""Kernels of Citrinet's three stages; the first block of each halves the frames."""

Config = dict[str, Any]


def with_features(features: int, normalize: str = "per_feature") -> Config:
    return {
        "_target_": f"{MODULES}.AudioToMelSpectrogramPreprocessor",
        "sample_rate": 16_000,
        "normalize": normalize,
        "window_size": 0.025,
        "window_stride": 0.01,
        "window": "hann",
        "features": features,
        "n_fft": 512,
        "dither": 1e-5,
        "pad_to": 0,
    }


def fastconformer(width: int, layers: int, features: int, **changes: Any) -> Config:
    return {
        "_target_": f"{MODULES}.ConformerEncoder",
        "feat_in": features,
        "n_layers": layers,
        "d_model": width,
        "n_heads": 8,
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_channels": 256,
        "ff_expansion_factor": 4,
        "conv_kernel_size": 9,
        "xscaling": True,
        "dropout": 0.1,
        "dropout_pre_encoder": 0.1,
        "dropout_att": 0.1,
        **changes,
    }


def ctc_head(width: int) -> Config:
    return {"_target_": f"{MODULES}.ConvASRDecoder", "feat_in": width, "num_classes": -1, "vocabulary": []}


def transducer(width: int, *, layers: int, durations: list[int]) -> Config:
    loss = {"loss_name": "tdt", "tdt_kwargs": {"durations": durations, "sigma": 0.02, "omega": 0.1}}
    prediction = {"pred_hidden": 640, "pred_rnn_layers": layers, "dropout": 0.2}
    joint = {"encoder_hidden": width, "pred_hidden": 640, "joint_hidden": 640, "activation": "relu", "dropout": 0.2}
    return {
        "decoder": {"_target_": f"{MODULES}.RNNTDecoder", "prednet": prediction},
        "joint": {"_target_": f"{MODULES}.RNNTJoint", "jointnet": joint, "num_extra_outputs": len(durations)},
        "model_defaults": {"tdt_durations": durations} if durations else {},
        "loss": loss if durations else {"loss_name": "default"},
        "rnnt_reduction": "mean_volume",
    }


def citrinet(width: int) -> Config:
    block = {"filters": width, "dilation": [1], "separable": True, "se": True}
    inner = {**block, "repeat": 5, "dropout": 0.1, "residual": True, "kernel_size_factor": 0.25}
    blocks = [{**block, "repeat": 1, "kernel": [5], "stride": [1], "dropout": 0.0, "residual": False}]
    for first, *others in KERNELS:
        blocks.append({**inner, "kernel": [first], "stride": [2], "stride_last": True, "residual_mode": "stride_add"})
        blocks += [{**inner, "kernel": [kernel], "stride": [1]} for kernel in others]
    blocks.append({**inner, "repeat": 1, "kernel": [41], "stride": [1], "dropout": 0.0, "residual": False})
    return {"_target_": f"{MODULES}.ConvASREncoder", "feat_in": 80, "activation": "relu", "jasper": blocks}


def parakeet_ctc() -> Config:
    return {"preprocessor": with_features(80), "encoder": fastconformer(1024, 24, 80), "decoder": ctc_head(1024)}


def parakeet_tdt() -> Config:
    encoder = fastconformer(1024, 24, 128, use_bias=False, xscaling=False)
    heads = transducer(1024, layers=2, durations=[0, 1, 2, 3, 4])
    return {"preprocessor": with_features(128), "encoder": encoder, **heads}


def parakeet_hybrid() -> Config:
    heads = transducer(512, layers=1, durations=[0, 1, 2, 3, 4])
    auxiliary = {"ctc_loss_weight": 0.3, "decoder": ctc_head(512)}
    return {"preprocessor": with_features(80), "encoder": fastconformer(512, 17, 80), **heads, "aux_ctc": auxiliary}


def nemotron_streaming() -> Config:
    encoder = fastconformer(
        1024,
        24,
        128,
        causal_downsampling=True,
        conv_norm_type="layer_norm",
        conv_context_size="causal",
        att_context_size=[[70, 13], [70, 6], [70, 1], [70, 0]],
        att_context_style="chunked_limited",
        xscaling=False,
        use_bias=False,
    )
    return {"preprocessor": with_features(128, "NA"), "encoder": encoder, **transducer(1024, layers=2, durations=[])}


def conformer_large() -> Config:
    encoder = fastconformer(
        512, 18, 80, subsampling="striding", subsampling_factor=4, subsampling_conv_channels=-1, conv_kernel_size=31
    )
    return {"preprocessor": with_features(80), "encoder": encoder, "decoder": ctc_head(512)}


def citrinet_1024() -> Config:
    preprocessor = {**with_features(80), "pad_to": 16}
    return {"preprocessor": preprocessor, "encoder": citrinet(1024), "decoder": ctc_head(1024)}


CONFIGS: dict[str, tuple[Callable[[], Config], int]] = {
    "parakeet-ctc-0.6b": (parakeet_ctc, 1024),
    "parakeet-tdt-0.6b-v3": (parakeet_tdt, 8192),
    "parakeet-tdt_ctc-110m": (parakeet_hybrid, 1024),
    "nemotron-speech-streaming-0.6b": (nemotron_streaming, 1024),
    "stt_en_conformer_ctc_large": (conformer_large, 128),
    "stt_en_citrinet_1024": (citrinet_1024, 1024),
}
"""The configuration, and the number of pieces."""


def shrink(config: Config) -> Config:
    """The same architecture, tiny: only to see that everything runs."""
    encoder = config["encoder"]
    if "jasper" in encoder:
        encoder["jasper"] = [{**block, "filters": 32} for block in encoder["jasper"][:3]]
    else:
        encoder.update(d_model=32, n_layers=2, n_heads=2)
        encoder["subsampling_conv_channels"] = min(encoder["subsampling_conv_channels"], 32)
    for head in (config["decoder"], (config.get("aux_ctc") or {}).get("decoder") or {}):
        if "feat_in" in head:
            head["feat_in"] = 32
    if "joint" in config:
        config["joint"]["jointnet"].update(encoder_hidden=32, pred_hidden=16, joint_hidden=16)
        config["decoder"]["prednet"]["pred_hidden"] = 16
    return config


def make_pieces(size: int) -> SentencePieceTokenizer:
    """A vocabulary of so many pieces, made from words that nobody says."""
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(26, (6 * size, 7), generator=generator).tolist()
    words = ["".join(chr(ord("a") + letter) for letter in word) for word in letters]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=(" ".join(words[start : start + 8]) for start in range(0, len(words), 8)),
        model_writer=buffer,
        vocab_size=size,
        model_type="bpe",
        minloglevel=2,
    )
    return SentencePieceTokenizer(buffer.getvalue())


def silence(model: AsrModel) -> None:
    """Raise the score of the blank until it is the likeliest at `SILENT` of the frames of some noise."""
    noise = 0.1 * torch.randn(1, 160_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mel, lengths = model.preprocessor(noise, torch.tensor([160_000]))
        encoded, lengths = model.encoder(mel, lengths)  # [1, T', D]
        for part, net in {name: getattr(model, name) for name in model.parts}.items():
            if part == "joint":
                predicted, _ = model.decoder.begin(1)  # type: ignore[operator]
                scores = net(net.enc(encoded), net.pred(predicted).unsqueeze(1)).flatten(0, 2)
                bias, blank = net.joint_net[-1].bias, net.blank
            elif "decoder" in part and hasattr(net, "projection"):
                scores, bias = net(encoded, lengths).flatten(0, 1), net.projection.bias
                blank = scores.size(-1) - 1
            else:
                continue
            margins = scores[:, :blank].amax(dim=1) - scores[:, blank]  # [T']
            bias[blank] += margins.quantile(SILENT)


def make_checkpoint(name: str, folder: Path, *, smoke: bool = False) -> Path:
    """Write FOLDER/NAME.nemo, unless it is there."""
    path = folder / f"{name}.nemo"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    make, size = CONFIGS[name]
    config = shrink(make()) if smoke else make()
    yaml = folder / f"{name}.yaml"
    yaml.write_text(write_yaml(config), "utf-8")
    model = build_fresh(yaml, make_pieces(64 if smoke else size), seed=0)
    silence(model)
    save_model(model, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(CONFIGS))
    parser.add_argument("--folder", type=Path, required=True, help="where they are written: up to 2.6 GB each")
    arguments = parser.parse_args()
    for name in arguments.names:
        path = make_checkpoint(name, arguments.folder)
        print(f"{path}: {path.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
