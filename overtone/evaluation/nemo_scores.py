"""NeMo's `scoring_and_analysis.py` on its own table: the same columns and numbers, its constants as arguments.

There the damage is an absolute difference, so that an improvement of general speech counts as damage too; rates are
percentages.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overtone.errors import UsageError, did_you_mean
from overtone.files import write_failure
from overtone.text_table import columns

ADDED = ("Original Scale", "Adapt WERR", "Score")
"""The columns that scoring adds, each with four decimals."""
FROZEN = "Frozen Module"
"""The column of fine-tunings in which a dash means that nothing was frozen."""


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """The names of columns, and the numbers of the base."""

    group: str
    """Column of the kind of data, such as speakers; each has a base of its own."""
    base_original: float
    """WER of the base on the original domain, in percent."""
    base_adapted: Mapping[str, float]
    """WER of the base on each group, in percent."""
    max_degradation: float = 3.0
    test: str = "WER: Test"
    original: str = "WER: Librispeech Test Other"
    category: str = "Adapter Position"
    hyperparameters: tuple[str, ...] = ("Adapter Dimensions", "Adapter Dropout", "Stochastic Depth", "Train Steps")


Row = dict[str, str]


def read_table(path: Path, settings: TableSettings) -> list[Row]:
    """The rows of a table. Raises UsageError for a file that cannot be read, and for missing columns and bases."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as CSV: {error}.") from error
    if not rows:
        raise UsageError(f"{path} has no rows.")
    needed = (settings.group, settings.test, settings.original, settings.category, *settings.hyperparameters)
    for name in needed:
        if name not in rows[0]:
            near = did_you_mean(name, rows[0])
            raise UsageError(f"{path} has no column '{name}'.{near} It has {', '.join(rows[0])}.")
    groups = list(dict.fromkeys(row[settings.group] for row in rows))
    missing = [group for group in groups if group not in settings.base_adapted]
    if missing and "Score" not in rows[0]:
        raise UsageError(f"There is no base for {', '.join(missing)}; give --base-adapted {missing[0]}=WER.")
    for row in rows:
        if settings.category == FROZEN and row[FROZEN] == "-":
            row[FROZEN] = "null"
    return [{key: value for key, value in row.items() if key not in ("Model", "Model Size")} for row in rows]


def add_scores(rows: Sequence[Row], settings: TableSettings) -> None:
    """Add NeMo's three columns, unless the table has scores. Raises UsageError for a cell that is no number."""
    if "Score" in rows[0]:
        return
    allowed = settings.max_degradation
    for row in rows:
        damage = abs(number(row, settings.original) - settings.base_original)
        scale = (allowed - min(allowed, damage)) / allowed
        base = settings.base_adapted[row[settings.group]]
        gain = max(base - number(row, settings.test), 0.0) / base
        for name, value in zip(ADDED, (scale, gain, scale * gain), strict=True):
            row[name] = str(round(value, 4))


def number(row: Row, column: str) -> float:
    """The number in a cell. Raises UsageError."""
    try:
        return float(row[column])
    except (TypeError, ValueError):
        raise UsageError(f"'{row[column]}' in column '{column}' is no number.") from None


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write the table with its scores. Raises UsageError where that fails."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UsageError(write_failure(path, error)) from error


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One choice of hyperparameters in one category, as means over the groups."""

    category: str
    hyperparameters: tuple[str, ...]
    score: float
    test: float
    original: float


def rank(
    rows: Sequence[Row], settings: TableSettings, *, by: str, fixed: Sequence[tuple[str, str]] = ()
) -> dict[str, list[Configuration]]:
    """The configurations of each category, the best first. by: `score` (constrained) or `test` (unconstrained).

    fixed: columns and the values that rows must have. Raises UsageError for a column that is not there.
    """
    for column, _ in fixed:
        if column not in rows[0]:
            raise UsageError(f"There is no column '{column}'.{did_you_mean(column, rows[0])}")
    kept = [row for row in rows if all(same(row[column], value) for column, value in fixed)]
    found: dict[str, list[Configuration]] = {}
    for category in dict.fromkeys(row[settings.category] for row in kept):
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in kept:
            if row[settings.category] == category:
                groups.setdefault(tuple(row[name] for name in settings.hyperparameters), []).append(row)
        means = [
            Configuration(
                category=category,
                hyperparameters=key,
                **{
                    name: sum(number(row, column) for row in own) / len(own)
                    for name, column in (("score", "Score"), ("test", settings.test), ("original", settings.original))
                },
            )
            for key, own in groups.items()
        ]
        found[category] = sorted(means, key=lambda mean: -mean.score if by == "score" else mean.test)
    return found


def same(cell: str, value: str) -> bool:
    """True for equal texts and for equal numbers."""
    try:
        return float(cell) == float(value)
    except ValueError:
        return cell == value


def as_text(
    ranked: Mapping[str, Sequence[Configuration]], settings: TableSettings, *, title: str, top: int, whole: bool
) -> str:
    """The best configurations of each category. whole: all of them."""
    head = [*settings.hyperparameters, "Score", settings.test, settings.original]
    lines = [title]
    for category, means in ranked.items():
        shown = means if whole else means[:top]
        rows = [
            [*mean.hyperparameters, f"{mean.score:.4f}", f"{mean.test:.3f}", f"{mean.original:.3f}"] for mean in shown
        ]
        lines += ["", category, *columns([head, *rows])]
    return "\n".join(lines)
