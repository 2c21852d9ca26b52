"""A first guess of where the tokens lie, for a model with fresh weights (flat start).

Speech recognisers used to begin by dividing every utterance evenly among its units (a flat start). CTC alone may stay
at blanks for hours of audio; a frame-wise loss on such a guess, beside it and less and less, shows it the way.

Legend: B batch, S samples, T' encoder frames, U tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from overtone.config import FlatStartSettings
from overtone.data.dataset import Batch
from overtone.errors import ConfigError
from overtone.models.asr_model import AsrModel

LOUD = 0.08
"""Speech is where the level is above this share of the utterance's loudest frame."""

WORD_START = 0.7
"""Time that the beginning of a word takes, in characters."""

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class FlatStart:
    """The guess and its weight over the steps."""

    steps: int
    """Steps after which the weight is zero."""
    weight: float
    """Weight of the frame-wise loss at the beginning."""
    sizes: Tensor
    """[V] float32: share of the time that each token takes, in characters."""
    samples_per_frame: int

    @classmethod
    def for_model(cls, model: AsrModel, settings: FlatStartSettings) -> FlatStart:
        """Make the flat start of a model. Raises ConfigError for a head without log-probabilities."""
        if not model.head.gives_log_probs:
            raise ConfigError(f"model.flat_start is for CTC heads; this model recognises with '{model.head_name}'.")
        return cls(
            steps=settings.steps,
            weight=settings.weight,
            sizes=token_sizes(model.tokenizer.vocabulary),
            samples_per_frame=round(model.seconds_per_frame * model.sample_rate),
        )

    def share(self, step: int) -> float:
        """Return how much of the flat start is left at a step: 1 at the first, 0 from the last on."""
        return max(0.0, 1.0 - step / self.steps)

    def mix(self, ctc: Tensor, log_probs: Sequence[Tensor], lengths: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the scalar CTC loss with the frame-wise loss of all heads beside it.

        ctc: scalar. log_probs: [B, T', V+1] of each head. lengths [B].
        """
        share = self.share(step)
        if share == 0.0:
            return ctc
        targets = spread(batch, lengths, log_probs[0].size(1), self.sizes, self.samples_per_frame)
        flat = torch.stack([F.nll_loss(head.transpose(1, 2), targets, ignore_index=IGNORED) for head in log_probs])
        return (1.0 - 0.5 * share) * ctc + self.weight * share * flat.mean()


def token_sizes(vocabulary: Sequence[str]) -> Tensor:
    """Return the characters of each token, and something more where a word begins. [V]"""
    return torch.tensor(
        [max(1, len(piece.replace("▁", ""))) + WORD_START * piece.startswith("▁") for piece in vocabulary]
    )


def spread(batch: Batch, lengths: Tensor, frames: int, sizes: Tensor, samples_per_frame: int) -> Tensor:
    """Return the token of every encoder frame, [B, T'] int64; frames before and after the speech are IGNORED.

    lengths [B]: encoder frames of each utterance. sizes [V]: share of the time that each token takes.
    """
    level = loudness(batch.waveforms, frames, samples_per_frame)  # [B, T']
    frame = torch.arange(frames, device=level.device)
    loud = (level > LOUD * level.amax(dim=1, keepdim=True)) & (frame < lengths.unsqueeze(1))
    first = loud.int().argmax(dim=1, keepdim=True)
    end = frames - loud.flip(1).int().argmax(dim=1, keepdim=True)  # one behind the last loud frame
    place = torch.arange(batch.targets.size(1), device=level.device)
    taken = sizes.to(level.device)[batch.targets] * (place < batch.target_lengths.unsqueeze(1))  # [B, U]
    bounds = taken.cumsum(dim=1) / taken.sum(dim=1, keepdim=True)
    position = (frame - first + 0.5) / (end - first)  # [B, T'], 0..1 within the speech
    index = torch.searchsorted(bounds, position.clamp(0.0, 1.0)).minimum(batch.target_lengths.unsqueeze(1) - 1)
    speech = (frame >= first) & (frame < end) & loud.any(dim=1, keepdim=True)
    return batch.targets.gather(1, index.clamp(min=0)).masked_fill(~speech, IGNORED)


def loudness(waveforms: Tensor, frames: int, samples_per_frame: int) -> Tensor:
    """Return the root mean square of each encoder frame. [B, S] -> [B, T']"""
    missing = frames * samples_per_frame - waveforms.size(1)
    squares = F.pad(waveforms, (0, max(0, missing)))[:, : frames * samples_per_frame].square()
    return squares.view(-1, frames, samples_per_frame).mean(dim=2).sqrt()
