"""Heads: the part of a model that turns the encoder's output into text, one class for each kind of recogniser.

A head joins a net of the model, its loss and its decoders. The rest of the package knows heads by this protocol alone.

Legend: B batch, T encoder frames, D width, C channels of an emission, U target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from torch import Tensor

from overtone.decoding.ctc import CtcPath, GreedyDecoder, best_path, path_of, read_path
from overtone.decoding.ctc_beam import BeamDecoder
from overtone.decoding.decoder import Alignment, Decoder, DecodingOptions, Emissions
from overtone.decoding.hypothesis import Hypothesis
from overtone.nets.ctc import CtcProjection, Reduction, ctc_loss, frames_needed
from overtone.tokenizers import Tokenizer

GREEDY = DecodingOptions()


class Head(Protocol):
    """The part that makes an encoder a recogniser: emissions, a loss on them, and decoders that take them."""

    gives_log_probs: bool
    """True if emissions are log-probabilities of the vocabulary and blank: they may be averaged over windows."""
    reduction: Reduction
    """The sum of losses over a batch in the checkpoint's own training."""

    def emit(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], lengths [B] -> emissions [B, T, C] float32, which loss and decoders take."""

    def loss(
        self,
        emissions: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        *,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """The negative log-likelihood of the targets, a scalar.

        emissions [B, T, C], lengths [B], targets [B, U] int64, target_lengths [B]; reduction: the checkpoint's own
        unless given.
        """

    def frames_needed(self, tokens: Sequence[int]) -> int:
        """The fewest encoder frames that a transcript of these tokens can be learnt from."""

    def align(self, emissions: Tensor, lengths: Tensor) -> list[Alignment]:
        """Decode greedily: emissions [B, T, C], lengths [B] -> for each row its frames, cut to its length."""

    def align_row(self, emissions: Emissions) -> Alignment:
        """Decode one row greedily: emissions [T, C], already cut to its length."""

    def read(self, alignment: Alignment) -> Hypothesis:
        """The text of an alignment, with words and times."""

    def decoder(self, options: DecodingOptions = GREEDY, *, first_frame: int = 0) -> Decoder:
        """A new incremental decoder; first_frame: the number of the first frame pushed, from which times count."""


class CtcHead:
    """Connectionist temporal classification: emissions are log-probabilities [B, T, V+1], blank last."""

    gives_log_probs = True

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

    def decoder(self, options: DecodingOptions = GREEDY, *, first_frame: int = 0) -> Decoder:
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
