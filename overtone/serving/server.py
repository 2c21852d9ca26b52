"""Server: bases with their engines and adapter stores, and the gRPC and HTTP interfaces in one event loop.

`serve` runs until a signal comes. Then it takes nothing new, finishes running requests within the grace, and ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from overtone.checkpoints.load import load_model
from overtone.errors import UsageError
from overtone.inference.rows import one_thread, use_one_thread
from overtone.models.asr_model import AsrModel
from overtone.serving.app import build_app, build_health_app
from overtone.serving.auth.guard import Guard, Tenant, check_bases, read_admin_token, read_tokens
from overtone.serving.auth.quotas import Quotas, QuotaTable, read_quotas
from overtone.serving.auth.tls import read_keys
from overtone.serving.base import Source, close_all, serve_each
from overtone.serving.descriptors import raise_limit
from overtone.serving.http.gate import LOOPBACK
from overtone.serving.http.requests import HttpRequests
from overtone.serving.http.uvicorn import HttpServer
from overtone.serving.learning import LearningJobs
from overtone.serving.memory import give_back_now_and_then, keep_freed_memory
from overtone.serving.metrics import Observer
from overtone.serving.recognition.bases import Bases
from overtone.serving.recognition.service import Elsewhere
from overtone.serving.riva.server import RivaServer
from overtone.serving.settings import ServerSettings

__all__ = ["Addresses", "Server", "ServerSettings", "serve"]

LOG = logging.getLogger("overtone.serving.server")
LAST_WORDS_SECONDS = 2.0
"""Time before the end of the grace when streams are told their last utterance."""


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Addresses of a started server."""

    host: str
    grpc_port: int
    http_port: int
    tls: bool
    health_port: int | None = None
    """Port of health and metrics alone, where there is one."""

    @property
    def http(self) -> str:
        return f"{'https' if self.tls else 'http'}://{bracket(self.host)}:{self.http_port}"

    @property
    def health(self) -> str:
        return f"http://{bracket(self.host)}:{self.health_port}"

    @property
    def grpc(self) -> str:
        return f"{bracket(self.host)}:{self.grpc_port}"


