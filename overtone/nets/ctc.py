"""Connectionist temporal classification: the projection to log-probabilities and the loss (Graves et al. 2006).

Legend: B batch, T time, U target tokens, D width, V vocabulary; the blank is the last class.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.nets.layers import Reduction, Replaced, pointwise_conv, reduce_losses, share_modules, valid_frames
from overtone.nets.taps import Tap, TapContext


class CtcProjection(nn.Module):
    """x [B, T, D], lengths [B] -> log-probabilities [B, T, V+1] in float32; adapters may act on the input."""

    def __init__(self, *, width: int, classes: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.projection = nn.Conv1d(width, classes + 1, 1)
        self.temperature = temperature
        self.input = Tap("input", width)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = self.input(x, x, TapContext(valid=valid_frames(lengths, x.size(1))))
        logits = pointwise_conv(x, self.projection.weight, self.projection.bias)
        return torch.log_softmax(logits.float() / self.temperature, dim=-1)

    def with_classes(self, classes: int) -> tuple[CtcProjection, Replaced]:
        """The same net over so many other tokens, and its own modules by name, each with this net's in its place."""
        own = nn.Conv1d(self.projection.in_channels, classes + 1, 1)
        return share_modules(self, {"projection": own}), {"projection": (own, self.projection)}


def frames_needed(tokens: Sequence[int]) -> int:
    """The fewest frames of a CTC path: one for each token, and one for the blank between two equal tokens."""
    return len(tokens) + sum(first == second for first, second in pairwise(tokens))


def ctc_loss(
    log_probs: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    reduction: Reduction = "mean_batch",
) -> Tensor:
    """The negative log-likelihood of the targets, a scalar.

    log_probs [B, T, V+1] float32, lengths [B], targets [B, U] int64, target_lengths [B].
    reduction: as `reduce_losses`.
    An utterance whose targets do not fit into its frames counts as zero.
    """
    losses = F.ctc_loss(
        log_probs.transpose(0, 1),
        targets,
        lengths,
        target_lengths,
        blank=log_probs.size(-1) - 1,
        reduction="none",
        zero_infinity=True,
    )  # [B]
    return reduce_losses(losses, target_lengths, reduction)
