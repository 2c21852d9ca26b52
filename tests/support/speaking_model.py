"""A recogniser for tests of the doors that needs no training: every letter is a pure tone, read from the mel frames.

It streams and takes adapters like any other; an adapter named `swap` hears a for b and b for a.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.models.asr_model import AsrModel
from overtone.tokenizers import CharTokenizer

LETTERS = " abcdefgh"
SAMPLE_RATE = 16_000
FACTOR = 4
"""Mel frames of an encoder frame of 40 ms."""
FREQUENCIES = [600.0 + 600.0 * index for index in range(len(LETTERS))]
TONE_SECONDS, GAP_SECONDS = 0.2, 0.12
LEAST_ENERGY = -4.0
"""Of a tone, as the mean logarithm of its mel bin; silence has -16.6."""


class SpeakingModel(AsrModel):
    def __init__(self, name: str = "tones") -> None:
        settings = {
            "preprocessor": {"normalize": None, "dither": 0.0},
            "encoder": {"width": 8, "layers": 1, "heads": 2, "kernel_size": 3, "subsampling_factor": FACTOR},
            "decoder": {"width": 8, "classes": len(LETTERS)},
        }
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(settings, CharTokenizer(list(LETTERS)), name=name)
        size = self.preprocessor.n_fft
        bins = [round(frequency * size / SAMPLE_RATE) for frequency in FREQUENCIES]
        self.bands = self.preprocessor.fb[0][:, bins].argmax(dim=0).tolist()
        """The mel bin of each letter."""

    def recognise(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = lengths // FACTOR
        whole = mel[:, self.bands, : int(frames.max()) * FACTOR]  # [B, V, T]
        energy = whole.unflatten(-1, (-1, FACTOR)).mean(dim=-1).transpose(1, 2)  # [B, T', V]
        swapped = self.rows_with("swap", len(lengths))
        energy[swapped] = energy[swapped][..., [0, 2, 1, *range(3, len(LETTERS))]]
        blank = torch.full_like(energy[..., :1], LEAST_ENERGY)
        return torch.cat((energy, blank), dim=-1).log_softmax(-1), frames

    def rows_with(self, name: str, rows: int) -> Tensor:
        """[B] bool: the rows whose adapters include one of the name, in whatever version."""
        selection = self.adapters.selection
        if selection is None:
            return torch.zeros(rows, dtype=torch.bool)
        chains = selection.rows or [selection.chain] * rows
        return torch.tensor([any(key.partition(".")[0] == name for key in chain) for chain in chains])


class Contrary(SpeakingModel):
    """Hears the last letter for the first one, and so on: `hgf` for `abc`; with `swap`, `ghf`."""

    def recognise(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, frames = super().recognise(mel, lengths)
        return log_probs[..., [0, *range(len(LETTERS) - 1, 0, -1), len(LETTERS)]], frames


def spoken(text: str, rate: int = SAMPLE_RATE) -> npt.NDArray[np.float32]:
    """[S]: the text as the model hears it."""
    time = np.arange(round(TONE_SECONDS * rate)) / rate
    gap = np.zeros(round(GAP_SECONDS * rate))
    parts = [gap]
    for letter in text:
        parts += [0.5 * np.sin(2 * np.pi * FREQUENCIES[LETTERS.index(letter)] * time), gap]
    return np.concatenate(parts).astype(np.float32)


def silence(seconds: float, rate: int = SAMPLE_RATE) -> npt.NDArray[np.float32]:
    return np.zeros(round(seconds * rate), dtype=np.float32)


def pcm16(samples: npt.NDArray[np.float32]) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def put_adapter(model: AsrModel, name: str, folder: Path) -> None:
    """An adapter that the model can load, in a folder of its name below `folder`."""
    adapter = model.adapters.add(name, LinearAdapter(dim=2))
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    model.adapters.save(name, folder / name)
    model.adapters.remove(name)
