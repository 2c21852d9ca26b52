"""Application of Ray Serve, for `serve run overtone.serving.ray:app` and KubeRay: replicas and fronts together.

Serve's proxies carry HTTP and WebSockets to the fronts. They read a body before a front can look at its token: tokens
are refused unless it is said that something else in front of them limits bodies. Riva's gRPC has a port of its own on
each front's node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from overtone.checkpoints.load import EMBEDDED, HUB_NAME, PLAIN_NAME
from overtone.errors import UsageError, did_you_mean
from overtone.serving.app import build_app
from overtone.serving.engine.engine import EngineSettings
from overtone.serving.ray.cluster import ENGINE, ReplicaPlan, engine_deployment
from overtone.serving.ray.front import front
from overtone.serving.riva.server import RivaServer
from overtone.serving.server import Server, ServerSettings

FRONT = "front"
OF_SETTINGS = {
    "model": str, "adapters": Path, "adapters_from": str, "capacity": int, "base": str, "language": str, "tokens": Path,
    "quotas": Path, "admin_token_file": Path, "host": str, "grpc_port": int, "compute_dtype": str,
    "grace_seconds": float,
}  # fmt: skip
OF_PLAN = {
    "replicas": int, "most": int, "cpus": float, "gpus": float, "busy": float, "queue": int,
    "scale_up_seconds": float, "scale_down_seconds": float, "surge": int,
}  # fmt: skip
OF_FRONTS = {"fronts": int, "front_cpus": float, "max_batch": int, "behind_proxy": str}
NO_PORT = -1
"""`grpc_port` of a front without gRPC."""


class FrontApp:
    """ASGI application of a front, which is made when its process starts."""

    def __init__(self) -> None:
        self.plan: ReplicaPlan | None = None
        self.server: Server | None = None
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or Serve's word that the process begins or ends."""
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        elif self.app is not None:
            await self.app(scope, receive, send)

    async def live(self, receive: Receive, send: Send) -> None:
        """Make the front, and end it."""
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def start(self) -> None:
        """Make the front, and open its port of gRPC."""
        assert self.plan is not None
        application = serve.get_replica_context().app_name
        self.server = server = await front(self.plan, application=application)
        self.app = build_app(server.requests, server.observer)
        if self.plan.settings.grpc_port != NO_PORT:
            server.riva = RivaServer(server.service, server.settings, keys=None, on_call=server.observer.at("riva"))
            await server.riva.start()

    async def stop(self) -> None:
        """End what runs."""
        if self.server is not None:
            self.server.requests.closing = True
            if self.server.riva is not None:
                await self.server.riva.stop(self.plan.settings.grace_seconds if self.plan else 0.0)
            self.server.close()


FRONT_APP = FrontApp()
"""The front of this process."""


def this_front() -> FrontApp:
    """The front of this process, which Serve asks for once the ingress is made."""
    return FRONT_APP


class Ingress:
    """Serve's ingress: a front in each of its processes."""

    def __init__(self, plan: ReplicaPlan, engine: Any) -> None:
        """engine: handle of the replicas, which binds them to this application."""
        FRONT_APP.plan = plan

    def check_health(self) -> None:
        """A front whose replicas are gone stays: it answers that it is not ready."""


def app(arguments: Mapping[str, Any]) -> Any:
    """Serve's application from the arguments of `serve run` or of a configuration's `args`. Raises UsageError."""
    known = {**OF_SETTINGS, **OF_PLAN, **OF_FRONTS}
    for name in arguments:
        if name not in known:
            raise UsageError(f"'{name}' is no argument.{did_you_mean(name, sorted(known))} Known: {', '.join(known)}.")
    given = {name: read(name, value, known[name]) for name, value in arguments.items()}
    settings = ServerSettings(
        **{"host": "0.0.0.0", "grpc_port": NO_PORT, **{name: given[name] for name in OF_SETTINGS if name in given}},
        engine=replace(EngineSettings(), max_batch=given.get("max_batch", EngineSettings().max_batch)),
    )
    if settings.tokens is not None and given.get("behind_proxy") != "yes":
        raise UsageError(
            "Serve's proxies hold a request's body before its token is looked at. `overtone serve --ray` does "
            "not. Use that, or add behind_proxy=yes where a proxy of yours, in front of them, limits bodies."
        )
    plan = ReplicaPlan(settings=with_whole_paths(settings), **{name: given[name] for name in OF_PLAN if name in given})
    ingress = serve.deployment(serve.ingress(this_front)(Ingress)).options(
        name=FRONT,
        num_replicas=given.get("fronts", 1),
        max_ongoing_requests=settings.max_requests,
        ray_actor_options={"num_cpus": given.get("front_cpus", 0.5)},
        graceful_shutdown_timeout_s=settings.grace_seconds,
        **({} if settings.grpc_port == NO_PORT else {"max_replicas_per_node": 1}),
    )
    return ingress.bind(plan, engine_deployment(plan, ENGINE))


def with_whole_paths(settings: ServerSettings) -> ServerSettings:
    """Settings with paths from the root: replicas and fronts run in other folders. Raises UsageError.

    Relative ones begin in the folder of the caller; where the cluster gives all its processes a working folder, there.
    """
    if ray.is_initialized() and ray.get_runtime_context().runtime_env.get("working_dir"):
        return settings
    paths = {name: getattr(settings, name) for name, kind in OF_SETTINGS.items() if kind is Path}
    whole: dict[str, Any] = {name: whole_path(name, path) for name, path in paths.items() if path is not None}
    model = Path(settings.model).expanduser()
    may_be_name = model.suffix != ".nemo" and (HUB_NAME.match(settings.model) or PLAIN_NAME.match(settings.model))
    if settings.model not in EMBEDDED and (model.exists() or not may_be_name):
        whole["model"] = str(whole_path("model", model))
    return replace(settings, **whole)


def whole_path(name: str, path: Path) -> Path:
    """Path of an argument from the root. Raises UsageError for a relative one that is not there."""
    path = path.expanduser()
    if path.is_absolute():
        return path
    if not path.exists():
        raise UsageError(
            f"{name} is '{path}', but there is no such path in {Path.cwd()}, where the application is built. Give the "
            "whole path, one that all nodes see."
        )
    return path.absolute()


def read(name: str, value: Any, kind: type) -> Any:
    """Value of an argument, which may come as text. Raises UsageError."""
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; {kind.__name__} is needed.") from None
