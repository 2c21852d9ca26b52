"""Text for terminals and logs: aligned columns, and nothing that a terminal would obey."""

from __future__ import annotations

import re
from collections.abc import Sequence

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""The signs that terminals obey, but for tabs and ends of lines: escapes, and marks that turn the direction of text."""


def printable(text: str) -> str:
    """A text from anywhere with its control characters spelt out, such as `\\u001b`, as JSON spells them too."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), indent: str = "  ") -> list[str]:
    """One line for each row; the columns numbered in `right` are aligned to the right."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def bytes_text(size: int) -> str:
    """`812 kB`, `24.6 MB`."""
    if size < 1_000_000:
        return f"{size / 1000:.0f} kB"
    return f"{size / 1_000_000:.1f} MB"


def share_text(part: float, whole: float) -> str:
    """A percentage with two significant digits."""
    return f"{100 * part / whole:.2g} %" if whole else "0 %"
