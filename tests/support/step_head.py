"""A second kind of head, as unlike CTC as a transducer is: its emissions are no log-probabilities, its decoder has a
state, and a token lies in a single frame."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from overtone.decoding.decoder import BeamSettings, DecodingOptions, Emissions, Flags, Reading, Scope
from overtone.decoding.fusion import Words
from overtone.decoding.hypothesis import Hypothesis, Word
from overtone.models.asr_model import AsrModel
from overtone.nets.layers import Reduction
from overtone.tokenizers import Tokenizer


def new_tokens(symbols: npt.NDArray[np.int64], last: int) -> Flags:
    """[T] bool: frames whose symbol differs from the one before them, `last` standing before the first."""
    flags: Flags = symbols != np.concatenate(([last], symbols[:-1]))
    return flags


@dataclass(frozen=True)
class Steps:
    """Symbols [T] of frames; a token is a change of symbol, other than to 0."""

    symbols: npt.NDArray[np.int64]
    before: int = 0
    """The symbol before the first frame."""

    def __len__(self) -> int:
        return int(self.symbols.size)

    @property
    def silent(self) -> Flags:
        flags: Flags = ~new_tokens(self.symbols, self.before) | (self.symbols == 0)
        return flags

    def cut(self, start: int, stop: int) -> Steps:
        return Steps(self.symbols[start:stop], int(self.symbols[start - 1]) if start else self.before)

    def join(self, later: Sequence[Steps]) -> Steps:
        return Steps(np.concatenate([self.symbols, *(each.symbols for each in later)]), self.before)


class StepDecoder:
    """Pushes frames into one `Steps`."""

    def __init__(self, head: StepHead, first_frame: int) -> None:
        self.head, self.first_frame = head, first_frame
        self.steps = Steps(np.zeros(0, dtype=np.int64))

    @property
    def frames(self) -> int:
        return len(self.steps)

    @property
    def settled(self) -> int:
        return len(self.steps)

    def push(self, emissions: Emissions) -> None:
        self.steps = self.steps.join([self.head.align_row(emissions)])

    def silent(self, emissions: Emissions) -> Flags:
        last = int(self.steps.symbols[-1]) if self.frames else 0
        return Steps(self.head.align_row(emissions).symbols, last).silent

    def fork(self) -> Self:
        copy = type(self)(self.head, self.first_frame)
        copy.steps = self.steps
        return copy

    def hypotheses(self, count: int = 1) -> list[Hypothesis]:
        return [self.head.read(self.steps, self.first_frame)]


class StepHead:
    """Every frame has a symbol, 0 or a token + 1: a threshold on the encoder's output times a fixed matrix.

    Emissions are [B, T, V+2]: scores of the symbols, and the level of the frame as a channel that nothing else has.
    """

    gives_log_probs = False
    prompts = None
    decodes_with_adapters = False
    inner = None
    reduction: Reduction = "sum"

    def __init__(self, tokenizer: Tokenizer, *, seconds_per_frame: float, width: int = 1) -> None:
        """width: D, of the encoder's output."""
        generator = torch.Generator().manual_seed(1)
        self.matrix = torch.randn(width, tokenizer.size + 1, generator=generator)
        self.seconds_per_frame = seconds_per_frame
        self.tokenizer = tokenizer
        self.channels = tokenizer.size + 2

    def emit(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], lengths [B] -> [B, T, V+2]"""
        return torch.cat((x.float() @ self.matrix, x.float().norm(dim=-1, keepdim=True)), dim=-1)

    def loss(
        self,
        emissions: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        *,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """The targets, stretched evenly over the frames: emissions [B, T, V+2], targets [B, U] -> a scalar."""
        frame = torch.arange(emissions.size(1))
        place = frame * target_lengths[:, None] // lengths[:, None]
        wanted = targets.gather(1, place.clamp(max=targets.size(1) - 1)) + 1
        losses = nn.functional.cross_entropy(emissions[..., :-1].transpose(1, 2), wanted, reduction="none")
        return (losses * (frame < lengths[:, None])).sum()

    def frames_needed(self, tokens: Sequence[int]) -> int:
        return 1

    def align(self, emissions: Tensor, lengths: Tensor) -> list[Steps]:
        values = emissions.detach().numpy()
        return [self.align_row(row[:length]) for row, length in zip(values, lengths.tolist(), strict=True)]

    def adapters_act(self) -> bool:
        return False

    def search(
        self, emissions: Tensor, lengths: Tensor, words: Sequence[Words], settings: BeamSettings, count: int
    ) -> list[list[Reading]]:
        return [[Reading(each, 0.0)] for each in self.align(emissions, lengths)]

    def align_row(self, emissions: Emissions) -> Steps:
        symbols: npt.NDArray[np.int64] = emissions[:, :-1].argmax(axis=-1)
        return Steps(symbols)

    def read(self, alignment: Steps, first_frame: int = 0) -> Hypothesis:
        places = np.flatnonzero(~alignment.silent)
        ids = [int(symbol) - 1 for symbol in alignment.symbols[places]]
        spans = [(int(place) + first_frame, int(place) + first_frame + 1) for place in places]
        words = tuple(
            Word(
                text=text,
                start=round(spans[first][0] * self.seconds_per_frame, 3),
                end=round(spans[last - 1][1] * self.seconds_per_frame, 3),
                confidence=1.0,
            )
            for text, first, last in self.tokenizer.words(ids)
        )
        return Hypothesis(text=self.tokenizer.decode(ids), words=words, ids=tuple(ids), spans=tuple(spans))

    def scores(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, V+2]"""
        return emissions

    def decoder(
        self, options: DecodingOptions | None = None, *, first_frame: int = 0, scope: Scope = nullcontext
    ) -> StepDecoder:
        return StepDecoder(self, first_frame)


def give_step_head(model: AsrModel) -> AsrModel:
    """The same model, recognising with this head beside its own."""
    width = int(model.setting("decoder", "width"))
    model.heads["step"] = StepHead(model.tokenizer, seconds_per_frame=model.seconds_per_frame, width=width)
    model.head_name = "step"
    return model
