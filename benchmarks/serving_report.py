"""The load test's figures as sections of a results page, with plots beside it and the sizing rule that follows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import line_plot, write_section

GOALS = {"zipf": 0.94, "16 in turn": 0.97, "base only": 0.99}
"""Of the base alone: processor time for a second of audio there, divided by what it is here."""
CHUNK_GOAL, COLD_GOAL, SWITCH_GOAL = 0.300, 0.050, 0.010
"""Seconds."""
CASES = ("zipf", "16 in turn", "base only")
PATIENCE = 0.5
"""Seconds in which 95 % of the requests are answered at the load that the sizing rule plans with."""

Row = Mapping[str, Any]


def write_report(figures: Mapping[str, Any], machine: Mapping[str, Any], page: Path | None) -> str:
    """The sections in Markdown; written into the page, their plots into `plots/` beside it, where a page is given."""
    sections = {}
    if not figures["throughput_is_earlier"]:
        sections["throughput"] = "\n".join(throughput(figures, machine))
    if "latency" in figures:
        sections["load"] = "\n".join(load(figures, machine))
    if page is not None:
        folder = page.parent / "plots"
        folder.mkdir(exist_ok=True)
        drawn = {"throughput": throughput_plot(figures), "load": load_plots(figures) if "load" in sections else {}}
        for section, content in sections.items():
            for name, drawing in drawn[section].items():
                (folder / f"{name}.svg").write_text(drawing, "utf-8")
            pictures = "\n\n".join(f"![{name}](plots/{name}.svg)" for name in drawn[section])
            write_section(page, section, f"{content}\n\n{pictures}")
    return "\n".join(sections.values())


def throughput(figures: Mapping[str, Any], machine: Mapping[str, Any]) -> Iterator[str]:
    yield "## Throughput\n"
    yield from setting("python -m benchmarks.serving_load --throughput", figures, machine, figures["threads"])
    yield from throughput_table(figures["throughput"], figures["plan"])


def load(figures: Mapping[str, Any], machine: Mapping[str, Any]) -> Iterator[str]:
    yield "## Under load\n"
    yield from setting("python -m benchmarks.serving_load", figures, machine, machine["threads"])
    yield from latency_table(figures["latency"], figures["plan"])
    yield from stream_table(figures["streams"], figures["plan"])
    yield from loading(figures)
    yield from sizing(figures)


def setting(command: str, figures: Mapping[str, Any], machine: Mapping[str, Any], threads: int) -> Iterator[str]:
    plan = figures["plan"]
    yield (
        f"`{command}`: `overtone serve {figures['model']}` and its clients in processes of their own on "
        f"{machine['cores']} cores that they share ({machine['processor']}, "
        f"{' '.join(machine['flags'])}, load {machine['load']:g}), "
        f"gRPC, the server computing with {threads} thread{'s' * (threads > 1)}, "
        f"{figures['seconds'] / 60:.0f} minutes in all. "
        f"Recordings of {plan['clip']:g} s; linear adapters of {plan['dim']} in every layer.\n"
    )
    yield answers_line(figures["answers"])


def answers_line(answers: Mapping[str, Any]) -> str:
    told = sum(count for name, count in answers.items() if name != "faults")
    return (
        f"Of {told} answers {answers['right']} are letter by letter those computed directly, row by row; "
        f"{answers['rounded']} differ by rounding (nearer to the right one than to any other adapter's); "
        f"**{answers['wrong']} are wrong, {answers['unanswered']} are missing**; {answers['refused']} were refused at "
        "once.\n"
    )


def throughput_table(rows: Sequence[Row], plan: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{plan['in_flight']} requests in flight, {plan['rounds']} rounds in turn with a server that has no adapters "
        f"({plan['window']:g} s each, the server that is not measured stands still). *Zipf*: adapters drawn with "
        f"exponent {plan['zipf']:g}.\n"
    )
    yield (
        "What is judged is processor time: that of the server's process, all its threads, user and system, from the "
        "first request of a window to the last answer, for each second of audio answered. What else the machine does "
        "tells on it far less than on throughput by the clock (caches are still shared); the clients, who use the same "
        "cores, are left out. "
        "The servers compute with one thread, so that none takes time to wait for another. The share of the "
        "base alone is its processor time divided by that of the case, round by round: the median (least – most).\n"
    )
    yield (
        "| registered | resident at most | base alone, ms for 1 s | Zipf | 16 in turn | base only, there "
        "| rows a batch | idle |"
    )
    yield "|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        base = 1000 * statistics.median(row["processor"]["base"])
        yield (
            f"| {row['registered']} | {row['capacity']} | {base:.2f} "
            f"| {' | '.join(spread(shares(row, case)) for case in CASES)} "
            f"| {row['rows_of_a_batch']:.1f} | {100 * row['idle_share']:.1f} % |"
        )
    yield "\n*idle*: of one core, without any request.\n"
    for case, goal in GOALS.items():
        found = [share(row, case) for row in rows if row["capacity"] == row["registered"] and shares(row, case)]
        yield f"- {case}: {verdict(min(found) >= goal)} (goal {goal:.0%}, least {min(found):.1%})" if found else ""
    yield "\nBy the clock, for orientation: seconds of audio a second, and shares of that.\n"
    yield "| registered | resident at most | base alone | Zipf | 16 in turn | base only, there |"
    yield "|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        yield (
            f"| {row['registered']} | {row['capacity']} | {statistics.median(row['speed']['base']):.0f} "
            f"| {' | '.join(spread(shares(row, case, by='speed')) for case in CASES)} |"
        )
    yield ""


def shares(row: Row, case: str, by: str = "processor") -> list[float]:
    """Of what the base alone reaches, one a round; empty where it was not measured."""
    rounds = zip(row[by].get(case, ()), row[by]["base"], strict=False)
    return [base / now if by == "processor" else now / base for now, base in rounds if now and base]


def share(row: Row, case: str) -> float:
    """The median of the rounds by processor time; 0 where there is none."""
    return statistics.median(shares(row, case) or [0.0])


def spread(found: Sequence[float]) -> str:
    if not found:
        return ""
    least, most = 100 * min(found), 100 * max(found)
    return f"{100 * statistics.median(found):.1f} % ({least:.1f} – {most:.1f})"


def latency_table(rows: Sequence[Row], plan: Mapping[str, Any]) -> Iterator[str]:
    yield "### Latency\n"
    yield (
        f"Poisson arrivals that wait for nothing, {100 * plan['stream_share']:.0f} % of them streams in real time; "
        "milliseconds from when a request was due, and from the last audio that a stream's result covers.\n"
    )
    yield "| arrivals a second | of the throughput | p50 | p95 | p99 | streams p50 | p95 | p99 | refused |"
    yield "|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        cells = [*(milliseconds(row[kind], p) for kind in ("requests", "chunks") for p in ("p50", "p95", "p99"))]
        yield f"| {row['arrivals']:.1f} | {row['share']:.0%} | {' | '.join(cells)} | {row['refused']} |"
    yield ""


def stream_table(rows: Sequence[Row], plan: Mapping[str, Any]) -> Iterator[str]:
    yield "### Streams in real time\n"
    yield f"Chunks of 0.8 s with 1.6 s to both sides, interim results, {plan['talk']:g} s each, Zipf adapters.\n"
    yield "| streams | p50 | p95 | p99 | refused |"
    yield "|--:|--:|--:|--:|--:|"
    for row in rows:
        cells = [milliseconds(row["chunks"], share) for share in ("p50", "p95", "p99")]
        yield f"| {row['streams']} | {' | '.join(cells)} | {row['refused']} |"
    yield f"\n**{most_streams(rows)} streams** keep a p95 of {1000 * CHUNK_GOAL:.0f} ms.\n"


def most_streams(rows: Sequence[Row]) -> int:
    """The most that kept the goal, fewer ones too."""
    kept = 0
    for row in rows:
        if not row["kept"]:
            break
        kept = row["streams"]
    return kept


def loading(figures: Mapping[str, Any]) -> Iterator[str]:
    cold, switch = figures["cold"], figures["switch"]
    added = switch["other"]["p50"] - switch["same"]["p50"]
    yield "### Loading and switching\n"
    yield (
        f"- A cold adapter is read from disk in {1000 * cold['mean_seconds']:.1f} ms (mean of {cold['loads']:.0f}): "
        f"{verdict(cold['mean_seconds'] <= COLD_GOAL)} (goal {1000 * COLD_GOAL:.0f} ms)."
    )
    yield (
        f"- A request for another resident adapter than the one before takes {1000 * added:+.1f} ms (medians: "
        f"{milliseconds(switch['other'], 'p50')} beside {milliseconds(switch['same'], 'p50')} ms): "
        f"{verdict(added <= SWITCH_GOAL)} (goal {1000 * SWITCH_GOAL:.0f} ms).\n"
    )


def sizing(figures: Mapping[str, Any]) -> Iterator[str]:
    memory, plan = figures["memory"], figures["plan"]
    headroom = kept_share(figures["latency"])
    speed = headroom * figures["speed"]
    idle = max(figures["throughput"], key=lambda row: row["registered"])["idle_share"]
    yield "### Sizing\n"
    yield (
        f"For a machine like this one: plan with {headroom:.0%} of the throughput, {speed:.0f} seconds of audio a "
        f"second ({speed / plan['clip']:.1f} requests of {plan['clip']:g} s), where 95 % of the requests were answered "
        f"within {PATIENCE:g} s while one in {1 / plan['stream_share']:.0f} of the arrivals was a stream of "
        f"{plan['talk']:g} s; or with {most_streams(figures['streams'])} streams; both scale with cores. "
        f"Memory: {memory['base_mb']:.0f} MB and {memory['adapter_mb']:.2f} MB for each adapter in the model "
        "(`--capacity`). Give `--capacity` room for all adapters that are asked for within minutes: one that has "
        f"to be read again costs {1000 * figures['cold']['mean_seconds']:.0f} ms of processor time. Adapters that "
        f"merely lie in the folder cost {100 * idle:.1f} % of a core for each {plan['registered'][-1]}.\n"
    )


def kept_share(rows: Sequence[Row]) -> float:
    """The largest share of the throughput, from the lowest on, at which requests were answered in time; 0: none."""
    kept = 0.0
    for row in rows:
        if row["refused"] or row["requests"]["p95"] > PATIENCE:
            break
        kept = float(row["share"])
    return kept


def throughput_plot(figures: Mapping[str, Any]) -> dict[str, str]:
    rows = [row for row in figures["throughput"] if row["capacity"] == row["registered"]]
    return {
        "serving-throughput": line_plot(
            "Processor time of the base alone beside that with adapters",
            {
                case: [(index, 100 * share(row, case)) for index, row in enumerate(rows) if shares(row, case)]
                for case in CASES
            },
            x="adapters registered: " + ", ".join(str(row["registered"]) for row in rows),
            y="percent",
            goal=("94 %", 94.0),
        )
    }


def load_plots(figures: Mapping[str, Any]) -> dict[str, str]:
    latency, talks = figures["latency"], figures["streams"]
    return {
        "serving-latency": line_plot(
            "Latency of requests under mixed load",
            {p: [(row["arrivals"], 1000 * row["requests"][p]) for row in latency] for p in ("p50", "p95", "p99")},
            x="arrivals a second",
            y="milliseconds",
        ),
        "serving-streams": line_plot(
            "Latency of chunks",
            {p: [(row["streams"], 1000 * row["chunks"][p]) for row in talks] for p in ("p50", "p95", "p99")},
            x="streams in real time",
            y="milliseconds",
            goal=("300 ms, p95", 1000 * CHUNK_GOAL),
        ),
    }


def milliseconds(found: Mapping[str, float], share: str) -> str:
    return f"{1000 * found[share]:.0f}" if found["count"] else "–"


def verdict(reached: bool) -> str:
    return "reached" if reached else "**missed**"
