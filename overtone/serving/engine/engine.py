"""Engine: waiting rows of any adapters -> batches -> emissions, by one worker thread.

A forward that fails is tried again row by row, so that one bad row fails alone. A worker that dies is started again,
and its rows are tried once more.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from overtone.audio.stream_features import RawFeatures
from overtone.backends.cast import cast_conformer
from overtone.decoding.decoder import Emissions, Scope
from overtone.inference.rows import RowThreads, use_threads
from overtone.models.asr_model import AsrModel
from overtone.nets.conformer import ConformerEncoder
from overtone.nets.encoder_cache import check_encoder
from overtone.serving.adapter_store.store import Lease
from overtone.serving.engine.forward import Answer, forward, is_number
from overtone.serving.engine.queue import (
    Group,
    Priority,
    Row,
    Samples,
    StepAnswer,
    StreamStep,
    WaitingRows,
    answer_row,
    refuse_row,
    strip,
    turn_of,
)
from overtone.serving.engine.stats import Counts, EngineSettings, EngineState
from overtone.serving.errors import NO_NUMBERS, DeadlineError, DrainingError, OverloadError, WorkerError

__all__ = ["Engine", "EngineSettings", "EngineState", "Group", "Priority", "Samples"]

STREAMS_LIVE = 5.0
"""Seconds after a stream's last row during which recordings make way for more of them."""
LONG = 0.1
"""Seconds of one thread's time from which on a batch is spread over the cores. For less, one thread is as quick, since
the other cores serve clients, compute features and decode results."""
TRIES = 2
"""Times that a row is given to a worker that dies of it."""


def running_mean(mean: float, value: float) -> float:
    """Update a running mean with a value; a mean of 0 is unknown and becomes the value."""
    return 0.9 * mean + 0.1 * value if mean else value


