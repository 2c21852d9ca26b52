"""`config.json` and the processor's settings of transformers' Parakeet models as plain keyword arguments, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overtone.budgets import check_json
from overtone.checkpoints.folder import read_file
from overtone.checkpoints.nemo.archive import LIMITS
from overtone.config.keys import (
    Key,
    a_list,
    flag,
    integer,
    number,
    one_of,
    optional,
    read_section,
    refuse,
    shown,
    write_section,
)
from overtone.decoding.transducer import MAX_SYMBOLS
from overtone.errors import CheckpointError
from overtone.models.fingerprint import NUMBERLESS
from overtone.models.parts import Settings, complete, parts_of

CONFIG = "config.json"
PROCESSOR = "processor_config.json"
PREPROCESSOR = "preprocessor_config.json"
EXTRACTOR = "ParakeetFeatureExtractor"
WIDTH, VOCABULARY = integer(at_most=65_536), integer(2, 10_000_000)

GENERIC = (
    "_name_or_path",
    "architectures",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
"""Keys of every configuration there that change no number of an inference."""

FEATURE_KEYS = (
    Key("sampling_rate", "sample_rate", integer(at_most=1_000_000), 16_000),
    Key("feature_size", "features", integer(at_most=4096), 80),
    Key("n_fft", "n_fft", integer(at_most=65_536), 512),
    Key("win_length", "window_size", integer(at_most=65_536), 400),
    Key("hop_length", "window_stride", integer(at_most=65_536), 160),
    Key("preemphasis", "preemphasis", optional(number()), 0.97),
)
FEATURE_FIXED = {"padding_value": (0.0,), "feature_extractor_type": (EXTRACTOR,)}
FEATURE_IDLE = (
    "padding_side",
    "return_attention_mask",
    "processor_class",
    "feature_extractor",
    "blank_token",
    "decoder_type",
)

ENCODER_KEYS = (
    Key("num_mel_bins", "features", integer(at_most=4096), 80),
    Key("hidden_size", "width", WIDTH, 1024),
    Key("num_hidden_layers", "layers", integer(at_most=1000), 24),
    Key("num_attention_heads", "heads", integer(at_most=1024), 8),
    Key("intermediate_size", "inner", integer(), 4096),
    Key("conv_kernel_size", "kernel_size", integer(at_most=1025), 9),
    Key("subsampling_factor", "subsampling_factor", integer(2, 1024), 8),
    Key("subsampling_conv_channels", "subsampling_channels", WIDTH, 256),
    Key("scale_input", "scale_input", flag, True),
    Key("attention_bias", "use_bias", flag, True),
    Key("convolution_bias", "convolution_bias", flag, True),
    Key("activation_dropout", "dropout", number(0.0, 1.0), 0.1),
    Key("dropout", "dropout_pre_encoder", number(0.0, 1.0), 0.1),
    Key("dropout_positions", "dropout_emb", number(0.0, 1.0), 0.0),
    Key("attention_dropout", "dropout_att", number(0.0, 1.0), 0.1),
    Key("max_position_embeddings", "position_max_len", integer(), 5000),
)
ENCODER_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("parakeet_encoder",),
    "hidden_act": ("silu",),
    "subsampling_conv_kernel_size": (3,),
    "subsampling_conv_stride": (2,),
}
ENCODER_IDLE = (*GENERIC, "layerdrop", "num_key_value_heads")

CTC_KEYS = (
    Key("vocab_size", "symbols", VOCABULARY, 1025),
    Key("pad_token_id", "blank", integer(0, 10_000_000), 1024),
)
RNNT_KEYS = (
    Key("vocab_size", "symbols", VOCABULARY, 8193),
    Key("blank_token_id", "blank", integer(0, 10_000_000), 8192),
    Key("decoder_hidden_size", "width", WIDTH, 640),
    Key("num_decoder_layers", "layers", integer(at_most=100), 2),
    Key("hidden_act", "activation", one_of("relu", "sigmoid", "tanh"), "relu"),
    Key("max_symbols_per_step", "max_symbols", integer(at_most=10_000), MAX_SYMBOLS),
    # Keys of ours, which transformers ignores; 0.2 is the dropout of NeMo's released transducers.
    Key("decoder_dropout", "decoder_dropout", number(0.0, 1.0), 0.2),
    Key("joint_dropout", "joint_dropout", number(0.0, 1.0), 0.2),
)
TDT_KEYS = (*RNNT_KEYS, Key("durations", "durations", a_list, (0, 1, 2, 3, 4), list))


@dataclass(frozen=True, kw_only=True)
class ModelType:
    """A type of model by the name that `model_type` has for it."""

    architecture: str
    keys: tuple[Key, ...]
    idle: tuple[str, ...]
    """Keys that may hold anything, since they change no number of an inference."""
    read: Callable[[dict[str, Any], dict[str, dict[str, Any]], str], None]
    """(values of the keys, settings of the parts, where): adds the settings of the head."""


def read_ctc(values: dict[str, Any], settings: dict[str, dict[str, Any]], where: str) -> None:
    """Add the settings of a CTC head."""
    settings["decoder"] = {"width": settings["encoder"]["width"], "classes": values["symbols"] - 1}


def read_transducer(values: dict[str, Any], settings: dict[str, dict[str, Any]], where: str) -> None:
    """Add the settings of prediction network and joint. Raises CheckpointError for durations that cannot be."""
    durations, classes, width = values.get("durations", []), values["symbols"] - 1, values["width"]
    whole = all(type(each) is int and 0 <= each <= 1000 for each in durations)
    if not whole or len(set(durations)) != len(durations) or ("durations" in values and not any(durations)):
        refuse(where, "durations", durations, "different whole numbers of frames, one of them above 0")
    settings["decoder"] = {
        "kind": "rnnt",
        "classes": classes,
        "width": width,
        "layers": values["layers"],
        "dropout": values["decoder_dropout"],
    }
    settings["joint"] = {
        "encoder_width": settings["encoder"]["width"],
        "prediction_width": width,
        "width": width,
        "classes": classes,
        "durations": tuple(durations),
        "activation": values["activation"],
        "dropout": values["joint_dropout"],
    }
    settings["transducer"] = {"reduction": "mean_volume", "max_symbols": values["max_symbols"]}


MODEL_TYPES = {
    "parakeet_ctc": ModelType(
        architecture="ParakeetForCTC", keys=CTC_KEYS, idle=("ctc_loss_reduction", "ctc_zero_infinity"), read=read_ctc
    ),
    "parakeet_rnnt": ModelType(
        architecture="ParakeetForRNNT", keys=RNNT_KEYS, idle=("pad_token_id",), read=read_transducer
    ),
    "parakeet_tdt": ModelType(
        architecture="ParakeetForTDT", keys=TDT_KEYS, idle=("pad_token_id",), read=read_transducer
    ),
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping from a JSON file. Raises CheckpointError where it is missing, too large or no such mapping."""
    content = read_file(path, LIMITS.small_file_bytes if path.name == "tokenizer.json" else LIMITS.config_bytes)
    try:
        check_json(content)
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {shown(value)}; a mapping of keys is needed.")
    return value


