"""The sum of the stream and an adapter's delta, with its regularisers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from overtone.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class ResidualAdd:
    """y + delta, with two regularisers that act in training only."""

    stochastic_depth: float = 0.0
    """Probability of leaving the adapter out, drawn for each utterance and point; what stays is scaled up."""
    l2_lambda: float = 0.0
    """Weight of the penalty: the mean over the batch of the summed squares of what the adapter added."""

    def __post_init__(self) -> None:
        """Raises AdapterError for values that are out of range."""
        if not 0.0 <= self.stochastic_depth <= 1.0:
            raise AdapterError(f"stochastic_depth={self.stochastic_depth} must lie between 0 and 1.")
        if not 0.0 <= self.l2_lambda < math.inf:
            raise AdapterError(f"l2_lambda={self.l2_lambda} must be a number that is not negative.")

    def thin(self, delta: Tensor) -> Tensor:
        """delta [B, T, D] -> the same with whole utterances dropped, in expectation unchanged.

        Huang et al. 2016, arXiv:1603.09382.
        """
        if self.stochastic_depth == 0.0:
            return delta
        keep = 1.0 - self.stochastic_depth
        kept = torch.rand(delta.size(0), 1, 1, device=delta.device) < keep
        return delta * kept / max(keep, torch.finfo(delta.dtype).tiny)

    def penalty(self, delta: Tensor) -> Tensor | None:
        """The scalar to add to the loss for this delta [B, T, D], if any."""
        if self.l2_lambda == 0.0:
            return None
        return self.l2_lambda * delta.square().flatten(1).sum(dim=1).mean()
