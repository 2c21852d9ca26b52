"""Runs ranked by gain on a domain against damage to general speech (Majumdar et al. 2022, arXiv 2210.03255).

score = (D − min(D, damage)) / D · gain, with the gain relative to the base's WER on the domain, and the damage in
absolute points of the WER on general speech, of which D are allowed. Where that has become better, there is no damage.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overtone.adapters.card import reached_rates
from overtone.adapters.storage import DESCRIPTION, read_description
from overtone.errors import UsageError
from overtone.evaluation.report.plots import element, percent, text, ticks
from overtone.safe_yaml import read_values
from overtone.text_table import columns

ALLOWED_DAMAGE = 0.03
"""Points of WER (as a share) by which general speech may become worse, as in the paper."""
BEST = f"**/checkpoints/*-best/{DESCRIPTION}"
"""The cards of best adapters below the folder of a search."""
SETTINGS_FILE = "hparams.yaml"
LEFT_OUT = (
    "exp_manager",
    "name",
    "trainer.devices",
    "model.adapter.adapter_name",
    "model.base_errors",
    "model.prefix_cache.folder",
)
"""Settings that name a run and do not make it."""


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """One run of a search."""

    folder: Path
    adapter: str
    settings: Mapping[str, Any]
    """Its settings by dotted name."""
    wer_before: float
    """WER of the base on the domain, 0..1."""
    wer_after: float
    general_before: float
    """WER of the base on all general speech, 0..1."""
    general_after: float
    score: float
    chosen: Mapping[str, str] = field(default_factory=dict)
    """The settings in which the runs differ."""

    @property
    def gain(self) -> float:
        """Share of the base's errors on the domain that are gone; below zero where there are more."""
        return (self.wer_before - self.wer_after) / self.wer_before if self.wer_before else 0.0

    @property
    def damage(self) -> float:
        """Points of WER, as a share, that general speech has become worse; below zero where it is better."""
        return self.general_after - self.general_before

    def to_json(self) -> dict[str, Any]:
        return {
            "score": self.score,
            "gain": self.gain,
            "damage": self.damage,
            "wer_before": self.wer_before,
            "wer_after": self.wer_after,
            "general_before": self.general_before,
            "general_after": self.general_after,
            "settings": dict(self.chosen),
            "adapter": self.adapter,
            "folder": str(self.folder),
        }


def constrained_score(
    *, wer_before: float, wer_after: float, general_before: float, general_after: float, allowed: float = ALLOWED_DAMAGE
) -> float:
    """The score of a run, 0..1; all rates and the allowed damage are shares."""
    damage = max(0.0, general_after - general_before)
    gain = max(wer_before - wer_after, 0.0) / wer_before if wer_before else 0.0
    return (allowed - min(allowed, damage)) / allowed * gain


def score_runs(folder: Path, *, allowed: float = ALLOWED_DAMAGE) -> list[RunScore]:
    """The runs below a folder, the best first.

    Raises UsageError where there are none, where none was measured on general speech, and for no allowed damage.
    """
    if not allowed > 0:
        raise UsageError(f"The allowed damage is {allowed:g}; more than 0 is needed.")
    cards = sorted(folder.glob(BEST))
    if not cards:
        raise UsageError(f"Below {folder} are no runs with a best adapter (checkpoints/NAME-best). Name another.")
    found = [score for path in cards if (score := score_run(path.parent, allowed)) is not None]
    if not found:
        raise UsageError(
            f"None of the {len(cards)} runs below {folder} was measured on domain and general speech. Train with "
            "model.validation_ds.manifest_filepath and model.general_manifest; without them there is no score."
        )
    ranked = sorted(found, key=lambda run: (-run.score, run.wer_after, str(run.folder)))
    return [RunScore(**{**vars(run), "chosen": chosen}) for run, chosen in zip(ranked, differing(ranked), strict=True)]


def count_runs(folder: Path) -> int:
    """Count the runs below a folder, those included that lack a measurement."""
    return len(list(folder.glob(BEST)))


def score_run(best: Path, allowed: float) -> RunScore | None:
    """The score of the run with this folder of a best adapter; None where it lacks a measurement."""
    description = read_description(best)
    card, run = description["card"], best.parent.parent
    general, reached = general_rates(card.get("general") or ()), reached_rates(card)
    if reached.before is None or reached.after is None or general is None:
        return None
    before, after = general
    return RunScore(
        folder=run,
        adapter=str(description["name"]),
        settings=read_settings(run / SETTINGS_FILE),
        wer_before=reached.before,
        wer_after=reached.after,
        general_before=before,
        general_after=after,
        score=constrained_score(
            wer_before=reached.before,
            wer_after=reached.after,
            general_before=before,
            general_after=after,
            allowed=allowed,
        ),
    )


