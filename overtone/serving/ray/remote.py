"""Recognition on the replicas of a base: what a front asks in place of an engine of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from overtone.errors import UsageError
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.engine.engine import Samples
from overtone.serving.engine.stats import EngineState, add_states
from overtone.serving.errors import DeadlineError, DrainingError, OverloadError, WorkerError
from overtone.serving.ray.known import DIRECT, HAS_DIRECT, KnownReplicas, Way, is_direct, known_replicas
from overtone.serving.ray.messages import FAILED, Failure, Fronts, Job, Opened, ReplicaState
from overtone.serving.recognition.offline import Recognition
from overtone.serving.recognition.request import Call, RecognitionRequest
from overtone.serving.riva.errors import LOST_CODES, is_lost
from overtone.serving.streaming.stream import Event, StreamSettings

LOG = logging.getLogger("overtone.serving.ray")
TRIES = 4
"""Times that a whole recording is sent to a replica, where replicas die of something."""
REST = 0.2
"""Seconds before the second try; each later one waits twice as long as the one before."""
GONE = "The replica that computed this has gone; {then}."
GONE_TEXTS = tuple(f"Unexpected error ({code})" for code in LOST_CODES)
"""Beginnings of Serve's RuntimeError where a replica has gone before it accepted a call."""
CHANGE_SECONDS = 120.0
"""Time that a replica has for a work of the administration, such as to fetch and load an adapter."""


