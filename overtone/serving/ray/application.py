"""Application of Ray Serve, for `serve run overtone.serving.ray:app` and KubeRay: replicas and fronts together.

Serve's proxies carry HTTP and WebSockets to the fronts. They read a body before a front can look at its token: tokens
are refused unless it is said that something else in front of them limits bodies. Riva's gRPC has a port of its own on
each front's node.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
from overtone.serving.ray.cluster import APPLICATION, ReplicaPlan, deployments_of, engine_deployment
from overtone.serving.ray.front import front
from overtone.serving.recognition.bases import check_base_names
from overtone.serving.riva.server import RivaServer
from overtone.serving.server import Server, ServerSettings
from overtone.serving.settings import BaseSettings

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
OF_BASE = frozenset(("base", "model", "adapters", "adapters_from", "language"))
"""Arguments that each of several bases has of its own, in an entry of `bases`."""
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
        self.server = server = await front(self.plan, deployments_of(self.plan, application))
        self.app = build_app(server.requests, server.observer)
        if self.plan.settings.grpc_port != NO_PORT:
            on_call = server.observer.at("riva")
            server.riva = RivaServer(server.service, server.settings, on_call=on_call, bases=server.bases)
            await server.riva.start()

    async def stop(self) -> None:
        """End what runs."""
        if self.server is not None:
            self.server.requests.closing = True
            self.server.end_background()
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

    def __init__(self, plan: ReplicaPlan, *engines: Any) -> None:
        """engines: handles of each base's replicas, which bind them to this application."""
        FRONT_APP.plan = plan

    def check_health(self) -> None:
        """A front whose replicas are gone stays: it answers that it is not ready."""


def app(arguments: Mapping[str, Any]) -> Any:
    """Serve's application from the arguments of `serve run` or of a configuration's `args`. Raises UsageError."""
    known: dict[str, Callable[[Any], Any]] = {**OF_SETTINGS, **OF_PLAN, **OF_FRONTS, "bases": read_bases}
    for name in arguments:
        if name not in known:
            raise UsageError(f"'{name}' is no argument.{did_you_mean(name, sorted(known))} Known: {', '.join(known)}.")
    given = {name: read(name, value, known[name]) for name, value in arguments.items()}
    if "bases" in given:
        if both := OF_BASE & given.keys():
            raise UsageError(f"'{min(both)}' stands in each entry of 'bases', not beside it.")
        given |= {**given["bases"][0], "more": tuple(BaseSettings(**own) for own in given["bases"][1:])}
    settings = ServerSettings(
        **{
            "host": "0.0.0.0",
            "grpc_port": NO_PORT,
            **{name: given[name] for name in (*OF_SETTINGS, "more") if name in given},
        },
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
    places = deployments_of(plan, APPLICATION)
    engines = [engine_deployment(own, name) for own, (_, name) in zip(plan.of_each_base(), places, strict=True)]
    return ingress.bind(plan, *engines)


def with_whole_paths(settings: ServerSettings) -> ServerSettings:
    """Settings with paths from the root: replicas and fronts run in other folders. Raises UsageError.

    Relative ones begin in the folder of the caller; where the cluster gives all its processes a working folder, there.
    """
    if ray.is_initialized() and ray.get_runtime_context().runtime_env.get("working_dir"):
        return settings
    paths = {name: getattr(settings, name) for name, kind in OF_SETTINGS.items() if kind is Path}
    whole: dict[str, Any] = {name: whole_path(name, path) for name, path in paths.items() if path is not None}
    more = [replace(own, model=whole_model(own.model), adapters=whole_folder(own.adapters)) for own in settings.more]
    return replace(settings, **whole, model=whole_model(settings.model), more=tuple(more))


def whole_folder(path: Path | None) -> Path | None:
    """Folder of a base's adapters from the root, where it has one. Raises UsageError."""
    return None if path is None else whole_path("adapters", path)


def whole_model(model: str) -> str:
    """Model from the root, where it is a file or folder. Raises UsageError."""
    path = Path(model).expanduser()
    may_be_name = path.suffix != ".nemo" and (HUB_NAME.match(model) or PLAIN_NAME.match(model))
    if model not in EMBEDDED and (path.exists() or not may_be_name):
        return str(whole_path("model", path))
    return model


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


def read_bases(value: Any) -> list[dict[str, Any]]:
    """Entries of several bases: a list of mappings, or JSON of one. Raises UsageError."""
    try:
        entries = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        entries = None
    if not isinstance(entries, list) or len(entries) < 2 or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError('\'bases\' is a list of two or more: [{"base": "en", "model": "en.nemo"}, …].')
    found = []
    for entry in entries:
        for name in entry:
            if name not in OF_BASE:
                raise UsageError(f"'{name}' is nothing of a base.{did_you_mean(str(name), sorted(OF_BASE))}")
        if not entry.keys() >= {"base", "model"}:
            raise UsageError("Each of several bases needs a name and a model: 'base' and 'model'.")
        for name, content in entry.items():
            if not isinstance(content, str | Path):
                raise UsageError(f"'{name}' of an entry of 'bases' is {content!r}; a text is needed, in quotes.")
        found.append({name: read(name, content, OF_SETTINGS[name]) for name, content in entry.items()})
    check_base_names([own["base"] for own in found])
    return found


def read(name: str, value: Any, kind: Callable[[Any], Any]) -> Any:
    """Value of an argument, which may come as text. Raises UsageError."""
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; {getattr(kind, '__name__', 'a value')} is needed.") from None
