"""Plots as inline SVG, drawn by hand: colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from overtone.evaluation.results import Result

FURTHEST_CHANGE = 5
"""Changes of so many word errors or more share a bar."""

HIGHEST_RATE = 1.0
"""Utterances with higher rates are drawn at the edge."""


def element(tag: str, content: str = "", **attributes: str | float) -> str:
    """`<tag …>content</tag>`; `_` in attribute names becomes `-`, `class_` is `class`. The content is markup."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"' for name, value in attributes.items()
    )
    return f"<{tag}{written}>{content}</{tag}>"


def text(content: str, x: float, y: float, **attributes: str | float) -> str:
    return element("text", escape(content), x=x, y=y, **attributes)


def percent(rate: float, digits: int = 1) -> str:
    """`12.3 %` with a no-break space and a true minus."""
    return f"{100 * rate:.{digits}f}\u00a0%".replace("-", "\u2212")


def shorten(label: str, most: int = 20) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def intervals_chart(results: Sequence[Result], series: Mapping[str, int], *, level: float) -> str:
    """Word error rates as dots with their intervals, one row a result, grouped by manifest; as wide as its place."""
    top = max(max(result.wer_interval[1], result.wer) for result in results)
    marks = ticks(top or 0.01)
    digits = 0 if marks[1] >= 0.01 else 1

    def at(rate: float) -> str:
        return f"{100 * min(rate / marks[-1], 1.0):.2f}%"

    grid = "".join(f'<i style="left:{at(mark)}"></i>' for mark in marks)
    rows = []
    for manifest in dict.fromkeys(result.manifest for result in results):
        group = [result for result in results if result.manifest == manifest]
        rows.append(f'<p class="group">{escape(group[0].name)}</p>')
        for result in group:
            low, high = result.wer_interval
            drawn = (
                f'<span class="span" style="left:{at(low)};right:calc(100% - {at(high)})"></span>'
                f'<span class="dot" style="left:{at(result.wer)}"></span>'
            )
            rows.append(
                f'<div class="row series-{series[result.label]}"><span class="label">{escape(result.label)}</span>'
                f'<span class="track">{grid}{drawn}</span><strong>{percent(result.wer)}</strong></div>'
            )
    scale = "".join(f'<span style="left:{at(mark)}">{percent(mark, digits)}</span>' for mark in marks)
    spoken = "; ".join(map(_spoken_interval, results))
    label = escape(f"Word error rates with {level:.0%} intervals: {spoken}")
    return (
        f'<div class="intervals" role="img" aria-label="{label}">{"".join(rows)}'
        f'<div class="row"><span class="label"></span><span class="scale">{scale}</span><strong></strong></div></div>'
    )


def _spoken_interval(result: Result) -> str:
    low, high = result.wer_interval
    return f"{result.name}, {result.label}: {percent(result.wer)}, between {percent(low)} and {percent(high)}"


def curve_plot(curve: Sequence[tuple[int, float]], series: int) -> str:
    """Word error rate by step. curve: steps and rates, in order."""
    width, height, left, floor = 560.0, 300.0, 58.0, 254.0
    marks = ticks(max(rate for _, rate in curve) or 0.01)
    last = max(1, curve[-1][0])

    def across(step: float) -> float:
        return left + (width - left - 24) * step / last

    def up(rate: float) -> float:
        return floor - (floor - 22) * rate / marks[-1]

    drawn = []
    for mark in marks:
        drawn.append(element("line", x1=left, x2=width - 24, y1=up(mark), y2=up(mark), class_="grid"))
        drawn.append(text(percent(mark, 0), left - 8, up(mark) + 4, class_="tick", text_anchor="end"))
    path = "M" + "L".join(f"{across(step):.1f} {up(rate):.1f}" for step, rate in curve)
    dots = "".join(element("circle", cx=across(step), cy=up(rate), r=4.5) for step, rate in curve)
    drawn.append(element("g", element("path", d=path) + dots, class_=f"curve series-{series}"))
    for step, anchor in ((0, "start"), (last, "end")):
        drawn.append(text(f"step {step}", across(step), floor + 22, class_="tick", text_anchor=anchor))
    (first_step, first), (end_step, end) = curve[0], curve[-1]
    spoken = f"From {percent(first)} at step {first_step} to {percent(end)} at step {end_step}"
    return figure_svg("".join(drawn), width, height, "Word error rate during training", spoken)