class Server:
    """`start` and `stop` it in one running event loop; `close` it afterwards."""

    def __init__(
        self,
        settings: ServerSettings,
        model: AsrModel,
        elsewhere: Elsewhere | None = None,
        *,
        more: Sequence[Source] = (),
    ) -> None:
        """Read the files that the settings name. Raises UsageError or AdapterError before anything runs.

        elsewhere: other processes that recognise; the model then needs no weights. more: the same of each further base
        of the settings.
        """
        self.settings = settings
        self.keys = read_keys(settings.tls_certificate, settings.tls_key, settings.client_authority)
        self.guard = Guard(**read_access(settings))
        self.quotas = Quotas(None if settings.quotas is None else read_quotas(settings.quotas))
        if settings.learn and settings.adapters is None:
            raise UsageError("A server that learns needs a folder of adapters: --adapters FOLDER.")
        if settings.learn and settings.more:
            raise UsageError("--learn goes with one base. Leave it out, or run a server for each base.")
        self.served = serve_each(settings, ((model, elsewhere), *more), guard=self.guard, quotas=self.quotas)
        first = self.served[0]
        self.engine, self.store, self.service = first.engine, first.store, first.service
        self.jobs: LearningJobs | None = None
        self.background: list[asyncio.Task[None]] = []
        """Tasks that go on until the server stops."""
        try:
            self.bases = Bases([base.service for base in self.served])
            self.check_names(self.guard.tenants, self.quotas.table)
            self.observer = Observer(self.bases)
            self.requests = HttpRequests(self.service, settings, self.bases)
            if settings.learn:
                self.jobs = LearningJobs(settings.model, self.store, sample_rate=self.engine.sample_rate)
        except BaseException:
            self.close()
            raise
        self.riva: RivaServer | None = None
        self.http: HttpServer | None = None
        self.health: HttpServer | None = None

    def check_names(self, tenants: Mapping[str, Tenant] | None, quotas: QuotaTable | None) -> None:
        """Raises UsageError where tokens or quotas name an adapter of a base that is not here."""
        known = list(self.bases.named)
        for tenant in {tenant.name: tenant for tenant in (tenants or {}).values()}.values():
            named = (tenant.adapters or frozenset()) | (tenant.learn or frozenset())
            check_bases(named, f"{self.settings.tokens}: tenant '{tenant.name}'", known)
        check_bases(quotas.adapters if quotas else (), str(self.settings.quotas), known)

    async def start(self) -> Addresses:
        """Listen on all ports. Raises UsageError where one cannot be had; none is open then."""
        settings = self.settings
        self.http = HttpServer(build_app(self.requests, self.observer, self.jobs), settings)
        on_call = self.observer.at("riva")
        self.riva = RivaServer(self.service, settings, keys=self.keys, on_call=on_call, bases=self.bases)
        async with AsyncExitStack() as opened:
            http_port = await self.http.start()
            opened.push_async_callback(self.http.stop)
            health_port = None
            if settings.health_port is not None:
                plain = replace(
                    settings,
                    http_port=settings.health_port,
                    tls_certificate=None,
                    tls_key=None,
                    client_authority=None,
                )
                self.health = HttpServer(build_health_app(self.requests, self.observer), plain)
                health_port = await self.health.start()
                opened.push_async_callback(self.health.stop)
            grpc_port = await self.riva.start()
            opened.pop_all()
        return Addresses(
            host=settings.host,
            grpc_port=grpc_port,
            http_port=http_port,
            tls=self.keys is not None,
            health_port=health_port,
        )

    async def reload(self) -> bool:
        """Read tokens, quotas, certificates and the folder of adapters again. Returns whether they could be used.

        New calls and connections get them; where a file is faulty, nothing changes and the log says why.
        """
        settings = self.settings
        try:
            keys = read_keys(settings.tls_certificate, settings.tls_key, settings.client_authority)
            access = read_access(settings)
            quotas = None if settings.quotas is None else read_quotas(settings.quotas)
            self.check_names(access["tenants"], quotas)
        except UsageError as error:
            LOG.error("not reloaded, all stays as it was: %s", error)
            return False
        self.guard.renew(**access)
        self.quotas.renew(quotas)
        self.keys = keys
        if self.riva is not None and self.http is not None:
            self.riva.keys = keys
            await self.http.renew_keys()
        for base in self.served:
            await asyncio.to_thread(base.store.scan)
        LOG.info("reloaded tokens, quotas, certificates and the folder of adapters")
        return True

    def share(self, servers: int) -> None:
        """Take a part of all quotas alone, where so many servers share them: those of tenants and of adapters."""
        self.guard.share(servers)
        self.quotas.share(servers)

    async def stop(self, grace: float | None = None) -> bool:
        """Take nothing new, and finish running requests within `grace` seconds. Returns whether all were finished."""
        ends = time.monotonic() + (self.settings.grace_seconds if grace is None else grace)
        self.requests.closing = True
        self.end_background()
        if self.jobs is not None:
            await self.jobs.stop()
        finished = True
        if self.riva is not None and self.http is not None:
            left = max(0.0, ends - time.monotonic())
            last_words = left - min(LAST_WORDS_SECONDS, left / 2) if left else math.inf  # without a grace, never
            ending = asyncio.get_running_loop().call_later(last_words, self.service.ending.set)
            idle, calls_finished = await asyncio.gather(self.requests.idle(left), self.riva.stop(left))
            calls_finished = calls_finished and not self.service.ending.is_set()
            ending.cancel()
            rest = max(0.0, ends - time.monotonic())
            drained = await asyncio.gather(*(asyncio.to_thread(base.engine.drain, rest) for base in self.served))
            await self.http.stop()
            if self.health is not None:
                await self.health.stop()
            finished = idle and calls_finished and all(drained)
        return finished

    def end_background(self) -> None:
        """End the tasks that go on until the server stops."""
        for task in self.background:
            task.cancel()

    def close(self) -> None:
        """End the threads. Waiting rows are answered with an error."""
        self.end_background()
        close_all(self.served)


