"""Several processes that share the rows of every batch: on a CPU, two half batches side by side take less time than a
whole one whose every operation is spread over the cores.

The processes are copies of this one (a fork: nothing is read, nothing is copied before it is written to). Each batch
is cut into parts of equal work; the others compute theirs while this process computes its own, forward and backward.
The trained parameters live here, and their new values go to the others with the next batch.

Legend: B batch, S samples, T' encoder frames, V vocabulary.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from overtone.data.dataset import Batch
from overtone.errors import DataError, OvertoneError
from overtone.inference.rows import equal_parts, joined_rows
from overtone.nets.layers import round_up
from overtone.training.forward import TrainingForward, make_forward
from overtone.training.run import Run
from overtone.training.trainer import MOST_ROW_PROCESSES, lightning_precision
from overtone.training.validation import plan_base_scoring

SEEDS = 2**62
PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent ends."""
PROCESS_NAME = "rows of a batch"


@contextmanager
def start_row_processes(run: Run) -> Iterator[RowProcesses | None]:
    """Start the processes that share the rows of every batch; None where the run does not allow it, or gains nothing.

    One of them scores the base first, where the run begins with that.
    """
    plan, forward = run.plan, make_forward(run)
    count = min(run.machine.row_processes, run.training.plan.batch_size or MOST_ROW_PROCESSES)
    plain = run.prefix is None and lightning_precision(plan.trainer) == "32-true"
    if not (count > 1 and plain and run.adapter is not None and forward.rows_are_independent):
        yield None
        return
    with (
        run.model.computing_in(plan.compute_dtype),
        RowProcesses(forward, count, first_task=plan_base_scoring(run, forward)) as processes,
    ):
        yield processes


class ForwardOrder(NamedTuple):
    """Rows of a batch to compute."""

    waveforms: Any
    """[b, S] float32 array"""
    lengths: Any
    """[b] int64 array"""
    parameters: list[Any] | None
    """Values of the trained parameters, where they have changed."""
    training: bool
    base_alone: bool
    seed: int
    """Seed of everything random in these rows."""
    learning: bool
    """A `BackwardOrder` follows."""


class BackwardOrder(NamedTuple):
    """Gradients of the heads of the last `ForwardOrder`, arrays [b, T', C]."""

    gradients: list[Any]


