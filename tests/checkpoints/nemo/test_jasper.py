"""The encoder's section of convolutional models: what it becomes here, and what it may not hold."""

from __future__ import annotations

from typing import Any

import pytest

from overtone.checkpoints.nemo.config import translate
from overtone.errors import CheckpointError

MODULES = "nemo.collections.asr.modules"


def block(**keys: Any) -> dict[str, Any]:
    """A block of a convolutional encoder, with the keys that NeMo needs."""
    needed = {"filters": 32, "repeat": 1, "kernel": [5], "stride": [1], "dilation": [1], "dropout": 0.0}
    return {**needed, "residual": False, **keys}


def convolutional(*blocks: dict[str, Any], **keys: Any) -> dict[str, Any]:
    encoder = {
        "_target_": f"{MODULES}.ConvASREncoder", "feat_in": 80, "activation": "relu", "jasper": list(blocks), **keys
    }  # fmt: skip
    return {
        "target": "nemo.collections.asr.models.ctc_models.EncDecCTCModel",
        "preprocessor": {"_target_": f"{MODULES}.AudioToMelSpectrogramPreprocessor", "features": 80},
        "encoder": encoder,
        "decoder": {"_target_": f"{MODULES}.ConvASRDecoder", "feat_in": 32, "vocabulary": list(" abc")},
    }


def test_blocks_of_convolutions_are_read() -> None:
    """Kernels are multiplied and made odd; a block without a residual mode has that of the block before."""
    config = convolutional(
        block(kernel=11, se_context_size=64, residual_dense=False),
        block(kernel=[11], kernel_size_factor=0.25, stride=[2], residual=True, residual_mode="stride_add", se=True),
        block(kernel=[12], residual=True, se_reduction_ratio=4, future_context=2),
        init_mode="tds_uniform", norm_groups=4, conv_mask=True, normalization_mode="batch",
    )  # fmt: skip
    settings = translate(config).settings["encoder"]
    first, second, third = settings.pop("blocks")
    assert settings == {"kind": "jasper", "features": 80, "activation": "relu"}
    plain = {
        "filters": 32, "repeat": 1, "kernel": 11, "stride": 1, "dilation": 1, "dropout": 0.0, "residual": False,
        "dense": False, "residual_mode": "add", "groups": 1, "separable": False, "squeeze_excite": False,
        "reduction": 8, "stride_last": False, "future": -1,
    }  # fmt: skip
    assert first == plain
    changes = {"kernel": 3, "stride": 2, "residual": True, "residual_mode": "stride_add", "squeeze_excite": True}
    assert second == {**plain, **changes}
    assert third == {
        **plain, "kernel": 13, "residual": True, "residual_mode": "stride_add", "reduction": 4, "future": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"conv_mask": False}, "encoder.conv_mask is false"),
        ({"normalization_mode": "group"}, "encoder.normalization_mode is group"),
        ({"frame_splicing": 2}, "frame_splicing is 2"),
        ({"quantize": True}, "quantize is true"),
        ({"activation": "mish"}, "activation is mish"),
        ({"feat_in": 64}, "they must be equal"),
        ({"jasper": []}, "a list of blocks"),
        ({"jasper": [block(heads=4)]}, r"jasper\[0\].heads is 4"),
        ({"jasper": [block(), block(kernel=[3, 5])]}, r"jasper\[1\].kernel is \[3, 5\].*one number"),
        ({"jasper": [block(residual_mode="cat")]}, "residual_mode is cat"),
        ({"jasper": [block(aggregation_mode="sum")]}, "aggregation_mode is sum; this key is unknown"),
        ({"jasper": [{"filters": 32}]}, r"jasper\[0\].repeat is missing"),
    ],
)
def test_blocks_that_cannot_be_honoured_are_refused_by_name(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        translate(convolutional(block(), **keys))