def read_access(settings: ServerSettings) -> dict[str, Any]:
    """Tenants and the administrator's token, as a Guard takes them. Raises UsageError."""
    return {
        "tenants": None if settings.tokens is None else read_tokens(settings.tokens),
        "admin_token": "" if settings.admin_token_file is None else read_admin_token(settings.admin_token_file),
    }


def bracket(host: str) -> str:
    """Host in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


Started = Callable[["Server", Addresses], None]


def serve(
    settings: ServerSettings,
    *,
    model: AsrModel | None = None,
    more: Sequence[AsrModel] = (),
    started: Started = lambda server, addresses: None,
) -> bool:
    """Serve until SIGTERM or SIGINT (or, elsewhere than in the main thread, for ever).

    Returns whether all requests were finished. model: in place of the one that the settings name; more: of the further
    bases. started: called once both ports are open.

    Nothing but the engine's worker spreads its operations over the cores. Once a process has more such threads than
    there are cores, GNU's OpenMP lets them sleep between operations instead of waiting awake, which made a request
    take twice the time.
    """
    raise_limit()
    keeps_memory = keep_freed_memory()
    with one_thread() as threads:
        engine = replace(settings.engine, threads=settings.engine.threads or share(threads, 1 + len(settings.more)))
        models = [model or load_model(settings.model), *(more or (load_model(own.model) for own in settings.more))]
        for each in models:
            each.set_compute_dtype(settings.compute_dtype)
        server = Server(replace(settings, engine=engine), models[0], more=[(each, None) for each in models[1:]])
        try:
            return asyncio.run(run(server, started, keeps_memory=keeps_memory))
        finally:
            server.close()


def share(threads: int, bases: int) -> int:
    """Threads of each base's engine: together no more than there are cores, or all of them would be slower."""
    return max(1, threads // bases)


async def run(server: Server, started: Started, *, keeps_memory: bool) -> bool:
    """Run a server until a signal comes. Returns whether all requests were finished."""
    ending = asyncio.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(initializer=use_one_thread))
    listen_to_signals(ending)
    addresses = await server.start()
    reloads = reload_at_hangup(server)
    engines = [base.engine for base in server.served]
    tidying = asyncio.create_task(give_back_now_and_then(*engines)) if keeps_memory else None
    warn_of_openness(server)
    started(server, addresses)
    await ending.wait()
    reloads.clear()
    if tidying is not None:
        tidying.cancel()
    LOG.info("stopping: what runs has %g s", server.settings.grace_seconds)
    finished = await server.stop()
    LOG.log(logging.INFO if finished else logging.WARNING, "stopped%s", "" if finished else ", not everything finished")
    return finished


def listen_to_signals(ending: asyncio.Event) -> None:
    """Set the event at the first signal; the second one ends the process at once, and without a traceback."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def end() -> None:
        ending.set()
        for number in signals:  # the loop gives them back to Python when it closes
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, end)


def reload_at_hangup(server: Server) -> set[asyncio.Task[bool]]:
    """Let SIGHUP read the server's files again. Returns the tasks that are doing so, which are kept by it alone."""
    tasks: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = asyncio.get_running_loop().create_task(server.reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    return tasks


def warn_of_openness(server: Server) -> None:
    """Log where strangers may use the server or read its tokens."""
    settings = server.settings
    if settings.host in LOOPBACK:
        return
    if server.guard.tenants is None and settings.client_authority is None:
        LOG.warning("whoever reaches %s may use this server: it asks for no tokens", settings.host)
    if server.keys is None and (server.guard.tenants is not None or server.guard.has_admin):
        LOG.warning("tokens travel in clear: give the server a certificate, or put one in front of it")
    if server.guard.tenants is None and not settings.host_names:
        LOG.warning("any name may mean this server in a browser: tell it its own with --host-name")
