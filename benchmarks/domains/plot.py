"""The plot: what each method gains on a domain, against what it costs on general speech. Plain SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.domains.plan import METHODS
from overtone.evaluation.report.plots import element, text, ticks

PANEL = 300.0
"""Width and height of the room for dots in one panel."""
LEFT, TOP, GAP, BOTTOM = 76.0, 44.0, 84.0, 116.0
LEGEND_COLUMN = 205.0

STYLE = """
svg { background: #fcfcfb; font: 13px system-ui, sans-serif; }
text { fill: #33322e; } .title { font-weight: 600; font-size: 15px; } .tick { font-size: 11px; fill: #6b6a64; }
.grid { stroke: #e4e2dc; } .zero { stroke: #6b6a64; stroke-width: 1.4; }
.mark line { stroke-width: 1.6; opacity: .55; } .mark circle { stroke: #fcfcfb; stroke-width: 1.5; }
.m0 { stroke: #2a78d6; } .m1 { stroke: #1b9e77; } .m2 { stroke: #8f4bc9; } .m3 { stroke: #d1432f; }
.m4 { stroke: #2a78d6; } .m5 { stroke: #8f4bc9; } .m6 { stroke: #0f8a9d; } .m7 { stroke: #77756d; }
.m8 { stroke: #b07a00; }
.m0 circle { fill: #2a78d6; } .m1 circle { fill: #1b9e77; } .m2 circle { fill: #8f4bc9; } .m3 circle { fill: #d1432f; }
.m6 circle { fill: #0f8a9d; } .m7 circle { fill: #77756d; } .m8 circle { fill: #b07a00; }
.mark.m4 circle { fill: #9cc3f0; stroke: #2a78d6; } .mark.m5 circle { fill: #d3b4ea; stroke: #8f4bc9; }
@media (prefers-color-scheme: dark) {
  svg { background: #191918; } text { fill: #e8e6df; } .tick { fill: #a3a199; } .grid { stroke: #34332f; }
  .zero { stroke: #a3a199; } .mark circle { stroke: #191918; }
}
"""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """From percentage points to places on the page."""

    marks: tuple[float, ...]
    """Points, ascending; the first and the last are the ends of the axis."""
    start: float
    end: float

    def at(self, points: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        return self.start + (self.end - self.start) * (points - low) / (high - low)


def forgetting_plot(results: Mapping[str, Any]) -> str:
    """A panel a domain, a dot a method, with 95 % intervals of both changes; below and left is better."""
    panels = [
        panel(domain, LEFT + index * (PANEL + GAP)) for index, domain in enumerate(results["domains"].values())
    ]  # fmt: skip
    methods = list(dict.fromkeys(name for domain in results["domains"].values() for name in domain["methods"]))
    width = LEFT + len(panels) * (PANEL + GAP) - GAP + 24
    columns = max(1, int((width - LEFT) // LEGEND_COLUMN))
    height = TOP + PANEL + BOTTOM + 22 * ((len(methods) - 1) // columns)
    told = element("title", "Gain on the domain and loss on general speech, by method")
    body = element("style", STYLE) + told + "".join(panels) + legend(methods, columns)
    return element("svg", body, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}") + "\n"


def panel(domain: Mapping[str, Any], left: float) -> str:
    rows = domain["methods"]
    gains = axis([row["domain_change"] for row in rows.values()], left, left + PANEL)
    losses = axis([row["general_change"] for row in rows.values()], TOP + PANEL, TOP)
    drawn = [text(domain["title"], left, TOP - 18, class_="title")]
    for mark in gains.marks:
        x, kind = gains.at(mark), "zero" if mark == 0 else "grid"
        drawn.append(element("line", x1=x, x2=x, y1=TOP, y2=TOP + PANEL, class_=kind))
        drawn.append(text(signed(mark), x, TOP + PANEL + 18, class_="tick", text_anchor="middle"))
    for mark in losses.marks:
        y, kind = losses.at(mark), "zero" if mark == 0 else "grid"
        drawn.append(element("line", x1=left, x2=left + PANEL, y1=y, y2=y, class_=kind))
        drawn.append(text(signed(mark), left - 8, y + 4, class_="tick", text_anchor="end"))
    drawn += [dot(name, row, gains, losses) for name, row in rows.items()]
    drawn.append(text("domain: change in WER, points", left + PANEL / 2, TOP + PANEL + 40, text_anchor="middle"))
    place = f"translate({left - 52:g} {TOP + PANEL / 2:g}) rotate(-90)"
    drawn.append(text("general speech: change in WER, points", 0, 0, text_anchor="middle", transform=place))
    return "".join(drawn)


def dot(method: str, row: Mapping[str, Any], gains: Axis, losses: Axis) -> str:
    gain, loss = row["domain_change"], row["general_change"]
    x, y = gains.at(100 * gain["wer"]), losses.at(100 * loss["wer"])
    (low_x, high_x), (low_y, high_y) = (
        [axis.at(100 * bound) for bound in change["interval"]] for axis, change in ((gains, gain), (losses, loss))
    )
    label = f"{METHODS[method].title}: domain {signed(100 * gain['wer'])}, general {signed(100 * loss['wer'])} points"
    return element(
        "g",
        element("title", label)
        + element("line", x1=low_x, x2=high_x, y1=y, y2=y)
        + element("line", x1=x, x2=x, y1=low_y, y2=high_y)
        + element("circle", cx=x, cy=y, r=6.5),
        class_=f"mark m{list(METHODS).index(method)}",
    )


def legend(methods: Sequence[str], columns: int) -> str:
    drawn = []
    for index, method in enumerate(methods):
        x = LEFT + LEGEND_COLUMN * (index % columns)
        y = TOP + PANEL + 76 + 22 * (index // columns)
        circle = element("circle", cx=x + 6, cy=y - 4, r=6.5)
        drawn.append(element("g", circle, class_=f"mark m{list(METHODS).index(method)}"))
        drawn.append(text(METHODS[method].title.replace("`", ""), x + 20, y))
    return "".join(drawn)


def axis(changes: Sequence[Mapping[str, Any]], start: float, end: float) -> Axis:
    """Zero and all intervals lie on it."""
    bounds = [100 * bound for change in changes for bound in (change["wer"], *change["interval"])]
    low, high = min([0.0, *bounds]), max([0.0, *bounds])
    step = ticks(max(high - low, 1.0))[1]
    first, last = int(low // step), -int(-high // step)
    return Axis(marks=tuple(step * number for number in range(first, max(last, first + 1) + 1)), start=start, end=end)


def signed(points: float) -> str:
    """`+3.2`, `−0.5`, `0`."""
    shown = f"{points:+.1f}".removesuffix(".0").replace("-", "\u2212")
    return "0" if shown.strip("+\u2212") == "0" else shown
