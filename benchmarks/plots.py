"""Lines and bars as SVG files that stand alone, and sections of a results page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from overtone.evaluation.report.plots import element, figure_svg, text, ticks

WIDTH, HEIGHT = 720.0, 380.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 190.0, 44.0, 56.0
COLOURS = ("#3366cc", "#cc4125", "#38761d", "#8e44ad")
STYLE = (
    "text{font:13px sans-serif;fill:#444}.title{font-size:16px;fill:#222}.grid{stroke:#ddd}.goal{stroke:#999;"
    "stroke-dasharray:5 4}polyline{fill:none;stroke-width:2}"
)

Points = Sequence[tuple[float, float]]


def line_plot(title: str, lines: Mapping[str, Points], *, x: str, y: str, goal: tuple[str, float] | None = None) -> str:
    """Each line by its name; x and y say what the axes are. goal: a level that is drawn across."""
    points = [point for line in lines.values() for point in line]
    highest = max([point[1] for point in points] + ([goal[1]] if goal else [])) or 1.0
    x_marks, y_marks = ticks(max(point[0] for point in points) or 1.0), ticks(highest)

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / x_marks[-1]

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / y_marks[-1]

    drawn = [element("style", STYLE), element("rect", width=WIDTH, height=HEIGHT, fill="#ffffff")]
    drawn.append(text(title, LEFT, 24, class_="title"))
    drawn += [text(f"{mark:g}", across(mark), HEIGHT - BOTTOM + 20, text_anchor="middle") for mark in x_marks]
    for mark in y_marks:
        drawn.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=up(mark), y2=up(mark), class_="grid"))
        drawn.append(text(f"{mark:g}", LEFT - 8, up(mark) + 4, text_anchor="end"))
    if goal is not None:
        drawn.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=up(goal[1]), y2=up(goal[1]), class_="goal"))
        drawn.append(text(goal[0], WIDTH - RIGHT + 6, up(goal[1]) + 4))
    for index, (name, line) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        places = [(across(a), up(b)) for a, b in line]
        drawn.append(element("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places), stroke=colour))
        drawn += [element("circle", cx=a, cy=b, r=3.5, fill=colour) for a, b in places]
        drawn.append(element("rect", x=WIDTH - RIGHT + 24, y=TOP + 22 * index, width=14, height=4, fill=colour))
        drawn.append(text(name, WIDTH - RIGHT + 44, TOP + 22 * index + 7))
    drawn.append(text(x, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, text_anchor="middle"))
    drawn.append(
        text(y, 0, 0, text_anchor="middle", transform=f"translate(18 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)")
    )
    told = "; ".join(f"{name}: {', '.join(f'{a:g} → {b:.3g}' for a, b in line)}" for name, line in lines.items())
    drawing = figure_svg("".join(drawn), WIDTH, HEIGHT, title, told)
    return drawing.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1) + "\n"


def write_section(page: Path, name: str, content: str) -> None:
    """Put a section into a page: in place of the one of its name, or at the end."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{begin}\n{content.strip()}\n{end}"
    old = page.read_text("utf-8") if page.exists() else ""
    place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    new = place.sub(lambda found: section, old) if place.search(old) else f"{old.rstrip()}\n\n{section}\n".lstrip()
    page.write_text(new, "utf-8")
