"""HTTP application: OpenAI's interface, Riva's realtime sessions, health, metrics and administration on one port."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Collection, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overtone.errors import OvertoneError
from overtone.serving.engine.engine import EngineState
from overtone.serving.errors import IdleError
from overtone.serving.http.admin import Administration
from overtone.serving.http.errors import CLIENT_GONE, HttpError, error_response
from overtone.serving.http.gate import Gate, allowed_names
from overtone.serving.http.learning import Learning
from overtone.serving.http.page import Page
from overtone.serving.http.requests import HttpRequests, metadata_of
from overtone.serving.learning import LearningJobs
from overtone.serving.metrics import Observer
from overtone.serving.openai.endpoints import Models, Transcriptions
from overtone.serving.openapi import describe_api
from overtone.serving.realtime.dialect import OPENAI_PATH
from overtone.serving.realtime.endpoint import Realtime
from overtone.serving.recognition.request import Call
from overtone.version import __version__

LOG = logging.getLogger("overtone.serving.app")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
SAFE_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
STUCK_SECONDS = 120.0
"""Time of a forward after which the server counts as unready."""


def build_app(requests: HttpRequests, observer: Observer, jobs: LearningJobs | None = None) -> ASGIApp:
    """Application with all routes; `observer` gets each call at its end. jobs: None where nothing learns."""
    realtime, models, admin = Realtime(requests), Models(requests), Administration(requests)
    learning = Learning(requests, jobs)
    pages = Pages(requests, observer)
    adapter = "/v1/admin/adapters/{name}"
    routes: list[BaseRoute] = [
        *Page(requests.settings.language, otherwise=pages.index).routes(),
        Route("/openapi.json", pages.openapi),
        *health_routes(pages),
        Route("/v1/models", models.list),
        Route("/v1/models/{name:path}", models.retrieve),
        Route("/v1/audio/transcriptions", Transcriptions(requests).create, methods=["POST"]),
        Route("/v1/realtime/transcription_sessions", realtime.mint, methods=["POST"]),
        Route("/v1/realtime/client_secrets", realtime.mint_secret, methods=["POST"]),
        WebSocketRoute(OPENAI_PATH, realtime.connect),
        WebSocketRoute("/v1/realtime", realtime.connect),
        Route("/v1/adapters/{name}/corrections", learning.correct, methods=["POST"]),
        Route("/v1/adapters/{name}/learning", learning.state),
        Route("/v1/adapters/{name}/back", learning.back, methods=["POST"]),
        Route("/v1/admin/adapters", admin.list),
        Route("/v1/admin/scan", admin.scan, methods=["POST"]),
        Route(adapter, admin.one, methods=["GET", "PUT", "POST", "DELETE"]),
        Route("/v1/load_lora_adapter", admin.load_lora, methods=["POST"]),
        Route("/v1/unload_lora_adapter", admin.unload_lora, methods=["POST"]),
        Route(f"{adapter}/load", admin.load, methods=["POST"]),
        Route(f"{adapter}/unload", admin.unload, methods=["POST"]),
    ]
    settings = requests.settings
    names, origins = allowed_names(settings), settings.origins
    middleware = [Middleware(Gate, names, origins), *cors(origins)]
    return observed_app(routes, observer, idle_seconds=settings.idle_seconds, middleware=middleware)


def build_health_app(requests: HttpRequests, observer: Observer) -> ASGIApp:
    """Application of health and metrics alone, for a port of their own."""
    gate = Middleware(Gate, None, ())
    routes = health_routes(Pages(requests, observer))
    return observed_app(routes, observer, idle_seconds=requests.settings.idle_seconds, middleware=[gate])


def health_routes(pages: Pages) -> list[BaseRoute]:
    """Routes of health and metrics."""
    return [
        Route("/v1/health/live", pages.live),
        Route("/v1/health/ready", pages.ready),
        Route("/v1/metrics", pages.metrics),
    ]


def observed_app(
    routes: list[BaseRoute], observer: Observer, *, idle_seconds: float, middleware: Sequence[Middleware] = ()
) -> ASGIApp:
    """Application of these routes, whose errors have OpenAI's form. idle_seconds: an answer may stay unread."""
    handlers: dict[Any, Any] = {
        HTTPException: answer_routing_error,
        ClientDisconnect: answer_gone,
        OvertoneError: answer_error,
        Exception: answer_error,
    }
    app = Starlette(routes=routes, exception_handlers=handlers, middleware=middleware)
    return ObservedApp(app, observer, routes, idle_seconds=idle_seconds)


def cors(origins: Collection[str]) -> list[Middleware]:
    """Middleware that lets pages of these web sites read answers; `*` is any site."""
    if not origins:
        return []
    options: dict[str, Any] = {
        "allow_origins": sorted(origins),
        "allow_methods": METHODS,
        "allow_headers": ["*"],
        "expose_headers": ["X-Request-Id", "Retry-After"],
    }
    return [Middleware(CORSMiddleware, **options)]


