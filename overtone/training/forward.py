"""What a step computes of a batch's waveforms: features, augmentation and the net, under one choice of adapter.

Legend: B batch, S samples, F mel bins, T mel frames, T' encoder frames, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overtone.audio.spec_augment import SpecAugment
from overtone.config import InterCtcSettings, SpecAugmentSettings
from overtone.errors import ConfigError
from overtone.inference.rows import recognise_in_groups, rows_are_independent
from overtone.models.asr_model import AsrModel
from overtone.training.run import Run


@dataclass(frozen=True, kw_only=True)
class Recogniser:
    """waveforms [B, S], lengths [B] -> emissions [B, T', C] of heads, lengths [B], the adapter's auxiliary loss.

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


def make_recogniser(run: Run) -> Recogniser:
    chosen = run.settings.model
    return Recogniser(
        model=run.model,
        adapter=run.adapter,
        augment=make_augmentation(chosen.spec_augment),
        inner=tuple(make_inner_losses(run.model, chosen.interctc)),
    )


def make_augmentation(settings: SpecAugmentSettings | None) -> SpecAugment | None:
    if settings is None or settings.freq_masks + settings.time_masks == 0:
        return None
    return SpecAugment(
        freq_masks=settings.freq_masks,
        time_masks=settings.time_masks,
        freq_width=settings.freq_width,
        time_width=settings.time_width,
        mask_value=settings.mask_value,
    )


def make_inner_losses(model: AsrModel, settings: InterCtcSettings) -> dict[int, float]:
    """Layer -> share of its CTC loss. Raises ConfigError for layers that the encoder has not, or that are its last."""
    last = len(model.encoder.layers) - 1
    for layer in settings.apply_at_layers:
        if not 0 <= layer < last:
            raise ConfigError(
                f"model.interctc.apply_at_layers: {layer} is no inner layer of this encoder; "
                f"allowed are 0 to {last - 1}."
            )
    return dict(sorted(zip(settings.apply_at_layers, settings.loss_weights, strict=True)))
