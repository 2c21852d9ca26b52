"""Prefix beam search for CTC (Hannun et al. 2014, arXiv:1408.2873) with boosted phrases and N best readings.

A prefix is scored by its best path (or by the sum over its paths). With the best path and without boosts the first
reading is the greedy one at every width: boosts that do not apply change nothing. Each prefix keeps the frames of
its tokens along its best path, so that words have times and confidences as in greedy decoding.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
import numpy.typing as npt

from overtone.decoding.decoder import BeamSettings, Emissions, Flags
from overtone.decoding.hypothesis import Hypothesis, make_hypothesis, shift
from overtone.decoding.phrase_boost import BoostState, BoostTree
from overtone.errors import OutputError
from overtone.tokenizers import Tokenizer

NEVER = -math.inf


@dataclass(eq=False, slots=True)
class Prefix:
    """A sequence of tokens, as the last of them and what came before; within a beam, equal ones are one object."""

    parent: Prefix | None
    token: int
    """-1 at the root."""
    state: BoostState | None
    bonus: float
    """The bonus of boosts while it may still grow."""


@dataclass(frozen=True, slots=True)
class Span:
    """The frames of a token on a path, and the tokens before it."""

    token: int
    start: int
    end: int
    probability: float
    """Sum over its frames."""
    before: Span | None


@dataclass(slots=True)
class Score:
    """Logarithms of what leads to a prefix: paths that end in blank, and those that end in its last token."""

    blank: float
    blank_path: Span | None
    token: float
    token_path: Span | None

    def best(self) -> tuple[float, Span | None]:
        return (self.blank, self.blank_path) if self.blank >= self.token else (self.token, self.token_path)


class BeamDecoder:
    """Incremental search: push log-probabilities as they come, read the N best at any time."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        seconds_per_frame: float,
        settings: BeamSettings | None = None,
        boosts: BoostTree | None = None,
        first_frame: int = 0,
    ) -> None:
        """first_frame: the number of the first frame pushed; spans and word times count from frame 0."""
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame
        self.settings = settings or BeamSettings()
        self.boosts = boosts or None
        self.first_frame = first_frame
        self.frames = 0
        state = self.boosts.start if self.boosts else None
        root = Prefix(parent=None, token=-1, state=state, bonus=0.0)
        self._beam: dict[Prefix, Score] = {root: Score(0.0, None, NEVER, None)}
        self._known: dict[tuple[Prefix | None, int], Prefix] = {}
        """The prefixes of the beam, and those that this frame has made."""
        self._add = log_add if self.settings.merge == "sum" else max

    def push(self, emissions: Emissions) -> None:
        """Search the next T frames, log-probabilities [T, V+1] float32, blank last. Raises OutputError for NaN."""
        if np.isnan(emissions).any():
            raise OutputError(
                f"The outputs of the model are not finite (frame {self.first_frame + self.frames} or later)."
            )
        blank = emissions.shape[-1] - 1
        # The likeliest of V+1 symbols is never below an even share: greedy's choice is always considered.
        floor = min(self.settings.token_floor, -math.log(blank + 1) - 1e-3)
        likely = emissions[:, :blank] > floor
        for frame, row in zip(likely, emissions, strict=True):
            tokens = np.flatnonzero(frame)
            if tokens.size > self.settings.tokens:
                best = np.argpartition(row[tokens], -self.settings.tokens)[-self.settings.tokens :]
                tokens = tokens[best]
            self._step(row, tokens, float(row[blank]), floor)
            self.frames += 1

    def silent(self, emissions: Emissions) -> Flags:
        """[T] bool: blank frames of log-probabilities [T, V+1]."""
        flags: Flags = emissions.argmax(axis=-1) == emissions.shape[-1] - 1
        return flags

    def fork(self) -> Self:
        """An independent copy, for a look ahead."""
        copy = type(self)(
            self.tokenizer,
            seconds_per_frame=self.seconds_per_frame,
            settings=self.settings,
            boosts=self.boosts,
            first_frame=self.first_frame,
        )
        copy.frames = self.frames
        copy._beam = self._beam  # replaced, never changed, once a frame is done
        copy._known = dict(self._known)
        return copy

    def hypotheses(self, count: int = 1) -> list[Hypothesis]:
        """One to `count` different texts, best first, as if the audio ended here.

        They are ranked with boosts; `score` is the logarithm of the reading's own probability, without them.
        """
        ranked = sorted(self._beam.items(), key=lambda item: -(self._total(item[1]) + self._final_bonus(item[0])))
        found: dict[str, Hypothesis] = {}
        for _, score in ranked:
            hypothesis = self._read(score)
            found.setdefault(hypothesis.text, hypothesis)
            if len(found) == count:
                break
        return list(found.values())

    def _step(self, row: Emissions, tokens: npt.NDArray[np.int64], blank: float, floor: float) -> None:
        """One frame: every prefix stays (blank, or its last token once more) or grows by a token."""
        add, frame, grown = self._add, self.frames, dict[Prefix, Score]()
        values = [(int(token), float(row[token])) for token in tokens]
        for prefix, score in self._beam.items():
            total, path = self._total(score), score.best()[1]
            stays = grown.get(prefix)
            if stays is None:
                stays = grown[prefix] = Score(NEVER, None, NEVER, None)
            stays.blank, stays.blank_path = total + blank, path
            if prefix.token >= 0 and score.token > NEVER:
                value = float(row[prefix.token])
                repeated = score.token + value
                if repeated > stays.token or stays.token_path is None:
                    stays.token_path = longer(score.token_path, value)
                stays.token = add(stays.token, repeated)
            for token, value in chain(values, self._boosted(prefix, row, tokens, floor)):
                if token == prefix.token:
                    before, before_path = score.blank, score.blank_path
                    if before == NEVER:
                        continue
                else:
                    before, before_path = total, path
                child = self._child(prefix, token)
                longer_score = grown.get(child)
                if longer_score is None:
                    longer_score = grown[child] = Score(NEVER, None, NEVER, None)
                if before + value > longer_score.token:
                    longer_score.token_path = Span(token, frame, frame + 1, math.exp(value), before_path)
                longer_score.token = add(longer_score.token, before + value)
        self._prune(grown)

    def _boosted(
        self, prefix: Prefix, row: Emissions, tokens: npt.NDArray[np.int64], floor: float
    ) -> Iterable[tuple[int, float]]:
        """Tokens of boosted phrases that are too unlikely to be considered otherwise."""
        if self.boosts is None or prefix.state is None:
            return ()
        onward = self.boosts.onward(prefix.state)
        if not onward.size:
            return ()
        near = onward[row[onward] > floor - self.boosts.largest_gain]
        return [
            (int(token), float(row[token]))
            for token in near[~np.isin(near, tokens)]
            if row[token] + self._child(prefix, int(token)).bonus - prefix.bonus > floor
        ]

    def _child(self, prefix: Prefix, token: int) -> Prefix:
        child = self._known.get((prefix, token))
        if child is None:
            state = self.boosts.after(prefix.state, token) if self.boosts and prefix.state else None
            child = Prefix(parent=prefix, token=token, state=state, bonus=state.bonus if state else 0.0)
            self._known[prefix, token] = child
        return child

    def _prune(self, grown: dict[Prefix, Score]) -> None:
        ranks = {prefix: self._total(score) + prefix.bonus for prefix, score in grown.items()}
        kept = heapq.nlargest(self.settings.width, ranks, key=ranks.__getitem__)
        lowest = ranks[kept[0]] - self.settings.score_floor
        self._beam = {prefix: grown[prefix] for prefix in kept if ranks[prefix] >= lowest}
        self._known = {(prefix.parent, prefix.token): prefix for prefix in self._beam}

    def _total(self, score: Score) -> float:
        return self._add(score.blank, score.token)

    def _final_bonus(self, prefix: Prefix) -> float:
        return self.boosts.final(prefix.state) if self.boosts and prefix.state else 0.0

    def _read(self, score: Score) -> Hypothesis:
        """The path of a prefix as text with times."""
        found: list[Span] = []
        span = score.best()[1]
        while span is not None:
            found.append(span)
            span = span.before
        found.reverse()
        hypothesis = make_hypothesis(
            [span.token for span in found],
            [(span.start, span.end) for span in found],
            [span.probability / (span.end - span.start) for span in found],
            self.tokenizer,
            seconds_per_frame=self.seconds_per_frame,
            score=self._total(score),
        )
        return shift(hypothesis, self.first_frame, self.seconds_per_frame)


def longer(span: Span | None, value: float) -> Span | None:
    """The last token of a path held for one more frame."""
    if span is None:
        return None
    return Span(span.token, span.start, span.end + 1, span.probability + math.exp(value), span.before)


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))"""
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + math.log1p(math.exp(b - a))


def beam_search(
    log_probs: Emissions,
    tokenizer: Tokenizer,
    *,
    seconds_per_frame: float,
    settings: BeamSettings | None = None,
    boosts: BoostTree | None = None,
    count: int = 1,
) -> list[Hypothesis]:
    """log_probs [T, V+1] of one recording -> one to `count` hypotheses, best first."""
    decoder = BeamDecoder(tokenizer, seconds_per_frame=seconds_per_frame, settings=settings, boosts=boosts)
    decoder.push(log_probs)
    return decoder.hypotheses(count)
