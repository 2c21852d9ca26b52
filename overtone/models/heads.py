"""The heads of a model: those that its parts make, and both of a hybrid together.

Legend: B batch, T encoder frames, D width, J joint width, U target tokens, V vocabulary, N scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from overtone.decoding.ctc import CtcHead
from overtone.decoding.decoder import (
    GREEDY,
    Alignment,
    BeamSettings,
    Decoder,
    DecodingOptions,
    Emissions,
    Head,
    Reading,
    Scope,
)
from overtone.decoding.fusion import Words
from overtone.decoding.hypothesis import Hypothesis
from overtone.decoding.multitask import MultitaskHead
from overtone.decoding.task import TaskPrompts
from overtone.decoding.transducer import TransducerHead
from overtone.nets.ctc import CtcProjection
from overtone.nets.layers import Reduction
from overtone.nets.transducer import Joint, PredictionNet
from overtone.nets.transformer import TransformerDecoder, TransformerEncoder
from overtone.tokenizers import Tokenizer


class HybridHead:
    """Both heads of a hybrid in training: the loss is a mixture of theirs, and the transducer's tokens are read.

    Emissions are the transducer's, [B, T, J], and behind them the CTC log-probabilities, [B, T, J + V+1].
    """

    gives_log_probs = False
    decodes_with_adapters = True
    prompts = None

    def __init__(self, transducer: TransducerHead, ctc: CtcHead, *, ctc_weight: float) -> None:
        """ctc_weight: the share of the CTC loss, 0…1."""
        self.transducer = transducer
        self.ctc = ctc
        self.ctc_weight = ctc_weight
        self.inner = ctc
        self.width = transducer.joint.width
        self.tokenizer = transducer.tokenizer
        self.channels = transducer.channels + ctc.channels
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

    def adapters_act(self) -> bool:
        """True if adapters act in the transducer's decoder now."""
        return self.transducer.adapters_act()

    def search(
        self, emissions: Tensor, lengths: Tensor, words: Sequence[Words], settings: BeamSettings, count: int
    ) -> list[list[Reading]]:
        """The transducer's beam search: emissions [B, T, J + V+1], lengths [B]."""
        return self.transducer.search(emissions[..., : self.width], lengths, words, settings, count)

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
    multitask: Mapping[str, Any],
    ctc_reduction: Reduction,
) -> dict[str, Head]:
    """The heads of a model by name: `rnnt` (with or without durations), `ctc`, `hybrid` where it has both, or `aed`.

    transducer: further arguments of TransducerHead; `ctc_weight` and `ctc_reduction` of a hybrid. multitask: those of
    MultitaskHead, and the format and the defaults of its prompts. Raises UsageError for prompts that cannot be.
    """
    if isinstance(decoder := parts.get("transf_decoder"), TransformerDecoder):
        options = {name: value for name, value in multitask.items() if not name.startswith("prompt_")}
        prompts = TaskPrompts(
            tokenizer, multitask["prompt_format"], multitask["prompt_defaults"], max_length=decoder.max_length
        )
        encoder = cast(TransformerEncoder | None, parts.get("transf_encoder"))
        options["seconds_per_frame"] = seconds_per_frame
        return {"aed": MultitaskHead(decoder, tokenizer, prompts, encoder=encoder, **options)}
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
