from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone.errors import UsageError
from overtone.wer import (
    ErrorCounts,
    align_words,
    bootstrap_interval,
    character_errors,
    paired_difference_interval,
    word_errors,
)

texts = st.lists(st.sampled_from(["a", "b", "c", "one", "two", "é"]), max_size=12).map(" ".join)


def distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein's distance by its definition."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, found in enumerate(hypothesis, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (expected != found))
    return row[-1]


def counts_of(errors: int, words: int) -> ErrorCounts:
    return ErrorCounts(substitutions=errors, hits=words - errors)


def test_counts_by_hand() -> None:
    counts = word_errors("please press one for sales", "please pass one four for")
    assert counts == ErrorCounts(substitutions=1, deletions=1, insertions=1, hits=3)
    assert (counts.errors, counts.reference_length, counts.rate) == (3, 5, 0.6)
    assert character_errors("ab c", "abc") == ErrorCounts(deletions=1, hits=3)
    assert word_errors("  one\ttwo ", "one two\n") == ErrorCounts(hits=2)


@settings(max_examples=200, deadline=None)
@given(reference=texts, hypothesis=texts)
def test_counts_are_minimal_and_consistent(reference: str, hypothesis: str) -> None:
    for count, old, new in (
        (word_errors(reference, hypothesis), reference.split(), hypothesis.split()),
        (character_errors(reference, hypothesis), list(reference), list(hypothesis)),
    ):
        assert count.errors == distance(old, new)
        assert count.reference_length == len(old)
        assert count.hits + count.substitutions + count.insertions == len(new)
        assert min(count.hits, count.substitutions, count.deletions, count.insertions) >= 0


def test_counts_equal_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer", reason="jiwer is not installed; the counts are checked by definition too")
    generator = np.random.default_rng(3)
    words = ["press", "one", "two", "a", "desk", "the"]
    for _ in range(100):
        reference, hypothesis = (" ".join(generator.choice(words, size=generator.integers(1, 20))) for _ in range(2))
        for ours, theirs in (
            (word_errors(reference, hypothesis), jiwer.process_words(reference, hypothesis)),
            (character_errors(reference, hypothesis), jiwer.process_characters(reference, hypothesis)),
        ):
            assert (ours.substitutions, ours.deletions, ours.insertions, ours.hits) == (
                theirs.substitutions,
                theirs.deletions,
                theirs.insertions,
                theirs.hits,
            )


def test_rate_without_reference_words() -> None:
    assert word_errors("", "").rate == 0.0
    assert word_errors("", "one two").rate == 1.0
    assert word_errors("one", "").rate == 1.0
    assert word_errors("one", "two two two").rate == 3.0


def test_counts_add_up() -> None:
    parts = [word_errors("a b c", "a x"), word_errors("", "b"), word_errors("c", "c")]
    total = sum(parts, ErrorCounts())
    assert total == ErrorCounts(substitutions=1, deletions=1, insertions=1, hits=2)
    assert total.rate == 3 / 4


@settings(max_examples=200, deadline=None)
@given(reference=texts, hypothesis=texts)
def test_alignment_spells_both_sides(reference: str, hypothesis: str) -> None:
    steps = align_words(reference, hypothesis)
    assert [step.reference for step in steps if step.reference is not None] == reference.split()
    assert [step.hypothesis for step in steps if step.hypothesis is not None] == hypothesis.split()
    counts = word_errors(reference, hypothesis)
    kinds = [step.kind for step in steps]
    assert kinds.count("equal") == counts.hits
    assert kinds.count("substitute") == counts.substitutions
    assert kinds.count("delete") == counts.deletions
    assert kinds.count("insert") == counts.insertions
    for step in steps:
        assert (step.kind == "equal") == (step.reference == step.hypothesis)
        assert (step.kind == "insert") == (step.reference is None)
        assert (step.kind == "delete") == (step.hypothesis is None)


def test_bootstrap_interval() -> None:
    generator = np.random.default_rng(0)
    counts = [counts_of(int(generator.binomial(10, 0.2)), 10) for _ in range(400)]
    rate = sum(counts, ErrorCounts()).rate
    low, high = bootstrap_interval(counts)
    deviation = np.std([count.rate for count in counts]) / np.sqrt(len(counts))
    assert low < rate < high
    assert rate - low == pytest.approx(1.96 * deviation, rel=0.15)
    assert high - rate == pytest.approx(1.96 * deviation, rel=0.15)
    assert bootstrap_interval(counts) == (low, high)
    assert bootstrap_interval(counts, seed=1) != (low, high)
    narrow = bootstrap_interval(counts, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_weighs_by_words() -> None:
    low, high = bootstrap_interval([counts_of(0, 1000), counts_of(1, 1)])
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_interval([counts_of(1, 4)] * 5) == (0.25, 0.25)
    assert bootstrap_interval([ErrorCounts(insertions=1)] * 3) == (1.0, 1.0)
    assert bootstrap_interval([]) == (0.0, 0.0)


def test_bootstrap_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [counts_of(index % 3, 5) for index in range(50)]
    whole = bootstrap_interval(counts)
    monkeypatch.setattr("overtone.wer.DRAWS_AT_ONCE", 120)
    assert bootstrap_interval(counts) == pytest.approx(whole, abs=0.02)


def test_paired_difference() -> None:
    generator = np.random.default_rng(0)
    base = [counts_of(int(generator.integers(2, 9)), 10) for _ in range(200)]
    better = [counts_of(count.errors - 1, 10) for count in base]
    assert paired_difference_interval(base, better) == pytest.approx((0.1, 0.1))
    low, high = paired_difference_interval(base, base[::-1])
    assert low < 0.0 < high
    unpaired = bootstrap_interval(base)
    assert unpaired[1] - unpaired[0] > 0.02


def test_refuses_what_has_no_interval() -> None:
    with pytest.raises(UsageError, match="1 with 2"):
        paired_difference_interval([counts_of(0, 1)], [counts_of(0, 1)] * 2)
    for level, resamples in ((0.0, 10), (1.0, 10), (0.5, 0)):
        with pytest.raises(UsageError, match="level between 0 and 1"):
            bootstrap_interval([counts_of(0, 1)], level=level, resamples=resamples)
