"""Incremental prefix beam search for CTC: emissions as they come -> the N best readings at any time."""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
import torch

from overtone.decoding.ctc_path import blank_frames, read_path
from overtone.decoding.ctc_search import CtcSearch
from overtone.decoding.decoder import BeamSettings, Emissions, Flags
from overtone.decoding.fusion import NO_WORDS, Words
from overtone.decoding.hypothesis import Hypothesis, shift
from overtone.decoding.phrase_boost import BoostTree
from overtone.errors import OutputError
from overtone.tokenizers import Tokenizer


class BeamDecoder:
    """The search over one recording."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        seconds_per_frame: float,
        settings: BeamSettings | None = None,
        boosts: BoostTree | None = None,
        words: Words = NO_WORDS,
        first_frame: int = 0,
    ) -> None:
        """first_frame: the number of the first frame pushed; spans and word times count from frame 0.

        boosts: phrases besides those of `words`.
        """
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame
        self.first_frame = first_frame
        self.frames = self.settled = 0
        own = words + Words(boosts=(boosts,)) if boosts else words
        self.search = CtcSearch([own], tokenizer.size, settings or BeamSettings(), torch.device("cpu"))

    def push(self, emissions: Emissions) -> None:
        """Search the next T frames, log-probabilities [T, V+1] float32, blank last. Raises OutputError for NaN."""
        if not len(emissions):
            return
        if np.isnan(emissions).any():
            raise OutputError(
                f"The outputs of the model are not finite (frame {self.first_frame + self.frames} or later)."
            )
        frames = torch.from_numpy(np.ascontiguousarray(emissions)).unsqueeze(0)
        self.search.push(frames, torch.tensor([len(emissions)]))
        self.frames += len(emissions)
        self.settled = self.search.settle()

    def silent(self, emissions: Emissions) -> Flags:
        """[T] bool: blank frames of log-probabilities [T, V+1]."""
        return blank_frames(emissions)

    def fork(self) -> Self:
        """An independent copy, for a look ahead."""
        twin = copy.copy(self)
        twin.search = self.search.fork()
        return twin

    def hypotheses(self, count: int = 1) -> list[Hypothesis]:
        """One to `count` different texts, best first, as if the audio ended here.

        They are ranked with their words; `score` is the logarithm of the reading's own probability, without them.
        """
        found: dict[str, Hypothesis] = {}
        for path, _ in self.search.best(count if count == 1 else self.search.settings.width)[0]:
            hypothesis = read_path(path, self.tokenizer, seconds_per_frame=self.seconds_per_frame)
            found.setdefault(hypothesis.text, hypothesis)
            if len(found) == count:
                break
        return [shift(each, self.first_frame, self.seconds_per_frame) for each in found.values()]


def beam_search(
    log_probs: Emissions,
    tokenizer: Tokenizer,
    *,
    seconds_per_frame: float,
    settings: BeamSettings | None = None,
    boosts: BoostTree | None = None,
    words: Words = NO_WORDS,
    count: int = 1,
) -> list[Hypothesis]:
    """log_probs [T, V+1] of one recording -> one to `count` hypotheses, best first."""
    decoder = BeamDecoder(tokenizer, seconds_per_frame=seconds_per_frame, settings=settings, boosts=boosts, words=words)
    decoder.push(log_probs)
    return decoder.hypotheses(count)
