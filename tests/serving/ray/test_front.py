"""A front: its part of the quotas, the replicas that it starts, and its log."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import AsyncMock, MagicMock

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("ray", reason="the ray extra is not installed")


from overtone.errors import UsageError
from overtone.serving.ray import front
from overtone.serving.ray.cluster import APPLICATION, ReplicaPlan
from overtone.serving.ray.front import Sharing
from overtone.serving.ray.messages import Fronts
from overtone.serving.ray.replica import FORGOTTEN_SECONDS, Replica
from overtone.serving.server import Server
from overtone.serving.settings import BaseSettings, ServerSettings


def test_fronts_have_equal_parts_of_quotas_and_one_that_is_silent_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    there = SimpleNamespace(fronts={}, began=now - FORGOTTEN_SECONDS)

    class Asked:
        async def meet(self, front: str, seconds: float) -> Fronts:
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


def test_a_new_replica_lowers_the_part_of_a_front_and_does_not_raise_it() -> None:
    """It has not met all fronts yet."""

    async def counts() -> list[int]:
        server, replicas = MagicMock(), MagicMock()
        heard = [(2, True), (1, False), (3, False), (2, False), (0, False), (1, True)]
        replicas.meet = AsyncMock(side_effect=[Fronts(count=count, settled=settled) for count, settled in heard])
        sharing = Sharing(server, [replicas])
        for _ in heard:
            await sharing.meet()
        return [call.args[0] for call in server.share.call_args_list]

    assert asyncio.run(counts()) == [2, 3, 1]


def test_a_replica_says_while_it_is_new() -> None:
    there = SimpleNamespace(fronts={}, began=time.monotonic())
    assert not asyncio.run(Replica.meet(there, "one")).settled  # type: ignore[arg-type]
    there.began -= FORGOTTEN_SECONDS
    assert asyncio.run(Replica.meet(there, "one")) == Fronts(count=1, settled=True)  # type: ignore[arg-type]


def test_a_front_goes_on_to_meet_the_replicas_after_an_error_until_its_server_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(front, "MEETING_SECONDS", 0.0)

    async def meet() -> bool:
        again, server, replicas = asyncio.Event(), MagicMock(), MagicMock()

        async def answer(name: str, seconds: float) -> Fronts:
            if not caplog.records:
                raise TypeError("of another version")
            again.set()
            return Fronts(count=1, settled=True)

        replicas.meet = answer
        server.background = [asyncio.create_task(Sharing(server, [replicas]).go_on())]
        await asyncio.wait_for(again.wait(), 60)
        server.served = []
        Server.end_background(server)
        await asyncio.wait(server.background, timeout=60)
        return server.background[0].cancelled()

    assert asyncio.run(meet())
    assert "of another version" in caplog.text


def test_a_front_keeps_its_part_while_no_replica_answers() -> None:
    async def meet() -> MagicMock:
        server, replicas = MagicMock(), MagicMock()
        replicas.meet = AsyncMock(side_effect=[Fronts(count=3, settled=True), Fronts(count=0, settled=False)])
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


def test_the_log_of_serve_is_as_before_once_a_front_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "cluster", lambda address: nullcontext())
    monkeypatch.setattr(front, "deployed", lambda plan: nullcontext())
    monkeypatch.setattr(front, "run_front", AsyncMock(side_effect=UsageError("no port")))
    monkeypatch.setattr(front.SERVE_LOG, "level", logging.INFO)
    with pytest.raises(UsageError, match="no port"):
        front.serve_on_cluster(ReplicaPlan(settings=ServerSettings()))
    assert front.SERVE_LOG.level == logging.INFO
