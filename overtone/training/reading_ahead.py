"""Audio that is decoded before it is asked for, while other things are being made ready."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from overtone.data.dataset import SpeechDataset
from overtone.training.data import worker_count
from overtone.training.run import Run


@contextmanager
def reading_ahead(run: Run) -> Iterator[None]:
    """A thread reads the first epoch and the validation sets into memory, as far as there is room.

    Sets that processes of their own read are left to these.
    """
    stopping = threading.Event()

    def read() -> None:
        for dataset, index in wanted(run):
            if stopping.is_set() or not dataset.read_ahead(index):
                return

    thread = threading.Thread(target=read, name="reading ahead", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def wanted(run: Run) -> Iterator[tuple[SpeechDataset, int]]:
    """Utterances in the order in which a training that begins anew asks for them.

    None where it may never ask: with a prefix cache, or where other processes take their share.
    """
    if run.prefix is not None or run.machine.processes > 1:
        return
    chosen = run.settings.model
    if worker_count(chosen.train_ds) == 0:
        batches = run.training.plan.batches(0)[: run.length.batches]
        yield from ((run.training.dataset, index) for batch in batches for index in batch)
    if worker_count(chosen.validation_ds) == 0:
        for held in run.validation:
            yield from ((held.dataset, index) for index in range(len(held.dataset)))
