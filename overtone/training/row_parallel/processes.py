"""Several processes that share the rows of every batch: on a CPU, two half batches side by side take less time than a
whole one whose every operation is spread over the cores.

The processes are copies of this one (a fork: nothing is read, nothing is copied before it is written to). Each batch
is cut into parts of equal work; the others compute theirs while this process computes its own, forward and backward.
What is learnt is kept here alone and told to the others with the batch that follows.

Legend: B batch, S samples, T' encoder frames, V vocabulary.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from overtone.data.batching import round_up
from overtone.errors import DataError, OvertoneError
from overtone.inference.rows import equal_parts, joined_rows
from overtone.training.forward import Recogniser

MOST_PROCESSES = 4
"""What `auto` takes at most: each has activations and kernels of its own in memory, and one thread."""
SEEDS = 2**62
SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
PROCESS_NAME = "rows of a batch"


def process_count(wanted: int | str) -> int:
    """How many processes share the rows: what is asked for, or for `auto` one for each thread that PyTorch may use.

    One where these are more than `MOST_PROCESSES`: a copy cannot have several, since OpenMP would wait for the threads
    of the process that was copied. One too where the system cannot copy a process that has threads.
    """
    if sys.platform != "linux":
        return 1
    if wanted != "auto":
        return int(wanted)
    threads = torch.get_num_threads()
    return threads if threads <= MOST_PROCESSES else 1


class Forward(NamedTuple):
    """A part of a batch to be computed."""

    waveforms: Any
    """[b, S] float32 array"""
    lengths: Any
    """[b] int64 array"""
    parameters: list[Any] | None
    """What is trained, where it has changed."""
    training: bool
    base_alone: bool
    seed: int
    """Of everything random in this part."""
    learning: bool
    """Whether `Backward` follows."""


class Backward(NamedTuple):
    """The gradient of the last `Forward`'s heads, arrays [b, T', C]."""

    gradients: list[Any]


class RowProcesses:
    """waveforms [B, S], lengths [B] -> emissions [B, T', C] of heads, lengths [B], as of the recogniser alone.

    A context manager: the processes live as long as it lasts. Rows have to be independent of each other.

    errand: what one of the others does first, before any batch; its outcome is asked for with `errand_done`.
    """

    def __init__(self, recogniser: Recogniser, count: int, *, errand: Callable[[], Any] | None = None) -> None:
        self.recogniser = recogniser
        self.errand = errand
        self.parameters = [parameter for parameter in recogniser.model.parameters() if parameter.requires_grad]
        self.others = [Other(recogniser, self.parameters, None if number else errand) for number in range(count - 1)]
        self.threads = torch.get_num_threads()

    def __enter__(self) -> Self:
        torch.set_num_threads(max(1, self.threads - len(self.others)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for other in self.others:
                other.dismiss()
            for other in self.others:
                other.process.join(timeout=1.0)
        finally:
            for other in self.others:
                other.process.kill()
                other.process.join()
            torch.set_num_threads(self.threads)

    def errand_done(self) -> Any:
        """What the errand gave, or the error that it ended with; once, and before the first batch."""
        self.errand = None
        return self.others[0].receive()

    def __call__(self, waveforms: Tensor, lengths: Tensor, *, base_alone: bool = False) -> tuple[list[Tensor], Tensor]:
        parts = equal_parts(lengths.tolist(), 1 + len(self.others))
        batch = SharedBatch(self, waveforms, lengths, parts, base_alone)
        heads = SharedForward.apply(batch, *self.parameters)  # type: ignore[no-untyped-call]
        return list(heads), batch.counts


class SharedBatch:
    """One batch on its way through all processes."""

    def __init__(
        self, whole: RowProcesses, waveforms: Tensor, lengths: Tensor, parts: list[list[int]], base_alone: bool
    ) -> None:
        self.whole = whole
        self.others = whole.others[: len(parts) - 1]
        self.parts = parts
        self.base_alone = base_alone
        self.learning = torch.is_grad_enabled()
        self.rows = [self.part_of(waveforms, lengths, rows) for rows in parts]
        self.back = torch.tensor([row for rows in parts for row in rows]).argsort()
        self.counts = lengths
        self.own: list[Tensor] = []
        """This process's heads, with their graph."""
        self.frames: list[int] = []
        """T' of each part."""

    @staticmethod
    def part_of(waveforms: Tensor, lengths: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Some rows, cut to little more than their longest."""
        own = lengths[rows]
        return waveforms[rows, : round_up(int(own.max()))], own

    def forward(self) -> list[Tensor]:
        training = self.whole.recogniser.model.training
        for other, (waveforms, lengths) in zip(self.others, self.rows[1:], strict=True):
            seed = int(torch.randint(SEEDS, ())) if training else 0
            other.send_forward(waveforms, lengths, training, self.base_alone, seed, self.learning)
        with torch.set_grad_enabled(self.learning):
            self.own, counts, _ = self.whole.recogniser(*self.rows[0], base_alone=self.base_alone)
        answers = [([head.detach() for head in self.own], counts), *(tensors(other.receive()) for other in self.others)]
        self.frames = [heads[0].size(1) for heads, _ in answers]
        self.counts = torch.cat([counts for _, counts in answers])[self.back]
        return [joined_rows(parts)[self.back] for parts in zip(*(heads for heads, _ in answers), strict=True)]

    def backward(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of the heads -> those of the trained parameters, summed in the order of the parts."""
        cut = [
            [gradient[rows, :frames] for gradient in gradients]
            for rows, frames in zip(self.parts, self.frames, strict=True)
        ]
        for other, part in zip(self.others, cut[1:], strict=True):
            other.send_backward(part)
        sums = list(gradients_of(self.own, self.whole.parameters, cut[0]))
        for other in self.others:
            for number, gradient in enumerate(tensors(other.receive())):
                sums[number] = sums[number] + gradient
        return sums


class SharedForward(torch.autograd.Function):
    """A batch in all processes as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, batch: SharedBatch, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.batch = batch
        return tuple(batch.forward())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.batch.backward(gradients)


class Other:
    """Another process, seen from this one."""

    def __init__(
        self, recogniser: Recogniser, parameters: Sequence[nn.Parameter], errand: Callable[[], Any] | None
    ) -> None:
        self.parameters = parameters
        self.versions: list[int] | None = None
        """Of the parameters as the process knows them."""
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            name=PROCESS_NAME, target=answer, args=(theirs, self.pipe, recogniser, parameters, errand), daemon=True
        )
        self.process.start()
        theirs.close()

    def send_forward(
        self, waveforms: Tensor, lengths: Tensor, training: bool, base_alone: bool, seed: int, learning: bool
    ) -> None:
        versions = [parameter._version for parameter in self.parameters]
        changed = None
        if versions != self.versions:
            changed = [parameter.detach().numpy() for parameter in self.parameters]
            self.versions = versions
        self.send(Forward(waveforms.numpy(), lengths.numpy(), changed, training, base_alone, seed, learning))

    def send_backward(self, gradients: Sequence[Tensor]) -> None:
        self.send(Backward([gradient.numpy() for gradient in gradients]))

    def send(self, order: Forward | Backward) -> None:
        try:
            self.pipe.send(order)
        except OSError:
            raise self.loss() from None

    def receive(self) -> Any:
        """What the process answers. Raises what was raised there, and DataError where it has ended."""
        try:
            answered = self.pipe.recv()
        except (EOFError, OSError):
            raise self.loss() from None
        if isinstance(answered, BaseException):
            raise answered
        return answered

    def loss(self) -> DataError:
        """Like the death of a process that reads: what has been learnt is kept."""
        self.process.join(timeout=1.0)
        return DataError(
            f"A process that computes rows of the batch has ended (exit code {self.process.exitcode}); the system ends "
            "processes where memory runs out. Train in one process, with compute_processes=1, or with a smaller "
            "model.train_ds.batch_size."
        )

    def dismiss(self) -> None:
        """Tell it that nothing more comes."""
        with suppress(OSError):
            self.pipe.send(None)
        self.pipe.close()


def answer(
    pipe: Connection,
    theirs: Connection,
    recogniser: Recogniser,
    parameters: Sequence[nn.Parameter],
    errand: Callable[[], Any] | None,
) -> None:
    """The life of another process: orders are carried out until there is None, or nobody left to give any."""
    theirs.close()
    end_with_first_process()
    for number in (signal.SIGINT, signal.SIGTERM):  # whole groups are told; the first process says when it ends
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # the threads of the process that was copied are not here
    gc.freeze()
    heads: list[Tensor] = []

    def carried_out(order: Forward | Backward) -> Any:
        nonlocal heads
        if isinstance(order, Forward):
            heads, counts = forward(order, recogniser, parameters)
            return [head.detach().numpy() for head in heads], counts.numpy()
        found = gradients_of(heads, parameters, tensors(order.gradients))
        heads = []
        return [gradient.numpy() for gradient in found]

    with suppress(EOFError, OSError):
        if errand is not None:
            pipe.send(outcome(errand))
        while (order := pipe.recv()) is not None:
            pipe.send(outcome(carried_out, order))
    os._exit(0)


def end_with_first_process() -> None:
    """Ask Linux to kill this process when the one that made it has ended, however that came."""
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives, or its error as one that can cross to another process."""
    try:
        return function(*arguments)
    except OvertoneError as error:
        return error
    except Exception as error:
        return RuntimeError(f"{type(error).__name__}: {error}")


def forward(order: Forward, recogniser: Recogniser, parameters: Sequence[nn.Parameter]) -> tuple[list[Tensor], Tensor]:
    model = recogniser.model
    if model.training != order.training:
        model.train(order.training)
    if order.parameters is not None:
        with torch.no_grad():
            for parameter, values in zip(parameters, order.parameters, strict=True):
                parameter.copy_(torch.from_numpy(values))
    torch.manual_seed(order.seed)
    with torch.set_grad_enabled(order.learning):
        heads, counts, _ = recogniser(
            torch.from_numpy(order.waveforms), torch.from_numpy(order.lengths), base_alone=order.base_alone
        )
    return heads, counts


def gradients_of(
    heads: Sequence[Tensor], parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Of the trained parameters; heads that none of them reaches are left out."""
    reached = [(head, gradient) for head, gradient in zip(heads, gradients, strict=True) if head.requires_grad]
    if not reached:
        return tuple(torch.zeros_like(parameter) for parameter in parameters)
    found: tuple[Tensor, ...] = torch.autograd.grad(
        [head for head, _ in reached],
        list(parameters),
        [gradient for _, gradient in reached],
        materialize_grads=True,
    )
    return found


def tensors(arrays: Any) -> Any:
    """Arrays in lists and tuples -> tensors in the same places."""
    if isinstance(arrays, list | tuple):
        return type(arrays)(tensors(array) for array in arrays)
    return torch.from_numpy(arrays)
