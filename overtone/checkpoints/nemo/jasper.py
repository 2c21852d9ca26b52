"""The section `encoder` of NeMo's Citrinet, QuartzNet, Jasper and ContextNet models: its keys, and what they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from overtone.checkpoints.nemo.keys import MODULES, Parts, Section, check_features
from overtone.config.keys import (
    Check,
    Key,
    NotSupportedError,
    flag,
    integer,
    number,
    one_of,
    read_key,
    read_section,
    write_section,
)
from overtone.nets.jasper import ACTIVATIONS

KERNEL_FACTOR = "kernel_factor"
"""A factor of the kernel, which is multiplied with it when the section is read."""
RESIDUAL_MODES = one_of("add", "stride_add", "max")


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
