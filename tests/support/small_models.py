"""Models of a few thousand parameters, with fresh weights that are the same every time."""

from __future__ import annotations

import string
from typing import Any

import torch

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.models.asr_model import AsrModel, build_model
from overtone.tokenizers import CharTokenizer

LABELS = [" ", *string.ascii_lowercase, "'"]


def small_model(*, layers: int = 2, seed: int = 0, name: str = "small", **different: Any) -> AsrModel:
    """A FastConformer-CTC that writes lower-case letters, and nothing sensible; `different` settings of its encoder."""
    encoder = {
        "width": 32,
        "layers": layers,
        "heads": 4,
        "kernel_size": 5,
        "subsampling": "dw_striding",
        "subsampling_factor": 4,
        "subsampling_channels": 32,
        "scale_input": False,
        **different,
    }
    settings = {"preprocessor": {}, "encoder": encoder, "decoder": {"width": 32, "classes": len(LABELS)}}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(settings=settings, tokenizer=CharTokenizer(LABELS), name=name)


def small_transducer_model(durations: tuple[int, ...] = ()) -> AsrModel:
    """A transducer with the encoder of `small_model`, and its letters; durations: of a TDT model."""
    base = small_model()
    common = {"classes": len(LABELS), "width": 32}
    joint = {"encoder_width": 32, "prediction_width": 32, **common, "durations": durations}
    settings = {**base.settings, "decoder": {"kind": "rnnt", **common}, "joint": joint}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(settings=settings, tokenizer=CharTokenizer(LABELS), name="transducer")


def add_trained(model: AsrModel, name: str, kind: Kind | None = None, *, seed: int = 1) -> None:
    """An adapter that changes what the model says, as a trained one does."""
    adapter = model.adapters.add(name, kind or LinearAdapter(dim=4))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def set_all(tensors: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    """Parameters of the same shapes, all of one value."""
    return {name: torch.full_like(tensor, value) for name, tensor in tensors.items()}
