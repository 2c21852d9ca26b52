"""Beam search of an attention decoder over the rows of a batch, each with its own words.

The rules are NeMo's: every prefix grows by its likeliest tokens, and of all these the best are kept, by the logarithm
of their probability divided by a penalty of their length (arXiv:1609.08144). A prefix that has ended waits, and
competes with what it has; the end of the text in first place is none. A row goes on until all its prefixes have ended,
or for one token more than greedy decoding allows.

Legend: B rows, K prefixes of a row, C tokens that are considered, V tokens, T encoder frames, S scorers, N prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overtone.decoding.fusion import Fusion, Words
from overtone.nets.transformer import DecoderMemory, TransformerDecoder

FURTHER = 10_001.0
"""Factor of the scores of all but the first continuation of a prefix that has ended: these never win."""
CONSIDERED = 16
"""Tokens of each prefix whose words are looked up, where there are words."""


class Found(NamedTuple):
    """One prefix of a row, complete."""

    tokens: list[int]
    """Tokens after the prompt, up to the end of the text."""
    values: npt.NDArray[np.float32]
    """[U] logarithm of the probability of each."""
    weights: npt.NDArray[np.float64]
    """[U, T] of the frames that the decoder listened to when it said each."""
    rank: float
    """Logarithm of its probability with the gain of its words, divided by the penalty of its length."""


class Round(NamedTuple):
    """The prefixes after one round of the search."""

    token: Tensor
    """[B, K] by which each has grown."""
    parent: Tensor
    """[B, K] places in the round before."""
    value: Tensor
    """[B, K] logarithm of the probability of the token."""
    heard: Tensor
    """[B, K, T] of the round before."""


class Beam(NamedTuple):
    """The prefixes that compete, [B, K] each but for the words."""

    score: Tensor
    """Logarithm of the probability, with the gain of the words."""
    length: Tensor
    """Tokens that count for the penalty."""
    texts: Tensor
    """Tokens that are neither an end nor padding, those of the prompt included."""
    ended: Tensor
    words: Tensor
    """[B, K, S] states of the scorers."""


class MultitaskBeamSearch:
    """The search with one decoder."""

    def __init__(
        self,
        net: TransformerDecoder,
        words: Sequence[Words],
        *,
        width: int,
        size: int,
        end: int,
        pad: int,
        length_penalty: float = 0.0,
    ) -> None:
        """words: of each row. size: tokens of the vocabulary, without the rows that fill it up. length_penalty: its
        exponent.
        """
        self.net = net
        self.width, self.size = min(width, size), size
        self.end, self.pad = end, pad
        self.length_penalty = length_penalty
        self.words = Fusion(words, size, net.head.weight.device)

    def search(self, tokens: Tensor, valid: Tensor, memory: DecoderMemory, limits: Sequence[int]) -> list[list[Found]]:
        """Prompts [B, P] int64, valid [B, P] bool -> the prefixes of each row, best first.

        limits: the most tokens of each row under greedy decoding.
        """
        rows = torch.arange(len(limits), device=tokens.device)
        log_probs, memory, heard = self.net.read(tokens, valid, memory)
        said = valid.sum(1)  # [B]
        token, value, gain, states = self.consider(log_probs[rows, said - 1], rows, self.words.begin())
        texts = said.unsqueeze(1) + self.is_text(token)
        length = (said.unsqueeze(1) + 2).expand_as(token)
        beam = Beam(value + gain, length, texts, torch.zeros_like(token, dtype=torch.bool), states)
        rounds = [Round(token, torch.zeros_like(token), value, heard[rows, said - 1].unsqueeze(1))]
        memory = memory.select(rows.repeat_interleave(self.width))
        most = torch.tensor(limits, device=tokens.device)
        while bool((going := (most >= len(rounds)) & ~beam.ended.all(1)).any()):
            log_probs, memory, heard = self.read(rounds[-1].token, going.unsqueeze(1) & ~beam.ended, memory)
            beam, after = self.grow(beam, log_probs, heard, going)
            rounds.append(after)
            places = (rows.unsqueeze(1) * self.width + after.parent).flatten()
            memory = memory.reorder(places)
        ranks = beam.score / self.penalty(beam.length)
        return [self.collect(rounds, row, ranks[row].tolist()) for row in range(len(limits))]

    def is_text(self, token: Tensor) -> Tensor:
        """token [B, K] -> [B, K] int64, 1 for what is neither an end nor padding."""
        return ((token != self.end) & (token != self.pad)).long()

    def penalty(self, length: Tensor) -> Tensor:
        """length [B, K] -> the penalty [B, K] that scores are divided by."""
        return ((5.0 + length) / 6.0).pow(self.length_penalty)

    def read(self, token: Tensor, valid: Tensor, memory: DecoderMemory) -> tuple[Tensor, DecoderMemory, Tensor]:
        """token [B, K] int64, valid [B, K] bool -> log-probabilities [B, K, V], the memory, frames heard [B, K, T].

        Where adapters act in the decoder, the first prefixes of all rows are computed together, then the second ones,
        and so on: each row has adapters of its own.
        """
        if not self.net.acts():
            log_probs, memory, heard = self.net.read(token.reshape(-1, 1), valid.reshape(-1, 1), memory)
            return log_probs[:, 0].unflatten(0, token.shape), memory, heard[:, 0].unflatten(0, token.shape)
        rows = torch.arange(token.size(0), device=token.device) * self.width
        parts = [
            self.net.read(token[:, [place]], valid[:, [place]], memory.select(rows + place))
            for place in range(self.width)
        ]
        log_probs = torch.cat([each for each, _, _ in parts], dim=1)
        heard = torch.cat([each for _, _, each in parts], dim=1)
        return log_probs, DecoderMemory.interleave([each for _, each, _ in parts]), heard

    def grow(self, beam: Beam, log_probs: Tensor, heard: Tensor, going: Tensor) -> tuple[Beam, Round]:
        """The prefixes after their next token: log_probs [B, K, V], heard [B, K, T], going [B] bool: rows that do."""
        rows, width = beam.score.shape
        own = torch.arange(rows, device=going.device).repeat_interleave(width)
        considered = self.consider(log_probs.flatten(0, 1), own, beam.words.flatten(0, 1))
        token, value, gain, states = (each.unflatten(0, (rows, width)) for each in considered)
        ended = beam.ended.unsqueeze(2)
        token = token.masked_fill(ended, self.pad)
        factor = torch.full_like(value, FURTHER)
        factor[..., 0] = 0.0
        added = (value + gain) * torch.where(ended, factor, torch.ones_like(factor))
        penalty = self.penalty(beam.length)
        scores = (beam.score.unsqueeze(2) + added) / penalty.unsqueeze(2)  # [B, K, C]
        best, index = scores.flatten(1).topk(width, dim=1)
        parent = index // scores.size(2)
        stays = torch.arange(width, device=going.device).expand_as(parent)
        goes = going.unsqueeze(1)
        parent = torch.where(goes, parent, stays)
        index = torch.where(goes, index, stays * scores.size(2))
        token = torch.where(goes, token.flatten(1).gather(1, index), self.pad)
        has_ended = beam.ended.gather(1, parent)
        value = value.flatten(1).gather(1, index).masked_fill(has_ended | ~goes, 0.0)
        words = states.flatten(1, 2).gather(1, index.unsqueeze(2).expand(-1, -1, states.size(3)))
        kept = beam.words.gather(1, parent.unsqueeze(2).expand_as(words))
        texts = beam.texts.gather(1, parent) + self.is_text(token)
        grown = Beam(
            # NeMo takes the penalties of the prefixes that stood at these places before.
            score=torch.where(goes, best * penalty, beam.score),
            length=torch.where(goes, texts + 1, beam.length),
            texts=texts,
            ended=torch.where(goes, self.is_text(token) == 0, beam.ended),
            words=torch.where((goes & ~has_ended).unsqueeze(2), words, kept),
        )
        return grown, Round(token, parent, value, heard)

    def consider(self, log_probs: Tensor, rows: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The likeliest tokens of N prefixes, [N, C], their log-probabilities, gains and states of words [N, C, S].

        log_probs [N, V], rows [N], states [N, S].
        """
        possible = log_probs[:, : self.size]
        if not self.words.scores:
            value, token = possible.topk(self.width, dim=-1)
            return token, value, torch.zeros_like(value), states.unsqueeze(1).expand(-1, self.width, -1)
        lifted = possible + self.words.lifts_of(rows, states) if self.words.lifts else possible
        token = lifted.topk(min(max(self.width, CONSIDERED), self.size), dim=-1).indices
        value, shape = possible.gather(1, token), token.shape
        gain, after = self.words.follow(
            rows.repeat_interleave(shape[1]), states.repeat_interleave(shape[1], dim=0), token.flatten()
        )
        ends = token == self.end
        gain = torch.where(ends, self.words.end(rows, states).unsqueeze(1), gain.unflatten(0, shape))
        after = torch.where(ends.unsqueeze(2), states.unsqueeze(1), after.unflatten(0, shape))
        _, index = (value + gain).topk(self.width, dim=-1)
        after = after.gather(1, index.unsqueeze(2).expand(-1, -1, after.size(2)))
        return token.gather(1, index), value.gather(1, index), gain.gather(1, index), after

    def collect(self, rounds: Sequence[Round], row: int, ranks: Sequence[float]) -> list[Found]:
        """The prefixes of a row, best first; of equal ones the first."""
        found = []
        for place in sorted(range(self.width), key=lambda place: -ranks[place]):
            tokens, values, weights, at = [], [], [], place
            for each in reversed(rounds):
                before = int(each.parent[row, at])
                tokens.append(int(each.token[row, at]))
                values.append(float(each.value[row, at]))
                weights.append(each.heard[row, before].cpu().numpy())
                at = before
            count = len(tokens)
            while count > 1 and tokens[len(tokens) - count] == self.pad:
                count -= 1
            keep = slice(len(tokens) - count, None)
            found.append(
                Found(
                    tokens[keep][::-1],
                    np.asarray(values[keep][::-1], dtype=np.float32),
                    np.stack(weights[keep][::-1]).astype(np.float64),
                    ranks[place],
                )
            )
        return found
