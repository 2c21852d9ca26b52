"""Ends of a training before its time: Ctrl-C and SIGTERM, noted between two steps, and a killed worker process."""

from __future__ import annotations

import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.multiprocessing import reductions
from torch.utils.data._utils import signal_handling

from overtone.errors import DataError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORKER_DEATH = re.compile(r"DataLoader worker .*(exited unexpectedly|is killed by signal)|Pin memory thread exited")
"""PyTorch's messages about it."""


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


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn a SIGTERM inside the block into an exit that unwinds it, as Ctrl-C does; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def explain_worker_death(set_name: Callable[[], str]) -> Iterator[None]:
    """Raises one DataError for the death of a worker inside the block, where the next batch is read.

    PyTorch would also raise from a signal handler, in the middle of a step or of a file that is being written. Its
    handler is left out here: the loader looks after its workers every few seconds while it waits for a batch.

    set_name: gives the set that was being read, such as `model.train_ds`.
    """
    installed = signal_handling._SIGCHLD_handler_set
    signal_handling._SIGCHLD_handler_set = True
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if not (WORKER_DEATH.search(str(error)) if isinstance(error, RuntimeError) else arose_in_unpacking(error)):
            raise
        raise DataError(
            f"A process that reads {set_name()} was killed; the system does so where memory runs out (in a container, "
            f"also where /dev/shm is small). Let the training read by itself, with {set_name()}.num_workers=0, or give "
            "it more memory."
        ) from error
    finally:
        signal_handling._SIGCHLD_handler_set = installed


def arose_in_unpacking(error: BaseException) -> bool:
    """Return whether the error arose while tensors of another process were unpacked, which asks it for their memory."""
    names = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return reductions.__file__ in names
