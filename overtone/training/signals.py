"""The wish that a training ends, by Ctrl-C or SIGTERM: it comes at any time, and is met between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(kw_only=True)
class StopRequest:
    """The first signal is noted, the second one stops at once."""

    number: int | None = None
    """The signal that came; None: none did."""
    at_once: bool = True
    """Whether the first one stops at once too: there is nothing yet that could be lost."""

    @property
    def made(self) -> bool:
        return self.number is not None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen as long as this lasts; in another thread than the main one, signals stay as they are."""
        before = {number: signal.getsignal(number) for number in STOPPING}
        self.listen()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals, from whoever has them."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                signal.signal(number, self.note)

    def note(self, number: int, frame: Any) -> None:
        """What the system calls. Raises KeyboardInterrupt where the training is to stop at once."""
        again = self.made
        self.number = self.number or number
        if again or self.at_once:
            raise KeyboardInterrupt

    def end(self) -> BaseException:
        """What a run ends with that was stopped: KeyboardInterrupt, after SIGTERM SystemExit with the code of that."""
        if self.number == signal.SIGTERM:
            return SystemExit(128 + signal.SIGTERM)
        return KeyboardInterrupt()
