"""The section `encoder` of NeMo's Conformer and FastConformer models: its keys, their checks, and what they become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from overtone.checkpoints.nemo.keys import MODULES, Parts, Section, check_features, unset_below_one
from overtone.config.keys import (
    Key,
    NotSupportedError,
    flag,
    integer,
    number,
    one_of,
    optional,
    refuse,
    write_section,
)
from overtone.nets.taps import LOCAL

WITH_RIGHT_CONTEXT = "chunked_limited_with_rc"
"""The style of attention whose chunks see frames on their right: of streams alone."""
NO_TOKENS = {"tokens": 0, "spacing": 1, "separate": False}
"""The global frames of local attention that has none."""
CONTEXT_STYLES = ("regular", "chunked_limited", WITH_RIGHT_CONTEXT)


# Checks of values


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


def attention_contexts(value: Any) -> list[list[int]]:
    """[left, right] of every attention context that the model was trained with; the first acts unless chosen."""
    contexts = value or [[-1, -1]]
    if isinstance(contexts, list) and not isinstance(contexts[0], list):
        contexts = [contexts]
    if not isinstance(contexts, list) or not all(isinstance(each, list) and len(each) == 2 for each in contexts):
        raise NotSupportedError("[left, right] in frames, -1 for all, or a list of such pairs")
    return [[integer(-1)(side) for side in each] for each in contexts]


# The section as a whole


def read_conformer(table: Section, section: dict[str, Any], where: str, parts: Parts) -> dict[str, Any]:
    """The settings of ConformerEncoder. Raises CheckpointError for values that contradict each other."""
    chunks, convolution = section.pop("att_chunk_context_size", None), section.pop("conv_context_style", "regular")
    if section.get("att_context_style") != WITH_RIGHT_CONTEXT:
        if chunks:
            refuse(where, "att_chunk_context_size", chunks, f"null, or att_context_style {WITH_RIGHT_CONTEXT}")
        if convolution not in ("regular", None):
            refuse(
                where, "conv_context_style", convolution, f"regular; dcc with att_context_style {WITH_RIGHT_CONTEXT}"
            )
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
    read_attention(settings, where)
    return settings


def read_attention(settings: dict[str, Any], where: str) -> None:
    """Split the contexts into the one that acts and, where there are several, their list.

    Raises CheckpointError for contexts that do not fit their style.
    """
    contexts, style = settings.pop("attention_contexts"), settings["attention_context_style"]
    if style == WITH_RIGHT_CONTEXT:  # whole recordings are seen whole: the chunks are for streams
        contexts, settings["attention_context_style"] = [[-1, -1]], "regular"
    for left, right in contexts if style == "chunked_limited" else ():
        if (right < 0 and len(contexts) == 1) or (left > 0 and right >= 0 and left % (right + 1)):
            refuse(where, "att_context_size", [left, right], "a left context that is a multiple of the right one + 1")
    tokens = {key: settings.pop(key) or default for key, default in NO_TOKENS.items()}
    if settings["position"] == LOCAL:
        if len(contexts) > 1 or min(contexts[0]) < 0 or max(contexts[0]) == 0:
            refuse(where, "att_context_size", contexts, f"[left, right] in frames, from 0 on, for {LOCAL}")
        if tokens["tokens"] or tokens["separate"]:
            settings["global_attention"] = tokens
    elif tokens["tokens"] or tokens["separate"]:
        key = "global_tokens" if tokens["tokens"] else "global_attn_separate"
        refuse(where, key, tokens["tokens"] or True, f"0 and false, or self_attention_model {LOCAL}")
    settings["attention_context"] = contexts[0]
    if len(contexts) > 1:
        settings["attention_contexts"] = contexts


def write_conformer(table: Section, encoder: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the section; one attention context is written as a pair, several as a list."""
    contexts = encoder["attention_contexts"] or [encoder["attention_context"]]
    tokens = {**NO_TOKENS, **(encoder["global_attention"] or {})}
    section = write_section({**encoder, **tokens, "attention_contexts": contexts}, table.keys)
    if len(contexts) == 1:
        section["att_context_size"] = section["att_context_size"][0]
    return section


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
        Key("self_attention_model", "position", one_of("rel_pos", "abs_pos", LOCAL), "rel_pos"),
        Key("xscaling", "scale_input", flag, True),
        Key("untie_biases", "untie_biases", flag, True),
        Key("use_bias", "use_bias", flag, True),
        Key("conv_norm_type", "conv_norm", convolution_norm, "batch_norm"),
        Key("conv_context_size", "conv_context", convolution_context, None),
        Key("att_context_size", "attention_contexts", attention_contexts, None, lambda value: [list(x) for x in value]),
        Key("att_context_style", "attention_context_style", one_of(*CONTEXT_STYLES), "regular"),
        Key("global_tokens", "tokens", optional(integer(0)), 0),
        Key("global_tokens_spacing", "spacing", optional(integer()), 1),
        Key("global_attn_separate", "separate", optional(flag), False),
        Key("feat_out", "output_width", unset_below_one, -1, lambda value: value or -1),
        Key("dropout", "dropout", number(0.0, 1.0), 0.1),
        Key("dropout_pre_encoder", "dropout_pre_encoder", number(0.0, 1.0), 0.1),
        Key("dropout_emb", "dropout_emb", number(0.0, 1.0), 0.1),
        Key("dropout_att", "dropout_att", number(0.0, 1.0), 0.0),
        Key("pos_emb_max_len", "position_max_len", integer(), 5000),
    ),
    fixed={"conv_dual_mode": (False, None)},
    # These act in the training of the base alone, or change the way of a computation and not its result.
    idle=(
        "subsampling_conv_chunking_factor",
        "reduction_position",
        "reduction_factor",
        "att_context_probs",
        "stochastic_depth_drop_prob",
        "stochastic_depth_mode",
        "stochastic_depth_start_layer",
        "use_pytorch_sdpa",
        "use_pytorch_sdpa_backends",
        "sync_max_audio_length",
        "use_triton",
        "rope_base",
        "rotary_fraction",
    ),
    adaptable=f"{MODULES}.conformer_encoder.ConformerEncoderAdapter",
    read=read_conformer,
    write=write_conformer,
)