class Engine:
    """One model, one worker thread. `submit` never blocks. A context manager; leaving it closes it."""

    def __init__(self, model: AsrModel, settings: EngineSettings | None = None) -> None:
        """Put the model into evaluation mode and start the worker."""
        self.model = model.eval()
        self.settings = settings or EngineSettings()
        self.lock = threading.RLock()
        """Held for every change of `model.adapters`, by the adapter store too. Never held during a forward."""
        self.seconds_per_frame = model.seconds_per_frame
        self.sample_rate = model.sample_rate
        self._threads = RowThreads(model, self.settings.threads)
        self._changed = threading.Condition()
        """Guards all fields below."""
        self._waiting = WaitingRows()
        self._again: deque[Row] = deque()
        """Rows of a worker that died; each runs alone."""
        self._running: list[Row] = []
        self._running_since = 0.0
        self._draining = self._stopping = False
        self._counts = Counts()
        self._cost = 0.0
        """Seconds of a forward for a second of audio, a running mean; 0 until known."""
        self._effort = 0.0
        """The same, times the threads that computed; only the worker uses it."""
        self._stream_seen = float("-inf")
        self._worker: threading.Thread | None = None
        self.last_death: BaseException | None = None
        """Error that killed the last worker that died."""
        self._supervisor = threading.Thread(target=self._supervise, name="overtone-supervisor", daemon=True)
        self._supervisor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(
        self,
        waveform: Samples,
        *,
        lease: Lease | None = None,
        priority: Priority = "offline",
        deadline: float | None = None,
        group: Group = None,
        language: str | None = None,
    ) -> Future[Emissions]:
        """Queue waveform [S] float32 at the model's rate. The caller keeps the lease until the future is done.

        deadline: as `time.monotonic()`. group: takes turns with other groups (a tenant, say); the adapter names unless
        given; a Turn has a rank too. `future.cancel()` before its turn frees its place. Raises OverloadError or
        DrainingError at once; the future may raise DeadlineError or WorkerError.
        """
        seconds = waveform.size / self.sample_rate
        make = partial(Row, waveform=waveform, mel=None, priority=priority, deadline=deadline, language=language)
        return self._submit(make, seconds, lease, group)

    def submit_features(
        self,
        mel: npt.NDArray[np.float32],
        *,
        lease: Lease | None = None,
        priority: Priority = "stream",
        deadline: float | None = None,
        group: Group = None,
        language: str | None = None,
    ) -> Future[Emissions]:
        """Queue normalised features mel [F, T], like a waveform."""
        seconds = mel.shape[1] * self.model.preprocessor.seconds_per_frame
        make = partial(Row, waveform=None, mel=mel, priority=priority, deadline=deadline, language=language)
        return self._submit(make, seconds, lease, group)

    def submit_step(
        self,
        step: StreamStep,
        *,
        lease: Lease | None = None,
        deadline: float | None = None,
        group: Group = None,
        language: str | None = None,
    ) -> Future[StepAnswer]:
        """Queue a step of a stream with a state, like a waveform; the state is the caller's, and stays as it is."""
        seconds = step.mel.shape[1] * self.model.preprocessor.seconds_per_frame
        make = partial(Row, waveform=None, mel=None, step=step, priority="stream", deadline=deadline, language=language)
        return self._submit(make, seconds, lease, group)

    def decoding_scope(self, lease: Lease | None) -> Scope:
        """The adapters of a lease for decoders outside of the worker, where the model's head needs them there."""
        choice = None if lease is None else lease.choice
        if choice is None or not self.model.head.decodes_with_adapters:
            return nullcontext

        @contextmanager
        def scope() -> Iterator[None]:
            with ExitStack() as stack:
                with self.lock:
                    stack.enter_context(self.model.adapters.use(choice))
                yield

        return scope

    @cached_property
    def raw_features(self) -> RawFeatures:
        """Features before normalisation, for streams."""
        return RawFeatures(self.model.preprocessor, per_encoder_frame=self.model.encoder.subsampling_factor)

    @cached_property
    def step_weights(self) -> ConformerEncoder:
        """The encoder that computes steps of streams, in the model's dtype. Raises UsageError for one that cannot."""
        encoder, backend = check_encoder(self.model.encoder), self.model.backend
        return encoder if backend is None else cast_conformer(encoder, backend.dtype)

    def state(self) -> EngineState:
        with self._changed:
            return EngineState(
                alive=self._worker is not None and self._worker.is_alive(),
                draining=self._draining,
                waiting=self._waiting.count + len(self._again),
                running=len(self._running),
                running_seconds=time.monotonic() - self._running_since if self._running else 0.0,
                **vars(self._counts),
            )

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new and finish all waiting rows. Returns whether that was done in `timeout` seconds."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._stopping or not self._has_work(), timeout)

    def close(self) -> None:
        """Stop after the forward that runs now; waiting rows are answered with DrainingError."""
        with self._changed:
            self._draining = self._stopping = True
            left = [*self._again, *self._waiting.rows()]
            self._again.clear()
            self._waiting = WaitingRows()
            self._changed.notify_all()
        for row in left:
            refuse_row(row, DrainingError())
        if threading.current_thread() is not self._supervisor:
            self._supervisor.join()
        self._threads.close()

    # The queue

    def _submit(self, make: Callable[..., Row], seconds: float, lease: Lease | None, group: Group) -> Future[Any]:
        row = make(
            seconds=seconds,
            choice=None if lease is None else lease.choice,
            **turn_of(group, () if lease is None else lease.names)._asdict(),
            arrived=time.monotonic(),
        )
        with self._changed:
            if self._draining:
                raise DrainingError()
            if not self._has_room(row):
                self._counts.rejected += 1
                raise OverloadError(
                    f"The queue is full: {self._waiting.count} of {self.settings.max_queue} places are taken. "
                    "Try again a little later.",
                    retry_after=self._clearing_time(),
                )
            if row.priority == "stream":
                self._stream_seen = row.arrived
            self._waiting.add(row)
            self._changed.notify_all()
        row.future.add_done_callback(partial(self._forget, weakref.ref(row)))
        return row.future

    def _has_room(self, row: Row) -> bool:
        """Tell whether a row may wait: the last quarter is for streams, high ranks and groups of less than a batch."""
        waiting, most = self._waiting.count, self.settings.max_queue
        if waiting < most - most // 4:
            return True
        modest = self._waiting.count_of(row.turn) < self.settings.max_batch
        return waiting < most and (row.priority == "stream" or row.rank > 0 or modest)

    def _clearing_time(self) -> float:
        """Rough time until the queue is empty, 0.1 … 30 seconds."""
        return min(30.0, max(0.1, self._cost * sum(row.seconds for row in self._waiting.rows())))

    def _forget(self, reference: weakref.ref[Row], future: Future[Any]) -> None:
        """Take a cancelled row out of the queue. A future keeps its callbacks: the row itself would be a cycle."""
        if future.cancelled():
            with self._changed:
                if (row := reference()) is not None and self._waiting.discard(row):
                    self._counts.cancelled += 1
                    self._changed.notify_all()

    def _has_work(self) -> bool:
        return bool(self._running or self._again or self._waiting.count)

    # The worker

    def _supervise(self) -> None:
        """Start a worker again whenever it has died."""
        while not self._stopping:
            self._worker = threading.Thread(target=self._work, name="overtone-worker", daemon=True)
            self._worker.start()
            self._worker.join()
            if not self._stopping or self._running:
                self._recover()
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        """Compute in one thread as long as possible: each thread keeps a heap, kernels and helpers of its own."""
        use_threads(self._threads.count)
        while not self._live():
            self._recover()

    def _live(self) -> bool:
        """Compute until the end and return True, or False after an error that is no failure of a forward."""
        try:
            while (rows := self._next_rows()) is not None:
                self._run(rows)
                del rows  # freed before the next ones come
        except BaseException as error:
            strip(error)
            self.last_death = error
            return False
        return True

    def _recover(self) -> None:
        """Try the rows of a worker that died once more, each alone, or give them up."""
        with self._changed:
            lost, self._running = self._running, []
            self._counts.restarts += 1
            for row in lost:
                row.failures += 1
            self._again.extend(row for row in lost if row.failures < TRIES and not self._stopping)
        for row in lost:
            if row.failures >= TRIES or self._stopping:
                self._fail(row, WorkerError("The worker died of this request; it was started again."))

    def _next_rows(self) -> list[Row] | None:
        """Wait for the next batch, until it is full or has waited enough; None at the end."""
        while True:
            with self._changed:
                late = self._waiting.take_expired(time.monotonic())
                self._counts.expired += len(late)
                rows = self._take_rows()
                if rows is None and not late:
                    if self._stopping:
                        return None
                    self._changed.wait(self._pause())
                    continue
                # From here on a row is running, or was cancelled in time.
                rows = [row for row in rows or () if row.started or row.future.set_running_or_notify_cancel()]
                for row in rows:
                    row.started = True
                self._running, self._running_since = rows, time.monotonic()
                if not rows:
                    self._changed.notify_all()
            for row in late:
                refuse_row(row, DeadlineError("The deadline passed before it was the request's turn."))
            if rows:
                return rows

    def _take_rows(self) -> list[Row] | None:
        """Rows that should run now; None if there are none."""
        if self._stopping:
            return None
        if self._again:
            return [self._again.popleft()]
        if not self._waiting.count or (self._pause() or 0.0) > 0.0:
            return None
        now = time.monotonic()
        settings = self.settings
        makes_way = self._cost > 0.0 and now - self._stream_seen < STREAMS_LIVE
        return self._waiting.take(
            now,
            max_rows=settings.max_batch,
            max_seconds=settings.batch_seconds,
            max_recording_seconds=settings.stream_patience / self._cost if makes_way else math.inf,
        )

    def _pause(self) -> float | None:
        """Seconds until the batch runs as it is; None while nothing waits."""
        if not self._waiting.count:
            return None
        if self._draining or self._waiting.count >= self.settings.max_batch:
            return 0.0
        return max(0.0, self._waiting.oldest() + self.settings.max_wait - time.monotonic())

    def _run(self, rows: list[Row]) -> None:
        """Answer every row of a batch; after a failure try each alone."""
        try:
            answers = self._forward(rows)
        except Exception as error:
            strip(error)
            if len(rows) == 1:
                cause = f"{type(error).__name__}: {error}"
                self._fail(rows[0], WorkerError(f"The computation of this request failed: {cause}"), error)
            else:
                for row in rows:
                    self._run([row])
        else:
            for row, answer in zip(rows, answers, strict=True):
                if is_number(answer):
                    answer_row(row, answer)
                else:
                    self._fail(row, WorkerError(NO_NUMBERS))
        with self._changed:
            self._running = [row for row in self._running if not row.future.done()]
            self._changed.notify_all()

    def _forward(self, rows: Sequence[Row]) -> list[Answer]:
        padded_seconds = len(rows) * max(row.seconds for row in rows)
        is_long = self._effort * padded_seconds > LONG
        threads = self._threads.spread(is_long)
        began = time.monotonic()
        answers = forward(self.model, rows, self.lock, self._threads if is_long else None)
        seconds = time.monotonic() - began
        self._effort = running_mean(self._effort, threads * seconds / max(padded_seconds, 0.1))
        self._count(rows, padded_seconds, seconds)
        return answers

    def _count(self, rows: Sequence[Row], padded_seconds: float, seconds: float) -> None:
        with self._changed:
            counts = self._counts
            counts.rows += len(rows)
            counts.batches += 1
            counts.mixed_batches += len({row.choice for row in rows}) > 1
            counts.audio_seconds += sum(row.seconds for row in rows)
            counts.padded_seconds += padded_seconds
            counts.forward_seconds += seconds
            self._cost = running_mean(self._cost, seconds / max(padded_seconds, 0.1))

    def _fail(self, row: Row, error: WorkerError, cause: Exception | None = None) -> None:
        error.__cause__ = cause
        with self._changed:
            self._counts.failed += 1
        refuse_row(row, error)
