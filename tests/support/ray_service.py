"""A small Ray cluster with replicas of the tone model, and a front in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from overtone.clusters import cluster
from overtone.serving.ray.cluster import ReplicaPlan
from overtone.serving.ray.front import deployed, front
from overtone.serving.settings import ServerSettings
from support.speaking_model import Contrary, SpeakingModel, put_adapter
from support.web_service import SETTINGS, WebService

OBJECT_STORE = 80 * 2**20


def tones(settings: ServerSettings) -> SpeakingModel:
    """The model of a replica; the one of a base called `contrary` hears otherwise."""
    return Contrary() if settings.base == "contrary" else SpeakingModel()


@contextmanager
def ray_cluster(*folders: str) -> Iterator[None]:
    """Ray on this machine; its workers find the tests' modules, those of these folders too."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # the token would be written to the home folder
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # on a machine that others fill, Ray would kill workers
    os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112 (Ray spells it so)
    paths = [str(Path(__file__).resolve().parents[depth]) for depth in (1, 2)]
    paths += folders
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, before])
    try:
        with cluster("local", num_cpus=2, object_store_memory=OBJECT_STORE):
            yield
    finally:
        os.environ["PYTHONPATH"] = before


def ray_plan(folder: Path, *, replicas: int = 2, **options: Any) -> ReplicaPlan:
    """Plan of so many replicas of each base. folder: of the adapters. options: of ServerSettings."""
    return ReplicaPlan(
        settings=replace(SETTINGS, adapters=folder, **options),
        load=tones,
        replicas=replicas,
        cpus=0.5,
        stats_seconds=0.5,
        health_seconds=1.0,
    )


@contextmanager
def ray_service(folder: Path, *, adapters: tuple[str, ...] = ("swap", "other"), **options: Any) -> Iterator[WebService]:
    """A front of two replicas of each base. folder: of the adapters. options: of `ray_plan`."""
    for name in adapters:
        put_adapter(SpeakingModel(), name, folder)
    plan = ray_plan(folder, **options)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(120)

    try:
        with deployed(plan):
            server = run(front(plan))
            addresses = run(server.start())
            calls: list[Any] = []
            ended = server.observer.ended

            def noted(interface: str, call: Any, request_id: str = "") -> None:
                ended(interface, call, request_id)
                calls.append(call)

            server.observer.ended = noted
            try:
                yield WebService(server=server, addresses=addresses, run=run, loop=loop, calls=calls)
            finally:
                run(server.stop(1.0))
                server.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        if not thread.is_alive():  # closing a loop that runs raises, and hides the error that led here
            loop.close()
