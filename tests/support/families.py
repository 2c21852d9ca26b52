"""Every encoder family and every kind of adapter, small, with weights that leave nothing without effect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.models.asr_model import AsrModel, build_model
from overtone.tokenizers import CharTokenizer

LABELS = list(" abcdefghij")
WIDTH = 16

ENCODERS: dict[str, dict[str, Any]] = {
    "conformer": {},
    "abs_pos": {"position": "abs_pos"},
    "fastconformer": {"subsampling": "dw_striding", "subsampling_factor": 8, "scale_input": False},
    "streaming": {
        "conv_norm": "layer_norm",
        "conv_context": [4, 0],
        "causal_downsampling": True,
        "attention_context": [4, 1],
        "attention_context_style": "chunked_limited",
        "use_bias": False,
    },
}

SEPARABLE = {"separable": True, "squeeze_excite": True, "reduction": 4}
CONVOLUTIONAL: dict[str, dict[str, Any]] = {
    "citrinet": {
        "activation": "swish",
        "blocks": [
            {"filters": 16, "kernel": 5, "residual": False, **SEPARABLE},
            {
                "filters": 12,
                "repeat": 2,
                "kernel": 7,
                "stride": 2,
                "stride_last": True,
                "residual_mode": "stride_add",
                "dropout": 0.1,
                **SEPARABLE,
            },
            {"filters": 12, "repeat": 2, "kernel": 5, **SEPARABLE},
            {"filters": WIDTH, "kernel": 3, "stride": 2, "residual": False, **SEPARABLE},
        ],
    },
    "jasper": {
        "blocks": [
            {"filters": 16, "kernel": 5, "stride": 2, "residual": False},
            {"filters": 12, "repeat": 2, "kernel": 3, "dense": True, "dropout": 0.1},
            {"filters": WIDTH, "repeat": 2, "kernel": 5, "dense": True},
            {"filters": WIDTH, "kernel": 5, "dilation": 2, "residual": False},
        ],
    },
}
"""Convolutional encoders; adapters of the linear kind have places there."""
FAMILIES = (*ENCODERS, *CONVOLUTIONAL)


@dataclass(frozen=True, kw_only=True)
class KindCase:
    """A kind of adapter, and where."""

    kind: Kind
    modules: str = "encoder"
    last: tuple[str, ...]
    """What is zero at birth, and so alone has a gradient then."""


ATTENTION_OUT = ("out.weight", "out.bias")
KIND_CASES = {
    "linear_pre": KindCase(kind=LinearAdapter(dim=4), last=("up.weight",)),
    "linear_post": KindCase(
        kind=LinearAdapter(dim=4, activation="gelu", norm_position="post"), last=("norm.weight", "norm.bias")
    ),
    "linear_both": KindCase(kind=LinearAdapter(dim=3), modules="encoder+decoder", last=("up.weight",)),
    "attention": KindCase(kind=TinyAttentionAdapter(), last=ATTENTION_OUT),
    "attention_heads": KindCase(kind=TinyAttentionAdapter(heads=2, projection=8), last=ATTENTION_OUT),
    "attention_absolute": KindCase(
        kind=TinyAttentionAdapter(heads=2, projection=None, position="abs_pos"), last=ATTENTION_OUT
    ),
    "lora": KindCase(kind=LoraAdapter(rank=2), last=("up.weight",)),
    "lora_query_value": KindCase(kind=LoraAdapter(rank=3, alpha=6.0, targets=("q", "v")), last=("up.weight",)),
}

PAIRS = [
    (family, name)
    for family in FAMILIES
    for name, case in KIND_CASES.items()
    if family in ENCODERS or case.kind.name == "linear"
]
"""Every family with the names of the cases of every kind that has places there."""


def family_model(family: str = "conformer", *, seed: int = 0, layers: int = 2, **changes: Any) -> AsrModel:
    convolutional = CONVOLUTIONAL.get(family)
    encoder = (
        {"kind": "jasper", "features": 20, **convolutional, **changes}
        if convolutional
        else {
            "features": 20,
            "width": WIDTH,
            "layers": layers,
            "heads": 4,
            "feed_forward_expansion": 2,
            "kernel_size": 5,
            "subsampling_channels": 8,
            **ENCODERS[family],
            **changes,
        }
    )
    settings = {
        "preprocessor": {"features": 20, "dither": 0.0},
        "encoder": encoder,
        "decoder": {"width": encoder.get("output_width") or WIDTH, "classes": len(LABELS)},
    }
    model = build_model(settings=settings, tokenizer=CharTokenizer(LABELS), name=family)
    generator = torch.Generator().manual_seed(seed)
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    with torch.no_grad():
        for name, tensor in model.base_state_dict().items():
            if tensor.is_floating_point() and not name.startswith("preprocessor."):
                noise = torch.randn(tensor.shape, generator=generator)
                if name.endswith("running_var"):
                    tensor.copy_(0.5 + noise.square())
                elif name.endswith("weight") and ("norm" in name or name.removesuffix(".weight") in norms):
                    tensor.copy_(1.0 + 0.2 * noise)
                else:
                    tensor.copy_(0.2 * noise if tensor.dim() < 2 else noise / tensor[0].numel() ** 0.5)
    return model


def add_trained(model: AsrModel, name: str, case: KindCase, *, seed: int = 1, **options: Any) -> None:
    """An adapter whose every parameter has moved away from birth."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = model.adapters.add(name, case.kind, modules=case.modules, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@cache
def batch(*lengths: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """waveforms [B, S] of coloured noise, zero past each length; lengths [B]."""
    generator = torch.Generator().manual_seed(seed)
    waveforms = torch.randn(len(lengths), max(lengths), generator=generator).cumsum(1)
    waveforms = 0.1 * (waveforms - torch.nn.functional.avg_pool1d(waveforms, 401, 1, 200))
    for row, length in enumerate(lengths):
        waveforms[row, length:] = 0.0
    return waveforms, torch.tensor(lengths)
