"""Several threads that share the rows of every batch of an inference.

On a CPU parts of a batch side by side take less time than a whole one whose every operation is spread over the cores:
a thousand small operations do not wait a thousand times until all threads have begun and ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import torch

from overtone.backends.openvino.encoder import OpenVinoEncoder
from overtone.inference.rows import equal_parts, rows_are_independent
from overtone.models.asr_model import AsrModel

MOST_THREADS = 4
"""Where PyTorch may use more of them, they share every operation: parts would wait for Python's own lock."""

R = TypeVar("R")
A = TypeVar("A")


def compute_with(threads: int) -> None:
    """Spread the operations of this thread over so many threads."""
    torch.get_num_threads()  # a thread that never asked takes, at its first operation, what was set last anywhere
    torch.set_num_threads(threads)


compute_alone = partial(compute_with, 1)


@contextmanager
def computing_alone() -> Iterator[int]:
    """This thread, and those that begin meanwhile, spread no operation; gives over how many threads this one did."""
    before = torch.get_num_threads()
    compute_alone()
    try:
        yield before
    finally:
        compute_with(before)


class RowThreads:
    """Rows -> answers, computed in parts of equal work side by side.

    A single row, and every batch where that gains nothing, is computed by the calling thread. A context manager.
    """

    def __init__(self, model: AsrModel, count: int | None = None) -> None:
        """count: how many threads may compute; as many as PyTorch takes here unless given."""
        self.model = model
        self.count = count or torch.get_num_threads()
        self.pool = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="overtone-rows", initializer=compute_alone)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. Others that begin from now on compute as this one does."""
        self.pool.shutdown()
        compute_with(torch.get_num_threads())

    def __call__(self, compute: Callable[[list[R]], Sequence[A]], rows: Sequence[R], lengths: Sequence[int]) -> list[A]:
        """compute: rows -> an answer for each, at home in any thread. lengths: of the rows, what their work grows with.

        Raises what `compute` raises, once every part has ended.
        """
        if len(rows) < 2 or not self.is_shared():
            return list(compute(list(rows)))
        parts = equal_parts(lengths, self.count)
        computed = [self.pool.submit(compute, [rows[row] for row in part]) for part in parts]
        wait(computed)
        answers = {
            row: answer
            for part, future in zip(parts, computed, strict=True)
            for row, answer in zip(part, future.result(), strict=True)
        }
        return [answers[row] for row in range(len(rows))]

    def spread(self, wanted: bool) -> int:
        """Whether the calling thread spreads its operations over the threads from now on; over how many it does.

        OpenVINO has threads of its own, and would begin anew with another number of them.
        """
        if not isinstance(self.model.backend_in_use, OpenVinoEncoder):
            compute_with(self.count if wanted or self.count > MOST_THREADS else 1)
        return torch.get_num_threads()

    def is_shared(self) -> bool:
        if not 1 < self.count <= MOST_THREADS or isinstance(self.model.backend_in_use, OpenVinoEncoder):
            return False
        return rows_are_independent(self.model, None)
