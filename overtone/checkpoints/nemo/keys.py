"""Tables of NeMo's configurations: for each section the classes that it may name, its keys, and our names for them.

Defaults are those of NeMo's constructors, which act where a configuration leaves a key out. A new family of models adds
its sections here, and names them in `config.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from overtone.config.keys import (
    Check,
    Key,
    NotSupportedError,
    flag,
    integer,
    number,
    one_of,
    optional,
    read_key,
    read_section,
    refuse,
    shown,
    write_section,
)
from overtone.errors import CheckpointError
from overtone.nets.jasper import ACTIVATIONS

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

    def to_settings(self, section: dict[str, Any], where: str, parts: Parts) -> dict[str, Any]:
        """The keyword arguments that a section stands for. Raises CheckpointError for what is not supported."""
        return self.plain_settings(section, where) if self.read is None else self.read(self, section, where, parts)

    def plain_settings(self, section: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The same by its keys alone."""
        return read_section(section, self.keys, where, fixed=self.fixed, idle=self.idle)


# Checks of values


def unset_below_one(value: Any) -> int | None:
    """NeMo's -1: as wide as the encoder."""
    width = integer(-1)(value)
    return width if width > 0 else None


def convolution_norm(value: Any) -> str:
    """A norm of the convolution module by its name."""
    name = str(value)
    groups = name.removeprefix("group_norm")
    if name in ("batch_norm", "layer_norm") or (name != groups and groups.isdigit() and int(groups) > 0):
        return name
    raise NotSupportedError("batch_norm, layer_norm, group_normN with the number N of groups")


def convolution_context(value: Any) -> Any:
    """Frames to the left and to the right of the depthwise convolution."""
    if value is None or value == "causal":
        return value
    if isinstance(value, list) and len(value) == 2:
        return [integer(0)(side) for side in value]
    raise NotSupportedError("null, causal, or the frames to the left and to the right")


def attention_context(value: Any) -> list[int]:
    """[left, right]; the first of several that the model was trained for."""
    context = value or [-1, -1]
    if isinstance(context, list) and isinstance(context[0], list):
        context = context[0]
    if not isinstance(context, list) or len(context) != 2:
        raise NotSupportedError("[left, right] in frames, -1 for all, or a list of such pairs")
    return [integer(-1)(side) for side in context]


def single(check: Check) -> Check:
    """A check of the one number in a list, or of a number by itself."""

    def check_one(value: Any) -> Any:
        if isinstance(value, list) and len(value) != 1:
            raise NotSupportedError("one number")
        return check(value[0] if isinstance(value, list) else value)

    return check_one


def in_list(value: Any) -> list[Any]:
    return [value]


def list_of_sections(value: Any) -> list[dict[str, Any]]:
    """The blocks of an encoder, each a mapping of keys."""
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise NotSupportedError("a list of blocks")
    return value


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


def read_conformer(table: Section, section: dict[str, Any], where: str, parts: Parts) -> dict[str, Any]:
    """The settings of ConformerEncoder. Raises CheckpointError for values that contradict each other."""
    reduction = section.pop("reduction", None)
    if reduction and section.get("reduction_factor", 1) != 1:
        refuse(where, "reduction", reduction, "null, or reduction_factor 1")
    settings = table.plain_settings(section, where)
    check_features(settings, where, parts)
    width, heads, kernel = settings["width"], settings["heads"], settings["kernel_size"]
    if width % heads:
        refuse(where, "n_heads", heads, f"a divisor of d_model {width}")
    if kernel % 2 == 0:
        refuse(where, "conv_kernel_size", kernel, "an odd number")
    factor = settings["subsampling_factor"]
    if factor & (factor - 1) and "striding" in settings["subsampling"]:
        refuse(where, "subsampling_factor", factor, "a power of 2")
    if settings["conv_context"] == "causal":
        settings["conv_context"] = [kernel - 1, 0]
    if settings["conv_context"] is not None and sum(settings["conv_context"]) + 1 != kernel:
        refuse(where, "conv_context_size", settings["conv_context"], f"two numbers that add up to {kernel - 1}")
    left, right = settings["attention_context"]
    if settings["attention_context_style"] == "chunked_limited" and (right < 0 or (left > 0 and left % (right + 1))):
        refuse(where, "att_context_size", [left, right], "a left context that is a multiple of the right one + 1")
    return settings


def read_jasper(table: Section, section: dict[str, Any], where: str, parts: Parts) -> dict[str, Any]:
    """The settings of JasperEncoder. Raises CheckpointError for values that contradict each other.

    As in NeMo a block without a residual mode has that of the block before.
    """
    mode = read_key(section, Key("residual_mode", "residual_mode", RESIDUAL_MODES, "add"), where)
    section.pop("residual_mode", None)
    settings = table.plain_settings(section, where)
    check_features(settings, where, parts)
    blocks = []
    for index, entry in enumerate(settings["blocks"]):
        inside = f"{where}.jasper[{index}]"
        block = read_section(
            {"residual_mode": mode, **entry}, BLOCK, inside, fixed={"heads": (-1, None)}, idle=BLOCK_IDLE
        )
        mode = block["residual_mode"]
        kernel = max(int(block["kernel"] * block.pop(KERNEL_FACTOR)), 1)
        blocks.append({**block, "kernel": kernel + 1 - kernel % 2})
    return {"kind": "jasper", **settings, "blocks": blocks}


