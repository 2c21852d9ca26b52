"""The soak test's figures as a section of a results page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.plots import line_plot, write_section

WORDS = {
    "right": "right letter by letter",
    "rounded": "right but for rounding (what the right version's frames say where symbols as likely change places)",
    "wrong": "**of a wrong adapter or version**",
    "lost": "**lost**",
    "overload": "refused at once because the queue, or every place for adapters, was taken",
    "refused": "refused because the adapter was away or damaged",
    "vanished": "of clients that vanished",
}
FLAT = 0.05
"""What memory may grow by from the second quarter to the last, as a share."""


def report(figures: Mapping[str, Any], page: Path | None) -> str:
    """The section in Markdown, written into the page where one is given."""
    content = section(figures)
    if page is not None and figures["samples"]:
        folder = page.parent / "plots"
        folder.mkdir(exist_ok=True)
        points = [(minute, weight["memory_mb"]) for minute, weight in figures["samples"]]
        drawing = line_plot("Memory of the server", {"resident": points}, x="minutes", y="megabytes")
        (folder / "serving-soak.svg").write_text(drawing, "utf-8")
        write_section(page, "soak", f"{content}\n\n![memory over time](plots/serving-soak.svg)")
    return content


def section(figures: Mapping[str, Any]) -> str:
    verdicts, metrics = figures["verdicts"], figures["metrics"]
    lines = [
        "## Soak\n",
        f"`python -m benchmarks.serving_soak --minutes {figures['minutes']:g}`: {figures['rate']:g} arrivals a second "
        f"of requests and streams through every interface, for {figures['adapters']} adapters, {figures['capacity']} "
        "of which have room, while these things happened:\n",
        "; ".join(f"{count} × {kind}" for kind, count in figures["disturbances"].items()) + ".\n",
        f"| of {sum(verdicts.values())} requests and streams | |",
        "|---|--:|",
        *(f"| {words} | {verdicts.get(verdict, 0)} |" for verdict, words in WORDS.items()),
        "",
        f"By interface: {', '.join(f'{name} {count}' for name, count in sorted(figures['interfaces'].items()))}. "
        f"The worker was started again {metrics['overtone_engine_restarts_total']:.0f} times; "
        f"{metrics['overtone_adapters_loads_total']:.0f} loads, {metrics['overtone_adapters_evictions_total']:.0f} "
        f"evictions, {metrics['overtone_adapters_replacements_total']:.0f} replacements, "
        f"{metrics['overtone_engine_cancelled_total']:.0f} rows given up in time. "
        + ("In the end nothing was held or waiting, and the server ended with status 0." if figures["clean"] else "")
        + ("" if figures["clean"] else "**In the end something was still held, or the server did not end well.**"),
        "",
        *weight_lines(figures),
    ]
    return "\n".join(lines)


def weight_lines(figures: Mapping[str, Any]) -> list[str]:
    samples = [weight for _, weight in figures["samples"]]
    if len(samples) < 4:
        return ["Too short to judge memory."]
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    lines = []
    for name, unit in (("memory_mb", " MB"), ("files", ""), ("threads", "")):
        before, after = (statistics.median(weight[name] for weight in part) for part in (early, late))
        most = max(weight[name] for weight in samples)
        lines.append(
            f"- {name.removesuffix('_mb')}: {before:.0f}{unit} in the second quarter of the time, {after:.0f}{unit} in "
            f"the last, {most:.0f}{unit} at most"
        )
    before, after = (statistics.median(weight["memory_mb"] for weight in part) for part in (early, late))
    lines.append(f"- memory is {'flat' if after <= before * (1 + FLAT) else '**not flat**'} (at most {FLAT:.0%} more)")
    return lines
