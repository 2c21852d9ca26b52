"""Multitask models with an attention decoder (Canary) in NeMo's configuration, both ways.

The decoder stands there in two forms: what `get_nemo_transformer` takes, and the arguments of its class themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from overtone.checkpoints.nemo.keys import MODULES, Parts, Section, encoder_width
from overtone.checkpoints.nemo.yaml import resolved
from overtone.config.keys import Key, flag, integer, number, one_of, read_key, read_section, refuse, write_section
from overtone.decoding.multitask import MAX_DELTA
from overtone.decoding.task import SLOTS
from overtone.errors import CheckpointError

TRANSFORMER = f"{MODULES}.transformer"
CLASSIFIER = "nemo.collections.asr.parts.submodules.token_classifier.TokenClassifier"
LOSS = "nemo.collections.common.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss"
TIED = ("transf_decoder._embedding.token_embedding.weight", "log_softmax.mlp.layer0.weight")
"""The same values by two keys."""
ROWS = 8
"""NeMo rounds the rows of the vocabulary up to a multiple of this."""

SHARED = (
    Key("hidden_size", "width", integer(at_most=65_536)),
    Key("num_layers", "layers", integer(0, 1000)),
    Key("num_attention_heads", "heads", integer(at_most=4096)),
    Key("inner_size", "inner", integer(at_most=262_144)),
    Key("hidden_act", "activation", one_of("relu", "gelu"), "relu"),
    Key("pre_ln", "pre_norm", flag, False),
    Key("attn_score_dropout", "dropout_attention", number(0.0, 1.0), 0.0),
    Key("attn_layer_dropout", "dropout_layer", number(0.0, 1.0), 0.0),
    Key("ffn_dropout", "dropout_feed_forward", number(0.0, 1.0), 0.0),
)
FINAL_NORM = Key("pre_ln_final_layer_norm", "final_norm", flag, True)
EMBEDDING = (
    Key("max_sequence_length", "max_length", integer(2, 65_536), 512),
    Key("num_token_types", "token_types", integer(0, 1000), 2),
    Key("learn_positional_encodings", "learned_positions", flag, False),
    Key("embedding_dropout", "dropout_embedding", number(0.0, 1.0), 0.0),
)
HEAD = (Key("dropout", "dropout_head", number(0.0, 1.0), 0.0),)
HEAD_FIXED: dict[str, tuple[Any, ...]] = {"num_layers": (1,), "log_softmax": (True,)}
SMOOTHING = Key("label_smoothing", "label_smoothing", number(0.0, 1.0), 0.0)
MASKED = Key("use_loss_mask_for_prompt", "masks_prompt", lambda value: flag(bool(value)), False)
PENALTY = Key("length_penalty", "length_penalty", number(0.0, 100.0), 0.0)
DELTA = Key("max_generation_delta", "max_delta", integer(-1, 1_000_000), MAX_DELTA)


def read_encoder(table: Section, section: dict[str, Any], where: str, parts: Parts) -> dict[str, Any]:
    """The settings of TransformerEncoder without its input. Raises CheckpointError."""
    return table.plain_settings({**section, **{key: section.get(key) or 1 for key in IDLE_SIZES}}, where)


IDLE_SIZES = ("num_attention_heads", "inner_size")
TRANSF_ENCODER = Section(
    classes=tuple(
        f"{TRANSFORMER}.{name}"
        for name in (
            "transformer_encoders.TransformerEncoder",
            "TransformerEncoder",
            "transformer_encoders.TransformerEncoderAdapter",
        )
    ),
    keys=(*SHARED, FINAL_NORM),
    fixed={"mask_future": (False, None)},
    adaptable=f"{TRANSFORMER}.transformer_encoders.TransformerEncoderAdapter",
    read=read_encoder,
)


def read_decoder(table: Section, section: dict[str, Any], where: str, parts: Parts) -> dict[str, Any]:
    """The settings of TransformerDecoder; its classes are the tokenizer's. Raises CheckpointError."""
    nested = section.pop("config_dict", None)
    if nested is None:
        return {**table.plain_settings(section, where), "classes": None}
    outer = read_section(section, (FINAL_NORM,), where, fixed=NAMED_FIXED, idle=("library",))
    inner = read_section(nested, (*SHARED, *EMBEDDING), f"{where}.config_dict", idle=("vocab_size",))
    return {**inner, **outer, "classes": None}