class Pages:
    """Index, description of the API, health and metrics."""

    def __init__(self, requests: HttpRequests, observer: Observer) -> None:
        self.requests = requests
        self.observer = observer

    async def index(self, request: Request) -> Response:
        paths = describe_api(self.requests.bases)["paths"]
        endpoints = {path: sorted(method.upper() for method in methods) for path, methods in paths.items()}
        return JSONResponse({"service": "overtone", "version": __version__, "endpoints": endpoints})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(describe_api(self.requests.bases))

    async def live(self, request: Request) -> Response:
        return JSONResponse({"object": "health.response", "message": "live", "status": "live"})

    async def ready(self, request: Request) -> Response:
        """Readiness of all engines. Raises HttpError 503 where one is not ready."""
        bases, closing = self.requests.bases, self.requests.closing
        problems = {service.base: unready_reason(service.state(), closing) for service in bases}
        if bases.are_several and not closing:
            told = [f"base '{base}': {problem}" for base, problem in problems.items() if problem]
        else:
            told = [problem for problem in problems.values() if problem][:1]
        if told:
            raise HttpError(503, f"Not ready: {'; '.join(told)}.", code="not_ready")
        ready: dict[str, Any] = {"object": "health.response", "message": "ready", "status": "ready"}
        return JSONResponse(ready | ({"bases": list(problems)} if bases.are_several else {}))

    async def metrics(self, request: Request) -> Response:
        self.requests.service.guard.authorise_metrics(metadata_of(request))
        return Response(self.observer.text(), headers={"Content-Type": PROMETHEUS})


def unready_reason(state: EngineState, closing: bool) -> str:
    """Reason why no request should be sent here; empty where all is well."""
    if closing or state.draining:
        return "the server is shutting down"
    if not state.alive:
        return "the worker does not run"
    if state.running_seconds > STUCK_SECONDS:
        return f"a forward has been running for {state.running_seconds:.0f} s"
    return ""


async def answer_routing_error(request: Request, error: Exception) -> Response:
    """Answer of the router itself: 404 and 405."""
    assert isinstance(error, HTTPException)
    message = {404: "There is nothing here; / lists what there is."}.get(error.status_code, error.detail)
    response = error_response(HttpError(error.status_code, message))
    response.headers.update(error.headers or {})
    return response


async def answer_gone(request: Request, error: Exception) -> Response:
    """Answer that nobody reads, for the log."""
    return error_response(HttpError(CLIENT_GONE, "The client went away."))


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer with the error's status."""
    return error_response(error, with_detail=request.url.path.startswith("/v1/realtime"))


class ObservedApp:
    """An application whose calls have an id and a `Call` each, which the observer gets at their end."""

    def __init__(self, app: ASGIApp, observer: Observer, routes: list[BaseRoute], *, idle_seconds: float) -> None:
        """idle_seconds: a client may leave an answer unread for so long."""
        self.app = app
        self.idle_seconds = idle_seconds
        self.observer = observer
        self.paths: dict[Any, str] = {
            route.endpoint: route.path for route in routes if isinstance(route, Route | WebSocketRoute)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return
        client = scope.get("client") or ()
        call, request_id = Call(method="", connection=":".join(map(str, client))), f"req_{secrets.token_hex(12)}"
        call.code = ""
        scope["state"] = {**scope.get("state", {}), "call": call}
        began = time.monotonic()

        async def sending(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                call.code = call.code or str(message["status"])
                headers = message.get("headers", [])
                own = {name.lower() for name, _ in headers}
                safe = [header for header in SAFE_HEADERS if header[0] not in own]
                message["headers"] = [*headers, (b"x-request-id", request_id.encode()), *safe]
            elif message["type"] == "websocket.accept":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            elif message["type"] == "websocket.close":
                call.code = call.code or ("OK" if message.get("code", 1000) == 1000 else str(message["code"]))
            try:
                async with asyncio.timeout(self.idle_seconds):
                    await send(message)
            except TimeoutError:
                raise IdleError(self.idle_seconds, "taken") from None

        try:
            await self.app(scope, receive, sending)
        except IdleError as error:  # nobody takes an answer about it either
            LOG.info("a request ended: %s", error)
        except Exception as error:  # answered already, as far as that was possible
            LOG.exception("a request failed", exc_info=error)
        finally:
            call.method = self.method_of(scope)
            call.code = call.code or str(CLIENT_GONE)
            call.seconds = time.monotonic() - began
            self.observer.ended("http", call, request_id)

    def method_of(self, scope: Scope) -> str:
        """Method and template of the route, never the path as it came: of those there may be any number."""
        path = self.paths.get(scope.get("endpoint"), "unknown")
        if scope["type"] == "websocket":
            return f"WEBSOCKET {path}"
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        return f"{method} {path}"
