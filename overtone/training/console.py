"""Output of a training: lines on the terminal and in the log file, and one live line of its progress."""

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


@dataclass(kw_only=True)
class Progress:
    """Steps, loss and speed of a training; its rates leave out what was done before it was resumed."""

    total_steps: int
    first_step: int = 0
    """The step from which the run was resumed."""
    step: int = 0
    batches: int = 0
    """Batches of the whole run so far."""
    epoch: int = 0
    loss: float | None = None
    """Mean over the last steps, the newer weighing more."""
    learning_rate: float = 0.0
    wer_before: float | None = None
    """WER of the base before training, 0..1."""
    wer: float | None = None
    """WER of the last validation, 0..1."""
    audio_seconds: float = 0.0
    """Audio trained on since the start."""
    busy_seconds: float = 0.0
    """Time spent on steps since the start, validations left out."""
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    """Step, WER (0..1) and seconds spent on steps at each validation of the whole run."""
    seconds_before: float = 0.0
    """Time spent on steps before the run was resumed."""

    def advance(self, *, step: int, epoch: int, loss: float, learning_rate: float, audio: float, took: float) -> None:
        """Take one batch into account. audio, took: seconds."""
        self.step, self.epoch, self.learning_rate = step, epoch, learning_rate
        self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        self.audio_seconds += audio
        self.busy_seconds += took

    @property
    def seconds(self) -> float:
        """Time spent on steps of the whole run."""
        return self.seconds_before + self.busy_seconds

    def note_validation(self, step: int) -> None:
        """Add the last validation, of this step, to the curve."""
        if self.wer is not None:
            self.curve.append((step, round(self.wer, 6), round(self.seconds, 1)))

    @property
    def speed(self) -> float:
        """Hours of audio in an hour."""
        return self.audio_seconds / self.busy_seconds if self.busy_seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        done = self.step - self.first_step
        return (self.total_steps - self.step) * self.busy_seconds / done if done > 0 else None

    def line(self) -> str:
        """Return `step 20/1000  epoch 1  loss 12.3  lr 0.001  WER 45.6 %  120× real time  3:20 left`."""
        parts = [f"step {self.step}/{self.total_steps}", f"epoch {self.epoch + 1}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        parts.append(f"lr {self.learning_rate:.2e}")
        if self.wer is not None:
            parts.append(f"WER {self.wer:.2%}")
        parts.append(f"{self.speed:.3g}× real time")
        left = self.seconds_left
        if left is not None:
            parts.append(f"{format_duration(left)} left")
        return "  ".join(parts)


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
