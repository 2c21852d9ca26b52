"""The reading of one recording: text, words with times and confidences, tokens with frames."""

from __future__ import annotations

from dataclasses import dataclass, replace


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
class Hypothesis:
    """The decoder's reading of one recording."""

    text: str
    """The transcript, exactly as the tokenizer writes it."""

    words: tuple[Word, ...] = ()
    """The words of `text` in order."""

    score: float = 0.0
    """Natural logarithm of the probability of the path that was chosen, over all frames."""

    ids: tuple[int, ...] = ()
    """Token ids of the text: repeats collapsed, blanks removed."""

    spans: tuple[tuple[int, int], ...] = ()
    """For each id the encoder frames that hold it: first, and one past the last."""


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
    )
