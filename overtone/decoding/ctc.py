"""CTC: the head, and greedy decoding (Graves et al. 2006, section 3.2): log-probabilities -> best path -> text.

The likeliest symbol of every frame is taken, repeats are merged, blanks are dropped. The two halves are separate:
`best_path` reduces [B, T, V+1] to two numbers a frame on the model's device, and `read_path` turns a path of any
length into a `Hypothesis`. The windows of a long recording are joined between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overtone.decoding.ctc_beam import BeamDecoder
from overtone.decoding.decoder import (
    GREEDY,
    Alignment,
    Decoder,
    DecodingOptions,
    Emissions,
    Flags,
    Head,
    Scope,
)
from overtone.decoding.hypothesis import Hypothesis, make_hypothesis, shift
from overtone.nets.ctc import CtcProjection, ctc_loss, frames_needed
from overtone.nets.layers import Reduction
from overtone.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class CtcPath:
    """The likeliest symbol of each frame of one recording, blanks included."""

    ids: npt.NDArray[np.int64]
    """[T] symbol of each frame."""

    log_probs: npt.NDArray[np.float32]
    """[T] natural logarithm of its probability."""

    blank: int
    """The id that stands for no symbol."""

    def __len__(self) -> int:
        return int(self.ids.size)

    @property
    def silent(self) -> Flags:
        """[T] bool, true on blank frames."""
        flags: Flags = self.ids == self.blank
        return flags

    def cut(self, start: int, stop: int) -> Self:
        return type(self)(ids=self.ids[start:stop], log_probs=self.log_probs[start:stop], blank=self.blank)

    def join(self, later: Sequence[CtcPath]) -> CtcPath:
        if not later:
            return self
        paths = [self, *later]
        ids, log_probs = [path.ids for path in paths], [path.log_probs for path in paths]
        return CtcPath(ids=np.concatenate(ids), log_probs=np.concatenate(log_probs), blank=self.blank)


class GreedyDecoder:
    """The best path, frame by frame: the same as `greedy` on all frames together."""

    def __init__(self, tokenizer: Tokenizer, *, seconds_per_frame: float, first_frame: int = 0) -> None:
        """first_frame: the number of the first frame pushed; spans and word times count from frame 0."""
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame
        self.first_frame = first_frame
        self.frames = 0
        self._paths: list[CtcPath] = []

    def push(self, emissions: Emissions) -> None:
        """Decode the next T frames, log-probabilities [T, V+1], blank last."""
        self.frames += len(emissions)
        self._paths.append(path_of(emissions))

    def silent(self, emissions: Emissions) -> Flags:
        """[T] bool: blank frames of log-probabilities [T, V+1]."""
        return blank_frames(emissions)

    def fork(self) -> Self:
        copy = type(self)(self.tokenizer, seconds_per_frame=self.seconds_per_frame, first_frame=self.first_frame)
        copy.frames = self.frames
        copy._paths = list(self._paths)
        return copy

    def hypotheses(self, count: int = 1) -> list[Hypothesis]:
        """The one reading there is."""
        if not self.frames:
            return [Hypothesis(text="")]
        if len(self._paths) > 1:
            self._paths = [self._paths[0].join(self._paths[1:])]
        hypothesis = read_path(self._paths[0], self.tokenizer, seconds_per_frame=self.seconds_per_frame)
        return [shift(hypothesis, self.first_frame, self.seconds_per_frame)]


def greedy(log_probs: Tensor, lengths: Tensor, tokenizer: Tokenizer, *, seconds_per_frame: float) -> list[Hypothesis]:
    """The best path of each row, read as text.

    log_probs [B, T, V+1], blank last; lengths [B] valid frames; seconds_per_frame: from one frame to the next.
    """
    return [read_path(path, tokenizer, seconds_per_frame=seconds_per_frame) for path in best_path(log_probs, lengths)]


def best_path(log_probs: Tensor, lengths: Tensor) -> list[CtcPath]:
    """log_probs [B, T, V+1], lengths [B] -> for each row its likeliest symbols, cut to its length."""
    values, symbols = log_probs.detach().max(dim=-1)  # both [B, T]
    ids = symbols.cpu().numpy()
    scores = values.to(torch.float32).cpu().numpy()
    return [
        CtcPath(ids=ids[row, :length], log_probs=scores[row, :length], blank=log_probs.shape[-1] - 1)
        for row, length in enumerate(lengths.tolist())
    ]


def path_of(log_probs: Emissions) -> CtcPath:
    """log_probs [T, V+1] of one recording -> its likeliest symbols."""
    ids = log_probs.argmax(axis=-1)
    values = np.take_along_axis(log_probs, ids[:, None], axis=-1)[:, 0]
    return CtcPath(ids=ids.astype(np.int64), log_probs=values, blank=log_probs.shape[-1] - 1)


def blank_frames(log_probs: Emissions) -> Flags:
    """log_probs [T, V+1], blank last -> [T] bool, true where blank is the likeliest symbol."""
    flags: Flags = log_probs.argmax(axis=-1) == log_probs.shape[-1] - 1
    return flags


def read_path(path: CtcPath, tokenizer: Tokenizer, *, seconds_per_frame: float) -> Hypothesis:
    """Collapse a path: merge repeats, drop blanks, spell the rest, and time every word."""
    if path.ids.size == 0:
        return Hypothesis(text="")
    first = np.flatnonzero(np.diff(path.ids, prepend=-1))  # first frame of each run of one symbol
    last = np.append(first[1:], path.ids.size)  # one past its last frame
    probability = np.add.reduceat(np.exp(path.log_probs, dtype=np.float64), first) / (last - first)
    spoken = path.ids[first] != path.blank
    ids: list[int] = path.ids[first][spoken].tolist()
    spans = list(zip(first[spoken].tolist(), last[spoken].tolist(), strict=True))
    return make_hypothesis(
        ids,
        spans,
        probability[spoken].tolist(),
        tokenizer,
        seconds_per_frame=seconds_per_frame,
        score=float(path.log_probs.sum(dtype=np.float64)),
    )


class CtcHead:
    """Connectionist temporal classification: emissions are log-probabilities [B, T, V+1], blank last."""

    gives_log_probs = True
    decodes_with_adapters = False

    def __init__(
        self,
        net: CtcProjection,
        tokenizer: Tokenizer,
        *,
        seconds_per_frame: float,
        reduction: Reduction = "mean_batch",
    ) -> None:
        """seconds_per_frame: from one encoder frame to the next. reduction: of the checkpoint's own training."""
        self.net = net
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame
        self.reduction: Reduction = reduction

    @property
    def inner(self) -> Head | None:
        """The head itself."""
        return self

    def emit(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], lengths [B] -> log-probabilities [B, T, V+1] float32."""
        log_probs: Tensor = self.net(x, lengths)
        return log_probs

    def loss(
        self,
        emissions: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        *,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """As `ctc_loss`: emissions [B, T, V+1], lengths [B], targets [B, U], target_lengths [B] -> a scalar."""
        chosen = reduction or self.reduction
        return ctc_loss(emissions.float(), lengths, targets, target_lengths, reduction=chosen)

    def frames_needed(self, tokens: Sequence[int]) -> int:
        """A frame for each token, and one for the blank between two equal tokens."""
        return frames_needed(tokens)

    def align(self, emissions: Tensor, lengths: Tensor) -> list[Alignment]:
        """The best path of each row: emissions [B, T, V+1], lengths [B]."""
        return cast(list[Alignment], best_path(emissions, lengths))

    def align_row(self, emissions: Emissions) -> Alignment:
        """The best path of one row, emissions [T, V+1]."""
        return path_of(emissions)

    def read(self, alignment: Alignment) -> Hypothesis:
        path = cast(CtcPath, alignment)
        return read_path(path, self.tokenizer, seconds_per_frame=self.seconds_per_frame)

    def scores(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """The log-probabilities [B, T, V+1] themselves; lengths [B]."""
        return emissions

    def decoder(
        self, options: DecodingOptions = GREEDY, *, first_frame: int = 0, scope: Scope = nullcontext
    ) -> Decoder:
        """Greedy, or a prefix beam search where the options ask for it."""
        if options.is_greedy:
            return GreedyDecoder(self.tokenizer, seconds_per_frame=self.seconds_per_frame, first_frame=first_frame)
        return BeamDecoder(
            self.tokenizer,
            seconds_per_frame=self.seconds_per_frame,
            settings=options.beam,
            boosts=options.boosts,
            first_frame=first_frame,
        )
