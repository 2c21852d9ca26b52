"""SpecAugment: bands of mel bins and stretches of frames are masked while training (Park et al., 2019)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from overtone.errors import ConfigError


class SpecAugment(nn.Module):
    """Masks of its own for every utterance, as in NeMo's vectorised SpecAugment; outside training the identity.

    freq_masks, time_masks: masks an utterance. freq_width: a mask is narrower than so many mel bins.
    time_width: a mask is shorter than so many frames (a whole number) or than that share of the utterance's own
        frames (a float in 0..1), and begins within them.
    mask_value: what masked places hold.

    Raises ConfigError, naming the key, for a value out of range.
    """

    def __init__(
        self,
        *,
        freq_masks: int = 0,
        time_masks: int = 0,
        freq_width: int = 27,
        time_width: float = 0.05,
        mask_value: float = 0.0,
    ) -> None:
        super().__init__()
        for key, value in (("freq_masks", freq_masks), ("time_masks", time_masks), ("freq_width", freq_width)):
            _require_count(key, value)
        if isinstance(time_width, float):
            if not 0.0 <= time_width <= 1.0:
                raise ConfigError(
                    f"time_width is {time_width}; a share of the utterance is 0.0 to 1.0, a number of frames is whole."
                )
        else:
            _require_count("time_width", time_width)
        _require_number("mask_value", mask_value)
        self.freq_masks = freq_masks
        self.time_masks = time_masks
        self.freq_width = freq_width
        self.time_width = time_width
        self.mask_value = float(mask_value)

    def forward(self, mel: Tensor, lengths: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Features [B, F, T] and their frames [B] -> features with masks [B, F, T]; the input is left as it is.

        generator: where the randomness comes from; None is torch's global generator.
        """
        if not self.training or self.freq_masks + self.time_masks == 0:
            return mel
        bins, frames = mel.shape[1:]
        lengths = lengths.to(mel.device)
        widths = torch.full_like(lengths, self.time_width, dtype=torch.float32)
        if isinstance(self.time_width, float):
            widths = widths * lengths
        time = _masks(self.time_masks, widths, lengths, frames, generator)
        all_bins = torch.full_like(lengths, bins)
        freq_widths = torch.full_like(widths, self.freq_width)
        frequency = _masks(self.freq_masks, freq_widths, all_bins, bins, generator)
        return mel.masked_fill(time[:, None, :] | frequency[:, :, None], self.mask_value)


def _masks(masks: int, widths: Tensor, lengths: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """`masks` stretches below `widths` [B], placed at random within `lengths` [B] -> [B, size] bool."""
    device = lengths.device if generator is None else generator.device
    shape = (lengths.shape[0], masks)
    uniform = torch.rand((2, *shape), generator=generator, device=device).to(lengths.device)
    width = (uniform[0] * widths.clamp(max=size).unsqueeze(1)).long().minimum(lengths.unsqueeze(1))
    start = (uniform[1] * (lengths.unsqueeze(1) - width)).long()
    place = torch.arange(size, device=lengths.device)
    covered = (place >= start.unsqueeze(2)) & (place < (start + width).unsqueeze(2))  # [B, masks, size]
    return covered.any(dim=1)


def _require_count(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{key} is {value!r}; a whole number, 0 or more, is needed.")


def _require_number(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{key} is {value!r}; a finite number is needed.")
