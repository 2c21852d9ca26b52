"""How well a validation set is heard, counted batch by batch.

Legend: B batch, T' encoder frames, C channels of an emission.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from overtone.data.dataset import Batch
from overtone.errors import DataError
from overtone.models.heads import Head
from overtone.training.prefix_cache.loader import PrefixBatch
from overtone.wer import ErrorCounts, character_errors, word_errors

AnyBatch = Batch | PrefixBatch


@dataclass(kw_only=True)
class Score:
    """Errors and loss of one validation set."""

    words: ErrorCounts = field(default_factory=ErrorCounts)
    characters: ErrorCounts = field(default_factory=ErrorCounts)
    loss: float = 0.0
    """Sum over utterances."""
    utterances: int = 0

    def add(self, head: Head, batch: AnyBatch, emissions: Tensor, lengths: Tensor) -> None:
        """Count the errors of greedy decoding of a batch's emissions [B, T', C], lengths [B]."""
        self.loss += float(head.loss(emissions, lengths, batch.targets, batch.target_lengths, reduction="sum"))
        self.utterances += len(batch.texts)
        for text, alignment in zip(batch.texts, head.align(emissions, lengths), strict=True):
            hypothesis = head.read(alignment).text
            self.words += word_errors(text, hypothesis)
            self.characters += character_errors(text, hypothesis)

    def metrics(self) -> dict[str, float]:
        """`wer`, `cer` and the mean `loss`."""
        mean = self.loss / self.utterances if self.utterances else math.nan
        return {"wer": self.words.rate, "cer": self.characters.rate, "loss": mean}

    def tensor(self) -> Tensor:
        """All counts [10] float64, to be summed over processes."""
        counts = [
            count
            for errors in (self.words, self.characters)
            for count in (errors.substitutions, errors.deletions, errors.insertions, errors.hits)
        ]
        return torch.tensor([*counts, self.loss, self.utterances], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: Tensor) -> Score:
        *counts, loss, utterances = values.tolist()
        names = ("substitutions", "deletions", "insertions", "hits")
        words, characters = (
            ErrorCounts(**{name: int(count) for name, count in zip(names, part, strict=True)})
            for part in (counts[:4], counts[4:])
        )
        return cls(words=words, characters=characters, loss=loss, utterances=int(utterances))


def usable(batch: AnyBatch | DataError) -> AnyBatch:
    """The batch, or the error that came in its place, raised where the user sees it."""
    if isinstance(batch, DataError):
        raise batch
    return batch
