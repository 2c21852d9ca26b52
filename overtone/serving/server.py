"""The whole server: a model, its engine and shelf, and both doors in one event loop.

`serve` runs until a signal comes; then nothing new is taken, what runs is finished within the grace, and it ends.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn

from overtone.audio.decode import AudioLimits
from overtone.checkpoints.load import load_model
from overtone.errors import UsageError
from overtone.inference.rows import one_thread, use_one_thread
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store.store import Shelf
from overtone.serving.app import build_app
from overtone.serving.auth.guard import Guard, read_admin_token, read_keys, read_tokens
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.http.bad_request import connection
from overtone.serving.http.requests import HttpSettings, Reception
from overtone.serving.memory import give_back_now_and_then, keep_freed_memory
from overtone.serving.metrics import Observer
from overtone.serving.recognition.held_audio import HeldAudio
from overtone.serving.riva.server import RivaServer, RivaSettings, ServerKeys
from overtone.serving.streaming.stream_settings import StreamSettings

__all__ = ["Addresses", "Server", "ServerSettings", "serve"]

LOG = logging.getLogger("overtone.serving.server")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_MESSAGE = 4 * 2**20
"""Bytes of one WebSocket message."""
LAST_SECONDS = 2
"""For answers that are on their way when the doors close."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Everything that a server may be told."""

    model: str = "fundamental"
    """A .nemo file, a model folder, or a name."""
    adapters: Path | None = None
    """A folder of adapter folders, watched; None serves the model's own adapters alone."""
    capacity: int = 64
    """Adapters of the folder in the model at a time; the least recently used makes way."""
    base: str = ""
    """What requests call the base; the model's own name unless given."""
    language: str = "en-US"
    """What the model understands, as a BCP-47 tag."""
    host: str = "127.0.0.1"
    """Address of both doors; `0.0.0.0` is all of IPv4."""
    grpc_port: int = 50051
    """Of the Riva interface; 0 takes any free port."""
    http_port: int = 9000
    """Of HTTP and WebSockets; 0 takes any free port."""
    tokens: Path | None = None
    """A file of tenants and the hashes of their tokens (`security.read_tokens`); None asks for no tokens."""
    admin_token_file: Path | None = None
    """A file with the administrator's token; None closes the administration."""
    tls_certificate: Path | None = None
    """PEM, the server's own certificate first; TLS for both doors."""
    tls_key: Path | None = None
    client_authority: Path | None = None
    """PEM; clients must show a certificate that this authority signed."""
    origins: frozenset[str] = frozenset()
    """Web sites whose pages may open realtime sessions besides the server's own."""
    compute_dtype: str = "auto"
    """What the frozen base computes in: auto, float32, bfloat16 or openvino."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    limits: AudioLimits = field(default_factory=AudioLimits)
    max_calls: int = 1024
    """gRPC calls at a time."""
    max_requests: int = 256
    """HTTP transcriptions and realtime sessions at a time."""
    max_connections: int = 2048
    """HTTP connections at a time; requests on more of them get 503."""
    request_seconds: float = 600.0
    """After which an HTTP transcription is given up."""
    idle_seconds: float = 300.0
    """After which a stream that sends nothing is ended."""
    poll_seconds: float = 1.0
    """How often the folder of adapters is looked at."""
    grace_seconds: float = 30.0
    """For what runs when the server is told to stop."""


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where a started server listens."""

    host: str
    grpc_port: int
    http_port: int
    tls: bool

    @property
    def http(self) -> str:
        return f"{'https' if self.tls else 'http'}://{bracketed(self.host)}:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"{bracketed(self.host)}:{self.grpc_port}"


class Server:
    """`start` and `stop` it in one running event loop; `close` it afterwards."""

    def __init__(self, settings: ServerSettings, model: AsrModel) -> None:
        """Reads the files that the settings name. Raises UsageError or AdapterError before anything runs."""
        self.settings = settings
        self.keys = read_keys(settings.tls_certificate, settings.tls_key, settings.client_authority)
        self.guard = Guard(
            tenants=None if settings.tokens is None else read_tokens(settings.tokens),
            admin_token="" if settings.admin_token_file is None else read_admin_token(settings.admin_token_file),
        )
        if settings.adapters is not None and not settings.adapters.is_dir():
            raise UsageError(f"{settings.adapters} is no folder. Make it, and put adapter folders into it.")
        settings.stream.frames(model.seconds_per_frame)
        self.engine = Engine(model, settings.engine)
        try:
            self.shelf = Shelf(
                model,
                settings.adapters,
                lock=self.engine.lock,
                capacity=settings.capacity,
                poll_seconds=settings.poll_seconds,
            )
        except BaseException:
            self.engine.close()
            raise
        self.observer = Observer(self.engine, self.shelf, self.guard)
        self.held = HeldAudio()
        self.reception = Reception(
            self.engine, self.shelf, settings=http_settings(settings), guard=self.guard, held=self.held
        )
        self.riva: RivaServer | None = None
        self.http: HttpServer | None = None

    async def start(self) -> Addresses:
        """Open both doors. Raises UsageError where a port cannot be had; nothing is open then."""
        settings = self.settings
        app = build_app(self.reception, self.observer)
        self.http = HttpServer(app, settings, self.keys)
        self.riva = RivaServer(
            self.engine,
            self.shelf,
            settings=riva_settings(settings),
            keys=self.keys,
            authorise=self.guard.authorise,
            on_call=self.observer.at("riva"),
            held=self.held,
        )
        http_port = await self.http.start()
        try:
            grpc_port = await self.riva.start()
        except BaseException:
            await self.http.stop()
            raise
        return Addresses(
            host=settings.host, grpc_port=grpc_port, http_port=http_port, tls=self.keys is not None
        )  # fmt: skip

    async def stop(self, grace: float | None = None) -> bool:
        """Take nothing new, finish what runs within `grace` seconds; whether all was finished."""
        ends = time.monotonic() + (self.settings.grace_seconds if grace is None else grace)
        self.reception.closing = True
        finished = True
        if self.riva is not None and self.http is not None:
            left = max(0.0, ends - time.monotonic())
            idle, calls_finished = await asyncio.gather(self.reception.idle(left), self.riva.stop(left))
            drained = await asyncio.to_thread(self.engine.drain, max(0.0, ends - time.monotonic()))
            await self.http.stop()
            finished = idle and calls_finished and drained
        return finished

    def close(self) -> None:
        """End the threads. What still waits is answered with an error."""
        self.engine.close()
        self.shelf.close()
        self.reception.close()


