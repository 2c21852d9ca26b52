"""Prefix beam search for CTC (Hannun et al. 2014, arXiv:1408.2873) over the rows of a batch, each with its own words.

A prefix is scored by its best path (or by the sum over its paths), and ranked with the gain of its words besides, which
is added when a token is. With the best path and without words the first reading is the greedy one at every width: words
that do not apply change nothing. A width of one is greedy decoding with words. Frames in which no token is likely are
passed over together.

Legend: R rows, K prefixes of a row, C tokens that are considered, S scorers, T frames, V tokens, M paths.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from overtone.decoding.ctc_path import CtcPath
from overtone.decoding.ctc_trail import Step, Trail
from overtone.decoding.decoder import BeamSettings
from overtone.decoding.fusion import Fusion, Words

NEVER = -math.inf
SLACK = 0.01
"""Natural logarithm that rounding may add to the gain of a token."""
MIX = 6364136223846793005
"""Multiplier of the numbers that tell prefixes apart (Knuth's of linear congruences), modulo 2^64."""


@dataclass(frozen=True, kw_only=True)
class Beam:
    """The prefixes of all rows, best first; a place without one has a score of -inf."""

    last: Tensor
    """[R, K] last token; V where there is none."""
    key: Tensor
    """[R, K] number of the prefix."""
    parent: Tensor
    """[R, K] number of the prefix without its last token."""
    blank: Tensor
    """[R, K] float64, logarithm of the paths that end in blank."""
    token: Tensor
    """[R, K] the same of those that end in the last token."""
    bonus: Tensor
    """[R, K] gain of the words so far."""
    states: Tensor
    """[R, K, S] states of the scorers."""


class Now(NamedTuple):
    """The frame that each row looks at, [R] each."""

    frame: Tensor
    in_use: Tensor
    """False for rows that have no frame left."""
    gap: Tensor
    """True if frames were passed over before it."""
    silence: Tensor
    """The sum of their blanks' logarithms."""


class Before(NamedTuple):
    """The scores of the prefixes before a frame, after the frames that were passed over, [R, K] each."""

    total: Tensor
    blank: Tensor
    token: Tensor
    from_token: Tensor
    """True where the best path ends in a token."""
    blank_from: Tensor
    """The same of the path that ends in blank, before the frames that were passed over."""


class Stay(NamedTuple):
    """The paths that end in the last token of the prefixes that stay, [R, K] each."""

    score: Tensor
    slot: Tensor
    """The prefix that they come from."""
    origin: Tensor
    """True where they come from a token."""
    value: Tensor
    """Logarithm of the token's probability now."""


class Grown(NamedTuple):
    """The prefixes after a frame: those that stay, and by a token longer ones."""

    blank: Tensor
    """[R, K]"""
    stay: Stay
    score: Tensor
    """[R, K, C], as all that follow but `tokens`."""
    tokens: Tensor
    """[R, C]"""
    likely: Tensor
    gains: Tensor
    states: Tensor
    """[R, K, C, S]"""
    again: Tensor
    """True where a token is said again."""


class CtcSearch:
    """The search over the rows of a batch, as frames come."""

    def __init__(
        self, rows: Sequence[Words], vocabulary_size: int, settings: BeamSettings, device: torch.device
    ) -> None:
        self.settings = settings
        self.size = vocabulary_size
        self.device = device
        self.fusion = Fusion(rows, vocabulary_size, device)
        self.frames = 0
        """Frames of the longest row so far."""
        self.trail = Trail(vocabulary_size)
        # The likeliest of V+1 symbols is never below an even share: greedy's choice is always considered.
        self.floor = min(settings.token_floor, -math.log(vocabulary_size + 1) - 1e-3)
        self.rows = torch.arange(len(rows), device=device)
        self.beam = Beam(
            last=torch.full((len(rows), 1), vocabulary_size, device=device),
            key=torch.ones(len(rows), 1, dtype=torch.int64, device=device),
            parent=torch.zeros(len(rows), 1, dtype=torch.int64, device=device),
            blank=torch.zeros(len(rows), 1, dtype=torch.float64, device=device),
            token=torch.full((len(rows), 1), NEVER, dtype=torch.float64, device=device),
            bonus=torch.zeros(len(rows), 1, dtype=torch.float64, device=device),
            states=self.fusion.begin()[:, None],
        )

    def push(self, log_probs: Tensor, lengths: Tensor) -> None:
        """Search the next frames: log_probs [R, T, V+1], blank last, lengths [R]. Only a single row may go on."""
        count, size = log_probs.size(1), self.size
        inside = torch.arange(count, device=self.device) < lengths[:, None]
        blanks = torch.where(inside, log_probs[..., size], 0.0)  # [R, T]
        self.trail.silences.append(blanks.float().cpu().numpy())
        lowest = self.floor - self.fusion.reach if self.fusion.lifts else torch.full_like(self.fusion.reach, self.floor)
        likely = (log_probs[..., :size].amax(dim=-1) > lowest[:, None]) & inside  # [R, T]
        counts = likely.sum(dim=1)
        steps = int(counts.max()) if count else 0
        frames = (~likely).to(torch.uint8).argsort(dim=1, stable=True)[:, :steps]  # [R, steps]
        passed = torch.nn.functional.pad(blanks.double().cumsum(dim=1), (1, 0))  # [R, T+1]
        used = torch.arange(steps, device=self.device) < counts[:, None]
        looked = log_probs[self.rows[:, None], frames]  # [R, steps, V+1]
        values, tokens = looked[..., :size].topk(min(self.settings.tokens, size), dim=-1)  # [R, steps, C]
        values = torch.where((values > self.floor) & used[..., None], values, NEVER)
        done = torch.zeros(len(self.rows), dtype=torch.int64, device=self.device)
        for index in range(steps):
            frame, in_use = frames[:, index], used[:, index]
            gap = (frame > done) & in_use
            silence = torch.where(gap, passed[self.rows, frame] - passed[self.rows, done], 0.0)
            self._step(looked[:, index], tokens[:, index], values[:, index], Now(frame, in_use, gap, silence))
            done = torch.where(in_use, frame + 1, done)
        rest = done < lengths
        if bool(rest.any()):
            self._rest(rest, passed[self.rows, lengths] - passed[self.rows, done])
        self.frames += count

    def best(self, count: int) -> list[list[tuple[CtcPath, float]]]:
        """The paths of the best `count` prefixes of each row and their ranks, best first.

        The words rank them, as if every row ended here; they are not in the scores of the paths.
        """
        beam, width = self.beam, self.beam.last.size(1)
        total = self._add(beam.blank, beam.token)
        ends = self.fusion.end(self.rows.repeat_interleave(width), beam.states.flatten(0, 1)).view_as(total)
        ranks, order = (total + beam.bonus + ends).topk(min(count, width), dim=1)
        found = torch.nonzero(ranks != NEVER)  # [M, 2]; what is not finite is found, and refused
        rows, slots = found[:, 0], order[found[:, 0], found[:, 1]]
        kinds = (beam.token > beam.blank)[rows, slots].long()
        scores = total[rows, slots].tolist()
        places = ranks[found[:, 0], found[:, 1]].tolist()
        paths = self.trail.paths(rows.cpu().numpy(), slots.cpu().numpy(), kinds.cpu().numpy())
        answer: list[list[tuple[CtcPath, float]]] = [[] for _ in range(len(self.rows))]
        for row, path, score, rank in zip(rows.tolist(), paths, scores, places, strict=True):
            answer[row].append((replace(path, score=score), rank))
        return answer

    def fork(self) -> Self:
        """An independent copy; tensors are replaced, never written to."""
        twin = copy.copy(self)
        twin.trail = self.trail.fork()
        return twin

    def settle(self) -> int:
        """Decide what all paths of the only row agree on; the number of frames that count as settled."""
        paths = torch.cat((self.beam.blank, self.beam.token)) + self.beam.bonus  # [2, K]
        alive = torch.nonzero(paths > NEVER).cpu().numpy()
        self.trail.settle(alive[:, 1], alive[:, 0])
        near = torch.nonzero(paths >= paths.max() - self.settings.settled_lead).cpu().numpy()
        first = self.trail.agreed(near[:, 1], near[:, 0])
        return self.frames if first is None else first

    # One frame

    def _step(self, looked: Tensor, tokens: Tensor, values: Tensor, now: Now) -> None:
        """Every prefix stays (blank, or its last token once more) or grows by a token.

        looked [R, V+1] log-probabilities, tokens and values [R, C]: those considered.
        """
        beam = self.beam
        total, from_token = self._add(beam.blank, beam.token), beam.token > beam.blank
        gap, silence = now.gap[:, None], now.silence[:, None]
        paths = Before(
            total=total + silence,
            blank=torch.where(gap, total + silence, beam.blank),
            token=torch.where(gap, NEVER, beam.token),
            from_token=from_token,
            blank_from=gap & from_token,
        )
        speaks = (beam.last < self.size) & now.in_use[:, None]
        repeated = torch.where(speaks, looked.gather(1, beam.last).double(), NEVER)  # [R, K]
        blank = paths.total + torch.where(now.in_use, looked[:, self.size], 0.0)[:, None]
        is_child = beam.key[:, :, None] == beam.parent[:, None, :]  # [R, K, K]: the second grew from the first
        stay = self._stay(paths, repeated, is_child)
        likely = values.double()[:, None].expand(-1, beam.last.size(1), -1)  # [R, K, C]
        if self.fusion.lifts:
            tokens, likely = self._lift(looked, tokens, likely, now)
        again = tokens[:, None] == beam.last[:, :, None]  # [R, K, C]
        grown = torch.where(again, paths.blank[:, :, None], paths.total[:, :, None]) + likely
        known = torch.bmm(is_child.float(), (tokens[:, None] == beam.last[:, :, None]).float()) > 0
        staying = self._add(blank, stay.score) + beam.bonus
        if self.fusion.scores and not self.fusion.lifts:  # a phrase may gain more at once than its largest token
            known = known | self._too_low(grown, staying)
        grown = grown.masked_fill(known, NEVER)
        gains, states = self._gains(grown, tokens)
        ranks = (staying, (grown + beam.bonus[:, :, None] + gains).flatten(1))
        self._keep(torch.cat(ranks, dim=1), Grown(blank, stay, grown, tokens, likely, gains, states, again), paths, now)

    def _too_low(self, grown: Tensor, staying: Tensor) -> Tensor:
        """True [R, K, C] where no words can lift a longer prefix into the beam: its words need not be looked up.

        grown [R, K, C] without words, staying [R, K] ranks of the prefixes that stay.
        """
        lowest = staying.amax(dim=1) - self.settings.score_floor
        if staying.size(1) >= self.settings.width:
            lowest = torch.maximum(lowest, staying.amin(dim=1))
        most = self.beam.bonus + (self.fusion.most + SLACK)[:, None]  # [R, K]
        return grown + most[:, :, None] < lowest[:, None, None]

    def _stay(self, paths: Before, repeated: Tensor, is_child: Tensor) -> Stay:
        """The paths that end in the last token of each prefix, [R, K]: held, or said now after the prefix before it.

        repeated [R, K] logarithm of the last token's probability; is_child [R, K, K].
        """
        last = self.beam.last
        own = torch.arange(last.size(1), device=self.device).expand_as(last)
        has, up = is_child.any(dim=1), is_child.int().argmax(dim=1)
        again = last.gather(1, up) == last
        before = torch.where(again, paths.blank.gather(1, up), paths.total.gather(1, up))
        held, said = paths.token + repeated, torch.where(has, before + repeated, NEVER)
        new = said > held
        origin = torch.where(again, paths.blank_from.gather(1, up), paths.from_token.gather(1, up))
        return Stay(self._add(held, said), torch.where(new, up, own), torch.where(new, origin, True), repeated)

    def _lift(self, looked: Tensor, tokens: Tensor, likely: Tensor, now: Now) -> tuple[Tensor, Tensor]:
        """Tokens of boosted phrases that are too unlikely to be considered otherwise, behind the others.

        looked [R, V+1], tokens [R, C], likely [R, K, C] -> tokens [R, C'], likely [R, K, C'].
        """
        width = self.beam.last.size(1)
        rows = self.rows.repeat_interleave(width)
        lifts = self.fusion.lifts_of(rows, self.beam.states.flatten(0, 1)).view(len(self.rows), width, -1)
        values = looked[:, None, : self.size]  # [R, 1, V]
        lifted = torch.where((lifts > 0) & (values + lifts > self.floor), values + lifts, NEVER)
        lifted = lifted.masked_fill(~now.in_use[:, None, None], NEVER)
        best, extra = lifted.amax(dim=1).topk(tokens.size(1), dim=1)  # [R, C]
        new = (best > NEVER) & ~((extra[:, :, None] == tokens[:, None]) & (likely[:, :1] > NEVER)).any(dim=2)
        reached = lifted.gather(2, extra[:, None].expand(-1, width, -1)) > NEVER
        more = torch.where(reached & new[:, None], values.double().gather(2, extra[:, None]), NEVER)
        return torch.cat((tokens, extra), dim=1), torch.cat((likely, more), dim=2)

    def _gains(self, grown: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Gains of the words, [R, K, C], and states [R, K, C, S] of what is not -inf in grown [R, K, C]."""
        shape = grown.shape
        gains = torch.zeros(shape, dtype=torch.float64, device=self.device)
        states = self.beam.states[:, :, None].expand(*shape, -1)
        if not self.fusion.scores:
            return gains, states
        row, slot, place = torch.nonzero(grown > NEVER, as_tuple=True)
        gain, after = self.fusion.follow(row, self.beam.states[row, slot], tokens[row, place])
        states = states.clone()
        gains[row, slot, place], states[row, slot, place] = gain.double(), after
        return gains, states

    def _keep(self, ranks: Tensor, grown: Grown, paths: Before, now: Now) -> None:
        """Keep the best prefixes: ranks [R, K + K C] of those that stay, then of those that grew."""
        beam, width, count = self.beam, self.beam.last.size(1), grown.tokens.size(1)
        top, index = ranks.topk(min(self.settings.width, ranks.size(1)), dim=1)
        alive = (top >= top[:, :1] - self.settings.score_floor) & (top > NEVER)
        new, choice = index >= width, (index - width).clamp(min=0)
        up, place = torch.where(new, choice // count, index), choice % count  # [R, K]
        rows = self.rows[:, None]
        token, key = grown.tokens.gather(1, place), beam.key.gather(1, up)
        self.beam = Beam(
            last=torch.where(new, token, beam.last.gather(1, up)),
            key=torch.where(alive, torch.where(new, key * MIX + token + 1, key), 0),
            parent=torch.where(alive, torch.where(new, key, beam.parent.gather(1, up)), -1),
            blank=torch.where(alive & ~new, grown.blank.gather(1, up), NEVER),
            token=torch.where(
                alive, torch.where(new, grown.score[rows, up, place], grown.stay.score.gather(1, up)), NEVER
            ),
            bonus=beam.bonus.gather(1, up) + torch.where(new, grown.gains[rows, up, place], 0.0),
            states=torch.where(new[..., None], grown.states[rows, up, place], beam.states[rows, up]),
        )
        origin = torch.where(
            grown.again[rows, up, place], paths.blank_from.gather(1, up), paths.from_token.gather(1, up)
        )
        value = torch.where(new, grown.likely[rows, up, place], grown.stay.value.gather(1, up))
        self.trail.steps.append(
            Step(
                frame=torch.where(now.in_use, now.frame + self.frames, -1),
                blank_slot=up,
                blank_from=paths.from_token.gather(1, up),
                token_slot=torch.where(new, up, grown.stay.slot.gather(1, up)),
                token_from=torch.where(new, origin, grown.stay.origin.gather(1, up)),
                token=self.beam.last,
                value=value,
            )
        )

    def _rest(self, rest: Tensor, silence: Tensor) -> None:
        """Pass over frames at the end without a likely token: rest [R], silence [R] the sum of their blanks."""
        beam = self.beam
        total, from_token = self._add(beam.blank, beam.token), beam.token > beam.blank
        rest = rest[:, None]
        own = torch.arange(total.size(1), device=self.device).expand_as(total)
        kept = torch.ones_like(from_token)
        self.trail.steps.append(
            Step(
                frame=torch.full_like(self.rows, -1),
                blank_slot=own,
                blank_from=from_token & rest,
                token_slot=own,
                token_from=kept,
                token=beam.last,
                value=total,
            )
        )
        self.beam = replace(
            beam,
            blank=torch.where(rest, total + silence[:, None], beam.blank),
            token=torch.where(rest, NEVER, beam.token),
        )

    def _add(self, first: Tensor, second: Tensor) -> Tensor:
        """Merge the logarithms of two sets of paths, of one shape."""
        return torch.logaddexp(first, second) if self.settings.merge == "sum" else torch.maximum(first, second)