def read_features(folder: Path) -> dict[str, Any]:
    """The feature extractor's section of a folder. Raises CheckpointError where there is none."""
    if (folder / PROCESSOR).is_file():
        section = read_json(folder / PROCESSOR).get("feature_extractor")
        if isinstance(section, dict):
            return section
    if not (folder / PREPROCESSOR).is_file():
        raise CheckpointError(
            f"{folder} has no settings of the features ({PREPROCESSOR}, or {PROCESSOR} with 'feature_extractor'). "
            "Save the processor into it too: processor.save_pretrained(folder)."
        )
    return read_json(folder / PREPROCESSOR)


def translate(config: Mapping[str, Any], features: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """The settings of all parts from the configurations of model and features.

    Raises CheckpointError, beginning with `source`, for whatever is missing, malformed or not supported.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in MODEL_TYPES:
        raise CheckpointError(
            f"{source}: model_type is {shown(name)}, which is not supported yet. Supported: {', '.join(MODEL_TYPES)}."
        )
    kind, where = MODEL_TYPES[name], f"{source}: {CONFIG}"
    idle = (*GENERIC, "encoder_config", *kind.idle)
    values = read_section(dict(config), kind.keys, where, idle=idle)
    if values["blank"] != values["symbols"] - 1:
        refuse(where, "the blank's token id", values["blank"], f"{values['symbols'] - 1}, the last of vocab_size")
    settings = {"preprocessor": read_preprocessor(dict(features), f"{source}: feature extractor")}
    settings["encoder"] = read_encoder(config.get("encoder_config", {}), f"{where}: encoder_config")
    if settings["encoder"]["features"] != settings["preprocessor"]["features"]:
        raise CheckpointError(
            f"{source}: encoder_config.num_mel_bins is {settings['encoder']['features']}, the feature extractor's "
            f"feature_size is {settings['preprocessor']['features']}; they must be equal."
        )
    kind.read(values, settings, where)
    return settings


def read_preprocessor(section: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings of LogMel. Raises CheckpointError for what is not supported."""
    settings = read_section(section, FEATURE_KEYS, where, fixed=FEATURE_FIXED, idle=FEATURE_IDLE)
    if settings["window_size"] > settings["n_fft"]:
        refuse(where, "win_length", settings["window_size"], f"at most n_fft, {settings['n_fft']}")
    for name in ("window_size", "window_stride"):
        settings[name] = in_seconds(settings[name], settings["sample_rate"])
    return settings


def in_seconds(samples: int, rate: int) -> float:
    """Seconds of which whole samples are cut: half a sample more where rounding would take one away."""
    seconds = samples / rate
    return seconds if int(seconds * rate) == samples else (samples + 0.5) / rate


def read_encoder(section: Any, where: str) -> dict[str, Any]:
    """The settings of ConformerEncoder. Raises CheckpointError for values that contradict each other."""
    settings = read_section(section, ENCODER_KEYS, where, fixed=ENCODER_FIXED, idle=ENCODER_IDLE)
    inner, width, factor = settings.pop("inner"), settings["width"], settings["subsampling_factor"]
    if settings.pop("convolution_bias") != settings["use_bias"]:
        refuse(where, "convolution_bias", not settings["use_bias"], "the same as attention_bias")
    if width % settings["heads"]:
        refuse(where, "num_attention_heads", settings["heads"], f"a divisor of hidden_size {width}")
    if inner % width:
        refuse(where, "intermediate_size", inner, f"a multiple of hidden_size {width}")
    if settings["kernel_size"] % 2 == 0:
        refuse(where, "conv_kernel_size", settings["kernel_size"], "an odd number")
    if factor & (factor - 1):
        refuse(where, "subsampling_factor", factor, "a power of 2")
    return {**settings, "subsampling": "dw_striding", "feed_forward_expansion": inner // width}


# The other way


def describe(settings: Settings, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of model and features for a model of ours; dtype: of its weights in the file.

    Raises CheckpointError for settings that the layout has no place for.
    """
    parts = {part: complete(part, settings[part]) for part in parts_of(settings)}
    name = model_type_of(parts)
    encoder, decoder = parts["encoder"], parts["decoder"]
    symbols = decoder["classes"] + 1
    values = {"symbols": symbols, "blank": symbols - 1}
    if "joint" in parts:
        joint, options = parts["joint"], settings.get("transducer", {})
        values |= {"width": decoder["width"], "layers": decoder["layers"], "activation": joint["activation"]}
        values |= {"max_symbols": options.get("max_symbols", MAX_SYMBOLS), "durations": joint["durations"]}
        values |= {"decoder_dropout": decoder["dropout"], "joint_dropout": joint["dropout"]}
    rate = parts["preprocessor"]["sample_rate"]
    samples = {name: int(parts["preprocessor"][name] * rate) for name in ("window_size", "window_stride")}
    features = write_section({**parts["preprocessor"], **samples}, FEATURE_KEYS)
    if features["n_fft"] is None:
        features["n_fft"] = 2 ** max(samples["window_size"] - 1, 0).bit_length()
    derived = {"inner": encoder["width"] * encoder["feed_forward_expansion"], "convolution_bias": encoder["use_bias"]}
    section = write_section({**encoder, **derived}, ENCODER_KEYS)
    section["subsampling_conv_channels"] = encoder["subsampling_channels"] or encoder["width"]
    fixed = {key: allowed[0] for key, allowed in ENCODER_FIXED.items()}
    config = {
        "architectures": [MODEL_TYPES[name].architecture],
        "model_type": name,
        "dtype": dtype,
        **write_section(values, MODEL_TYPES[name].keys),
        "pad_token_id": symbols - 1,
        "encoder_config": {**section, **fixed, "layerdrop": 0.0},
    }
    extractor = {key: allowed[0] for key, allowed in FEATURE_FIXED.items()}
    features |= {**extractor, "padding_side": "right", "return_attention_mask": True}
    if "joint" in parts:
        config["is_encoder_decoder"] = True
    check_expressible(parts, translate(config, features, "what would be written"))
    return config, features


def model_type_of(parts: Settings) -> str:
    """The type of a model with these parts. Raises CheckpointError for heads that the layout does not have."""
    decoder, joint = parts["decoder"], parts.get("joint")
    encoder = parts["encoder"].get("kind", "conformer")
    what = "a hybrid of two heads" if "ctc_decoder" in parts else ""
    what = "a stateless prediction network" if decoder.get("kind") == "stateless" else what
    what = f"an encoder of kind {encoder}" if encoder != "conformer" else what
    if what:
        raise CheckpointError(f"The Hugging Face layout has no place for {what}; save a .nemo or a native folder.")
    if joint is None:
        return "parakeet_ctc"
    return "parakeet_tdt" if joint["durations"] else "parakeet_rnnt"


def check_expressible(parts: Settings, written: Settings) -> None:
    """Compare a model's settings with those that its written configuration stands for.

    Raises CheckpointError, naming setting and value, where a reader would compute something else.
    """
    for part, own in parts.items():
        other = complete(part, written[part])
        for name, value in own.items():
            if part == "preprocessor" and name in ("window_size", "window_stride", "n_fft"):
                continue  # written in samples
            if name == "subsampling_channels" and value is None:
                continue
            if plain(value) != plain(other[name]) and name not in NUMBERLESS and not name.startswith("dropout"):
                raise CheckpointError(
                    f"{part}.{name} is {shown(value)}, which the Hugging Face layout has no place for "
                    f"(there it is {shown(other[name])}). Save a .nemo or a native folder."
                )


def plain(value: Any) -> Any:
    """Lists and tuples in one form."""
    return list(value) if isinstance(value, list | tuple) else value
