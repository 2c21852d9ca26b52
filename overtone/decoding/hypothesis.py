"""The reading of one recording: text, words with times and confidences, tokens with frames."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from overtone.errors import OutputError
from overtone.tokenizers import WORD_BOUNDARY, Tokenizer

MARK = re.compile(f"{WORD_BOUNDARY}?<(EOU|EOB|[a-z]{{2,3}}-[A-Z]{{2}})>")
"""A piece that says something about the speech, and is no text: its end, or its language."""


@dataclass(frozen=True, kw_only=True)
class Word:
    """One word of a hypothesis and its time."""

    text: str
    """The word, without spaces around it."""

    start: float
    """Beginning in seconds, from the start of the recording."""

    end: float
    """End in seconds; later than `start`."""

    confidence: float
    """Probability of the word's least sure token, in 0…1; a token's is the mean over the frames that hold it."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A token that says something about the speech, and is no text."""

    name: str
    """EOU and EOB, the end of an utterance and of a backchannel, or a language: en-US."""

    time: float
    """Seconds from the start of the recording, the beginning of its frame."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """The decoder's reading of one recording."""

    text: str
    """The transcript, exactly as the tokenizer writes it."""

    words: tuple[Word, ...] = ()
    """The words of `text` in order."""

    score: float = 0.0
    """Natural logarithm of the probability of the path that was chosen, over all frames."""

    ids: tuple[int, ...] = ()
    """Token ids of the text and of the marks: repeats collapsed, blanks removed."""

    spans: tuple[tuple[int, int], ...] = ()
    """For each id the encoder frames that hold it: first, and one past the last."""

    marks: tuple[Mark, ...] = ()
    """Marks of the speech in order, which `text` is without."""


def mark_name(piece: str) -> str | None:
    """The name of a piece of a vocabulary that is a mark; None where it is text."""
    found = MARK.fullmatch(piece) if piece.endswith(">") else None
    return None if found is None else found.group(1)


def shift(hypothesis: Hypothesis, frames: int, seconds_per_frame: float) -> Hypothesis:
    """The same reading, `frames` encoder frames later."""
    if not frames:
        return hypothesis
    later = frames * seconds_per_frame
    return replace(
        hypothesis,
        words=tuple(
            replace(word, start=round(word.start + later, 3), end=round(word.end + later, 3))
            for word in hypothesis.words
        ),
        spans=tuple((first + frames, last + frames) for first, last in hypothesis.spans),
        marks=tuple(replace(mark, time=round(mark.time + later, 3)) for mark in hypothesis.marks),
    )


def make_hypothesis(
    ids: Sequence[int],
    spans: Sequence[tuple[int, int]],
    probabilities: Sequence[float],
    tokenizer: Tokenizer,
    *,
    seconds_per_frame: float,
    score: float,
) -> Hypothesis:
    """The reading of tokens whose frames are known.

    spans: encoder frames of each token, first and one past the last. probabilities: of each token, in 0…1. A word
    lasts from its first token's first frame to the end of its last token. Raises OutputError where the score is not
    finite.
    """
    if not math.isfinite(score):
        raise OutputError(f"The outputs of the model are not finite (score {score}).")
    said = tuple(ids), tuple(spans)
    found = {index: name for index, piece in enumerate(tokenizer.pieces(ids)) if (name := mark_name(piece))}
    marks = tuple(Mark(name=name, time=round(spans[index][0] * seconds_per_frame, 3)) for index, name in found.items())
    if marks:
        kept = [index for index in range(len(ids)) if index not in found]
        ids, spans = [ids[index] for index in kept], [spans[index] for index in kept]
        probabilities = [probabilities[index] for index in kept]
    words = tuple(
        Word(
            text=text,
            start=round(spans[first][0] * seconds_per_frame, 3),
            end=round(spans[last - 1][1] * seconds_per_frame, 3),
            confidence=min(1.0, min(probabilities[first:last])),
        )
        for text, first, last in tokenizer.words(list(ids))
    )
    text = tokenizer.decode(list(ids))
    return Hypothesis(text=text, words=words, score=score, ids=said[0], spans=said[1], marks=marks)
