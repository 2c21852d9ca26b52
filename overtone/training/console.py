"""What a training tells while it runs: lines on the terminal and in the log file, and one live line of progress."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text


@dataclass(kw_only=True)
class Reporter:
    """Lines for the user, copied to a log file once there is one."""

    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    quiet: bool = False
    log_file: Path | None = None
    waiting: list[str] = field(default_factory=list)
    """Lines said before there was a file."""

    def begin(self, *, leads: bool) -> None:
        """Start on another run, whose log file is not known yet. A process that does not lead is silent."""
        self.log_file = None
        self.waiting.clear()
        self.quiet = self.quiet or not leads

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(Text(text))
        self.note(text)

    def note(self, text: str) -> None:
        """A line for the log file alone."""
        self.waiting.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        if self.log_file is None:
            return
        with self.log_file.open("a", encoding="utf-8") as file:
            file.writelines(self.waiting)
        self.waiting.clear()


@dataclass(kw_only=True)
class Pace:
    """Where a training stands; rates leave out what was done before a resumption."""

    total_steps: int
    first_step: int = 0
    step: int = 0
    epoch: int = 0
    loss: float | None = None
    """Mean over the last steps, the newer weighing more."""
    learning_rate: float = 0.0
    wer: float | None = None
    """Of the last validation."""
    audio_seconds: float = 0.0
    """Audio trained on since the start."""
    busy_seconds: float = 0.0
    """Time spent on steps, validations left out."""

    def advance(self, *, step: int, epoch: int, loss: float, learning_rate: float, audio: float, took: float) -> None:
        self.step, self.epoch, self.learning_rate = step, epoch, learning_rate
        self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        self.audio_seconds += audio
        self.busy_seconds += took

    @property
    def speed(self) -> float:
        """Hours of audio in an hour."""
        return self.audio_seconds / self.busy_seconds if self.busy_seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        done = self.step - self.first_step
        return (self.total_steps - self.step) * self.busy_seconds / done if done > 0 else None

    def line(self) -> str:
        """`step 20/1000  epoch 1  loss 12.3  lr 0.001  WER 45.6 %  120 h audio/h  3:20 left`."""
        parts = [f"step {self.step}/{self.total_steps}", f"epoch {self.epoch + 1}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        parts.append(f"lr {self.learning_rate:.2e}")
        if self.wer is not None:
            parts.append(f"WER {self.wer:.2%}")
        parts.append(f"{self.speed:.3g} h audio/h")
        left = self.seconds_left
        if left is not None:
            parts.append(f"{clock(left)} left")
        return "  ".join(parts)


class LiveLine:
    """One line that is rewritten in place on a terminal; elsewhere a plain line now and then."""

    def __init__(self, reporter: Reporter, *, every: int, enabled: bool) -> None:
        self.reporter = reporter
        self.every = every
        self.enabled = enabled and not reporter.quiet
        self.live: Live | None = None
        if self.enabled and reporter.console.is_terminal:
            self.live = Live(console=reporter.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveLine:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, pace: Pace) -> None:
        line = pace.line()
        if self.live is not None:
            self.live.update(Text(line))
        if pace.step % self.every == 0 or pace.step == pace.total_steps:
            if self.live is None and self.enabled:
                self.reporter.say(line)
            else:
                self.reporter.note(line)


def clock(seconds: float) -> str:
    """`3:20`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
