"""A front whose client or whose replicas fail it: what is ended where nobody waits any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("ray", reason="the ray extra is not installed")

from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.handle import DeploymentResponseGenerator

from overtone.errors import UsageError
from overtone.serving.errors import DeadlineError, WorkerError
from overtone.serving.ray import known, remote
from overtone.serving.ray.known import DIRECT_BYTES, KnownReplicas
from overtone.serving.ray.messages import FAILED, Fronts, Opened, failure_of
from overtone.serving.ray.remote import Replicas, StreamElsewhere
from overtone.serving.ray.router import AffinityRouter
from overtone.serving.recognition.request import RecognitionRequest
from overtone.serving.streaming.stream import StreamSettings


class Silence:
    """Answers of a replica that never come."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.cancelled = False

    async def __anext__(self) -> Any:
        self.asked.set()
        await asyncio.Event().wait()

    def cancel(self) -> None:
        self.cancelled = True


def test_a_client_that_leaves_while_its_stream_opens_leaves_none_at_the_replica() -> None:
    async def leave() -> Silence:
        answers, handle = Silence(), MagicMock()
        handle.options.return_value.stream.remote.return_value = answers
        replicas = Replicas(handle, application="application", deployment="deployment")
        call = MagicMock(adapter="", tenant="", audio_seconds=0.0)
        opening = asyncio.create_task(replicas.open_stream(RecognitionRequest(), call, StreamSettings()))
        await asyncio.wait_for(answers.asked.wait(), 60)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        return answers

    assert asyncio.run(leave()).cancelled


class Bad:
    """A call whose answer is an error of Ray or of its gRPC."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __await__(self) -> Any:
        raise self.error
        yield

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize(
    ("samples", "serialization"), [(10, "pickle"), (DIRECT_BYTES, "")], ids=["in the call", "by reference"]
)
@pytest.mark.parametrize(
    "error",
    [
        ActorUnavailableError("gone", None),
        RuntimeError("Unexpected error (StatusCode.UNAVAILABLE): Socket closed."),
        AioRpcError(StatusCode.CANCELLED, Metadata(), Metadata()),
        asyncio.CancelledError(),
    ],
)
def test_a_recording_whose_call_fails_goes_to_another_replica(
    monkeypatch: pytest.MonkeyPatch, samples: int, serialization: str, error: BaseException
) -> None:
    """A replica that ends with its calls cancels them: that is no word of the client."""
    monkeypatch.setattr(remote, "REST", 0.0)

    async def recognise() -> tuple[Any, int]:
        calls = {"pickle": MagicMock(), "": MagicMock()}
        handle = MagicMock()
        handle.options.side_effect = lambda **options: calls[options.get("request_serialization", "")]
        right: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        right.set_result("the text")
        calls[serialization].remote.side_effect = [Bad(error), right]
        replicas = Replicas(handle, application="application", deployment="deployment")
        audio = np.zeros(samples, dtype=np.float32)
        call = MagicMock(adapters=(), tenant="", rank=0, audio_seconds=0.0)
        return await replicas.recognise(audio, RecognitionRequest(), call, deadline=None), replicas.retries  # type: ignore[return-value]

    assert asyncio.run(recognise()) == ("the text", 1)


def test_a_fault_of_a_replica_arrives_as_a_word_and_stays_in_its_log(caplog: pytest.LogCaptureFixture) -> None:
    error = failure_of(ZeroDivisionError("of the model")).error()
    assert (type(error), str(error)) == (WorkerError, FAILED)
    assert "of the model" in caplog.text


CALL = MagicMock(adapter="", adapters=(), tenant="", rank=0, audio_seconds=0.0)
AUDIO = np.zeros(10, dtype=np.float32)


async def never(*arguments: Any) -> Any:
    """An answer that does not come."""
    await asyncio.Event().wait()


def raising(error: BaseException) -> Callable[..., Awaitable[Any]]:
    """A call whose answer is an error."""

    async def call(*arguments: Any) -> Any:
        raise error

    return call


def replicas_of(handle: Any) -> Replicas:
    """Replicas behind a handle; needs an event loop."""
    return Replicas(handle, application="application", deployment="deployment")


class Unanswered:
    """A call or its parts, whose answer does not come until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    def __await__(self) -> Any:
        return never().__await__()

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        await never()

    def cancel(self) -> None:
        self.cancelled = True


