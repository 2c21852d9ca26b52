"""The forward of a training step: features, SpecAugment and the net, with one adapter or with none.

Legend: B batch, S samples, F mel bins, T mel frames, T' encoder frames, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from overtone.audio.spec_augment import SpecAugment
from overtone.config import SpecAugmentSettings
from overtone.data.dataset import Batch
from overtone.errors import ConfigError
from overtone.inference.rows import recognise_in_groups, rows_are_independent
from overtone.models.asr_model import AsrModel
from overtone.training.run import Run


class BatchForward(Protocol):
    """The forward of a whole batch, however it is computed."""

    def forward_batch(self, batch: Any, *, base_alone: bool) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return emissions [B, T', C] of inner layers, then of the model, lengths [B], and the auxiliary loss.

        batch: of the kind that its loader makes. base_alone: uses no adapter.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingForward:
    """waveforms [B, S], lengths [B] -> emissions [B, T', C] of heads, lengths [B], the adapter's auxiliary loss.

    In training mode of the model, features are masked, and the emissions of inner layers come before the model's own.
    """

    model: AsrModel
    adapter: str | None
    """Name of the adapter; None where the base is trained."""
    augment: SpecAugment | None
    inner: Sequence[int]
    """Layers whose outputs have a loss of their own."""

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

    def forward_batch(self, batch: Batch, *, base_alone: bool) -> tuple[list[Tensor], Tensor, Tensor]:
        with self.model.speaking(batch.languages or None):
            return self(batch.waveforms, batch.lengths, base_alone=base_alone)

    @property
    def rows_are_independent(self) -> bool:
        """A row comes out the same whatever rows are computed with it."""
        return rows_are_independent(self.model, self.adapter)


def make_forward(run: Run) -> TrainingForward:
    """Raises ConfigError for inner losses at layers that the encoder does not have, or of a head that takes none."""
    check_inner_layers(run.model, run.plan.inner_losses or {})
    return TrainingForward(
        model=run.model,
        adapter=run.adapter,
        augment=make_augmentation(run.plan.spec_augment),
        inner=tuple(run.inner_losses),
    )


def make_augmentation(settings: SpecAugmentSettings | None) -> SpecAugment | None:
    """Return the masks that the settings describe, or None where they describe none."""
    if settings is None or settings.freq_masks + settings.time_masks == 0:
        return None
    return SpecAugment(
        freq_masks=settings.freq_masks,
        time_masks=settings.time_masks,
        freq_width=settings.freq_width,
        time_width=settings.time_width,
        mask_value=settings.mask_value,
    )


def check_inner_layers(model: AsrModel, losses: Mapping[int, float]) -> None:
    """Raises ConfigError for layers that the encoder does not have, for its last one, for those of other sizes than its
    output, and for a head without CTC.
    """
    if losses and model.head.inner is None:
        raise ConfigError("model.interctc.apply_at_layers: this model has no CTC head; leave it out.")
    inner = model.encoder.inner_layers
    allowed = f"allowed are {inner[0]} to {inner[-1]}" if inner else "this encoder has none of its output's size"
    for layer in losses:
        if layer not in inner:
            raise ConfigError(f"model.interctc.apply_at_layers: {layer} is no inner layer of this encoder; {allowed}.")
