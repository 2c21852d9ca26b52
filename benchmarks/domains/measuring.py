"""Word errors of a model on the domain and on general speech, and what is drawn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from overtone.evaluation.evaluate import evaluate
from overtone.evaluation.results import Result, total
from overtone.models.asr_model import AsrModel
from overtone.wer import ErrorCounts, bootstrap_interval, paired_difference_interval

DOMAIN = "domain"
"""The test part of the domain among the measured sets; the others are general speech."""

Heard = dict[str, Any]
"""`texts` (hypotheses) and `counts` ([substitutions, deletions, insertions, hits]) of the utterances of one set."""


def hear(
    model: AsrModel, sets: Mapping[str, Path], choices: Sequence[str | None]
) -> dict[str | None, dict[str, Heard]]:  # fmt: skip
    """What each adapter choice makes of each set, greedily, the base in the machine's fast arithmetic."""
    found = evaluate(model, list(sets.values()), adapters=choices, compute_dtype="auto", resamples=1)
    results = iter(found.results)
    heard: dict[str | None, dict[str, Heard]] = {choice: {} for choice in choices}
    for name in sets:
        for choice in choices:
            heard[choice][name] = heard_of(next(results))
    return heard


def heard_of(result: Result) -> Heard:
    lines = result.utterances
    return {
        "texts": [line.hypothesis for line in lines],
        "counts": [
            [line.words.substitutions, line.words.deletions, line.words.insertions, line.words.hits] for line in lines
        ],
    }


def counts_of(heard: Heard | Sequence[Heard]) -> list[ErrorCounts]:
    """The counts of one set, or of several as one."""
    return [
        ErrorCounts(substitutions=row[0], deletions=row[1], insertions=row[2], hits=row[3])
        for one in ([heard] if isinstance(heard, dict) else heard)
        for row in one["counts"]
    ]


def rate(counts: Sequence[ErrorCounts]) -> dict[str, Any]:
    """Word error rate with its 95 % interval."""
    return {"wer": total(counts).rate, "interval": list(bootstrap_interval(counts))}


def difference(after: Sequence[ErrorCounts], before: Sequence[ErrorCounts]) -> dict[str, Any]:
    """Rate after minus rate before, with its 95 % interval, utterances resampled in pairs."""
    return {
        "wer": total(after).rate - total(before).rate,
        "interval": list(paired_difference_interval(after, before)),
    }


def beside_base(heard: Mapping[str, Heard], base: Mapping[str, Heard]) -> dict[str, Any]:
    """Rates of all sets, and the changes on the domain and on all general speech together."""
    general = [name for name in heard if name != DOMAIN]
    pooled, pooled_base = (counts_of([side[name] for name in general]) for side in (heard, base))
    return {
        "rates": {name: rate(counts_of(one)) for name, one in heard.items()},
        "domain_change": difference(counts_of(heard[DOMAIN]), counts_of(base[DOMAIN])),
        "general_change": difference(pooled, pooled_base),
    }