def changes_plot(base: Result, result: Result) -> str:
    """A histogram of utterances by the word errors that they gained or lost against the base."""
    changes = Counter(
        max(-FURTHEST_CHANGE, min(FURTHEST_CHANGE, now.words.errors - then.words.errors))
        for then, now in zip(base.utterances, result.utterances, strict=True)
    )
    width, height, floor, room = 560.0, 420.0, 360.0, 310.0
    step = width / (2 * FURTHEST_CHANGE + 1)
    most = max(changes.values(), default=1)
    drawn = [element("line", x1=0, x2=width, y1=floor, y2=floor, class_="axis")]
    for index, change in enumerate(range(-FURTHEST_CHANGE, FURTHEST_CHANGE + 1)):
        count, middle = changes[change], (index + 0.5) * step
        kind = "better" if change < 0 else "worse" if change > 0 else "same"
        tall = room * count / most
        if count:
            drawn.append(
                element(
                    "rect", x=middle - step * 0.38, y=floor - tall, width=step * 0.76, height=tall, rx=3, class_=kind
                )
            )
            drawn.append(text(str(count), middle, floor - tall - 7, class_="value", text_anchor="middle"))
        drawn.append(text(_with_sign(change), middle, floor + 20, class_="tick", text_anchor="middle"))
    drawn.append(text("← fewer word errors than the base", 0, floor + 50, class_="axis-name better-text"))
    drawn.append(text("more →", width, floor + 50, class_="axis-name worse-text", text_anchor="end"))
    spoken = "; ".join(f"{_with_sign(change)}: {changes[change]}" for change in sorted(changes))
    return figure_svg("".join(drawn), width, height, "Utterances by change in word errors", spoken)


def rates_plot(base: Result, result: Result, series: int) -> str:
    """Each utterance's word error rate with the base (across) and with the adapter (up); below the line is better."""
    size, edge = 460.0, 68.0
    rim = 16.0  # room for dots at the corners
    inner = size - edge - 2 * rim - 14

    def across(rate: float) -> float:
        return edge + rim + inner * min(rate, HIGHEST_RATE) / HIGHEST_RATE

    def up(rate: float) -> float:
        return size - edge - rim - inner * min(rate, HIGHEST_RATE) / HIGHEST_RATE

    drawn = []
    for mark in ticks(HIGHEST_RATE):
        x, y = across(mark), up(mark)
        drawn.append(element("line", x1=x, x2=x, y1=up(0) + rim, y2=up(1) - rim, class_="grid"))
        drawn.append(element("line", x1=across(0) - rim, x2=across(1) + rim, y1=y, y2=y, class_="grid"))
        told = ("≥" if mark >= HIGHEST_RATE else "") + percent(mark, 0)
        drawn.append(text(told, x, size - edge + 18, class_="tick", text_anchor="middle"))
        drawn.append(text(told, edge - 8, y + 4, class_="tick", text_anchor="end"))
    drawn.append(element("line", x1=across(0), y1=up(0), x2=across(1), y2=up(1), class_="diagonal"))
    pairs = Counter(
        (round(then.words.rate, 2), round(now.words.rate, 2))
        for then, now in zip(base.utterances, result.utterances, strict=True)
    )
    for (then, now), count in sorted(pairs.items(), key=lambda item: -item[1]):
        told = f"{count} utterance{'s' if count > 1 else ''}: base {percent(then, 0)}, {result.label} {percent(now, 0)}"
        radius = min(15.0, 3.2 * math.sqrt(count))
        dot = element("circle", element("title", escape(told)), cx=across(then), cy=up(now), r=radius)
        drawn.append(dot)
    names = text("word error rate, base", across(0.5), size - 20, class_="axis-name", text_anchor="middle") + text(
        f"word error rate, {shorten(result.label, 32)}", 0, 0, class_="axis-name", text_anchor="middle",
        transform=f"translate(13 {up(0.5):.0f}) rotate(-90)",
    )  # fmt: skip
    body = element("g", "".join(drawn), class_=f"bubbles series-{series}") + names
    difference = result.difference
    spoken = f"{difference.better} better, {difference.same} the same, {difference.worse} worse" if difference else ""
    return figure_svg(body, size, size, "Word error rate of each utterance, base against adapter", spoken)


def figure_svg(body: str, width: float, height: float, title: str, description: str) -> str:
    """The drawing, with words for readers who do not see it."""
    told = element("title", escape(title)) + element("desc", escape(description))
    return element("svg", told + body, viewBox=f"0 0 {width:g} {height:g}", role="img", class_="plot")


def ticks(highest: float) -> list[float]:
    """Round marks from 0 to the first one at or past `highest`, four to seven of them."""
    power = 10.0 ** (math.floor(math.log10(highest)) - 1)
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20, 25, 50) if highest <= 6 * power * factor)
    return [index * step for index in range(math.ceil(highest / step - 1e-9) + 1)]


def _with_sign(change: int) -> str:
    edge = "" if abs(change) < FURTHEST_CHANGE else "≤" if change < 0 else "≥"
    return edge + (f"+{change}" if change > 0 else f"\u2212{-change}" if change < 0 else "0")


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
