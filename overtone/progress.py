"""Progress of long work on a terminal and in notebooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[float, float], None]
"""A function of the amount that is done and the whole amount."""


@contextmanager
def progress_bar(label: str, *, show: bool = True) -> Iterator[Progress]:
    """A bar for seconds of audio, which goes into the `progress` of `evaluate` and of `Transcriber.stream`.

    On a terminal it disappears at the end; in a notebook a line stays; elsewhere nothing is shown.
    """
    is_notebook = "ipykernel" in sys.modules
    if not show or not (is_notebook or sys.stderr.isatty()):
        yield lambda done, whole: None
    elif is_notebook:
        yield lambda done, whole: _write_line(f"{label} {done:.0f} of {whole:.0f} s of audio")
        _write_line(f"{label}: done\n")
    else:
        with _terminal_bar(label) as show_progress:
            yield show_progress


def _write_line(text: str) -> None:
    """Write over the line of a notebook's output."""
    print(f"\r{text:60}", end="", file=sys.stderr, flush=True)


@contextmanager
def _terminal_bar(label: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=40),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s of audio"),
        TimeRemainingColumn(),
    )
    # Standard output stays as it is: rich would send it to standard error along with the bar.
    bars = Bars(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=True)
    with bars:
        task = bars.add_task(label, total=None, visible=False)

        def show_progress(done: float, whole: float) -> None:
            bars.update(task, completed=done, total=whole, visible=True)

        yield show_progress
