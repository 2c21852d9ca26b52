"""What a step computes of a batch's waveforms: features, augmentation and the net, under one choice of adapter.

Legend: B batch, S samples, F mel bins, T mel frames, T' encoder frames, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overtone.augment import SpecAugment
from overtone.jobs.row_groups import recognise_in_groups, rows_are_independent
from overtone.model import AsrModel


@dataclass(frozen=True, kw_only=True)
class Recogniser:
    """waveforms [B, S], lengths [B] -> log_probs [B, T', V+1] of heads, lengths [B], the adapter's auxiliary loss.

    It belongs to a training: while the model is in training mode, features are augmented and inner heads come first.
    """

    model: AsrModel
    adapter: str | None
    """None: the base is what is trained."""
    augment: SpecAugment | None
    inner: Sequence[int]
    """Layers with a head of their own."""

    def __call__(
        self, waveforms: Tensor, lengths: Tensor, *, base_alone: bool = False
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        model = self.model
        inner = self.inner if model.training else ()
        with model.adapters.use(None if base_alone else self.adapter) as selection:
            with torch.autocast(model.device.type, enabled=False):
                mel, lengths = model.preprocessor(waveforms, lengths)  # [B, F, T]
            if self.augment is not None and model.training:
                mel = self.augment(mel, lengths)
            if self.rows_are_independent:
                heads, lengths = recognise_in_groups(
                    lambda mel, lengths: model.recognise_within(mel, lengths, inner),
                    mel,
                    lengths,
                    factor=model.encoder.subsampling_factor,
                )
            else:
                heads, lengths = model.recognise_within(mel, lengths, inner)
        return heads, lengths, selection.auxiliary_loss()

    @property
    def rows_are_independent(self) -> bool:
        """Whether a row comes out the same whatever rows are computed with it."""
        return rows_are_independent(self.model, self.adapter)
