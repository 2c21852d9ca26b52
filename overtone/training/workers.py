"""The processes that read audio, and what becomes of a run when one of them is killed."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.multiprocessing import reductions
from torch.utils.data._utils import signal_handling

from overtone.errors import DataError

DEATH = re.compile(r"DataLoader worker .*(exited unexpectedly|is killed by signal)|Pin memory thread exited")
"""What torch says of it."""


@contextmanager
def deaths_told(reading: Callable[[], str]) -> Iterator[None]:
    """The death of a worker becomes one DataError, raised where the next batch is read.

    torch would also raise from a signal handler, in the middle of a step or of a file being written. Its handler is
    left out here: whoever waits for a batch looks after the workers every few seconds.

    reading: names the set that was being read, such as `model.train_ds`.
    """
    installed = signal_handling._SIGCHLD_handler_set
    signal_handling._SIGCHLD_handler_set = True
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if not (DEATH.search(str(error)) if isinstance(error, RuntimeError) else while_unpacking(error)):
            raise
        raise DataError(
            f"A process that reads {reading()} was killed; the system does so where memory runs out (in a container, "
            f"also where /dev/shm is small). Let the training read by itself, with {reading()}.num_workers=0, or give "
            "it more memory."
        ) from error
    finally:
        signal_handling._SIGCHLD_handler_set = installed


def while_unpacking(error: BaseException) -> bool:
    """Whether it arose while tensors of another process were unpacked, which asks that process for their memory."""
    names = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return reductions.__file__ in names
