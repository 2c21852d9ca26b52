"""Output of a training: lines on the terminal and in the log file, and one live line of progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from overtone.text_table import printable

REFRESHES = 4
"""Times a second that the live line is drawn."""


@dataclass(kw_only=True)
class Reporter:
    """Lines for the user, copied to a log file once there is one."""

    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    quiet: bool = False
    log_file: Path | None = None
    waiting: list[str] = field(default_factory=list)
    """Lines from before there was a file."""

    def begin(self, *, leads: bool) -> None:
        """Start on another run, whose log file is not known yet. A process that does not lead is silent."""
        self.log_file = None
        self.waiting.clear()
        self.quiet = self.quiet or not leads

    def log_to(self, file: Path) -> None:
        """Write all lines to the file from now on, the waiting ones included."""
        self.log_file = file

    def say(self, text: str) -> None:
        """Print lines, and write them to the log."""
        text = printable(text)
        if not self.quiet:
            self.console.print(Text(text))
        self.log(text)

    def log(self, text: str) -> None:
        """Write a line to the log file alone."""
        self.waiting.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        if self.log_file is None:
            return
        with self.log_file.open("a", encoding="utf-8") as file:
            file.writelines(self.waiting)
        self.waiting.clear()


class ProgressLine:
    """One line that is drawn again and again in its place on a terminal; elsewhere a plain line now and then."""

    def __init__(self, text: Callable[[], str], reporter: Reporter, *, enabled: bool) -> None:
        """text: gives the line as it is now. enabled: whether it is shown on the console."""
        self.text = text
        self.reporter = reporter
        self.enabled = enabled and not reporter.quiet
        self.live: Live | None = None
        if self.enabled and reporter.console.is_terminal:
            self.live = Live(
                console=reporter.console,
                refresh_per_second=REFRESHES,
                transient=True,
                get_renderable=lambda: Text(self.text()),
            )

    def __enter__(self) -> ProgressLine:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live is not None:
            self.live.stop()

    def log(self) -> None:
        """Write the line into the log, and on a console that is no terminal."""
        if self.live is None and self.enabled:
            self.reporter.say(self.text())
        else:
            self.reporter.log(self.text())


def format_duration(seconds: float) -> str:
    """Write seconds as `3:20`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