def write_blocks(blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The value of `encoder.jasper` for these blocks."""
    return [write_section({KERNEL_FACTOR: 1.0, **block}, BLOCK) for block in blocks]


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

KERNEL_FACTOR = "kernel_factor"
"""A factor of the kernel, which is multiplied with it when the section is read."""
RESIDUAL_MODES = one_of("add", "stride_add", "max")
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

CONFORMER = Section(
    classes=(
        f"{MODULES}.ConformerEncoder",
        f"{MODULES}.ConformerEncoderAdapter",
        f"{MODULES}.conformer_encoder.ConformerEncoder",
        f"{MODULES}.conformer_encoder.ConformerEncoderAdapter",
    ),
    keys=(
        Key("feat_in", "features", integer()),
        Key("d_model", "width", integer(at_most=65_536)),
        Key("n_layers", "layers", integer(at_most=1000)),
        Key("n_heads", "heads", integer(at_most=1024), 4),
        Key("ff_expansion_factor", "feed_forward_expansion", integer(at_most=64), 4),
        Key("conv_kernel_size", "kernel_size", integer(at_most=1025), 31),
        Key("subsampling", "subsampling", one_of("striding", "dw_striding", "stacking", "stacking_norm"), "striding"),
        Key("subsampling_factor", "subsampling_factor", integer(2, 1024), 4),
        Key("subsampling_conv_channels", "subsampling_channels", unset_below_one, -1, lambda value: value or -1),
        Key("causal_downsampling", "causal_downsampling", flag, False),
        Key("self_attention_model", "position", one_of("rel_pos", "abs_pos"), "rel_pos"),
        Key("xscaling", "scale_input", flag, True),
        Key("untie_biases", "untie_biases", flag, True),
        Key("use_bias", "use_bias", flag, True),
        Key("conv_norm_type", "conv_norm", convolution_norm, "batch_norm"),
        Key("conv_context_size", "conv_context", convolution_context, None),
        Key("att_context_size", "attention_context", attention_context, None, list),
        Key("att_context_style", "attention_context_style", one_of("regular", "chunked_limited"), "regular"),
        Key("feat_out", "output_width", unset_below_one, -1, lambda value: value or -1),
        Key("dropout", "dropout", number(0.0, 1.0), 0.1),
        Key("dropout_pre_encoder", "dropout_pre_encoder", number(0.0, 1.0), 0.1),
        Key("dropout_emb", "dropout_emb", number(0.0, 1.0), 0.1),
        Key("dropout_att", "dropout_att", number(0.0, 1.0), 0.0),
        Key("pos_emb_max_len", "position_max_len", integer(), 5000),
    ),
    fixed={"global_tokens": (0, None), "global_attn_separate": (False, None), "conv_dual_mode": (False, None)},
    # These act in the training of the base alone, or change the way of a computation and not its result.
    idle=(
        "subsampling_conv_chunking_factor",
        "reduction_position",
        "reduction_factor",
        "att_context_probs",
        "stochastic_depth_drop_prob",
        "stochastic_depth_mode",
        "stochastic_depth_start_layer",
        "global_tokens_spacing",
        "use_pytorch_sdpa",
        "use_pytorch_sdpa_backends",
        "sync_max_audio_length",
    ),
    adaptable=f"{MODULES}.conformer_encoder.ConformerEncoderAdapter",
    read=read_conformer,
)

BLOCK = (
    Key("filters", "filters", integer(at_most=65_536)),
    Key("repeat", "repeat", integer(at_most=1000)),
    Key("kernel", "kernel", single(integer(at_most=65_536)), back=in_list),
    Key("kernel_size_factor", KERNEL_FACTOR, number(0.0, 1000.0), 1.0),
    Key("stride", "stride", single(integer(at_most=1024)), back=in_list),
    Key("dilation", "dilation", single(integer(at_most=1024)), back=in_list),
    Key("dropout", "dropout", number(0.0, 1.0)),
    Key("residual", "residual", flag),
    Key("residual_dense", "dense", flag, False),
    Key("residual_mode", "residual_mode", RESIDUAL_MODES, "add"),
    Key("groups", "groups", integer(at_most=65_536), 1),
    Key("separable", "separable", flag, False),
    Key("se", "squeeze_excite", flag, False),
    Key("se_reduction_ratio", "reduction", integer(at_most=65_536), 8),
    Key("stride_last", "stride_last", flag, False),
    Key("future_context", "future", integer(-1, 65_536), -1),
)
"""One entry of `encoder.jasper`."""
BLOCK_IDLE = ("se_context_size", "se_interpolation_mode")
"""NeMo draws a random context of the squeeze in training only, and interpolates nothing."""
JASPER = Section(
    classes=(
        f"{MODULES}.ConvASREncoder",
        f"{MODULES}.ConvASREncoderAdapter",
        f"{MODULES}.conv_asr.ConvASREncoder",
        f"{MODULES}.conv_asr.ConvASREncoderAdapter",
    ),
    keys=(
        Key("feat_in", "features", integer()),
        Key("activation", "activation", one_of(*ACTIVATIONS)),
        Key("jasper", "blocks", list_of_sections, back=write_blocks),
    ),
    fixed={
        "normalization_mode": ("batch", None),
        "conv_mask": (True,),
        "frame_splicing": (1,),
        "quantize": (False,),
    },
    # The way of fresh weights, and the groups of a norm that is refused.
    idle=("init_mode", "norm_groups"),
    adaptable=f"{MODULES}.conv_asr.ConvASREncoderAdapter",
    read=read_jasper,
)
ENCODERS = {"conformer": CONFORMER, "jasper": JASPER}
"""The sections of encoders, by their kind in our settings."""

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
