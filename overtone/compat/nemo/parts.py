"""Parts of a model as NeMo's scripts see them: vocabularies, accepted adapters, a table of sizes, hypotheses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from overtone.adapters.adapter import Adapter
from overtone.adapters.kinds.registry import KINDS
from overtone.decoding.hypothesis import Hypothesis
from overtone.models.asr_model import AsrModel
from overtone.text_table import columns

GLOBAL = "global_cfg"
"""The section of `adapters` that is no adapter."""


class PartView(nn.Module):
    """A part of a model as NeMo's scripts see it: `model.encoder`, `model.decoder`, `model.joint`."""

    def __init__(self, model: AsrModel, part: str) -> None:
        super().__init__()
        self.owner = (model,)
        """In a tuple, so that the model's parameters are not counted a second time."""
        self.part = part

    @property
    def vocabulary(self) -> list[str]:
        """The tokens that the model writes, in order."""
        return list(self.owner[0].tokenizer.vocabulary)

    def get_accepted_adapter_types(self) -> set[type]:
        """The kinds of adapters that act in this part."""
        points = [point for point in self.owner[0].adapters.points.values() if point.module == self.part]
        return {form.kind for form in KINDS.values() if any(form.kind().acts_at(point) for point in points)}

    def get_adapter_module(self, name: str) -> Adapter | None:
        """The adapter of that name, or None where it is unknown or has no place in this part."""
        adapters, plain = self.owner[0].adapters, name.rpartition(":")[2]
        if plain not in adapters:
            return None
        own = adapters[plain]
        return own if any(adapters.points[point].module == self.part for point in own.points) else None


@dataclass(frozen=True)
class ModelSummary:
    """A table of a model's parts and adapters with their parameters."""

    rows: tuple[tuple[str, str, int, int], ...]
    """Name, class, parameters, and those of them that are trainable."""

    @property
    def total_parameters(self) -> int:
        return sum(row[2] for row in self.rows)

    @property
    def trainable_parameters(self) -> int:
        return sum(row[3] for row in self.rows)

    def __str__(self) -> str:
        head = ("name", "type", "parameters", "trainable")
        total = ("", "total", self.total_parameters, self.trainable_parameters)
        rows = [(name, kind, f"{count:,}", f"{trained:,}") for name, kind, count, trained in (*self.rows, total)]
        return "\n".join(columns([head, *rows], right=(2, 3)))

    __repr__ = __str__


def summarize(model: AsrModel) -> ModelSummary:
    """The table of a model as it is now."""
    parts: list[tuple[str, nn.Module]] = [(part, getattr(model, part)) for part in model.parts]
    parts += [(f"adapter {adapter.name}", adapter) for adapter in model.adapters]
    rows = []
    for name, module in parts:
        parameters = list(module.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        rows.append((name, type(module).__name__, sum(parameter.numel() for parameter in parameters), trained))
    return ModelSummary(rows=tuple(rows))


@dataclass(frozen=True)
class NemoHypothesis:
    """A hypothesis with NeMo's field names."""

    text: str
    score: float = 0.0
    y_sequence: tuple[int, ...] = ()
    """Token ids."""
    timestamp: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """`word`: a mapping with word, start and end in seconds for each word; empty unless asked for."""


def nemo_hypothesis(hypothesis: Hypothesis, *, timestamps: bool) -> NemoHypothesis:
    """The same hypothesis with NeMo's field names."""
    words = [{"word": word.text, "start": word.start, "end": word.end} for word in hypothesis.words]
    times = {"word": words} if timestamps else {}
    return NemoHypothesis(text=hypothesis.text, score=hypothesis.score, y_sequence=hypothesis.ids, timestamp=times)
