"""Ctrl-C and SIGTERM during a training: noted when they come, followed between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(kw_only=True)
class StopRequest:
    """A request to end the training: the first signal is noted, the second one ends it at once."""

    number: int | None = None
    """The signal that came; None where none did."""
    requested: bool = False
    at_once: bool = True
    """The first signal ends the training at once too, while there is nothing that could be lost."""

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Take the signals inside the block. Outside the main thread, signals stay as they are."""
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self.take_signals()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def take_signals(self) -> None:
        """Become the handler of the signals, whoever handles them now."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self.handle)

    def wait_for_steps(self) -> None:
        """From now on the first signal is followed between two steps."""
        self.at_once = False
        self.take_signals()

    def handle(self, number: int, frame: Any) -> None:
        """Note a signal, as the system calls it. Raises KeyboardInterrupt where the training is to end at once."""
        again = self.requested
        self.number, self.requested = self.number or number, True
        if again or self.at_once:
            raise KeyboardInterrupt

    def make_error(self) -> BaseException:
        """Make what a stopped run ends with: KeyboardInterrupt, after SIGTERM SystemExit with its exit code."""
        if self.number == signal.SIGTERM:
            return SystemExit(128 + signal.SIGTERM)
        return KeyboardInterrupt()
