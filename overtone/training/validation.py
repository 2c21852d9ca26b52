"""Errors and loss of a validation set, counted batch by batch.

Legend: B batch, T' encoder frames, C channels of an emission.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from overtone.data.dataset import Batch, collate
from overtone.decoding.decoder import Head
from overtone.errors import DataError
from overtone.training.data import validation_batches
from overtone.training.forward import TrainingForward
from overtone.training.prefix_cache.loader import PrefixBatch
from overtone.training.run import Run
from overtone.wer import ErrorCounts, character_errors, word_errors


@dataclass(kw_only=True)
class ValidationCounts:
    """Errors and loss of one validation set."""

    words: ErrorCounts = field(default_factory=ErrorCounts)
    characters: ErrorCounts = field(default_factory=ErrorCounts)
    loss: float = 0.0
    """Sum of the losses of the utterances."""
    utterances: int = 0

    def add(self, head: Head, batch: Batch | PrefixBatch, emissions: Tensor, lengths: Tensor) -> None:
        """Count the errors of greedy decoding of a batch's emissions [B, T', C], lengths [B]."""
        self.loss += float(head.loss(emissions, lengths, batch.targets, batch.target_lengths, reduction="sum"))
        self.utterances += len(batch.texts)
        for text, alignment in zip(batch.texts, head.align(emissions, lengths), strict=True):
            hypothesis = head.read(alignment).text
            self.words += word_errors(text, hypothesis)
            self.characters += character_errors(text, hypothesis)

    def metrics(self) -> dict[str, float]:
        """Return `wer` and `cer`, 0..1, and `loss`, the mean over the utterances."""
        mean = self.loss / self.utterances if self.utterances else math.nan
        return {"wer": self.words.rate, "cer": self.characters.rate, "loss": mean}

    def tensor(self) -> Tensor:
        """Return all counts [10] float64, to be summed over processes."""
        counts = [
            count
            for errors in (self.words, self.characters)
            for count in (errors.substitutions, errors.deletions, errors.insertions, errors.hits)
        ]
        return torch.tensor([*counts, self.loss, self.utterances], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: Tensor) -> ValidationCounts:
        """Make counts of values [N], the ten counts of `tensor`."""
        *counts, loss, utterances = values.tolist()
        names = ("substitutions", "deletions", "insertions", "hits")
        words, characters = (
            ErrorCounts(**{name: int(count) for name, count in zip(names, part, strict=True)})
            for part in (counts[:4], counts[4:])
        )
        return cls(words=words, characters=characters, loss=loss, utterances=int(utterances))


def plan_base_scoring(run: Run, forward: TrainingForward) -> Callable[[], ValidationCounts] | None:
    """Make a function that counts the errors of the base on the first validation set, without Lightning.

    None where a training does not begin with that.
    """
    if run.checkpoint is not None or not run.validation or run.plan.starts_fresh:
        return None
    first = run.validation[0]
    batches = validation_batches(first, run.plan, rank=0, processes=1)

    def score() -> ValidationCounts:
        model, counts = run.model.eval(), ValidationCounts()
        first.dataset.stop_caching()  # nothing is read twice here, nor needed as long as the process lives
        with torch.no_grad():
            for indices in batches:
                batch = collate([first.dataset[index] for index in indices])
                if isinstance(batch, DataError):
                    raise batch
                (emissions,), lengths, _ = forward(batch.waveforms, batch.lengths, base_alone=True)
                counts.add(model.head, batch, emissions, lengths)
        return counts

    return score
