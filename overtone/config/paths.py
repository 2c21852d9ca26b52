"""Lists of paths as NeMo writes them: `audio__OP_0..511_CL_.tar`, `audio_{0..511}.tar`, `{train,extra}.json`, `a,b`.

Command lines eat braces and brackets, hence the words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from overtone.errors import DataError

BRACES = re.compile(r"(?:\{|\(|\[|<|_OP_)((?:(?!_OP_|_CL_)[^{}()\[\]<>])*)(?:\}|\)|\]|>|_CL_)")
"""An innermost pair of braces, in one of the spellings, and what is inside."""
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST_PATHS = 1_000_000


def expand_paths(text: str) -> list[str]:
    """The paths that a text names, in order. What exists as it is written is that file.

    Raises DataError for commands, addresses and too many.
    """
    text = text.strip()
    if text.startswith("pipe:"):
        raise DataError(f"'{text}' is a command, and nothing is executed. Name files.")
    if "://" in text:
        raise DataError(f"'{text}' is an address; files are read from disk. Fetch them and name them here.")
    if os.path.exists(os.path.expanduser(text)):  # noqa: PTH110, PTH111 (Path raises for long lists)
        return [text]
    return [path for part in split_commas(text) for path in expand_braces(part)]


def split_commas(text: str) -> Iterator[str]:
    """Yield the parts between commas that stand outside of braces, blank ones left out."""
    inside = [match.span() for match in BRACES.finditer(text)]
    first = 0
    for place in [match.start() for match in re.finditer(",", text)] + [len(text)]:
        if not any(start < place < end for start, end in inside):
            if part := text[first:place].strip():
                yield part
            first = place + 1


def expand_braces(text: str) -> list[str]:
    """The paths of one pattern, the last braces changing fastest, as a shell has them. Raises DataError for too many.

    Brackets around anything but a range or a list are a part of the path.
    """
    parts: list[list[str]] = []
    first, count = 0, 1
    for match in BRACES.finditer(text):
        options = options_of(match[1])
        if options is None:
            continue
        count *= len(options)
        if count > MOST_PATHS:
            raise DataError(f"'{text}' stands for more than {MOST_PATHS} paths; name fewer.")
        parts += [[text[first : match.start()]], options]
        first = match.end()
    parts.append([text[first:]])
    paths = [""]
    for options in parts:
        paths = [path + option for path in paths for option in options]
    return paths


def options_of(inside: str) -> list[str] | None:
    """The words that braces stand for: a range with its zeros before, or a list; None for anything else.

    Raises DataError for too many.
    """
    numbers = RANGE.fullmatch(inside.strip())
    if numbers is None:
        return [option.strip() for option in inside.split(",")] if "," in inside else None
    low, high = numbers.groups()
    if abs(int(high) - int(low)) >= MOST_PATHS:
        raise DataError(f"'{inside}' stands for more than {MOST_PATHS} paths; name fewer.")
    step = 1 if int(high) >= int(low) else -1
    padded = any(len(number) > 1 and number.startswith("0") for number in (low, high))
    width = max(len(low), len(high)) if padded else 0
    return [f"{number:0{width}}" for number in range(int(low), int(high) + step, step)]