def handle_of(answers: Any) -> Any:
    """Serve's handle of replicas, each of whose calls has these answers."""
    handle = MagicMock()
    handle.options.return_value = handle
    for method in (handle, handle.recognise_in_parts, handle.stream):
        method.remote.side_effect = lambda *arguments: answers()
    return handle


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_front_waits_for_a_replica_until_the_deadline(in_parts: bool) -> None:
    async def wait() -> Unanswered:
        answers = Unanswered()
        replicas = replicas_of(handle_of(lambda: answers))
        asked: Any = (AUDIO, RecognitionRequest(), CALL)
        deadline = time.monotonic() + 0.01
        parts = replicas.recognise_in_parts(*asked, deadline=deadline)
        with pytest.raises(DeadlineError, match="before a replica had answered"):
            await (anext(parts) if in_parts else replicas.recognise(*asked, deadline=deadline))
        return answers

    assert asyncio.run(asyncio.wait_for(wait(), 60)).cancelled


class Vanished:
    """A replica whose node has vanished: calls of gRPC hear nothing, and Ray says that it is dead."""

    def __init__(self, word: Callable[..., Awaitable[Any]] | None = None) -> None:
        self.replica_id = SimpleNamespace(unique_id="vanished")
        self.word = word or raising(ActorDiedError())

    def try_send_request(self, request: Any, *, with_rejection: bool) -> Any:
        return SimpleNamespace(get_async=self.word if request.metadata._by_reference else never)


@dataclass
class Description:
    """Serve's description of a request."""

    request_id: str = ""
    internal_request_id: str = ""
    call_method: str = ""
    is_streaming: bool = False
    _by_reference: bool = False
    request_serialization: str = ""
    response_serialization: str = ""


def test_a_recording_goes_to_another_replica_once_ray_says_that_its_own_is_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "REST", 0.0)
    monkeypatch.setattr(known, "WATCH_SECONDS", 0.0)

    async def recognise() -> tuple[Any, bool]:
        lost, replica = Unanswered(), Vanished()
        right: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        right.set_result("the text")
        handle = handle_of(None)
        replicas = replicas_of(handle)
        replicas.known.metadata = Description()
        replicas.known.running = {"vanished": replica}
        sends = iter([lost, right])

        def send(job: Any, samples: Any) -> Any:
            """Serve sends it to the replica that is gone, and then to another one."""
            replicas.known.note_sending(SimpleNamespace(args=[job, samples]), replica)
            replicas.known.running = {}
            return next(sends)

        handle.remote.side_effect = send
        return await replicas.recognise(AUDIO, RecognitionRequest(), CALL, deadline=None), lost.cancelled

    assert asyncio.run(asyncio.wait_for(recognise(), 60)) == ("the text", True)


def test_a_stream_ends_once_ray_says_that_its_replica_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "WATCH_SECONDS", 0.0)
    there = KnownReplicas(metadata=Description())
    opened = Opened(replica="vanished", stream=1, keeps_words=True)
    stream = StreamElsewhere(known=there, replica=Vanished(), opened=opened, answers=MagicMock())
    with pytest.raises(WorkerError, match="open the stream again"):
        asyncio.run(asyncio.wait_for(stream.push(AUDIO), 60))


@pytest.mark.parametrize("word", [AsyncMock(return_value=1), never], ids=["drains", "says nothing"])
def test_a_replica_that_has_left_the_running_ones_is_not_dead_for_that(
    monkeypatch: pytest.MonkeyPatch, word: Any
) -> None:
    monkeypatch.setattr(known, "WATCH_SECONDS", 0.01)
    there = KnownReplicas(metadata=Description())
    assert not asyncio.run(asyncio.wait_for(there.is_dead(Vanished(word)), 60))


def test_the_router_notes_where_a_recording_goes() -> None:
    there, sent = KnownReplicas(), MagicMock()
    router = SimpleNamespace(known=there)
    with there.way_of("a job") as way:
        AffinityRouter.send(router, "r1", sent, SimpleNamespace(args=["a job"]), with_rejection=True)  # type: ignore[arg-type]
        assert way.replica == "r1"
    sent.assert_called_once()
    assert there.ways == {}


def asked(**calls: Callable[..., Awaitable[Any]]) -> Replicas:
    """Running replicas that answer so; needs an event loop."""
    replicas = replicas_of(MagicMock())
    replicas.known.running = calls
    replicas.known.call = lambda replica, *arguments: replica(*arguments)  # type: ignore[method-assign]
    return replicas


