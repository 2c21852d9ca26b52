"""Errors and loss of a validation set, counted batch by batch.

Legend: B batch, T' encoder frames, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from overtone.data.dataset import Batch, collate
from overtone.decoding.ctc import greedy
from overtone.errors import DataError
from overtone.models.asr_model import AsrModel
from overtone.nets.ctc import ctc_loss
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
    """Sum of the CTC losses of the utterances."""
    utterances: int = 0

    def add(self, model: AsrModel, batch: Batch | PrefixBatch, log_probs: Tensor, lengths: Tensor) -> None:
        """Count what greedy decoding of log_probs [B, T', V+1], lengths [B] makes of a batch."""
        self.loss += float(ctc_loss(log_probs.float(), lengths, batch.targets, batch.target_lengths, reduction="sum"))
        self.utterances += len(batch.texts)
        found = greedy(log_probs, lengths, model.tokenizer, seconds_per_frame=model.seconds_per_frame)
        for text, hypothesis in zip(batch.texts, found, strict=True):
            self.words += word_errors(text, hypothesis.text)
            self.characters += character_errors(text, hypothesis.text)

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
        """The inverse of `tensor`: values [10]."""
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
        first.dataset.room = 0  # nothing is read twice here, nor kept as long as the process lives
        with torch.no_grad():
            for indices in batches:
                batch = collate([first.dataset[index] for index in indices])
                if isinstance(batch, DataError):
                    raise batch
                (log_probs,), lengths, _ = forward(batch.waveforms, batch.lengths, base_alone=True)
                counts.add(model, batch, log_probs, lengths)
        return counts

    return score
