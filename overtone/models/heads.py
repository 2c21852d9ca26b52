"""Heads: the part of a model that turns the encoder's output into text, one class for each kind of recogniser.

A head joins a net of the model, its loss and its decoders. The rest of the package knows heads by this protocol alone.

Legend: B batch, T encoder frames, D width, C channels of an emission, U target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from overtone.decoding.ctc import CtcPath, GreedyDecoder, best_path, path_of, read_path
from overtone.decoding.ctc_beam import BeamDecoder
from overtone.decoding.decoder import Alignment, Decoder, DecodingOptions, Emissions, Scope
from overtone.decoding.hypothesis import Hypothesis
from overtone.decoding.transducer import (
    MAX_SYMBOLS,
    TransducerDecoder,
    TransducerPath,
    TransducerSearch,
)
from overtone.decoding.transducer import read_path as read_transducer_path
from overtone.nets.ctc import CtcProjection, ctc_loss, frames_needed
from overtone.nets.layers import Reduction, reduce_losses
from overtone.nets.transducer import Joint, PredictionNet
from overtone.nets.transducer_loss import transducer_losses
from overtone.tokenizers import Tokenizer

GREEDY = DecodingOptions()


class Head(Protocol):
    """The part that makes an encoder a recogniser: emissions, a loss on them, and decoders that take them."""

    gives_log_probs: bool
    """True if emissions are log-probabilities of the vocabulary and blank: they may be averaged over windows."""
    reduction: Reduction
    """The sum of losses over a batch in the checkpoint's own training."""
    decodes_with_adapters: bool
    """True if adapters may act in the head's decoders too, which then need their scope."""

    @property
    def inner(self) -> Head | None:
        """The head that stands on the outputs of inner layers in training; None where none does."""

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

    def scores(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Scores [B, T, N] that show what adapters change: emissions [B, T, C], lengths [B]."""

    def decoder(
        self, options: DecodingOptions = GREEDY, *, first_frame: int = 0, scope: Scope = nullcontext
    ) -> Decoder:
        """A new incremental decoder.

        first_frame: the number of the first frame pushed, from which times count. scope: the adapters of the recording.
        """


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


class TransducerHead:
    """A prediction network and a joint: emissions are the encoder's output as the joint projects it, [B, T, J]."""

    gives_log_probs = False
    decodes_with_adapters = True
    inner = None

    def __init__(
        self,
        joint: Joint,
        prediction: PredictionNet,
        tokenizer: Tokenizer,
        *,
        seconds_per_frame: float,
        reduction: Reduction = "mean_batch",
        max_symbols: int = MAX_SYMBOLS,
        sigma: float = 0.0,
        omega: float = 0.0,
        fastemit: float = 0.0,
    ) -> None:
        """seconds_per_frame: from one encoder frame to the next. max_symbols: the most tokens in one frame.
        reduction, sigma, omega, fastemit: of the checkpoint's own training, as `transducer_losses`.
        """
        self.joint = joint
        self.prediction = prediction
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame
        self.reduction: Reduction = reduction
        self.sigma, self.omega, self.fastemit = sigma, omega, fastemit
        self.search = TransducerSearch(joint, prediction, max_symbols=max_symbols)

    def emit(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], lengths [B] -> projected frames [B, T, J] float32."""
        frames: Tensor = self.joint.enc(x.float())
        return frames

    def loss(
        self,
        emissions: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        *,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """As `transducer_losses`: emissions [B, T, J], lengths [B], targets [B, U], target_lengths [B] -> a scalar.

        Adapters of the prediction network and of the joint act in it: it belongs inside their `use` block.
        """
        used = int(target_lengths.max()) if target_lengths.numel() else 0
        targets = targets[:, :used]
        losses = transducer_losses(
            self.joint,
            emissions.float(),
            self.joint.pred(self.prediction(targets)),
            lengths,
            targets,
            target_lengths,
            sigma=self.sigma,
            omega=self.omega,
            fastemit=self.fastemit,
        )
        return reduce_losses(losses, target_lengths, reduction or self.reduction)

    def frames_needed(self, tokens: Sequence[int]) -> int:
        """One frame: a transducer may say many tokens in it."""
        return 1

    def align(self, emissions: Tensor, lengths: Tensor) -> list[Alignment]:
        """Decode greedily: emissions [B, T, J], lengths [B]."""
        return cast(list[Alignment], self.search.paths(emissions.float(), lengths))

    def align_row(self, emissions: Emissions) -> Alignment:
        """Decode one row greedily: emissions [T, J]."""
        frames = torch.from_numpy(emissions).unsqueeze(0).to(self.joint.enc.weight.device)
        return self.search.paths(frames, torch.tensor([len(emissions)]))[0]

    def read(self, alignment: Alignment) -> Hypothesis:
        path = cast(TransducerPath, alignment)
        return read_transducer_path(path, self.tokenizer, seconds_per_frame=self.seconds_per_frame)

    def scores(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """The joint's scores of every frame before the first token, [B, T, N]: emissions [B, T, J], lengths [B]."""
        output, _ = self.prediction.begin(emissions.size(0))
        scores: Tensor = self.joint(emissions, self.joint.pred(output).unsqueeze(1))
        return scores[:, :, 0].float()

    def decoder(
        self, options: DecodingOptions = GREEDY, *, first_frame: int = 0, scope: Scope = nullcontext
    ) -> Decoder:
        """Greedy."""
        return TransducerDecoder(
            self.search,
            self.tokenizer,
            seconds_per_frame=self.seconds_per_frame,
            first_frame=first_frame,
            scope=scope,
        )


class HybridHead:
    """Both heads of a hybrid in training: the loss is a mixture of theirs, and the transducer's tokens are read.

    Emissions are the transducer's, [B, T, J], and behind them the CTC log-probabilities, [B, T, J + V+1].
    """

    gives_log_probs = False
    decodes_with_adapters = True

    def __init__(self, transducer: TransducerHead, ctc: CtcHead, *, ctc_weight: float) -> None:
        """ctc_weight: the share of the CTC loss, 0…1."""
        self.transducer = transducer
        self.ctc = ctc
        self.ctc_weight = ctc_weight
        self.inner = ctc
        self.width = transducer.joint.width
        self.reduction = transducer.reduction

    def emit(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], lengths [B] -> [B, T, J + V+1] float32."""
        return torch.cat((self.transducer.emit(x, lengths), self.ctc.emit(x, lengths)), dim=-1)

    def loss(
        self,
        emissions: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        *,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """emissions [B, T, J + V+1], lengths [B], targets [B, U], target_lengths [B] -> a scalar."""
        frames, log_probs = emissions[..., : self.width], emissions[..., self.width :]
        first = self.transducer.loss(frames, lengths, targets, target_lengths, reduction=reduction)
        second = self.ctc.loss(log_probs, lengths, targets, target_lengths, reduction=reduction)
        return (1.0 - self.ctc_weight) * first + self.ctc_weight * second

    def frames_needed(self, tokens: Sequence[int]) -> int:
        """As CTC, where its loss counts."""
        return self.ctc.frames_needed(tokens) if self.ctc_weight else 1

    def align(self, emissions: Tensor, lengths: Tensor) -> list[Alignment]:
        """The transducer's tokens: emissions [B, T, J + V+1], lengths [B]."""
        return self.transducer.align(emissions[..., : self.width], lengths)

    def align_row(self, emissions: Emissions) -> Alignment:
        """The transducer's tokens of one row, emissions [T, J + V+1]."""
        return self.transducer.align_row(np.ascontiguousarray(emissions[:, : self.width]))

    def read(self, alignment: Alignment) -> Hypothesis:
        return self.transducer.read(alignment)

    def scores(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """The transducer's, [B, T, N]: emissions [B, T, J + V+1], lengths [B]."""
        return self.transducer.scores(emissions[..., : self.width], lengths)

    def decoder(
        self, options: DecodingOptions = GREEDY, *, first_frame: int = 0, scope: Scope = nullcontext
    ) -> Decoder:
        """The transducer's decoder, for emissions of that head alone."""
        return self.transducer.decoder(options, first_frame=first_frame, scope=scope)


def make_heads(
    parts: Mapping[str, nn.Module],
    tokenizer: Tokenizer,
    *,
    seconds_per_frame: float,
    transducer: Mapping[str, Any],
    ctc_reduction: Reduction,
) -> dict[str, Head]:
    """The heads of a model by name: `rnnt` (with or without durations), `ctc`, and `hybrid` where it has both.

    transducer: further arguments of TransducerHead; `ctc_weight` and `ctc_reduction` of a hybrid.
    """
    heads: dict[str, Head] = {}
    first, second = None, None
    if isinstance(joint := parts.get("joint"), Joint):
        options = {name: value for name, value in transducer.items() if name not in ("ctc_weight", "ctc_reduction")}
        prediction = cast(PredictionNet, parts["decoder"])
        heads["rnnt"] = first = TransducerHead(
            joint, prediction, tokenizer, seconds_per_frame=seconds_per_frame, **options
        )
    net = parts.get("ctc_decoder", parts["decoder"])
    if isinstance(net, CtcProjection):
        heads["ctc"] = second = CtcHead(
            net,
            tokenizer,
            seconds_per_frame=seconds_per_frame,
            reduction=transducer.get("ctc_reduction", ctc_reduction),
        )
    if first is not None and second is not None:
        heads["hybrid"] = HybridHead(first, second, ctc_weight=transducer.get("ctc_weight", 0.0))
    return heads
