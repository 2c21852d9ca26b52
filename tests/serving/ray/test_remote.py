"""A front whose client or whose replicas fail it: what is ended where nobody waits any more."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("ray", reason="the ray extra is not installed")

from ray.exceptions import ActorUnavailableError

from overtone.errors import UsageError
from overtone.serving.errors import WorkerError
from overtone.serving.ray import front, remote
from overtone.serving.ray.cluster import APPLICATION, ReplicaPlan
from overtone.serving.ray.front import Sharing
from overtone.serving.ray.known import DIRECT_BYTES
from overtone.serving.ray.messages import FAILED, failure_of
from overtone.serving.ray.remote import Replicas
from overtone.serving.ray.replica import FORGOTTEN_SECONDS, Replica
from overtone.serving.recognition.request import RecognitionRequest
from overtone.serving.settings import BaseSettings, ServerSettings
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
    "error", [ActorUnavailableError("gone", None), RuntimeError("of gRPC"), asyncio.CancelledError()]
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


def test_fronts_have_equal_parts_of_quotas_and_one_that_is_silent_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    there = SimpleNamespace(fronts={})

    class Asked:
        async def meet(self, front: str) -> int:
            return await Replica.meet(there, front)  # type: ignore[arg-type]

    async def counts() -> list[int]:
        nonlocal now
        servers = [MagicMock(), MagicMock()]
        one, other = (Sharing(server, [Asked()]) for server in servers)  # type: ignore[list-item]
        await one.meet()
        await other.meet()
        await one.meet()
        now += FORGOTTEN_SECONDS
        await one.meet()
        return [[call.args[0] for call in server.share.call_args_list] for server in servers]  # type: ignore[return-value]

    assert asyncio.run(counts()) == [[2, 1], [2]]


def test_a_front_keeps_its_part_while_no_replica_answers() -> None:
    async def meet() -> MagicMock:
        server, replicas = MagicMock(), MagicMock()
        replicas.meet = AsyncMock(side_effect=[3, 0])
        sharing = Sharing(server, [replicas])
        await sharing.meet()
        await sharing.meet()
        return server

    asyncio.run(meet()).share.assert_called_once_with(3)


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (RuntimeError("no room"), UsageError)]
)
def test_replicas_that_do_not_start_are_taken_away(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type[BaseException]
) -> None:
    serve = MagicMock()
    serve.status.return_value.applications = {}
    serve.run.side_effect = error
    monkeypatch.setattr(front, "serve", serve)
    with pytest.raises(raised), front.deployed(ReplicaPlan(settings=ServerSettings())):
        pass
    serve.delete.assert_called_once_with(APPLICATION)


def test_where_a_new_base_does_not_start_none_that_runs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    serve, handle = MagicMock(), MagicMock()
    serve.status.return_value.applications = {f"{APPLICATION}-old": MagicMock(status="RUNNING")}
    serve.run.side_effect = RuntimeError("no room")
    monkeypatch.setattr(front, "serve", serve)
    monkeypatch.setattr(front, "engine_handle", handle)
    bases = (BaseSettings(model="", base="new"),)
    with (
        pytest.raises(UsageError, match="no room"),
        front.deployed(ReplicaPlan(settings=ServerSettings(base="old", more=bases))),
    ):
        pass
    assert [call.kwargs["name"] for call in serve.run.call_args_list] == [f"{APPLICATION}-new"]
    serve.delete.assert_called_once_with(f"{APPLICATION}-new")