NAMED_FIXED: dict[str, tuple[Any, ...]] = {
    "model_name": (None,),
    "pretrained": (False, None),
    "encoder": (None, False),
}
TRANSF_DECODER = Section(
    classes=tuple(
        f"{TRANSFORMER}.{name}"
        for name in (
            "get_nemo_transformer",
            "transformer_utils.get_nemo_transformer",
            "transformer.TransformerDecoderNM",
            "transformer.TransformerDecoderNMAdapter",
        )
    ),
    keys=(*SHARED, *EMBEDDING, FINAL_NORM),
    idle=("vocab_size",),
    adaptable=f"{TRANSFORMER}.transformer.TransformerDecoderNMAdapter",
    read=read_decoder,
)


def read_multitask(config: Mapping[str, Any], settings: dict[str, dict[str, Any]], source: str) -> None:
    """Add what lies between encoder and decoder, the head, the prompts, and the options of loss and decoding.

    Raises CheckpointError for values that are not supported.
    """
    decoder = settings["transf_decoder"]
    width, found = encoder_width(settings), config.get("transf_encoder")
    layers: dict[str, Any] = {"layers": 0}
    if isinstance(found, Mapping) and found.get("num_layers"):
        section = resolved(config, "transf_encoder", source)
        if str(section.get("_target_")) not in TRANSF_ENCODER.classes:
            refuse(f"{source}: transf_encoder", "_target_", section.get("_target_"), TRANSF_ENCODER.classes[0])
        layers = TRANSF_ENCODER.to_settings(section, f"{source}: transf_encoder", settings)
    if layers["layers"] and layers["width"] != decoder["width"]:
        refuse(f"{source}: transf_encoder", "hidden_size", layers["width"], f"{decoder['width']}, as transf_decoder")
    if layers["layers"] or width != decoder["width"]:
        settings["transf_encoder"] = {"input_width": width, **layers, "width": decoder["width"]}
    head = dict(resolved(config, "head", source)) if config.get("head") else {}
    decoder |= read_section(
        head, HEAD, f"{source}: head", fixed=HEAD_FIXED,
        idle=("hidden_size", "num_classes", "activation", "use_transformer_init"),
    )  # fmt: skip
    settings["multitask"] = {
        **read_prompt(config, source),
        MASKED.ours: read_key(config, MASKED, source),
        SMOOTHING.ours: read_smoothing(config, source),
        DELTA.ours: read_delta(config, source),
        PENALTY.ours: read_penalty(config, source),
    }


