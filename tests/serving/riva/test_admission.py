"""The Riva interface before a token is good, and the places of tenants: nothing is read, held or taken away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")

from overtone.serving.auth.guard import Guard, Tenant, hash_token  # noqa: E402
from overtone.serving.riva import health, protobuf, server  # noqa: E402
from support.riva_service import METHODS, SETTINGS, Service, bearer, refusal, riva_service  # noqa: E402
from support.serving_models import until  # noqa: E402
from support.speaking_model import pcm16, spoken  # noqa: E402

Code = grpc.StatusCode
CALLS = 300
"""Calls without a token: more than the server has places."""


def guard_of(**tenants: dict[str, Any]) -> Guard:
    """Tokens are their tenants' names."""
    return Guard(
        tenants={hash_token(name): Tenant(name=name, adapters=None, **options) for name, options in tenants.items()}
    )


@contextmanager
def silent_streams(service: Service, count: int, token: str) -> Iterator[list[Any]]:
    """Streams that are open and send nothing."""
    ended = threading.Event()

    def silence() -> Iterator[Any]:
        ended.wait(60)
        yield from ()

    before = service.servicer.admitted
    streams = [service.stream(silence(), metadata=bearer(token)) for _ in range(count)]
    try:
        until(lambda: service.servicer.admitted == before + count, 60)
        yield streams
    finally:
        for stream in streams:
            stream.cancel()
        ended.set()
    until(lambda: service.servicer.admitted == before, 60)


def test_calls_without_a_token_end_before_their_first_message(tmp_path: Path) -> None:
    async def opened(port: int) -> list[Any]:
        """Codes of calls that are opened without a token and send nothing."""
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            paths = [f"/{protobuf.ASR_SERVICE}/{method}" for method in METHODS]
            calls = [channel.stream_stream(paths[index % len(paths)])(timeout=60) for index in range(CALLS)]
            return await asyncio.gather(*(call.code() for call in calls))

    settings = replace(SETTINGS, max_calls=2)
    with riva_service(tmp_path, adapters=(), settings=settings, guard=guard_of(anna={})) as service:
        assert set(asyncio.run(opened(service.port))) == {Code.UNAUTHENTICATED}
        assert service.text(pcm16(spoken("a")), metadata=bearer("anna")) == "a "


def test_no_message_is_read_without_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def noting(kind: Any) -> Any:
        own = reader(kind)

        def note(data: bytes) -> Any:
            read.append(len(data))
            return own(data)

        return note

    reader = server.reader
    monkeypatch.setattr(server, "reader", noting)
    audio = pcm16(spoken("a"))
    with riva_service(tmp_path, adapters=(), guard=guard_of(anna={})) as service:
        assert refusal(lambda: service.text(bytes(2**20)))[0] is Code.UNAUTHENTICATED
        assert refusal(service.models)[0] is Code.UNAUTHENTICATED
        assert read == []
        assert service.text(audio, metadata=bearer("anna")) == "a "
        assert len(read) == 1


def test_recordings_are_received_in_turn(tmp_path: Path) -> None:
    """A client whose recordings do not end holds its own places, and those behind them hold nothing."""
    from overtone.serving.riva.servicer import RECEIVING_OF_ONE

    async def unfinished(port: int, count: int, done: asyncio.Event) -> None:
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            open_call = channel.stream_stream(f"/{protobuf.ASR_SERVICE}/Recognize")
            calls = [open_call(timeout=60, metadata=bearer("anna")) for _ in range(count)]
            await done.wait()
            for call in calls:
                call.cancel()

    count = RECEIVING_OF_ONE + 5
    guard = guard_of(anna={}, bert={})
    with riva_service(tmp_path, adapters=(), guard=guard) as service:
        loop, done = asyncio.new_event_loop(), asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(unfinished(service.port, count, done),))
        thread.start()
        try:
            until(lambda: service.servicer.admitted == count, 60)
            until(lambda: service.servicer.receiving.waiting == 5, 60)
            assert service.text(pcm16(spoken("a")), metadata=bearer("bert")) == "a "
        finally:
            loop.call_soon_threadsafe(done.set)
            thread.join(60)
            loop.close()
        until(lambda: service.servicer.admitted == 0, 60)
        assert service.text(pcm16(spoken("a")), metadata=bearer("anna")) == "a "


def test_a_tenant_has_so_many_sessions_and_not_those_of_others(tmp_path: Path) -> None:
    audio = pcm16(spoken("a"))
    with riva_service(tmp_path, adapters=(), guard=guard_of(anna={"sessions": 2}, bert={})) as service:
        with silent_streams(service, 2, "anna"):
            code, details = refusal(lambda: service.text(audio, metadata=bearer("anna")))
            assert code is Code.RESOURCE_EXHAUSTED
            assert "'anna' has 2 calls and sessions open" in details
            assert service.text(audio, metadata=bearer("bert")) == "a "
        assert service.text(audio, metadata=bearer("anna")) == "a "


def test_a_request_is_charged_when_it_opens(tmp_path: Path) -> None:
    guard = guard_of(anna={"requests_per_minute": 2.0})
    with riva_service(tmp_path, adapters=(), guard=guard) as service, silent_streams(service, 2, "anna"):
        code, details = refusal(lambda: service.text(pcm16(spoken("a")), metadata=bearer("anna")))
        assert code is Code.RESOURCE_EXHAUSTED
        assert "used up" in details


@pytest.mark.parametrize("method", ["Recognize", "StreamingRecognize", "GetRivaSpeechRecognitionConfig"])
def test_silent_calls_end(tmp_path: Path, method: str) -> None:
    settings = replace(SETTINGS, message_seconds=0.2, opening_seconds=0.2)
    ended = threading.Event()

    def silence() -> Iterator[Any]:
        ended.wait(60)
        yield from ()

    with riva_service(tmp_path, adapters=(), settings=settings) as service:
        call = service.channel.stream_stream(f"/{protobuf.ASR_SERVICE}/{method}")
        code, _ = refusal(lambda: list(call(silence(), timeout=60)))
        ended.set()
        assert code is Code.DEADLINE_EXCEEDED


def test_health_answers_beside_silent_checks_and_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST_WAITING", 4)
    monkeypatch.setattr(health, "MOST_WATCHES", 2)
    monkeypatch.setattr(health, "MESSAGE_SECONDS", 60.0)

    async def silent_checks(port: int) -> set[Any]:
        """Codes of the checks that had to end: all but the last four."""
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            calls = [channel.stream_stream(f"/{protobuf.HEALTH_SERVICE}/Check")(timeout=60) for _ in range(20)]
            ended = asyncio.as_completed([call.code() for call in calls], timeout=60)
            return {await next(ended) for _ in range(16)}

    with riva_service(tmp_path, adapters=()) as service:
        assert asyncio.run(silent_checks(service.port)) == {Code.DEADLINE_EXCEEDED}
        watches = [service.health("Watch") for _ in range(2)]
        assert [next(watch).status for watch in watches] == [protobuf.SERVING] * 2
        assert refusal(lambda: next(service.health("Watch")))[0] is Code.RESOURCE_EXHAUSTED
        assert service.health("Check").status == protobuf.SERVING
        for watch in watches:
            watch.cancel()
