"""Tables of NeMo's configurations: for each section its keys, their checks and our names.

Defaults are those of NeMo's constructors, which act where a configuration leaves a key out.
"""

from __future__ import annotations

from typing import Any

from overtone.config.keys import Key, NotSupportedError, flag, integer, number, one_of, optional


def unset_below_one(value: Any) -> int | None:
    """NeMo's -1: as wide as the encoder."""
    width = integer(-1)(value)
    return width if width > 0 else None


def convolution_norm(value: Any) -> str:
    name = str(value)
    groups = name.removeprefix("group_norm")
    if name in ("batch_norm", "layer_norm") or (name != groups and groups.isdigit() and int(groups) > 0):
        return name
    raise NotSupportedError("batch_norm, layer_norm, group_normN with the number N of groups")


def convolution_context(value: Any) -> Any:
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


def log_guard(value: Any) -> float | str:
    return str(value) if value in ("tiny", "eps") else number(0.0)(value)


def normalization(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"fixed_mean", "fixed_std"}:
        return {key: [number()(item) for item in items] for key, items in value.items()}
    if value is None or value in ("per_feature", "all_features", "NA"):
        return value
    raise NotSupportedError("per_feature, all_features, NA, null, or fixed_mean with fixed_std")


PREPROCESSOR = (
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
)
PREPROCESSOR_FIXED = {
    "frame_splicing": (1,),
    "exact_pad": (False,),
    "nb_augmentation_prob": (0, None),
    "rng": (None,),
}
PREPROCESSOR_IDLE = ("nb_max_freq", "use_torchaudio", "stft_exact_pad", "stft_conv")
"""What NeMo itself no longer looks at, or only together with something that is refused."""

ENCODER = (
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
)
ENCODER_FIXED = {"global_tokens": (0, None), "global_attn_separate": (False, None), "conv_dual_mode": (False, None)}
ENCODER_IDLE = (
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
)
"""What acts in the training of the base alone, or changes how something is computed and not what."""

SPEC_AUGMENT = (
    Key("freq_masks", "freq_masks", integer(0), 0),
    Key("time_masks", "time_masks", integer(0), 0),
    Key("freq_width", "freq_width", integer(0), 10),
    Key("time_width", "time_width", lambda value: value if isinstance(value, float) else integer(0)(value), 10),
    Key("mask_value", "mask_value", number(), 0.0),
)
SPEC_AUGMENT_FIXED = {"rect_masks": (0, None), "rng": (None,)}
SPEC_AUGMENT_IDLE = ("rect_time", "rect_freq", "use_vectorized_spec_augment", "use_numba_spec_augment")

STRATEGY = (
    Key("stochastic_depth", "stochastic_depth", number(0.0, 1.0), 0.0),
    Key("l2_lambda", "l2_lambda", number(0.0), 0.0),
)
