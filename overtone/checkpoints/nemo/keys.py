"""Tables of NeMo's configurations: for each section the classes that it may name, its keys, and our names for them.

Defaults are those of NeMo's constructors, which act where a configuration leaves a key out. A new family of models adds
its sections here, and names them in `config.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from overtone.config.keys import (
    Key,
    NotSupportedError,
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
from overtone.errors import CheckpointError

MODULES = "nemo.collections.asr.modules"

Parts = Mapping[str, Mapping[str, Any]]
"""Keyword arguments of the parts that have been read, by part."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """The table of one kind of section: its keys, and the keyword arguments that they become."""

    classes: tuple[str, ...]
    """The classes that its `_target_` may name; the first is written."""
    keys: tuple[Key, ...]
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys with the only values that are supported."""
    adaptable: str = ""
    """The class of an encoder of this kind that has adapters."""
    idle: tuple[str, ...] = ()
    """Keys that may hold anything, since they change no number of an inference."""
    read: Callable[[Section, dict[str, Any], str, Parts], dict[str, Any]] | None = None
    """(table, section, where, parts before) -> keyword arguments, for a section whose keys depend on each other."""
    write: Callable[[Section, Mapping[str, Any]], dict[str, Any]] | None = None
    """(table, keyword arguments) -> section, for one that is not written key by key."""

    def to_settings(self, section: dict[str, Any], where: str, parts: Parts) -> dict[str, Any]:
        """The keyword arguments that a section stands for. Raises CheckpointError for what is not supported."""
        return self.plain_settings(section, where) if self.read is None else self.read(self, section, where, parts)

    def to_section(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The section that stands for these keyword arguments, with its class."""
        keys = write_section(settings, self.keys) if self.write is None else self.write(self, settings)
        return {"_target_": self.classes[0], **keys}

    def plain_settings(self, section: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The same by its keys alone."""
        return read_section(section, self.keys, where, fixed=self.fixed, idle=self.idle)


KEY_PREFIXES = (
    ("preprocessor.", "preprocessor.featurizer."),
    ("decoder.projection.", "decoder.decoder_layers.0."),
    ("ctc_decoder.projection.", "ctc_decoder.decoder_layers.0."),
    ("decoder.embed.", "decoder.prediction.embed."),
    ("decoder.embeds.", "decoder.prediction.embeds."),
    ("decoder.lstm.", "decoder.prediction.dec_rnn.lstm."),
    ("prompt_kernel.up.", "prompt_kernel.0."),
    ("prompt_kernel.down.", "prompt_kernel.2."),
    ("transf_encoder.projection.", "encoder_decoder_proj."),
    ("transf_decoder.embedding.", "transf_decoder._embedding."),
    ("transf_decoder.layers.", "transf_decoder._decoder.layers."),
    ("transf_decoder.final_layer_norm.", "transf_decoder._decoder.final_layer_norm."),
    ("transf_decoder.head.", "log_softmax.mlp.layer0."),
)
"""Beginnings of our keys -> those of NeMo's, where they differ."""


def nemo_key(name: str) -> str:
    """Our key of a base tensor -> NeMo's."""
    for ours, theirs in KEY_PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


# Checks of values


def unset_below_one(value: Any) -> int | None:
    """NeMo's -1: as wide as the encoder."""
    width = integer(-1)(value)
    return width if width > 0 else None


def log_guard(value: Any) -> float | str:
    return str(value) if value in ("tiny", "eps") else number(0.0)(value)


def normalization(value: Any) -> Any:
    """A normalisation of features: its name, or fixed means and deviations."""
    if isinstance(value, dict) and set(value) == {"fixed_mean", "fixed_std"}:
        return {key: [number()(item) for item in items] for key, items in value.items()}
    if value is None or value in ("per_feature", "all_features", "NA"):
        return value
    raise NotSupportedError("per_feature, all_features, NA, null, or fixed_mean with fixed_std")


# Sections whose keys depend on each other


def read_preprocessor(table: Section, section: dict[str, Any], where: str, parts: Parts) -> dict[str, Any]:
    """The settings of LogMel; lengths in samples become seconds. Raises CheckpointError."""
    lengths = {key: section.pop(key, None) for key in ("n_window_size", "n_window_stride")}
    settings = table.plain_settings(section, where)
    for key, in_seconds in (("n_window_size", "window_size"), ("n_window_stride", "window_stride")):
        samples = lengths[key]
        if bool(samples) == bool(settings[in_seconds]):
            given = f"both {in_seconds} and {key}" if samples else f"neither {in_seconds} nor {key}"
            raise CheckpointError(f"{where} has {given}; exactly one is needed.")
        if samples:
            # Half a sample more, as whole samples are cut from the seconds.
            settings[in_seconds] = (int(samples) + 0.5) / settings["sample_rate"]
    return settings


def check_features(settings: Mapping[str, Any], where: str, parts: Parts) -> None:
    """Raises CheckpointError unless the encoder takes what the preprocessor gives."""
    if settings["features"] != parts["preprocessor"]["features"]:
        raise CheckpointError(
            f"{where}.feat_in is {settings['features']}, preprocessor.features is {parts['preprocessor']['features']}; "
            "they must be equal."
        )


def read_ctc_decoder(table: Section, section: dict[str, Any], where: str, parts: Parts) -> dict[str, Any]:
    """The settings of CtcProjection; `classes` is None where only the tokenizer knows. Raises CheckpointError."""
    width = encoder_width(parts)
    for name, value in section.items():
        if name not in ("_target_", *table.idle) and value:
            raise CheckpointError(
                f"{where}.{name} is {shown(value)}; this key is unknown and could change the numbers."
            )
    if section.get("add_blank", True) is not True:
        refuse(where, "add_blank", section["add_blank"], "true")
    if section.get("feat_in") not in (None, 0, width):
        refuse(where, "feat_in", section["feat_in"], f"{width}, the width of the encoder's output")
    classes = section.get("num_classes") or -1
    if not isinstance(classes, int) or classes > 10_000_000:
        refuse(where, "num_classes", classes, "a whole number")
    vocabulary = section.get("vocabulary") or []
    if not isinstance(vocabulary, list):
        refuse(where, "vocabulary", vocabulary, "a list of symbols")
    if classes < 1:
        classes = len(vocabulary) or None
    return {"width": width, "classes": classes}


def encoder_width(parts: Parts) -> int:
    """The width of the encoder's output."""
    encoder = parts["encoder"]
    width: int = (
        encoder["blocks"][-1]["filters"] if "blocks" in encoder else encoder["output_width"] or encoder["width"]
    )
    return width


def read_prediction(table: Section, section: dict[str, Any], where: str, parts: Parts) -> dict[str, Any]:
    """The settings of RecurrentPrediction or StatelessPrediction. Raises CheckpointError."""
    nested = read_section(
        section.pop("prednet", None), PREDICTION, f"{where}.prednet", fixed=PREDICTION_FIXED, idle=("t_max",)
    )
    settings = {**table.plain_settings(section, where), **nested}
    if "context" in settings:
        del settings["layers"], settings["dropout"]
        settings["normalize"] = settings["normalize"] == "layer"
        return {"kind": "stateless", **settings}
    return {"kind": "rnnt", **settings}


def read_joint(table: Section, section: dict[str, Any], where: str, parts: Parts) -> dict[str, Any]:
    """The settings of Joint; its durations are read from the loss. Raises CheckpointError for other widths."""
    nested = read_section(section.pop("jointnet", None), JOINT_NET, f"{where}.jointnet")
    settings = {**table.plain_settings(section, where), **nested}
    widths = {"encoder_width": encoder_width(parts), "prediction_width": parts["decoder"]["width"]}
    for ours, theirs in (("encoder_width", "encoder_hidden"), ("prediction_width", "pred_hidden")):
        if settings[ours] not in (None, widths[ours]):
            refuse(f"{where}.jointnet", theirs, settings[ours], f"{widths[ours]}, the width of what it projects")
    return {**settings, **widths}


# Tables

PREPROCESSOR = Section(
    classes=(
        f"{MODULES}.AudioToMelSpectrogramPreprocessor",
        f"{MODULES}.audio_preprocessing.AudioToMelSpectrogramPreprocessor",
    ),
    keys=(
        Key("sample_rate", "sample_rate", integer(), 16_000),
        Key("window_size", "window_size", optional(number(0.0, 60.0)), 0.02),
        Key("window_stride", "window_stride", optional(number(0.0, 60.0)), 0.01),
        Key("window", "window", one_of("hann", "hamming", "blackman", "bartlett", "none"), "hann"),
        Key("normalize", "normalize", normalization, "per_feature"),
        Key("n_fft", "n_fft", optional(integer()), None),
        Key("preemph", "preemphasis", optional(number()), 0.97),
        Key("features", "features", integer(), 64),
        Key("lowfreq", "low_frequency", number(0.0), 0.0),
        Key("highfreq", "high_frequency", optional(number(0.0)), None),
        Key("log", "log", flag, True),
        Key("log_zero_guard_type", "log_zero_guard_type", one_of("add", "clamp"), "add"),
        Key("log_zero_guard_value", "log_zero_guard_value", log_guard, 2**-24),
        Key("dither", "dither", number(0.0), 1e-5),
        Key("pad_to", "pad_to", integer(0), 16),
        Key("pad_value", "pad_value", number(), 0.0),
        Key("mag_power", "magnitude_power", number(0.0), 2.0),
        Key("mel_norm", "mel_norm", optional(one_of("slaney")), "slaney"),
    ),
    fixed={
        "frame_splicing": (1,),
        "exact_pad": (False,),
        "nb_augmentation_prob": (0, None),
        "rng": (None,),
    },
    # NeMo itself no longer reads these, or only together with others that are refused.
    idle=("nb_max_freq", "use_torchaudio", "stft_exact_pad", "stft_conv"),
    read=read_preprocessor,
)

CTC_DECODER = Section(
    classes=(f"{MODULES}.ConvASRDecoder", f"{MODULES}.conv_asr.ConvASRDecoder"),
    keys=(),
    idle=("feat_in", "num_classes", "vocabulary", "init_mode", "add_blank"),
    read=read_ctc_decoder,
)

PREDICTION = (
    Key("pred_hidden", "width", integer(at_most=65_536)),
    Key("pred_rnn_layers", "layers", integer(at_most=100), 1),
    Key("dropout", "dropout", number(0.0, 1.0), 0.0, float),
)
PREDICTION_FIXED: dict[str, tuple[Any, ...]] = {
    "norm": (None,),
    "rnn_hidden_size": (-1, 0, None),
    "weights_init_scale": (1.0, None),
    "hidden_hidden_bias_scale": (0.0, None),
    "norm_first_rnn": (False, None),
    "forget_gate_bias": (1.0, None),
}
JOINT_NET = (
    Key("encoder_hidden", "encoder_width", optional(integer(at_most=65_536)), None),
    Key("pred_hidden", "prediction_width", optional(integer(at_most=65_536)), None),
    Key("joint_hidden", "width", integer(at_most=65_536)),
    Key("activation", "activation", lambda value: one_of("relu", "sigmoid", "tanh")(str(value).lower()), "relu"),
    Key("dropout", "dropout", number(0.0, 1.0), 0.0),
)
RNNT_DECODER = Section(
    classes=(f"{MODULES}.RNNTDecoder", f"{MODULES}.rnnt.RNNTDecoder"),
    keys=(Key("vocab_size", "classes", integer(at_most=10_000_000)),),
    fixed={"normalization_mode": (None,), "random_state_sampling": (False, None), "blank_as_pad": (True,)},
    read=read_prediction,
)
STATELESS_DECODER = Section(
    classes=(f"{MODULES}.StatelessTransducerDecoder", f"{MODULES}.rnnt.StatelessTransducerDecoder"),
    keys=(
        Key("vocab_size", "classes", integer(at_most=10_000_000)),
        Key("context_size", "context", integer(at_most=64), 1),
        Key("normalization_mode", "normalize", optional(one_of("layer")), None),
    ),
    fixed={"blank_as_pad": (True,)},
    read=read_prediction,
)
RNNT_JOINT = Section(
    classes=(f"{MODULES}.RNNTJoint", f"{MODULES}.rnnt.RNNTJoint"),
    keys=(Key("num_classes", "classes", integer(at_most=10_000_000)),),
    fixed={"masking_prob": (-1.0, 0.0, None)},
    # These are ways of a computation, or repeat what other keys say.
    idle=(
        "vocabulary",
        "log_softmax",
        "preserve_memory",
        "fuse_loss_wer",
        "fused_batch_size",
        "experimental_fuse_loss_wer",
        "num_extra_outputs",
    ),
    read=read_joint,
)

SPEC_AUGMENT = Section(
    classes=(
        f"{MODULES}.SpectrogramAugmentation",
        f"{MODULES}.audio_preprocessing.SpectrogramAugmentation",
    ),
    keys=(
        Key("freq_masks", "freq_masks", integer(0), 0),
        Key("time_masks", "time_masks", integer(0), 0),
        Key("freq_width", "freq_width", integer(0), 10),
        Key("time_width", "time_width", lambda value: value if isinstance(value, float) else integer(0)(value), 10),
        Key("mask_value", "mask_value", number(), 0.0),
    ),
    fixed={"rect_masks": (0, None), "rng": (None,)},
    idle=("rect_time", "rect_freq", "use_vectorized_spec_augment", "use_numba_spec_augment"),
)

STRATEGY = (
    Key("stochastic_depth", "stochastic_depth", number(0.0, 1.0), 0.0),
    Key("l2_lambda", "l2_lambda", number(0.0), 0.0),
)