def test_a_mute_replica_and_one_that_is_gone_stop_no_meeting_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def meet() -> Fronts:
        talking = AsyncMock(return_value=Fronts(count=2, settled=True))
        gone = raising(ActorUnavailableError("its node is lost", None))
        return await asked(mute=never, talking=talking, gone=gone).meet("front", 0.01)

    assert asyncio.run(asyncio.wait_for(meet(), 60)) == Fronts(count=2, settled=True)
    assert "mute does not answer 'meet': TimeoutError" in caplog.text
    assert "its node is lost" in caplog.text


@pytest.mark.parametrize(
    ("error", "raised"),
    [(TypeError("of our own code"), TypeError), (ActorUnavailableError("gone", None), WorkerError)],
)
def test_the_administration_says_where_no_replica_did_what_it_asked_for(
    error: Exception, raised: type[Exception]
) -> None:
    async def load() -> None:
        await asked(one=raising(error), other=raising(error)).change_adapters("load", "medical")

    with pytest.raises(raised, match=r"of our own code|None of the 2 replicas"):
        asyncio.run(load())


@pytest.mark.parametrize("turns", range(4))
def test_a_client_that_leaves_in_the_turn_in_which_its_stream_is_sent_leaves_none_at_the_replica(turns: int) -> None:
    async def leave() -> bool:
        room, sent = asyncio.Event(), Unanswered()

        async def assign() -> Unanswered:
            await room.wait()
            return sent

        def answers() -> Any:
            request = SimpleNamespace(request_id="1")
            assigning = asyncio.create_task(assign())
            return DeploymentResponseGenerator(assigning, request, _is_router_running_in_separate_loop=False)

        replicas = replicas_of(handle_of(answers))
        opening = asyncio.create_task(replicas.open_stream(RecognitionRequest(), CALL, StreamSettings()))
        for _ in range(5):
            await asyncio.sleep(0)
        room.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        return sent.cancelled

    assert asyncio.run(leave()) or turns == 0  # it was not sent yet


def test_a_replica_that_ends_with_its_calls_ends_its_streams_with_a_word() -> None:
    there = SimpleNamespace(call=raising(asyncio.CancelledError()))
    opened = Opened(replica="r1", stream=1, keeps_words=True)
    stream = StreamElsewhere(known=there, replica=None, opened=opened, answers=MagicMock())  # type: ignore[arg-type]
    for asking in (stream.push, lambda samples: stream.finish()):
        with pytest.raises(WorkerError, match="open the stream again"):
            asyncio.run(asking(AUDIO))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "tries", "message"),
    [
        (asyncio.CancelledError(), remote.TRIES, "has gone"),
        (ActorDiedError(), remote.TRIES, "has gone"),
        (TypeError("unpicklable"), 1, FAILED),
        (AioRpcError(StatusCode.RESOURCE_EXHAUSTED, Metadata(), Metadata(), "unpicklable"), 1, FAILED),
    ],
)
@pytest.mark.parametrize("kind", ["recording", "parts", "stream"])
def test_what_says_that_a_replica_is_gone_is_tried_again_and_all_else_is_logged(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    error: BaseException,
    tries: int,
    message: str,
) -> None:
    """No rest follows the last try."""
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    class Failing(Unanswered):
        __anext__ = staticmethod(raising(error))

        def __await__(self) -> Any:
            return raising(error)().__await__()

    async def ask() -> int:
        handle = handle_of(Failing)
        replicas = replicas_of(handle)
        monkeypatch.setattr(remote.asyncio, "sleep", rest)  # type: ignore[attr-defined]
        request = RecognitionRequest()
        asking, method = {
            "recording": (lambda: replicas.recognise(AUDIO, request, CALL, deadline=None), handle),
            "parts": (
                lambda: anext(replicas.recognise_in_parts(AUDIO, request, CALL, deadline=None)),
                handle.recognise_in_parts,
            ),
            "stream": (lambda: replicas.open_stream(request, CALL, StreamSettings()), handle.stream),
        }[kind]
        with pytest.raises(WorkerError, match=message):
            await asking()
        return int(method.remote.call_count)

    assert asyncio.run(ask()) == tries
    assert len(rests) == tries - 1
    assert tries > 1 or "unpicklable" in caplog.text


def test_a_version_of_ray_without_a_router_in_the_loop_of_the_front_is_said() -> None:
    async def begin() -> None:
        handle = MagicMock()
        handle._init.side_effect = TypeError("unexpected keyword argument")
        replicas_of(handle)

    with pytest.raises(UsageError, match=r"Ray .* has no router .* pip install"):
        asyncio.run(begin())
