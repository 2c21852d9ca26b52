"""CTC: the head, and greedy decoding (Graves et al. 2006, section 3.2): log-probabilities -> best path -> text.

The likeliest symbol of every frame is taken, repeats are merged, blanks are dropped. The two halves are separate:
`best_path` reduces [B, T, V+1] to two numbers a frame on the model's device, and `read_path` turns a path of any
length into a `Hypothesis`. The windows of a long recording are joined between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Self, cast

import torch
from torch import Tensor

from overtone.decoding.ctc_beam import BeamDecoder
from overtone.decoding.ctc_path import CtcPath, best_path, blank_frames, path_of, read_path
from overtone.decoding.ctc_search import CtcSearch
from overtone.decoding.decoder import (
    GREEDY,
    Alignment,
    BeamSettings,
    Decoder,
    DecodingOptions,
    Emissions,
    Flags,
    Head,
    Reading,
    Scope,
)
from overtone.decoding.fusion import Words
from overtone.decoding.hypothesis import Hypothesis, shift
from overtone.nets.ctc import CtcProjection, ctc_loss, frames_needed
from overtone.nets.layers import Reduction
from overtone.tokenizers import Tokenizer


class GreedyDecoder:
    """The best path, frame by frame: the same as `greedy` on all frames together."""

    def __init__(self, tokenizer: Tokenizer, *, seconds_per_frame: float, first_frame: int = 0) -> None:
        """first_frame: the number of the first frame pushed; spans and word times count from frame 0."""
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame
        self.first_frame = first_frame
        self.frames = 0
        self._paths: list[CtcPath] = []

    @property
    def settled(self) -> int:
        """All frames so far."""
        return self.frames

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


class CtcHead:
    """Connectionist temporal classification: emissions are log-probabilities [B, T, V+1], blank last."""

    gives_log_probs = True
    decodes_with_adapters = False
    prompts = None

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
        self.channels = tokenizer.size + 1
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

    def adapters_act(self) -> bool:
        """Never: emissions hold everything."""
        return False

    def search(
        self, emissions: Tensor, lengths: Tensor, words: Sequence[Words], settings: BeamSettings, count: int
    ) -> list[list[Reading]]:
        """Prefix beam search: emissions [B, T, V+1], lengths [B]."""
        device = torch.device("cpu") if emissions.device.type == "mps" else emissions.device  # it has no float64
        search = CtcSearch(words, self.tokenizer.size, settings, device)
        search.push(emissions.detach().to(device), lengths.to(device))
        return [
            [Reading(cast(Alignment, replace(path.cut(0, length), score=path.score)), rank) for path, rank in own]
            for own, length in zip(search.best(count), lengths.tolist(), strict=True)
        ]

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
            settings=options.settings,
            words=options.all_words,
            first_frame=first_frame,
        )
