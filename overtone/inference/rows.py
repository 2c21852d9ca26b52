"""Rows of a batch: groups of similar length, and threads that share them.

A single long utterance among short ones makes most of a batch padding, which is computed, and kept for the backward
pass, like speech. On a CPU parts of a batch side by side take less time than a whole one whose every operation is
spread over the cores: a thousand small operations do not wait a thousand times until all threads have begun and ended.

Legend: B batch, F mel bins, T mel frames, T' encoder frames, C channels of an emission.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from overtone.backends.openvino.encoder import OpenVinoEncoder
from overtone.models.asr_model import AsrModel
from overtone.nets.layers import round_up

WORTH_FRAMES = 600
"""Mel frames of padding that one more pass through a net has to save: what its many small calls take."""

MOST_THREADS = 4
"""Threads that share rows; more threads share every operation instead: parts would wait for Python's own lock."""

R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
Recognise = Callable[[Tensor, Tensor], tuple[list[Tensor], Tensor]]
"""mel [B, F, T], lengths [B] -> emissions [B, T', C] of one head or several, lengths [B]."""


def rows_are_independent(model: AsrModel, adapter: str | None) -> bool:
    """True if each row comes out the same in whatever group it is computed, on a device where that saves time."""
    trained = model.training and not model.base_is_frozen  # batch norms look at the whole batch
    penalised = (
        model.training
        and adapter is not None
        and any(model.adapters[name].strategy.l2_lambda > 0.0 for name in adapter.split("+"))
    )
    told = bool(model.languages)  # in the order of the batch
    return model.device.type == "cpu" and not (trained or penalised or told) and model.encoder.rows_are_independent


def length_groups(lengths: Sequence[int], worth: int = WORTH_FRAMES) -> list[list[int]]:
    """The numbers of the rows, long ones first, cut where a cut saves more than `worth` frames of padding."""

    def cut(rows: list[int]) -> list[list[int]]:
        longest = lengths[rows[0]]
        saved = [(longest - lengths[row]) * (len(rows) - place) for place, row in enumerate(rows)]
        if max(saved) <= worth:
            return [rows]
        place = saved.index(max(saved))
        return cut(rows[:place]) + cut(rows[place:])

    return cut(sorted(range(len(lengths)), key=lambda row: -lengths[row]))


def equal_parts(lengths: Sequence[int], count: int) -> list[list[int]]:
    """The numbers of the rows, long ones first, in at most `count` parts whose work is as equal as can be.

    The work of a part is its rows, padded to the longest of them.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    low, high = max(lengths), max(lengths) * len(lengths)
    while low < high:  # the smallest limit that the parts can keep
        middle = (low + high) // 2
        if len(filled(order, lengths, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    return filled(order, lengths, low)


def filled(order: Sequence[int], lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Rows in this order, each part as large as the limit of its work allows."""
    parts: list[list[int]] = []
    for row in order:
        if parts and lengths[parts[-1][0]] * (len(parts[-1]) + 1) <= limit:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def recognise_in_groups(
    recognise: Recognise, mel: Tensor, lengths: Tensor, *, factor: int
) -> tuple[list[Tensor], Tensor]:
    """Recognise each group by itself: mel [B, F, T], lengths [B] -> emissions and lengths in the order of the batch.

    factor: mel frames of one encoder frame. A group's frames are the batch's modulo it: some subsamplings count a
    row's frames by what is left over. Beyond that they are rounded up, as those of whole batches are.
    """
    groups = length_groups(lengths.tolist())
    if len(groups) == 1:
        return recognise(mel, lengths)
    outcomes = []
    for rows in groups:
        index = torch.tensor(rows, device=mel.device)
        frames = round_up(int(lengths[index].max()))
        frames += (mel.size(2) - frames) % factor  # past the batch's own end the slice ends there
        outcomes.append(recognise(mel[index, :, :frames], lengths[index]))
    back = torch.tensor([row for rows in groups for row in rows], device=mel.device).argsort()
    heads = [joined_rows(parts)[back] for parts in zip(*(heads for heads, _ in outcomes), strict=True)]
    return heads, torch.cat([counts for _, counts in outcomes])[back]


def joined_rows(parts: Sequence[Tensor]) -> Tensor:
    """Groups of rows [B, T', C] of different T' -> all rows, padded with zeros."""
    frames = max(part.size(1) for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, frames - part.size(1))) for part in parts])


def use_threads(count: int) -> None:
    """Spread the operations of this thread over so many threads."""
    torch.get_num_threads()  # a thread that never asked takes, at its first operation, what was set last anywhere
    torch.set_num_threads(count)


def use_one_thread() -> None:
    """Spread no operation of this thread."""
    use_threads(1)


@contextmanager
def one_thread() -> Iterator[int]:
    """Spread no operation of this thread, and of those that begin meanwhile; yields the threads that it used before."""
    before = torch.get_num_threads()
    use_one_thread()
    try:
        yield before
    finally:
        use_threads(before)


class RowThreads:
    """Threads that compute the rows of a batch in parts of equal work, side by side.

    A single row, and every batch where that gains nothing, is computed by the calling thread. A context manager.
    """

    def __init__(self, model: AsrModel, count: int | None = None) -> None:
        """count: how many threads may compute; as many as PyTorch takes here unless given."""
        self.model = model
        self.count = count or torch.get_num_threads()
        self.pool = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="overtone-rows", initializer=use_one_thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. Threads that begin later spread their operations as this one does."""
        self.pool.shutdown()
        use_threads(torch.get_num_threads())

    def __call__(self, compute: Callable[[list[R]], Sequence[A]], rows: Sequence[R], lengths: Sequence[int]) -> list[A]:
        """Compute an answer for each row.

        compute: rows -> answers, safe in any thread. lengths: of the rows, which their work grows with.

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
        """Spread the operations of the calling thread from now on, or not; returns the number of threads it uses.

        OpenVINO has threads of its own, and would begin anew with another number of them.
        """
        if not isinstance(self.model.backend_in_use, OpenVinoEncoder):
            use_threads(self.count if wanted or self.count > MOST_THREADS else 1)
        return torch.get_num_threads()

    def is_shared(self) -> bool:
        """True if batches of several rows are computed in parts."""
        if not 1 < self.count <= MOST_THREADS or isinstance(self.model.backend_in_use, OpenVinoEncoder):
            return False
        return rows_are_independent(self.model, None)


def load_ahead(reader: Executor, load: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """load(item) of each item, the next one being loaded while the last is used."""
    pending: Future[R] | None = None
    for item in items:
        following = reader.submit(load, item)
        if pending is not None:
            yield pending.result()
        pending = following
    if pending is not None:
        yield pending.result()