class Replicas:
    """Replicas of one base, behind one handle of Serve. Belongs to one event loop."""

    def __init__(self, handle: DeploymentHandle[Any], *, application: str, deployment: str) -> None:
        """handle: one that has called nothing yet. Its router is put into the event loop that runs now.

        Raises UsageError for a version of Ray that cannot do this.
        """
        try:
            handle._init(_run_router_in_separate_loop=False)  # each hop to a thread and back costs a request
        except (AttributeError, TypeError, ValueError) as error:
            raise UsageError(
                f"Ray {ray.__version__} has no router in a front's own event loop ({error}); install one that "
                "has: pip install 'ray[serve]==2.60.0'"
            ) from error
        self.handle = handle
        self.by_reference = handle.options(method_name="recognise")
        self.direct = handle.options(method_name="recognise", **DIRECT) if HAS_DIRECT else self.by_reference
        self.known: KnownReplicas = known_replicas(application, deployment)
        self.store: AdapterStore | None = None
        """The front's own look at the folder of adapters: its digests go with each request."""
        self.retries = 0
        """Requests that were sent again since their replica was gone."""

    async def describe(self) -> AsrModel:
        """The base without its weights, from any replica."""
        found: AsrModel = await self.handle.describe.remote()
        return found

    # Recordings

    async def recognise(
        self, samples: Samples, request: RecognitionRequest, call: Call, *, deadline: float | None
    ) -> Recognition:
        """Recognise a recording [S]; one whose replica dies is recognised by another one.

        Raises WorkerError where all of them died, and the errors of `RecognitionService.recognise`.
        """
        for attempt in range(TRIES):
            handle = self.direct if is_direct(samples) else self.by_reference
            job = self.job(request, call, deadline)
            with self.known.way_of(job) as way:
                response = handle.remote(job, samples)
                try:
                    async with self.known.watched(way, deadline):
                        answer = await response
                except BaseException as error:  # a replica answers its own as values
                    end_call(response)
                    await self.rest(attempt, error, deadline)
                    continue
            recognition: Recognition = result_of(answer)
            return recognition
        raise WorkerError(GONE.format(then=f"it was tried {TRIES} times"))

    async def recognise_in_parts(
        self, samples: Samples, request: RecognitionRequest, call: Call, *, deadline: float | None
    ) -> AsyncGenerator[Recognition]:
        """Recognise a recording [S] with its transcript after each window.

        One whose replica dies is begun anew elsewhere: what was told before is not told again. Raises WorkerError, and
        other errors of `RecognitionService.recognise`.
        """
        told = 0
        for attempt in range(TRIES):
            parts = self.handle.options(stream=True).recognise_in_parts.remote(
                self.job(request, call, deadline), samples
            )
            count = 0
            async with aclosing(cancelled_at_end(parts)) as found:
                while True:
                    try:
                        async with self.known.watched(Way(), deadline):
                            part = await anext(found, None)
                    except BaseException as error:
                        await self.rest(attempt, error, deadline)
                        break
                    if part is None:
                        return
                    count += 1
                    recognition = result_of(part)
                    if count > told:
                        told = count
                        yield recognition
        raise WorkerError(GONE.format(then=f"it was tried {TRIES} times"))

    async def rest(self, attempt: int, error: BaseException, deadline: float | None) -> None:
        """Wait before the next try, if there is one.

        Raises DeadlineError, OverloadError or DrainingError where none makes sense, WorkerError for an error that does
        not say that a replica is gone, and the error itself where the running task has been cancelled.
        """
        if is_cancelled() or isinstance(error, DeadlineError):
            raise error
        if isinstance(error, BackPressureError):
            raise OverloadError("Every replica has as much to do as it may have; try again later.") from None
        if isinstance(error, DeploymentUnavailableError):
            raise DrainingError("There is no replica for this model; ask again later.") from None
        check_gone(error)
        if attempt + 1 == TRIES:
            return
        pause = REST * 2**attempt
        if deadline is not None and time.monotonic() + pause >= deadline:
            raise DeadlineError("The deadline passed while another replica was looked for.") from None
        self.retries += 1
        await asyncio.sleep(pause)

    def job(self, request: RecognitionRequest, call: Call, deadline: float | None) -> Job:
        """The request for a replica."""
        return Job(
            request=request,
            adapters=call.adapters,
            digests=tuple(self.digest(name) for name in call.adapters),
            tenant=call.tenant,
            rank=call.rank,
            audio_seconds=call.audio_seconds,
            seconds_left=None if deadline is None else deadline - time.monotonic(),
        )

    def digest(self, name: str) -> str:
        """Digest of an adapter as the front knows it. Raises AdapterError for one that has gone."""
        assert self.store is not None
        return self.store.entry(name).digest

    # Streams

    async def open_stream(self, request: RecognitionRequest, call: Call, settings: StreamSettings) -> StreamElsewhere:
        """Open a stream at the replica that suits its adapters, where it stays.

        Raises WorkerError, and the errors of `open_stream` in a server.
        """
        for attempt in range(TRIES):
            answers = self.handle.options(stream=True).stream.remote(self.job(request, call, None), settings)
            try:
                opened = await anext(answers)
            except BaseException as error:
                end_call(answers)  # the replica would keep the stream of a client that has left for good
                await self.rest(attempt, error, None)
                continue
            if isinstance(opened, Failure):
                raise opened.error()
            replica = self.known.running.get(opened.replica)
            if replica is not None:
                return StreamElsewhere(known=self.known, replica=replica, opened=opened, answers=answers)
            end_call(answers)  # it has begun to drain in this moment
        raise WorkerError(GONE.format(then="open the stream again"))

    # All replicas

    async def change_adapters(self, work: str, name: str) -> None:
        """Tell every replica to `load` or `unload` an adapter or to `scan`.

        Raises what one of them answers, and WorkerError where replicas run but none answers. One that is gone reads the
        folder anew when it comes back.
        """
        running = len(self.known.running)
        answers = await self.ask_all(CHANGE_SECONDS, "change_adapters", work, name)
        if running and not answers:
            raise WorkerError(f"None of the {running} replicas of this model answered; try again later.")
        for answer in answers:
            result_of(answer)

    async def meet(self, front: str, seconds: float) -> Fronts:
        """Fronts that share quotas, as the replicas know them that answer in time; a front tells them that it is there.

        The count is 0 where no replica answers.
        """
        answers: list[Fronts] = await self.ask_all(seconds, "meet", front)
        return Fronts(
            count=max((answer.count for answer in answers), default=0),
            settled=any(answer.settled for answer in answers),
        )

    async def ask_all(self, seconds: float, method: str, *arguments: Any) -> list[Any]:
        """Answers of all replicas; one that is gone, or silent for so many seconds, gives none, and is logged."""
        replicas = dict(self.known.running)
        calls = [
            asyncio.wait_for(self.known.call(replica, method, *arguments), seconds) for replica in replicas.values()
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found = []
        for name, answer in zip(replicas, answers, strict=True):
            if not isinstance(answer, BaseException):
                found.append(answer)
            elif isinstance(answer, TimeoutError) or is_gone(answer):
                LOG.warning("replica %s does not answer '%s': %s", name, method, text_of(answer))
            else:
                raise answer
        return found

    def states(self) -> Mapping[str, tuple[EngineState, Mapping[str, float]]]:
        """Engine and adapter store of each replica that has told of them."""
        return {name: (state.engine, state.store) for name, state in self.known.states().items()}

    def state(self) -> EngineState:
        """State of all engines together: alive where one of them is."""
        return total_state(self.known.states().values(), running=len(self.known.running))


class StreamElsewhere:
    """A stream that one replica computes, as `streaming.stream.Stream`. A context manager; leaving it ends it there."""

    def __init__(self, *, known: KnownReplicas, replica: Any, opened: Opened, answers: Any) -> None:
        """answers: Serve's call that keeps the stream open."""
        self.known = known
        self.replica = replica
        self.number = opened.stream
        self.keeps_words = opened.keeps_words
        self.answers = answers

    async def push(self, samples: Samples, *, force_eou: bool = False) -> list[Event]:
        """Recognise more samples [S]. Raises WorkerError where the replica is gone."""
        return await self.ask("push", self.number, samples, force_eou)

    async def finish(self) -> list[Event]:
        """Recognise the rest. Raises WorkerError where the replica is gone."""
        return await self.ask("finish", self.number)

    async def ask(self, method: str, *arguments: Any) -> list[Event]:
        """Answer of the stream's replica. Raises its errors, and WorkerError where it is gone."""
        try:
            answer = await self.known.call(self.replica, method, *arguments)
        except BaseException as error:  # of Ray or its gRPC: a replica answers its own as values
            if is_cancelled():
                raise
            check_gone(error)
            raise WorkerError(GONE.format(then="open the stream again")) from None
        return list(result_of(answer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        end_call(self.answers)


def result_of(answer: Any) -> Any:
    """Answer of a replica. Raises the error that it is in place of one."""
    if isinstance(answer, Failure):
        raise answer.error()
    return answer


def is_cancelled() -> bool:
    """Tell whether the running task has been cancelled, by whoever waits for it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def cancelled_at_end(answers: Any) -> AsyncGenerator[Any]:
    """Answers of Serve's streaming call, which ends with this iteration."""
    try:
        async for answer in answers:
            yield answer
    finally:
        end_call(answers)


def end_call(call: Any) -> None:
    """End a call of Serve, also one that has been sent in this moment: Serve's `cancel` does not see it yet."""
    call.cancel()
    sent = vars(call).get("_replica_result_future")
    if sent is not None and sent.done() and not sent.cancelled() and sent.exception() is None:
        sent.result().cancel()


def is_gone(error: BaseException) -> bool:
    """Tell whether an error of a call says that its replica has gone.

    A replica that ends with its calls cancels them: a CancelledError says so, unless `is_cancelled`.
    """
    if isinstance(error, RayTaskError):  # it has the class of its cause as well
        return False
    if isinstance(error, RuntimeError):
        return str(error).startswith(GONE_TEXTS)
    return isinstance(error, RayError | asyncio.CancelledError) or is_lost(error)


def check_gone(error: BaseException) -> None:
    """Log an error of a call. Raises WorkerError for one that does not say that the replica has gone."""
    if is_gone(error):
        LOG.warning("a replica is gone: %s", text_of(error))
        return
    if not isinstance(error, Exception):
        raise error
    LOG.error("a call of a replica failed", exc_info=error)
    raise WorkerError(FAILED) from None


def text_of(error: BaseException) -> str:
    """Kind and text of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def total_state(states: Iterable[ReplicaState], *, running: int) -> EngineState:
    """State of all engines together: alive where one is, with the forward of the quickest one.

    running: replicas that take work, whether or not they have told of themselves.
    """
    found = [state.engine for state in states]
    silent = running > len(found)
    healthy = [state.running_seconds for state in found if state.alive]
    return replace(
        add_states(found),
        alive=silent or bool(healthy),
        draining=False,
        running_seconds=0.0 if silent else min(healthy, default=0.0),
    )
