"""What the server asks of the C library's heap."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from overtone.serving import memory as freed_memory
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.memory import give_back_now_and_then, keep_freed_memory
from overtone.serving.server import Server, ServerSettings, run
from support.serving_models import noise, tiny_model

SCRIPT = """
import ctypes
import resource
import sys

from overtone.serving.memory import keep_freed_memory

if sys.argv[1] == "asked":
    assert keep_freed_memory(), "glibc refuses"
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
for turn in range(12):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [ctypes.c_void_p(library.malloc(30 << 20)) for _ in range(3)]
    for each in held:
        ctypes.memset(each, 1, 30 << 20)
    for each in held:
        library.free(each)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the kernel had to give to ten rounds of 90 MB."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=environment, check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_that_was_freed_is_used_again() -> None:
    assert faults("asked") < faults("not asked") / 10


def test_the_users_own_tuning_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()


SCATTERED = """
import ctypes
from pathlib import Path

from overtone.serving.memory import give_back, keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) >> 8

assert keep_freed_memory(), "glibc refuses"
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
before = resident()
held = [ctypes.c_void_p(library.malloc(1 << 20)) for _ in range(128)]
for each in held:
    ctypes.memset(each, 1, 1 << 20)
for each in held[::2]:
    library.free(each)
kept = resident()
give_back()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_is_kept_among_what_stays_can_be_given_back() -> None:
    """Of 128 MB every other one is freed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCATTERED], env=environment, check=True, capture_output=True, text=True
    )
    kept, left = map(int, done.stdout.split())
    assert kept > 100
    assert left < 90


def test_it_is_given_back_in_quiet_moments_after_work(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    states = iter(["idle", "busy", "busy", "worked", "worked", "worked", "waiting", "worked more", "end"])
    now = [""]
    known: dict[str, Any] = {
        "idle": (0, 0, 0), "busy": (1, 0, 0), "worked": (0, 0, 7), "waiting": (0, 2, 8), "worked more": (0, 0, 9),
    }  # fmt: skip

    def state() -> Any:
        now[0] = next(states)
        if now[0] == "end":
            raise EOFError
        return SimpleNamespace(**dict(zip(("running", "waiting", "batches"), known[now[0]], strict=True)))

    monkeypatch.setattr(freed_memory, "QUIET", 0.0)
    monkeypatch.setattr(freed_memory, "give_back", lambda: given.append(now[0]))
    with pytest.raises(EOFError):
        asyncio.run(give_back_now_and_then(SimpleNamespace(state=state), every=0.0))  # type: ignore[arg-type]
    assert given == ["worked", "worked more"]


def test_engines_that_are_never_quiet_together_keep_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[None] = []
    looks = iter(range(100))

    def state(of: int) -> Any:
        if (look := next(looks, None)) is None:
            raise EOFError
        return SimpleNamespace(running=int(look // 2 % 2 == of), waiting=0, batches=look)

    monkeypatch.setattr(freed_memory, "QUIET", 0.0)
    monkeypatch.setattr(freed_memory, "give_back", lambda: given.append(None))
    engines: list[Any] = [SimpleNamespace(state=partial(state, of)) for of in range(2)]
    with pytest.raises(EOFError):
        asyncio.run(give_back_now_and_then(*engines, every=0.0))
    assert given


def test_an_engine_tells_when_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    async def after_work(engine: Engine) -> None:
        tidying = asyncio.create_task(give_back_now_and_then(engine, every=0.001))
        await asyncio.wrap_future(engine.submit(noise(1.0)))
        async with asyncio.timeout(10):
            while not given:
                await asyncio.sleep(0.001)
        tidying.cancel()

    with Engine(tiny_model(), EngineSettings(max_wait=0.0)) as engine:
        monkeypatch.setattr(freed_memory, "give_back", lambda: given.append(engine.state().running))
        asyncio.run(after_work(engine))
    assert given[0] == 0


def test_a_server_gives_back_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Engine] = []

    async def watched(engine: Engine) -> None:
        begun.append(engine)
        await asyncio.Event().wait()

    told: list[asyncio.Event] = []

    def stop_soon(*_: object) -> None:
        asyncio.get_running_loop().call_soon(told.pop().set)

    monkeypatch.setattr("overtone.serving.server.give_back_now_and_then", watched)
    monkeypatch.setattr("overtone.serving.server.listen_to_signals", told.append)
    engines = []
    for keeps_memory in (True, False):
        server = Server(ServerSettings(grpc_port=0, http_port=0), tiny_model())
        engines.append(server.engine)
        try:
            assert asyncio.run(run(server, stop_soon, keeps_memory=keeps_memory))
        finally:
            server.close()
    assert begun == engines[:1]