class HttpServer:
    """uvicorn in our event loop, without its own handling of signals."""

    def __init__(self, app: Any, settings: ServerSettings, keys: ServerKeys | None) -> None:
        self.address = (settings.host, settings.http_port)
        self.server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=connection,  # type: ignore[arg-type]
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=LAST_SECONDS,
                limit_concurrency=settings.max_connections,
                ws_max_size=MAX_MESSAGE,
                ws_ping_timeout=settings.idle_seconds,  # a pong waits behind audio that is not read yet
                ws_per_message_deflate=False,
                ssl_certfile=None if keys is None else settings.tls_certificate,
                ssl_keyfile=None if settings.tls_key is None else str(settings.tls_key),
                ssl_ca_certs=None if settings.client_authority is None else str(settings.client_authority),
                ssl_cert_reqs=ssl.CERT_NONE if settings.client_authority is None else ssl.CERT_REQUIRED,
            )
        )
        self.socket: socket.socket | None = None
        self.loop: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """The port. Raises UsageError."""
        self.socket = bound(*self.address)
        server = self.server
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[self.socket])
        self.loop = asyncio.create_task(server.main_loop())
        return int(self.socket.getsockname()[1])

    async def stop(self) -> None:
        """Close the door; answers on their way have a moment."""
        if self.socket is not None and self.loop is not None:
            self.server.should_exit = True
            await self.loop
            await self.server.shutdown(sockets=[self.socket])


def bound(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        raise UsageError(f"Port {port} of '{host}' cannot be used for HTTP: {error}.") from error
    return listening


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def http_settings(settings: ServerSettings) -> HttpSettings:
    return HttpSettings(
        base=settings.base,
        language=settings.language,
        stream=settings.stream,
        limits=settings.limits,
        max_requests=settings.max_requests,
        request_seconds=settings.request_seconds,
        idle_seconds=settings.idle_seconds,
        origins=settings.origins,
    )


def riva_settings(settings: ServerSettings) -> RivaSettings:
    return RivaSettings(
        host=settings.host,
        port=settings.grpc_port,
        base=settings.base,
        language=settings.language,
        stream=settings.stream,
        limits=settings.limits,
        max_calls=settings.max_calls,
        idle_seconds=settings.idle_seconds,
    )


def serve(
    settings: ServerSettings,
    *,
    model: AsrModel | None = None,
    started: Callable[[Server, Addresses], None] = lambda server, addresses: None,
) -> bool:
    """Serve until SIGTERM or SIGINT (or, elsewhere than in the main thread, for ever); whether all was finished.

    model: in place of the one that the settings name. started: called once both doors are open.

    Nothing but the engine's worker spreads its operations over the cores. Once a process has more such threads than
    there are cores, GNU's OpenMP lets them sleep between operations instead of waiting awake, which made a request
    take twice the time.
    """
    kept = keep_freed_memory()
    with one_thread() as threads:
        engine = replace(settings.engine, threads=settings.engine.threads or threads)
        model = model or load_model(settings.model)
        model.set_compute_dtype(settings.compute_dtype)
        server = Server(replace(settings, engine=engine), model)
        try:
            return asyncio.run(run(server, started, keeps_memory=kept))
        finally:
            server.close()


async def run(server: Server, started: Callable[[Server, Addresses], None], *, keeps_memory: bool) -> bool:
    told = asyncio.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(initializer=use_one_thread))
    listen_to_signals(told)
    addresses = await server.start()
    tidying = asyncio.create_task(give_back_now_and_then(server.engine)) if keeps_memory else None
    warn_of_openness(server)
    started(server, addresses)
    await told.wait()
    if tidying is not None:
        tidying.cancel()
    LOG.info("stopping: what runs has %g s", server.settings.grace_seconds)
    finished = await server.stop()
    LOG.log(logging.INFO if finished else logging.WARNING, "stopped%s", "" if finished else ", not everything finished")
    return finished


def listen_to_signals(told: asyncio.Event) -> None:
    """The first one asks for the end; the second ends the process as if nobody listened."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def end() -> None:
        told.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, end)


def warn_of_openness(server: Server) -> None:
    settings = server.settings
    if settings.host in LOOPBACK:
        return
    if server.guard.tenants is None and settings.client_authority is None:
        LOG.warning("whoever reaches %s may use this server: it asks for no tokens", settings.host)
    if server.keys is None and (server.guard.tenants is not None or server.guard.has_admin):
        LOG.warning("tokens travel in clear: give the server a certificate, or put one in front of it")
