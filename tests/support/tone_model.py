"""A recogniser that needs no training: every letter is a pure tone, and each frame is read from its own 40 ms."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from overtone.adapters.adapter_set import AdapterSet
from overtone.decoding.ctc import CtcHead
from overtone.decoding.decoder import GREEDY, DecodingOptions, Head, Reading, find_readings
from overtone.nets.taps import Tap
from overtone.tokenizers import CharTokenizer

LETTERS = " abcdefgh"
WORDS = ["abc", "bad", "cafe", "deed", "abba", "fed", "hage"]
SAMPLE_RATE = 16_000
FRAME = 640
"""Samples of an encoder frame."""

FREQUENCIES = [400.0 + 300.0 * index for index in range(len(LETTERS))]
LETTER_FRAMES = 5
"""A spoken letter lasts four frames, and one frame of silence follows."""


def spoken(text: str) -> np.ndarray:
    """[S] float32: the text as the model hears it."""
    time = np.arange(FRAME * (LETTER_FRAMES - 1)) / SAMPLE_RATE
    silence = np.zeros(FRAME)
    parts = []
    for letter in text:
        parts += [0.5 * np.sin(2 * np.pi * FREQUENCIES[LETTERS.index(letter)] * time), silence]
    return np.concatenate(parts).astype(np.float32)


class ToneModel(nn.Module):
    """What jobs need of an `AsrModel`. Any adapter can be added; one named `swap` hears a for b and b for a."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = CharTokenizer(list(LETTERS))
        layer = nn.ModuleDict({"after_block": Tap("after_block", len(LETTERS))})
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([layer])})
        self.encoder.attention_contexts = ((-1, -1),)  # type: ignore[assignment]
        self.encoder.window = None  # type: ignore[assignment]
        self.settings: dict[str, dict[str, object]] = {"encoder": {}}
        self.adapters = AdapterSet(self)
        self.sample_rate = SAMPLE_RATE
        self.seconds_per_frame = FRAME / SAMPLE_RATE
        self.device = torch.device("cpu")
        self.name = "tones"
        self.languages: tuple[str, ...] = ()
        self.head = CtcHead(nn.Identity(), self.tokenizer, seconds_per_frame=self.seconds_per_frame)
        self.heads, self.head_in_use = {"ctc": self.head}, "ctc"
        self.backend_in_use: str | None = None
        """The name of a dtype, for a copy of the base in it."""
        self.batches: list[list[int]] = []
        """Samples of every row of every batch so far."""
        time = torch.arange(FRAME) / SAMPLE_RATE
        angles = 2 * torch.pi * torch.tensor(FREQUENCIES)[:, None] * time
        self.register_buffer("waves", torch.stack((angles.sin(), angles.cos())) * 2 / FRAME)  # [2, V, FRAME]

    def base_parameters(self) -> list[nn.Parameter]:
        """It has none."""
        return []

    def speaking(self, languages: object) -> AbstractContextManager[object]:
        """It is not told any language."""
        return nullcontext(languages)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """waveforms [B, S], lengths [B] -> log_probs [B, T, V+1], lengths [B]."""
        self.batches.append(lengths.tolist())
        frames = -(-lengths // FRAME)
        padded = nn.functional.pad(waveforms, (0, -waveforms.shape[1] % FRAME)).unfold(1, FRAME, FRAME)
        strength = torch.einsum("btf,pvf->btvp", padded, self.waves).norm(dim=-1)  # [B, T, V]
        swapped = self.rows_with("swap", len(lengths))
        strength[swapped] = strength[swapped][..., [0, 2, 1, *range(3, len(LETTERS))]]
        blank = torch.full_like(strength[..., :1], 0.15)
        return (40 * torch.cat((strength, blank), dim=-1)).log_softmax(-1), frames

    def head_of(self, choice: str | None) -> Head:
        """The one head that there is."""
        return self.head

    def heads_of_rows(self, rows: int) -> list[Head]:
        """The one head for every row."""
        return [self.head] * rows

    def rows_with(self, name: str, rows: int) -> Tensor:
        """[B] bool: the rows whose adapters include the name."""
        selection = self.adapters.selection
        if selection is None:
            return torch.zeros(rows, dtype=torch.bool)
        chains = selection.rows or [selection.chain] * rows
        return torch.tensor([name in chain for chain in chains])

    def find_readings(
        self, waveforms: Tensor, lengths: Tensor, options: DecodingOptions = GREEDY
    ) -> list[list[Reading]]:
        """waveforms [B, S], lengths [B]"""
        words = self.adapters.words_of_rows(len(waveforms), self.tokenizer)
        with torch.no_grad():
            emissions, frames = self(waveforms, lengths)
        return find_readings(self.head, emissions, frames, [options.with_words(own) for own in words])

    @property
    def compute_dtype(self) -> str:
        return self.backend_in_use or "float32"

    def make_backend(self, dtype: str) -> str | None:
        return dtype if dtype == "bfloat16" else None

    @contextmanager
    def computing_with(self, backend: str | None) -> Iterator[None]:
        before, self.backend_in_use = self.backend_in_use, backend
        try:
            yield
        finally:
            self.backend_in_use = before

    @contextmanager
    def computing_in(self, dtype: str | None) -> Iterator[None]:
        with self.computing_with(self.backend_in_use if dtype is None else self.make_backend(dtype)):
            yield

    @contextmanager
    def decoding_with(self, name: str | None) -> Iterator[None]:
        assert name in (None, "ctc")
        yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        mode = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(mode)

    def fingerprint(self) -> str:
        return "sha256:0"


def sentence(words: int, seed: int = 0) -> str:
    """A text of so many words, drawn with the seed."""
    generator = random.Random(seed)
    return " ".join(generator.choice(WORDS) for _ in range(words))
