"""The terminal: results on standard output, notes on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from overtone.text_table import printable

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 120
"""Columns of a table that is written to a file or a pipe."""


class Terminal:
    """A stream of the terminal to which control characters come spelt out, whatever file they are from.

    Rich finds the stream itself under the name that it looks for, and colours there: its texts are printable already.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def plain_terminal() -> Iterator[None]:
    """Spell control characters out inside the block, where standard output and error are terminals."""
    streams = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        if stream is not None and stream.isatty():
            setattr(sys, name, Terminal(stream))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def note(text: str) -> None:
    """Print a line on standard error."""
    print(printable(text), file=sys.stderr, flush=True)


def shares_terminal_with_results(output: object) -> bool:
    """True if results scroll by on the terminal, where a bar would get in their way."""
    return output is None and sys.stdout.isatty()


def results_console() -> Console:
    """The console for tables: standard output, as wide as the terminal or else wide enough."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=WIDE)
