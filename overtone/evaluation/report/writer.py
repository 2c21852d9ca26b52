"""An evaluation for people and programs: a terminal table, a JSON file, one self-contained HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from overtone.errors import UsageError
from overtone.evaluation.report.audio import AudioBudget
from overtone.evaluation.report.page import sections, series_of
from overtone.evaluation.report.plots import element
from overtone.evaluation.results import Balance, Evaluation, Result
from overtone.files import write_failure
from overtone.text_table import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["print_table", "tables", "write_html", "write_json"]

PLAYERS = 60
"""Utterances whose sound is embedded in a page."""

AUDIO_BYTES = 6_000_000
"""Bytes of sound embedded in a page, in base64."""

STYLES = {"better": "green", "worse": "red", "no clear difference": "dim"}


def print_table(evaluation: Evaluation, console: Console | None = None) -> None:
    """The table, on the terminal unless another console is given; more columns where there is room."""
    from rich.console import Console

    console = console or Console()
    counted = f", counted {evaluation.counted}" if evaluation.counted else ""
    model = printable(evaluation.model or "model")
    console.print(f"{model}: {evaluation.numbers}{counted}", style="dim", markup=False)
    unbounded = console.options.update(max_width=1000)
    full = tables(evaluation, wide=True)
    fits = all(console.measure(built, options=unbounded).maximum <= console.width for built in full)
    for built in full if fits else tables(evaluation, wide=False):
        console.print(built)
    if balances := evaluation.balances():
        console.print(balance_table(balances))


def balance_table(balances: Sequence[Balance]) -> Table:
    """Gain on the domain against damage to general speech, one row an adapter."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = Text("\nGain on the domain, damage to general speech (WER %)", style="bold not italic")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("Adapter", overflow="fold")
    for name in ("Domain", "Gain", "General", "Damage"):
        table.add_column(name, justify="right", no_wrap=True)
    for own in balances:
        pairs = [f"{100 * before:.2f} → {100 * after:.2f}" for before, after in (own.domain, own.general)]
        changes = [f"{100 * change:+.2f}".replace("-", "\u2212") for change in (own.gain, own.damage)]
        table.add_row(Text(printable(own.adapter)), pairs[0], changes[0], pairs[1], changes[1])
    return table


def tables(evaluation: Evaluation, *, wide: bool = True) -> list[Table]:
    """One table a manifest, one row an adapter; rates in percent, differences in points."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rates = ("WER %", f"{evaluation.level:.0%} interval", "Difference from base", "CER %", "Sub/Del/Ins")
    columns = (*rates, "Words", "Lines", "RTF") if wide else rates
    label_width = max(len(result.label) for result in evaluation.results)
    built = {}
    for result in base_first(evaluation.results):
        if result.manifest not in built:
            title = Text(f"\n{printable(result.name)}", style="bold not italic")
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
            table.add_column("Adapter", overflow="fold", min_width=min(label_width, 20))
            for name, width in zip(columns, (6, 12, 21, 6, 11, 6, 6, 7), strict=False):
                table.add_column(name, justify="right", no_wrap=True, min_width=width)
            built[result.manifest] = table
        built[result.manifest].add_row(*_cells(result)[: 9 if wide else 6])
    return list(built.values())


def base_first(results: Sequence[Result]) -> list[Result]:
    """The results with the base's before those of adapters, otherwise in their order."""
    return sorted(results, key=lambda result: result.adapter is not None)


def _cells(result: Result) -> list[Text]:
    from rich.text import Text

    words = result.words
    return [
        Text(printable(result.label)),
        Text(f"{100 * result.wer:.2f}", style="bold"),
        Text(" – ".join(f"{100 * bound:.1f}" for bound in result.wer_interval)),
        _difference(result),
        Text(f"{100 * result.cer:.2f}"),
        Text(f"{words.substitutions}/{words.deletions}/{words.insertions}"),
        Text(str(words.reference_length)),
        Text(str(len(result.utterances))),
        Text(f"{result.real_time_factor:.4f}"),
    ]


def write_json(evaluation: Evaluation, path: str | Path) -> Path:
    """`Evaluation.to_json` as a file."""
    return _write(Path(path), json.dumps(evaluation.to_json(), ensure_ascii=False, indent=1) + "\n")


def write_html(
    evaluation: Evaluation, path: str | Path, *, players: int = PLAYERS, audio_bytes: int = AUDIO_BYTES
) -> Path:
    """One page that asks nothing of the network: tables, plots, confusions, errors with their sound.

    players, audio_bytes: how many utterances are embedded at most, and in how many bytes; the rest are linked.
    Raises UsageError where it cannot be written.
    """
    path = Path(path)
    template = Template(resources.files("overtone.evaluation.report").joinpath("report.html").read_text("utf-8"))
    budget = AudioBudget(players=players, bytes=audio_bytes)
    filled = template.substitute(sections(evaluation, path, budget), waves=_waves(len(series_of(evaluation))))
    return _write(path, filled)


def _difference(result: Result) -> Text:
    from rich.text import Text

    if result.difference is None:
        return Text("–")
    low, high = result.difference.interval
    shown = f"{100 * result.difference.wer:+.2f} [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "\u2212")
    return Text(shown, style=STYLES[result.difference.verdict])


def _waves(voices: int) -> str:
    """The ornament: a fundamental and, over it, an overtone for each adapter."""
    drawn = []
    for voice in range(max(2, min(voices, 6))):
        height = 46 / (1 + 0.55 * voice)
        points = (
            f"{x:g},{88 - height * math.sin(2 * math.pi * (voice + 1) * x / 800 + 0.6 * voice):.1f}"
            for x in range(0, 1201, 8)
        )
        drawn.append(element("path", d="M" + " L".join(points), stroke=f"var(--series-{voice})"))
    return "".join(drawn)


def _write(path: Path, content: str) -> Path:
    """Whole or not at all: written beside the place, then moved there."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UsageError(write_failure(path, error)) from error
    return path
