"""Word and character errors: exact counts, alignments, bootstrap intervals. Corpora add up as counts."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from overtone.errors import UsageError

DRAWS_AT_ONCE = 4_000_000
"""Resampled utterances held in memory at a time (32 bytes each)."""


@dataclass(frozen=True, kw_only=True)
class ErrorCounts:
    """The edits of a minimal alignment between reference and hypothesis, in words or characters."""

    substitutions: int = 0
    """Reference words replaced by others."""

    deletions: int = 0
    """Reference words without a counterpart."""

    insertions: int = 0
    """Hypothesis words without a counterpart."""

    hits: int = 0
    """Reference words found."""

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_length(self) -> int:
        return self.substitutions + self.deletions + self.hits

    @property
    def rate(self) -> float:
        """Errors over reference words, above 1 where much is inserted; without reference words 0.0 or 1.0."""
        if self.reference_length == 0:
            return float(self.errors > 0)
        return self.errors / self.reference_length

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            substitutions=self.substitutions + other.substitutions,
            deletions=self.deletions + other.deletions,
            insertions=self.insertions + other.insertions,
            hits=self.hits + other.hits,
        )


@dataclass(frozen=True)
class AlignedWord:
    """One step of an alignment."""

    kind: Literal["equal", "substitute", "delete", "insert"]
    """The edit of the reference word."""

    reference: str | None
    """The reference word; None where a word was inserted."""

    hypothesis: str | None
    """The hypothesis word; None where a word was deleted."""


APOSTROPHES = "'’"


@dataclass(frozen=True, kw_only=True)
class TextProcessing:
    """Changes of references and hypotheses before errors are counted, with the names of NeMo's evaluation script."""

    do_lowercase: bool = False
    """Count in lower case."""

    rm_punctuation: bool = False
    """Count without punctuation; what it parts stays apart."""

    punctuation_marks: str = ""
    """The marks that are punctuation; none are all of Unicode's but apostrophes within words."""

    replace: tuple[tuple[str, str], ...] = ()
    """Texts and what stands for them, in order, before everything else."""

    def __call__(self, text: str) -> str:
        """The text as it is counted."""
        for old, new in self.replace:
            text = text.replace(old, new)
        if self.do_lowercase:
            text = text.lower()
        if self.rm_punctuation:
            text = "".join(" " if self._is_mark(text, place) else sign for place, sign in enumerate(text))
        return " ".join(text.split())

    @property
    def description(self) -> str:
        """A few words for tables, empty where nothing changes."""
        marks = f"without {self.punctuation_marks}" if self.punctuation_marks else "without punctuation"
        parts = ["in lower case"] if self.do_lowercase else []
        parts += [marks] if self.rm_punctuation else []
        return ", ".join([*parts, *(f"{old!r} as {new!r}" for old, new in self.replace)])

    def _is_mark(self, text: str, place: int) -> bool:
        sign = text[place]
        if self.punctuation_marks:
            return sign in self.punctuation_marks
        inside = text[place - 1 : place].isalnum() and text[place + 1 : place + 2].isalnum()
        return unicodedata.category(sign).startswith("P") and not (sign in APOSTROPHES and inside)


def word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors in words, which are what white space separates."""
    return _counts(reference.split(), hypothesis.split())


def character_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors in characters; the single space between two words counts as one."""
    return _counts(list(" ".join(reference.split())), list(" ".join(hypothesis.split())))


def align_words(reference: str, hypothesis: str) -> list[AlignedWord]:
    """Align the words of both with as few edits as `word_errors` counts; the steps in order."""
    expected, found = reference.split(), hypothesis.split()
    aligned: list[AlignedWord] = []
    for step in Levenshtein.opcodes(*_number_symbols(expected, found)):
        old = expected[step.src_start : step.src_end]
        new = found[step.dest_start : step.dest_end]
        if step.tag == "delete":
            aligned += [AlignedWord("delete", word, None) for word in old]
        elif step.tag == "insert":
            aligned += [AlignedWord("insert", None, word) for word in new]
        else:
            kind: Literal["equal", "substitute"] = "equal" if step.tag == "equal" else "substitute"
            aligned += [AlignedWord(kind, *pair) for pair in zip(old, new, strict=True)]
    return aligned


def bootstrap_interval(
    counts: Sequence[ErrorCounts], *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The range that holds the corpus error rate in `level` of the resamplings of its utterances, low and high.

    Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", 2004.
    """
    errors, lengths = _columns(counts)

    def rate(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return _rates(errors[rows].sum(1), lengths[rows].sum(1))

    return _interval(rate, len(counts), level, resamples, seed)


def paired_difference_interval(
    a: Sequence[ErrorCounts],
    b: Sequence[ErrorCounts],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of (rate of a) - (rate of b), both over the same utterances, resampled together.

    b is better where it lies wholly above 0. Raises UsageError where the two do not have the same number of utterances.
    """
    if len(a) != len(b):
        raise UsageError(f"Cannot pair {len(a)} with {len(b)} utterances; evaluate both on the same ones.")
    errors_a, lengths_a = _columns(a)
    errors_b, lengths_b = _columns(b)

    def difference(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        rate_a = _rates(errors_a[rows].sum(1), lengths_a[rows].sum(1))
        return rate_a - _rates(errors_b[rows].sum(1), lengths_b[rows].sum(1))

    return _interval(difference, len(a), level, resamples, seed)


def _number_symbols(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[list[int], list[int]]:
    """Both sequences as small numbers, equal where the symbols are equal: unlike hashes, they cannot collide."""
    numbers: dict[str, int] = {}
    first, second = ([numbers.setdefault(s, len(numbers)) for s in side] for side in (reference, hypothesis))
    return first, second


def symbol_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    """Errors in symbols of any sort, such as the characters of a text with every space."""
    return _counts(reference, hypothesis)


def _counts(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    tags = [step.tag for step in Levenshtein.editops(*_number_symbols(reference, hypothesis))]
    substitutions, deletions = tags.count("replace"), tags.count("delete")
    return ErrorCounts(
        substitutions=substitutions,
        deletions=deletions,
        insertions=tags.count("insert"),
        hits=len(reference) - substitutions - deletions,
    )


def _columns(counts: Sequence[ErrorCounts]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Errors [N] and reference lengths [N]."""
    errors = np.array([count.errors for count in counts], dtype=np.int64)
    return errors, np.array([count.reference_length for count in counts], dtype=np.int64)


def _rates(errors: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """`ErrorCounts.rate` of errors and lengths, arrays of any shape."""
    return np.where(lengths > 0, errors / np.maximum(lengths, 1), (errors > 0).astype(np.float64))


def _interval(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    utterances: int,
    level: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """The middle `level` of the statistic [R] over R resamplings; `statistic` takes row numbers [r, N]."""
    if not 0.0 < level < 1.0 or resamples < 1:
        raise UsageError(
            f"An interval needs a level between 0 and 1 and at least one resample, not {level} and {resamples}."
        )
    if utterances == 0:
        return 0.0, 0.0
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, DRAWS_AT_ONCE // utterances)
    values = []
    for done in range(0, resamples, rows_at_once):
        shape = (min(rows_at_once, resamples - done), utterances)
        values.append(statistic(generator.integers(0, utterances, size=shape)))
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