def general_rates(measured: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """WER of base and adapter, 0..1, on all general speech of a card; None where there is none."""
    general = [entry for entry in measured if entry.get("words")]
    words = sum(entry["words"] for entry in general)
    if not words:
        return None
    before, after = (
        sum(entry[key] * entry["words"] for entry in general) / words for key in ("wer_before", "wer_after")
    )
    return before, after


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run by dotted name; none where the file is missing. Raises UsageError for a damaged file."""
    if not path.is_file():
        return {}
    try:
        content = read_values(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    return dict(flat(content, ""))


def flat(node: Any, path: str) -> list[tuple[str, Any]]:
    """Dotted names and values of nested settings."""
    if isinstance(node, Mapping):
        return [pair for key, value in node.items() for pair in flat(value, f"{path}.{key}" if path else str(key))]
    return [(path, node)]


def differing(runs: Sequence[RunScore]) -> list[dict[str, str]]:
    """For each run the settings in which the runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if not key.startswith(LEFT_OUT))
    chosen = [key for key in keys if len({str(run.settings.get(key)) for run in runs}) > 1]
    return [{key: str(run.settings.get(key)) for key in chosen} for run in runs]


def as_table(runs: Sequence[RunScore]) -> str:
    """The runs as aligned columns."""
    head = ["score", "domain WER", "gain", "general WER", "damage", "settings", "folder"]
    rows = [
        [
            f"{run.score:.4f}",
            f"{run.wer_before:.2%} → {run.wer_after:.2%}",
            f"{run.gain:.1%}",
            f"{run.general_before:.2%} → {run.general_after:.2%}",
            f"{100 * run.damage:+.2f}",
            " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in run.chosen.items()) or "–",
            str(run.folder),
        ]
        for run in runs
    ]
    return "\n".join(columns([head, *rows], right=(0, 2, 4)))


def as_csv(runs: Sequence[RunScore]) -> str:
    """The runs as comma-separated values, a column for each setting in which they differ."""
    buffer = io.StringIO()
    rows = [
        {key: value for key, value in run.to_json().items() if key != "settings"} | dict(run.chosen) for run in runs
    ]
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def as_svg(runs: Sequence[RunScore], *, allowed: float) -> str:
    """Gain over damage, a dot for each run, the best one filled; the line is the damage that is allowed."""
    width, height, left, bottom = 640.0, 420.0, 70.0, 50.0
    highest = max(max(run.gain for run in runs), 0.01)
    lowest = min(min(run.gain for run in runs), 0.0)
    furthest = max(max(run.damage for run in runs), allowed) * 1.1
    nearest = min(min(run.damage for run in runs), 0.0) * 1.1

    def x(damage: float) -> float:
        return left + (width - left - 20) * (damage - nearest) / (furthest - nearest)

    def y(gain: float) -> float:
        return height - bottom - (height - bottom - 20) * (gain - lowest) / (highest - lowest)

    drawn = [
        element("rect", x=0, y=0, width=width, height=height, fill="white"),
        element("line", x1=x(allowed), x2=x(allowed), y1=20, y2=height - bottom, stroke="#b00", stroke_dasharray="4 4"),
        element("line", x1=x(0), x2=x(0), y1=20, y2=height - bottom, stroke="#999"),
        element("line", x1=left, x2=width - 20, y1=y(0), y2=y(0), stroke="#999"),
        text("damage to general speech (points of WER)", width / 2, height - 10, text_anchor="middle"),
        text("gain on the domain", 10, 14),
    ]
    drawn += [
        text(percent(mark, 0), left - 8, y(mark) + 4, text_anchor="end") for mark in ticks(highest) if mark <= highest
    ]
    marks = [0.0, allowed, *(run.damage for run in runs[:1])]
    drawn += [text(f"{100 * mark:.1f}", x(mark), height - bottom + 18, text_anchor="middle") for mark in marks]
    for number, run in enumerate(runs):
        title = element("title", f"{run.score:.4f} {run.folder.name}")
        fill = "#06c" if number == 0 else "none"
        drawn.append(element("circle", title, cx=x(run.damage), cy=y(run.gain), r=5, stroke="#06c", fill=fill))
    return element(
        "svg", "".join(drawn), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}",
        font_family="sans-serif", font_size=12,
    )  # fmt: skip