def read_prompt(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The format of prompts, and the defaults of their slots. Raises CheckpointError for other formats."""
    form = str(config.get("prompt_format"))
    if form not in SLOTS:
        refuse(source, "prompt_format", config.get("prompt_format"), ", ".join(SLOTS))
    turns = resolved(config, "prompt_defaults", source) if config.get("prompt_defaults") else []
    slots: dict[str, str] = {}
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, Mapping) and turn.get("role") == "user" and isinstance(turn.get("slots"), Mapping):
            slots |= {str(name): str(value) for name, value in turn["slots"].items() if value is not None}
    return {"prompt_format": form, "prompt_defaults": slots}


def read_smoothing(config: Mapping[str, Any], source: str) -> float:
    """The label smoothing of the loss. Raises CheckpointError for a loss of another kind."""
    loss = dict(resolved(config, "loss", source)) if config.get("loss") else {}
    if loss.get("_target_") not in (None, LOSS):
        refuse(f"{source}: loss", "_target_", loss["_target_"], LOSS)
    read_section(
        loss, (SMOOTHING,), f"{source}: loss", idle=("pad_id", "eps"),
        fixed={"predict_last_k": (0, None), "per_token_reduction": (True, None)},
    )  # fmt: skip
    found: float = read_key(loss if "label_smoothing" in loss else config, SMOOTHING, source)
    return found


def read_delta(config: Mapping[str, Any], source: str) -> int:
    """The tokens that a transcript may have beyond its frames, by the section of the checkpoint's own strategy."""
    decoding = dict(resolved(config, "decoding", source)) if config.get("decoding") else {}
    section = decoding.get("beam" if decoding.get("strategy", "beam") == "beam" else "greedy") or {}
    found: int = read_key(section, Key(DELTA.theirs, DELTA.ours, DELTA.check, -1), f"{source}: decoding")
    return found


def read_penalty(config: Mapping[str, Any], source: str) -> float:
    """The exponent of the penalty of length in a beam search; NeMo does not read the `len_pen` of its own files."""
    decoding = dict(resolved(config, "decoding", source)) if config.get("decoding") else {}
    found: float = read_key(decoding.get("beam") or {}, PENALTY, f"{source}: decoding.beam")
    return found


def check_widths(config: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """Check what a configuration says again of the widths and the head of a model that is to be made from it.

    NeMo builds the projection between encoder and decoder by `model_defaults`. Raises CheckpointError where it
    contradicts the sections of the parts, and for a head of another class.
    """
    widths = {"asr_enc_hidden": encoder_width(settings), "lm_dec_hidden": settings["transf_decoder"]["width"]}
    defaults = resolved(config, "model_defaults", source) if config.get("model_defaults") else {}
    for name, width in widths.items():
        if defaults.get(name) not in (None, width):
            refuse(f"{source}: model_defaults", name, defaults[name], f"{width}, the width of its part")
    head = resolved(config, "head", source) if config.get("head") else {}
    if str(head.get("_target_", CLASSIFIER)).rpartition(".")[2] != CLASSIFIER.rpartition(".")[2]:
        refuse(f"{source}: head", "_target_", head["_target_"], CLASSIFIER)
    if head.get("hidden_size") not in (None, widths["lm_dec_hidden"]):
        refuse(f"{source}: head", "hidden_size", head["hidden_size"], f"{widths['lm_dec_hidden']}, as transf_decoder")


def rows_of(symbols: int) -> int:
    """The rows of the vocabulary in NeMo's decoder, for a tokenizer of so many symbols."""
    return ROWS * math.ceil(symbols / ROWS)


def write_multitask(
    parts: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The sections of decoder, encoder between, head, loss and prompts, for a model that never had any."""
    decoder, options = parts["transf_decoder"], settings["multitask"]
    between = parts.get("transf_encoder")
    width = decoder["width"]
    sections: dict[str, Any] = {
        "prompt_format": options["prompt_format"],
        "prompt_defaults": [{"role": "user", "slots": dict(options["prompt_defaults"])}]
        if options["prompt_defaults"]
        else None,
        "use_loss_mask_for_prompt": options["masks_prompt"],
        "model_defaults": {
            "asr_enc_hidden": between["input_width"] if between else width,
            "lm_enc_hidden": width,
            "lm_dec_hidden": width,
        },
        "transf_decoder": {
            "_target_": TRANSF_DECODER.classes[0],
            "model_name": None,
            "pretrained": False,
            "encoder": None,
            FINAL_NORM.theirs: decoder[FINAL_NORM.ours],
            "config_dict": {**write_section(decoder, (*SHARED, *EMBEDDING)), "vocab_size": decoder["classes"]},
        },
        "head": {
            "_target_": CLASSIFIER,
            "num_layers": 1,
            "activation": "relu",
            "log_softmax": True,
            "hidden_size": width,
            "num_classes": decoder["classes"],
            "use_transformer_init": True,
            **write_section(decoder, HEAD),
        },
        "loss": {"_target_": LOSS, SMOOTHING.theirs: options[SMOOTHING.ours], "pad_id": None},
        "decoding": {
            "strategy": "beam",
            "return_best_hypothesis": True,
            "beam": {"beam_size": 1, **{key.theirs: options[key.ours] for key in (PENALTY, DELTA)}},
        },
    }
    if between and between["layers"]:
        sections["transf_encoder"] = TRANSF_ENCODER.to_section(between)
    return sections


def check_tied(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError where embedding and head of a decoder, which are one, have different values."""
    if set(TIED) <= tensors.keys() and not torch.equal(*(tensors[key] for key in TIED)):
        raise CheckpointError(f"{source}: {' and '.join(TIED)} differ, although NeMo ties them.")


def adaptable_sections(config: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """The sections `transf_encoder` and `transf_decoder` of a configuration as NeMo needs them for adapters.

    classes: rows of the vocabulary, which NeMo knows by itself in the other form alone.
    """
    sections: dict[str, Any] = {}
    if isinstance(config.get("transf_encoder"), Mapping):
        sections["transf_encoder"] = {**config["transf_encoder"], "_target_": TRANSF_ENCODER.adaptable}
    decoder = dict(config["transf_decoder"])
    nested = decoder.pop("config_dict", None)
    if nested is not None:
        for name in (*NAMED_FIXED, "library"):
            decoder.pop(name, None)
        decoder |= nested
    sections["transf_decoder"] = {**decoder, "vocab_size": classes, "_target_": TRANSF_DECODER.adaptable}
    return sections
