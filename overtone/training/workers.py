"""Reading audio beside the steps: a thread that fills the cache beforehand, and worker processes that may be killed."""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.multiprocessing import reductions
from torch.utils.data._utils import signal_handling

from overtone.data.dataset import SpeechDataset
from overtone.errors import DataError
from overtone.training.data import worker_count
from overtone.training.run import Run

WORKER_DEATH = re.compile(r"DataLoader worker .*(exited unexpectedly|is killed by signal)|Pin memory thread exited")
"""PyTorch's messages about it."""

# Reading ahead


@contextmanager
def read_ahead(run: Run) -> Iterator[None]:
    """Read the first epoch and the validation sets into memory in a thread, as far as there is room.

    Sets that worker processes read are left to these.
    """
    stop = threading.Event()

    def read() -> None:
        for dataset, index in first_utterances(run):
            if stop.is_set() or not dataset.read_ahead(index):
                return

    thread = threading.Thread(target=read, name="reading ahead", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def first_utterances(run: Run) -> Iterator[tuple[SpeechDataset, int]]:
    """Yield the utterances in the order in which a new training asks for them.

    None where it may never ask: with a prefix cache, or where other processes take their share.
    """
    if run.prefix is not None or run.machine.processes > 1:
        return
    if worker_count(run.plan.train_data) == 0:
        batches = run.training.plan.batches(0)[: run.length.batches]
        yield from ((run.training.dataset, index) for batch in batches for index in batch)
    if worker_count(run.plan.validation_data) == 0:
        for validation_set in run.validation:
            yield from ((validation_set.dataset, index) for index in range(len(validation_set.dataset)))


# Worker processes


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