class RowProcesses:
    """waveforms [B, S], lengths [B] -> emissions [B, T', C] of heads, lengths [B], as computed by one process.

    A context manager: the processes live as long as it lasts. Rows have to be independent of each other.

    first_task: is done by one of the others before any batch; `first_result` waits for its result.
    """

    def __init__(self, forward: TrainingForward, count: int, *, first_task: Callable[[], Any] | None = None) -> None:
        self.forward = forward
        self.has_first_task = first_task is not None
        """The result of the first task has not been asked for yet."""
        self.parameters = [parameter for parameter in forward.model.parameters() if parameter.requires_grad]
        self.others = [
            RowWorker(forward, self.parameters, None if number else first_task) for number in range(count - 1)
        ]
        self.threads = torch.get_num_threads()

    def __enter__(self) -> Self:
        torch.set_num_threads(max(1, self.threads - len(self.others)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for other in self.others:
                other.end()
            for other in self.others:
                other.process.join(timeout=1.0)
        finally:
            for other in self.others:
                other.process.kill()
                other.process.join()
            torch.set_num_threads(self.threads)

    def first_result(self) -> Any:
        """Return the result of the first task, or raise its error; once, and before the first batch."""
        self.has_first_task = False
        return self.others[0].receive()

    def __call__(self, waveforms: Tensor, lengths: Tensor, *, base_alone: bool = False) -> tuple[list[Tensor], Tensor]:
        parts = equal_parts(lengths.tolist(), 1 + len(self.others))
        batch = SharedBatch(self, waveforms, lengths, parts, base_alone)
        heads = SharedForward.apply(batch, *self.parameters)  # type: ignore[no-untyped-call]
        return list(heads), batch.counts

    def forward_batch(self, batch: Batch, *, base_alone: bool) -> tuple[list[Tensor], Tensor, Tensor]:
        heads, lengths = self(batch.waveforms, batch.lengths, base_alone=base_alone)
        return heads, lengths, torch.zeros(())


class SharedBatch:
    """The forward and backward of one batch in all processes."""

    def __init__(
        self, processes: RowProcesses, waveforms: Tensor, lengths: Tensor, parts: list[list[int]], base_alone: bool
    ) -> None:
        """waveforms [B, S], lengths [B]. parts: the rows of each process."""
        self.processes = processes
        self.others = processes.others[: len(parts) - 1]
        self.parts = parts
        self.base_alone = base_alone
        self.learning = torch.is_grad_enabled()
        self.rows = [self.cut_part(waveforms, lengths, rows) for rows in parts]
        self.back = torch.tensor([row for rows in parts for row in rows]).argsort()
        self.counts = lengths
        self.own: list[Tensor] = []
        """This process's heads, with their graph."""
        self.frames: list[int] = []
        """T' of each part."""

    @staticmethod
    def cut_part(waveforms: Tensor, lengths: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Take some of the rows, cut to little more than their longest. [B, S], [B] -> [b, S'], [b]"""
        own = lengths[rows]
        return waveforms[rows, : round_up(int(own.max()))], own

    def forward(self) -> list[Tensor]:
        """Return the emissions of the whole batch, [B, T', C] each."""
        forward = self.processes.forward
        training = forward.model.training
        for other, (waveforms, lengths) in zip(self.others, self.rows[1:], strict=True):
            seed = int(torch.randint(SEEDS, ())) if training else 0
            other.send_forward(waveforms, lengths, training, self.base_alone, seed, self.learning)
        with torch.set_grad_enabled(self.learning):
            self.own, counts, _ = forward(*self.rows[0], base_alone=self.base_alone)
        answers = [
            ([head.detach() for head in self.own], counts),
            *(to_tensors(other.receive()) for other in self.others),
        ]
        self.frames = [heads[0].size(1) for heads, _ in answers]
        self.counts = torch.cat([counts for _, counts in answers])[self.back]
        return [joined_rows(parts)[self.back] for parts in zip(*(heads for heads, _ in answers), strict=True)]

    def backward(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Turn gradients of the heads, [B, T', C] each, into those of the parameters, summed in the parts' order."""
        cut = [
            [gradient[rows, :frames] for gradient in gradients]
            for rows, frames in zip(self.parts, self.frames, strict=True)
        ]
        for other, part in zip(self.others, cut[1:], strict=True):
            other.send_backward(part)
        sums = list(parameter_gradients(self.own, self.processes.parameters, cut[0]))
        for other in self.others:
            for number, gradient in enumerate(to_tensors(other.receive())):
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


class RowWorker:
    """Another process that computes rows, as this process handles it."""

    def __init__(
        self, forward: TrainingForward, parameters: Sequence[nn.Parameter], first_task: Callable[[], Any] | None
    ) -> None:
        self.parameters = parameters
        self.versions: list[int] | None = None
        """Versions of the parameters whose values the process has."""
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            name=PROCESS_NAME,
            target=run_worker,
            args=(theirs, self.pipe, forward, parameters, first_task),
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def send_forward(
        self, waveforms: Tensor, lengths: Tensor, training: bool, base_alone: bool, seed: int, learning: bool
    ) -> None:
        """Send waveforms [b, S], lengths [b] and, where they have changed, the trained parameters."""
        versions = [parameter._version for parameter in self.parameters]
        changed = None
        if versions != self.versions:
            changed = [parameter.detach().numpy() for parameter in self.parameters]
            self.versions = versions
        self.send(ForwardOrder(waveforms.numpy(), lengths.numpy(), changed, training, base_alone, seed, learning))

    def send_backward(self, gradients: Sequence[Tensor]) -> None:
        """Send the gradients of the heads, [b, T', C] each."""
        self.send(BackwardOrder([gradient.numpy() for gradient in gradients]))

    def send(self, order: ForwardOrder | BackwardOrder) -> None:
        try:
            self.pipe.send(order)
        except OSError:
            raise self.make_error() from None

    def receive(self) -> Any:
        """Return the process's answer. Raises what was raised there, and DataError where it has ended."""
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise self.make_error() from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def make_error(self) -> DataError:
        """Make the error of a process that has ended: a DataError, after which the last adapter is written."""
        self.process.join(timeout=1.0)
        return DataError(
            f"A process that computes rows of the batch has ended (exit code {self.process.exitcode}); the system ends "
            "processes where memory runs out. Train in one process, with compute_processes=1, or with a smaller "
            "model.train_ds.batch_size."
        )

    def end(self) -> None:
        """Let the process end: no order follows."""
        with suppress(OSError):
            self.pipe.send(None)
        self.pipe.close()


def run_worker(
    pipe: Connection,
    theirs: Connection,
    compute: TrainingForward,
    parameters: Sequence[nn.Parameter],
    first_task: Callable[[], Any] | None,
) -> None:
    """Carry out orders in a process of its own, until None comes or the first process has ended."""
    theirs.close()
    end_with_first_process()
    for number in (signal.SIGINT, signal.SIGTERM):  # whole groups get them; the first process decides when to end
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # the threads of the process that was copied are not here
    gc.freeze()
    heads: list[Tensor] = []

    def carry_out(order: ForwardOrder | BackwardOrder) -> Any:
        nonlocal heads
        if isinstance(order, ForwardOrder):
            heads, counts = run_forward(order, compute, parameters)
            return [head.detach().numpy() for head in heads], counts.numpy()
        found = parameter_gradients(heads, parameters, to_tensors(order.gradients))
        heads = []
        return [gradient.numpy() for gradient in found]

    with suppress(EOFError, OSError):
        if first_task is not None:
            pipe.send(result_or_error(first_task))
        while (order := pipe.recv()) is not None:
            pipe.send(result_or_error(carry_out, order))
    os._exit(0)


def end_with_first_process() -> None:
    """Ask Linux to kill this process when the one that made it has ended, however that came."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    first = multiprocessing.parent_process()
    if first is not None and os.getppid() != first.pid:  # it has ended before the request was made
        os._exit(0)


def result_or_error(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the function's result, or its error as one that can cross to another process."""
    try:
        return function(*arguments)
    except OvertoneError as error:
        return error
    except Exception as error:
        return RuntimeError(f"{type(error).__name__}: {error}")


def run_forward(
    order: ForwardOrder, compute: TrainingForward, parameters: Sequence[nn.Parameter]
) -> tuple[list[Tensor], Tensor]:
    """Compute the emissions [b, T', C] of an order's rows, and their lengths [b]."""
    model = compute.model
    if model.training != order.training:
        model.train(order.training)
    if order.parameters is not None:
        with torch.no_grad():
            for parameter, values in zip(parameters, order.parameters, strict=True):
                parameter.copy_(torch.from_numpy(values))
    torch.manual_seed(order.seed)
    with torch.set_grad_enabled(order.learning):
        heads, counts, _ = compute(
            torch.from_numpy(order.waveforms), torch.from_numpy(order.lengths), base_alone=order.base_alone
        )
    return heads, counts


def parameter_gradients(
    heads: Sequence[Tensor], parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradients of the parameters, each of its parameter's shape; heads that none reaches are left out.

    heads, gradients: [b, T', C] each.
    """
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


def to_tensors(arrays: Any) -> Any:
    """Turn arrays in lists and tuples into tensors in the same places."""
    if isinstance(arrays, list | tuple):
        return type(arrays)(to_tensors(array) for array in arrays)
    return torch.from_numpy(arrays)
