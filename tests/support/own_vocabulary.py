"""Adapters with a vocabulary of their own, on small models of every head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.models.asr_model import AsrModel, build_model
from overtone.tokenizers import CharTokenizer
from support.families import LABELS as BASE
from support.families import WIDTH, batch, family_model

LABELS = list(" acegxyz")
"""Some of the small models' labels, and some that they do not have."""
SECOND = [*"zyxwvutsrqponmlk", " ", "a", "b"]
"""More labels than the small models have."""
LENGTHS = (8_000, 6_000, 8_000, 4_500)


def add_own(model: AsrModel, name: str, labels: list[str], *, modules: str = "encoder", seed: int = 1) -> None:
    """Add an adapter with labels of its own, every parameter moved away from birth."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = model.adapters.add(name, LinearAdapter(dim=4), modules=modules, tokenizer=CharTokenizer(labels))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def emissions(model: AsrModel, choice: object = None, *, rows: slice = slice(None)) -> Tensor:
    """Emissions [B, T', C] of rows of one batch."""
    waveforms, lengths = batch(*LENGTHS)
    with torch.no_grad(), model.adapters.use(choice):  # type: ignore[arg-type]
        return model(waveforms[rows], lengths[rows])[0]


def texts(model: AsrModel, choice: object = None, *, rows: slice = slice(None)) -> list[str]:
    """The texts of rows of one batch."""
    waveforms, lengths = batch(*LENGTHS)
    with model.adapters.use(choice):  # type: ignore[arg-type]
        return [found.text for found in model.transcribe(waveforms[rows], lengths[rows])]


def transducer(*, durations: tuple[int, ...] = (), hybrid: bool = False, **prediction: object) -> AsrModel:
    """A small transducer, or a hybrid, that says much."""
    net = {"width": WIDTH, "classes": len(BASE), **prediction}
    joint = {"encoder_width": WIDTH, "prediction_width": WIDTH, "width": 12, "classes": len(BASE)}
    ctc = {"width": WIDTH, "classes": len(BASE)}
    settings = {part: values for part, values in family_model().settings.items() if part != "decoder"}
    settings |= {"decoder": {"kind": "rnnt", **net}, "joint": {**joint, "durations": durations}}
    settings |= {"transducer": {"max_symbols": 3, **({"ctc_weight": 0.3} if hybrid else {})}}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build_model(
            settings={**settings, **({"ctc_decoder": ctc} if hybrid else {})}, tokenizer=CharTokenizer(BASE), name="it"
        )
    source = family_model().base_state_dict()
    with torch.no_grad():
        for name, tensor in model.base_state_dict().items():
            if name in source and not name.startswith("decoder."):
                tensor.copy_(source[name])
            elif name.startswith(("decoder.", "joint.")):
                tensor.mul_(3.0)
    return model


MODELS: dict[str, Callable[[], AsrModel]] = {
    "ctc": family_model,
    "rnnt": transducer,
    "tdt": lambda: transducer(durations=(0, 1, 2)),
    "stateless": lambda: transducer(kind="stateless", context=2),
    "hybrid": lambda: transducer(hybrid=True),
}
"""Small models by their heads."""
