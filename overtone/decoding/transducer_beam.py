"""Beam search for transducers, with and without durations, over the rows of a batch, each with its own words.

The search goes from frame to frame (Graves 2012, arXiv:1211.3711, with a limited number of tokens in a frame): every
prefix that is at its row's frame either goes on, by the blank, or grows by a token and is looked at again; those that a
TDT model's durations have taken further wait for their frame, and compete meanwhile. Prefixes of the same tokens at the
same frame become one. A width of one is greedy decoding, with words where there are some. A prefix is ranked by the
logarithm of its tokens and blanks, of its durations, and by the gain of its words.

Legend: R rows, K prefixes of a row, C tokens that are considered, D durations, S scorers, T frames, J joint width,
N prefixes that are looked at, P prefixes that compete.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overtone.decoding.decoder import BeamSettings
from overtone.decoding.fusion import Fusion, Words
from overtone.decoding.transducer_path import TransducerPath
from overtone.nets.transducer import Joint, PredictionNet, State

NEVER = -math.inf
MIX = 6364136223846793005
"""Multiplier of the numbers that tell prefixes apart (Knuth's of linear congruences), modulo 2^64."""

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Beam:
    """The prefixes of all rows, best first, [R, K] each; a place without one has a score of -inf."""

    time: Tensor
    """Frame that comes next."""
    symbols: Tensor
    """Tokens said in that frame so far."""
    score: Tensor
    """float64, logarithm of the probability of tokens and blanks."""
    bonus: Tensor
    """float64, the same of the durations, and the gain of the words."""
    key: Tensor
    """Number of the prefix."""
    node: Tensor
    """Place of the last token in the list of all; -1 where there is none."""

    def at(self, index: Tensor) -> dict[str, Tensor]:
        """The values of other prefixes, index [R, P] -> [R, P] each, by name."""
        return {each.name: getattr(self, each.name).gather(1, index) for each in fields(self)}


class Memory(NamedTuple):
    """Networks and scorers after the prefixes of all rows."""

    prediction: Tensor
    """[R, K, J]"""
    state: State
    """[layers, R, K, ...] each."""
    words: Tensor
    """[R, K, S]"""


class Nodes(NamedTuple):
    """Tokens that the prefixes have grown by, [R, ·] each."""

    parent: Numbers
    """Place of the token before."""
    token: Numbers
    """-1 where the prefix has not grown."""
    place: Numbers
    """Frame of the token."""
    lasts: Numbers
    """Frames that it lasts."""
    value: Numbers
    """Logarithm of its probability."""


class Pool(NamedTuple):
    """Prefixes that compete, [R, P] each: those that wait, go on by the blank, and grow by a token."""

    time: Tensor
    symbols: Tensor
    score: Tensor
    bonus: Tensor
    key: Tensor
    origin: Tensor
    """Place in the beam before."""
    choice: Tensor
    """Number of the token among those considered; -1 where the prefix has not grown."""
    token: Tensor
    lasts: Tensor
    value: Tensor

    def at(self, index: Tensor) -> Pool:
        """Others of them, index [R, ·]."""
        return Pool(*(each.gather(1, index) for each in self))


class Considered(NamedTuple):
    """Tokens that may come next, [R, K, C] each."""

    token: Tensor
    value: Tensor
    """Logarithm of the probability; -inf where none is considered."""
    gain: Tensor
    """Gain of the words."""
    words: Tensor
    """[R, K, C, S] states of the scorers after it."""


class TransducerBeamSearch:
    """The search over the rows of a batch, as frames come."""

    def __init__(
        self,
        joint: Joint,
        prediction: PredictionNet,
        rows: Sequence[Words],
        settings: BeamSettings,
        *,
        max_symbols: int,
    ) -> None:
        """The adapters of the rows act around this and `push`."""
        self.joint, self.prediction, self.settings, self.max_symbols = joint, prediction, settings, max_symbols
        self.device = joint.enc.weight.device
        self.fusion = Fusion(rows, joint.blank, self.device)
        self.rows = torch.arange(len(rows), device=self.device)
        self.frames = 0
        """Frames so far."""
        # The likeliest of V+1 symbols is never below an even share: greedy's choice is always considered.
        self.floor = min(settings.token_floor, -math.log(joint.blank + 1) - 1e-3)
        output, state = prediction.begin(len(rows))
        none = torch.zeros(len(rows), 1, dtype=torch.int64, device=self.device)
        self.beam = Beam(time=none, symbols=none, score=none.double(), bonus=none.double(), key=none + 1, node=none - 1)
        self.memory = Memory(
            joint.pred(output)[:, None], tuple(each[:, :, None] for each in state), self.fusion.begin()[:, None]
        )
        self.nodes: list[Nodes] = []
        self.places = 0
        """Places in the list of nodes."""
        self.durations = torch.tensor(joint.durations, dtype=torch.int64, device=self.device)

    def push(self, frames: Tensor, lengths: Tensor) -> None:
        """Search the next projected frames [R, T, J], lengths [R]. Only a single row may go on."""
        begin, end = self.frames, self.frames + lengths
        while True:
            alive = self.beam.score > NEVER
            now = torch.where(alive, self.beam.time, end[:, None]).amin(dim=1)  # [R]
            here = alive & (self.beam.time == now[:, None]) & (now < end)[:, None]
            if not bool(here.any()):
                break
            place = (now - begin).clamp(max=max(frames.size(1) - 1, 0))
            self._round(frames[self.rows, place], here, now)
        self.frames += frames.size(1)

    def fork(self) -> Self:
        """An independent copy; tensors are replaced, never written to."""
        twin = copy.copy(self)
        twin.nodes = list(self.nodes)
        return twin

    # One look at the prefixes of one frame

    def _round(self, frame: Tensor, here: Tensor, now: Tensor) -> None:
        """Prefixes that are here [R, K] go on or grow; frame [R, J] of each row, its number now [R]."""
        row, slot = torch.nonzero(here, as_tuple=True)  # [N]
        scores = self._scores(frame, row, slot)
        tokens = scores[:, : self.joint.blank + 1].log_softmax(dim=-1)  # [N, V+1]
        silence = self._spread(tokens[:, -1:].double(), here)  # [R, K, 1]
        lasting = torch.zeros_like(silence)
        if len(self.durations):
            lasting = self._spread(scores[:, self.joint.blank + 1 :].log_softmax(dim=-1).double(), here)
        considered = self._consider(tokens[:, :-1], row, slot, here)
        parts = (self._wait(here), self._go_on(silence, lasting), self._grow(considered, lasting))
        pool = Pool(*(torch.cat([each.flatten(1) for each in own], dim=1) for own in zip(*parts, strict=True)))
        self._keep(self._best_of(pool), considered, now)

    def _scores(self, frame: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        """The joint's scores of prefixes, row and slot [N] -> [N, V+1+D]; frame [R, J]."""
        if self.joint.sum.acts():  # adapters are one for each row of the batch
            scores: Tensor = self.joint(frame[:, None], self.memory.prediction)[:, 0]  # [R, K, ·]
            return scores[row, slot].float()
        found: Tensor = self.joint(frame[row][:, None], self.memory.prediction[row, slot][:, None])[:, 0, 0]
        return found.float()

    def _spread(self, values: Tensor, here: Tensor) -> Tensor:
        """Values [N, ·] of the prefixes here [R, K] -> [R, K, ·], -inf elsewhere."""
        found = torch.full((*here.shape, values.size(1)), NEVER, dtype=values.dtype, device=self.device)
        found[here] = values
        return found

    def _consider(self, log_probs: Tensor, row: Tensor, slot: Tensor, here: Tensor) -> Considered:
        """The likeliest tokens of the prefixes at row and slot [N]; log_probs [N, V], here [R, K]."""
        states, fusion = self.memory.words[row, slot], self.fusion
        likely = log_probs
        if fusion.lifts:
            likely = log_probs + fusion.lifts_of(row, states).clamp(min=0.0)
        best, token = likely.topk(min(self.settings.tokens, likely.size(1)), dim=1)  # [N, C]
        value = log_probs.gather(1, token).double().masked_fill(best <= self.floor, NEVER)
        gain = torch.zeros_like(value)
        after = states[:, None].expand(-1, token.size(1), -1)
        if fusion.scores:
            place, choice = torch.nonzero(value > NEVER, as_tuple=True)
            after = after.clone()
            own, after[place, choice] = fusion.follow(row[place], states[place], token[place, choice])
            gain[place, choice] = own.double()
        shape = (*here.shape, token.size(1))
        found = [torch.zeros(shape, dtype=each.dtype, device=self.device) for each in (token, value, gain)]
        found[1].fill_(NEVER)
        words = torch.zeros((*shape, states.size(1)), dtype=torch.int64, device=self.device)
        for whole, part in zip((*found, words), (token, value, gain, after), strict=True):
            whole[here] = part
        return Considered(found[0], found[1], found[2], words)

    # Prefixes that compete

    def _wait(self, here: Tensor) -> Pool:
        """Those that are further on."""
        beam = self.beam
        own = torch.arange(here.size(1), device=self.device).expand_as(here)
        none = torch.zeros_like(own)
        score = beam.score.masked_fill(here, NEVER)
        return Pool(beam.time, beam.symbols, score, beam.bonus, beam.key, own, none - 1, none - 1, none, beam.score)

    def _go_on(self, silence: Tensor, lasting: Tensor) -> Pool:
        """Those that go on by the blank: silence [R, K, 1] its logarithm, lasting [R, K, D] those of the durations."""
        beam, shape = self.beam, lasting.shape
        steps = self.durations.clamp(min=1) if len(self.durations) else torch.ones_like(self.durations.new_zeros(1))
        none = torch.zeros(shape, dtype=torch.int64, device=self.device)
        own = torch.arange(shape[1], device=self.device)[:, None].expand(shape)
        return Pool(
            beam.time[..., None] + steps,
            none,
            (beam.score[..., None] + silence).expand(shape),
            beam.bonus[..., None] + lasting,
            beam.key[..., None].expand(shape),
            own,
            none - 1,
            none - 1,
            none,
            silence.expand(shape),
        )

    def _grow(self, tokens: Considered, lasting: Tensor) -> Pool:
        """Those that grow by a token, [R, K, C, D]; lasting [R, K, D] logarithms of the durations."""
        beam, count = self.beam, lasting.size(2)
        shape = (*tokens.token.shape, count)
        lasts = (self.durations if len(self.durations) else self.durations.new_zeros(1)).expand(shape)
        token, value = tokens.token[..., None].expand(shape), tokens.value[..., None].expand(shape)
        symbols = torch.where(lasts > 0, 0, beam.symbols[..., None, None] + 1)
        full = symbols >= self.max_symbols
        choice = torch.arange(shape[2], device=self.device)[:, None].expand(shape)
        own = torch.arange(shape[1], device=self.device)[:, None, None].expand(shape)
        return Pool(
            beam.time[..., None, None] + lasts + full,
            torch.where(full, 0, symbols),
            beam.score[..., None, None] + value,
            beam.bonus[..., None, None] + tokens.gain[..., None] + lasting[:, :, None],
            beam.key[..., None, None] * MIX + token + 1,
            own,
            choice,
            token,
            lasts,
            value,
        )

    def _best_of(self, pool: Pool) -> Pool:
        """The best `width` of them, those of the same tokens at the same frame as one."""
        width = min(self.settings.width, pool.score.size(1))
        several = min(2 * width, pool.score.size(1))
        pool = pool.at((pool.score + pool.bonus).topk(several, dim=1).indices)
        alive = pool.score > NEVER
        same = (pool.key[:, :, None] == pool.key[:, None]) & (pool.time[:, :, None] == pool.time[:, None])
        same = same & alive[:, :, None] & alive[:, None]  # [R, P, P]
        again = same.triu(diagonal=1).any(dim=1)
        score = pool.score
        if self.settings.merge == "sum":
            score = torch.where(same, score[:, None], NEVER).logsumexp(dim=2)
        score = score.masked_fill(again | ~alive, NEVER)
        top, order = (score + pool.bonus).topk(width, dim=1)
        lost = top < top[:, :1] - self.settings.score_floor
        return pool._replace(score=score).at(order)._replace(score=score.gather(1, order).masked_fill(lost, NEVER))

    def _keep(self, pool: Pool, tokens: Considered, now: Tensor) -> None:
        """Make the prefixes of the pool the beam; now [R] is the frame of those that have grown."""
        rows, up = self.rows[:, None], pool.origin
        grown = (pool.choice >= 0) & (pool.score > NEVER)
        before = self.beam.node.gather(1, up)
        node = before
        if bool(grown.any()):
            own = torch.arange(up.size(1), device=self.device) + self.places
            node = torch.where(grown, own, before)
            token = torch.where(grown, pool.token, -1)
            new = (before, token, now[:, None].expand_as(up), pool.lasts, pool.value)
            self.nodes.append(Nodes(*(each.cpu().numpy() for each in new)))
            self.places += up.size(1)
        self.beam = Beam(
            time=pool.time, symbols=pool.symbols, score=pool.score, bonus=pool.bonus, key=pool.key, node=node
        )
        words = tokens.words[rows, up, pool.choice.clamp(min=0)]
        self.memory = self._predict(
            Memory(
                self.memory.prediction[rows, up],
                tuple(each[:, rows, up] for each in self.memory.state),
                torch.where(grown[..., None], words, self.memory.words[rows, up]),
            ),
            pool.token,
            grown,
        )

    def _predict(self, memory: Memory, token: Tensor, grown: Tensor) -> Memory:
        """The memory after the tokens [R, K] of the prefixes that have grown [R, K]."""
        if not bool(grown.any()):
            return memory
        prediction, state = memory.prediction.clone(), tuple(each.clone() for each in memory.state)
        if not self.prediction.acts():
            row, slot = torch.nonzero(grown, as_tuple=True)
            output, after = self.prediction.step(token[row, slot], tuple(each[:, row, slot] for each in state))
            prediction[row, slot] = self.joint.pred(output)
            for whole, part in zip(state, after, strict=True):
                whole[:, row, slot] = part
            return Memory(prediction, state, memory.words)
        for slot in torch.nonzero(grown.any(dim=0))[:, 0].tolist():  # adapters are one for each row of the batch
            own = grown[:, slot]
            chosen = torch.where(own, token[:, slot], self.joint.blank)
            output, after = self.prediction.step(chosen, tuple(each[:, :, slot] for each in state))
            prediction[own, slot] = self.joint.pred(output)[own]
            for whole, part in zip(state, after, strict=True):
                whole[:, own, slot] = part[:, own]
        return Memory(prediction, state, memory.words)

    # Readings

    def best(self, count: int, lengths: Sequence[int]) -> list[list[tuple[TransducerPath, float]]]:
        """The paths of the best `count` prefixes of each row and their ranks, best first; lengths: frames of the rows.

        The words rank them, as if every row ended here; they are not in the scores.
        """
        beam, width = self.beam, self.beam.score.size(1)
        ends = self.fusion.end(self.rows.repeat_interleave(width), self.memory.words.flatten(0, 1)).view_as(beam.score)
        ranks, order = (beam.score + beam.bonus + ends).topk(min(count, width), dim=1)
        found: list[list[tuple[TransducerPath, float]]] = [[] for _ in lengths]
        for row, place in torch.nonzero(ranks != NEVER).tolist():  # what is not finite is found, and refused
            slot = int(order[row, place])
            chain = self._chain(row, int(beam.node[row, slot]))
            path = TransducerPath(
                ids=chain.token,
                places=chain.place,
                durations=chain.lasts,
                log_probs=chain.value.astype(np.float32),
                frames=lengths[row],
                score=float(self.beam.score[row, slot]),
            )
            found[row].append((path, float(ranks[row, place])))
        return found

    def settled(self) -> int:
        """The number of frames of the only row that count as settled."""
        ranks = self.beam.score[0] + self.beam.bonus[0]
        alive = (ranks > NEVER) & (ranks >= ranks.max() - self.settings.settled_lead)
        chains = [self._chain(0, node) for node in self.beam.node[0][alive].tolist()]
        tokens = [list(zip(chain.token.tolist(), chain.place.tolist(), strict=True)) for chain in chains]
        shared = [len(set(each)) == 1 for each in zip(*tokens, strict=False)]
        agree = shared.index(False) if False in shared else len(shared)
        open_places = [own[agree][1] for own in tokens if len(own) > agree]
        return int(min([self.frames, *open_places, *self.beam.time[0][alive].tolist()]))

    def _chain(self, row: int, node: int) -> Nodes:
        """The tokens up to a node of a row, in order, as arrays [U]."""
        if len(self.nodes) > 1:
            self.nodes = [Nodes(*(np.concatenate(each, axis=1) for each in zip(*self.nodes, strict=True)))]
        if not self.nodes:
            none = np.zeros(0, dtype=np.int64)
            return Nodes(none, none, none, none, none.astype(np.float64))
        (table,), nodes = self.nodes, list[int]()
        while node >= 0:
            nodes.append(node)
            node = int(table.parent[row, node])
        return Nodes(*(each[row, nodes[::-1]] for each in table))
