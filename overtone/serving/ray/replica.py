"""Replica: one engine with its adapter store in a process of Ray Serve; batches in it are mixed as in any server.

A replica computes and keeps adapters. Tokens, audio formats and protocols are the fronts' business: what comes here has
been admitted and decoded.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from ray import serve
from torch import nn

from overtone.inference.rows import one_thread
from overtone.models.asr_model import AsrModel
from overtone.serving.app import unready_reason
from overtone.serving.engine.engine import Samples
from overtone.serving.errors import WorkerError
from overtone.serving.memory import keep_freed_memory
from overtone.serving.ray.known import STATE
from overtone.serving.ray.messages import Failure, Fronts, Job, Opened, ReplicaState, cached_names, failure_of
from overtone.serving.recognition.offline import Recognition
from overtone.serving.server import Server, ServerSettings
from overtone.serving.streaming.session import AnyStream, begin_stream
from overtone.serving.streaming.stream import Event, StreamSettings

Load = Callable[[ServerSettings], AsrModel]
FORGOTTEN_SECONDS = 30.0
"""Time without a word after which a front is taken for gone."""


@dataclass(kw_only=True)
class OpenStream:
    """A stream that a front feeds."""

    stream: AnyStream
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Replica:
    """Methods are called by fronts; each error is answered as a `Failure`."""

    def __init__(self, settings: ServerSettings, load: Load, version: str) -> None:
        """load: gives the model of the settings. version: of the plan that this replica belongs to."""
        self.version = version
        keep_freed_memory()
        self.threads = one_thread()
        threads = self.threads.__enter__()
        model = load(settings)
        self.outline = outline_of(model)
        model.set_compute_dtype(settings.compute_dtype)
        self.name = serve.get_replica_context().replica_id.unique_id
        engine = replace(settings.engine, threads=settings.engine.threads or threads)
        self.server = Server(inner_settings(replace(settings, engine=engine)), model)
        self.service = self.server.service
        self.streams: dict[int, OpenStream] = {}
        self.fronts: dict[str, float] = {}
        """Time of the last word of each front that shares its quotas with others."""
        self.began = time.monotonic()
        self.numbers = itertools.count()

    def __del__(self) -> None:
        """Serve's word for the end, once what runs is done."""
        if hasattr(self, "server"):
            self.server.close()

    # What Serve asks

    def check_health(self) -> None:
        """Raises WorkerError where the replica must be started again."""
        problem = unready_reason(self.server.engine.state(), closing=False)
        if problem:
            raise WorkerError(f"The replica is not healthy: {problem}.")

    def record_routing_stats(self) -> dict[str, Any]:
        """State of the replica, which Serve passes on to every router."""
        return {STATE: self.state()}

    def state(self) -> ReplicaState:
        """State of the replica."""
        store = self.server.store
        return ReplicaState(
            engine=self.server.engine.state(),
            adapters=cached_names(store.entries()),
            capacity=self.server.settings.capacity,
            max_batch=self.server.settings.engine.max_batch,
            store=store.counters(),
            streams=len(self.streams),
        )

    # What fronts ask

    async def describe(self) -> AsrModel:
        """The model without its weights: names, languages, tokenizer and fingerprint, for fronts."""
        return self.outline

    async def process(self) -> int:
        """Process of the replica, for whoever looks for its log."""
        return os.getpid()

    async def plan_version(self) -> str:
        """Version of the replica's plan."""
        return self.version

    async def meet(self, front: str) -> Fronts:
        """Fronts that share quotas, after this one has told that it is there."""
        now = time.monotonic()
        self.fronts[front] = now
        self.fronts = {name: told for name, told in self.fronts.items() if now - told < FORGOTTEN_SECONDS}
        return Fronts(count=len(self.fronts), settled=now - self.began >= FORGOTTEN_SECONDS)

    async def recognise(self, job: Job, samples: Samples) -> Recognition | Failure:
        """Recognise a recording [S] at the model's rate."""
        try:
            await self.look_for(job)
            return await self.service.recognise(samples, job.request, job.call, deadline=job.deadline)
        except Exception as error:
            return failure_of(error)

    async def recognise_in_parts(self, job: Job, samples: Samples) -> AsyncIterator[Recognition | Failure]:
        """Recognise a recording [S], with its transcript after each window."""
        try:
            await self.look_for(job)
            parts = self.service.recognise_in_parts(samples, job.request, job.call, deadline=job.deadline)
            async with aclosing(parts):
                async for part in parts:
                    yield part
        except Exception as error:
            yield failure_of(error)

    async def stream(self, job: Job, settings: StreamSettings) -> AsyncIterator[Opened | Failure]:
        """Open a stream and keep it until its front ends it, or is gone: then this is cancelled."""
        try:
            await self.look_for(job)
            stream = await begin_stream(self.service, job.request, job.call, settings)
        except Exception as error:
            yield failure_of(error)
            return
        number = next(self.numbers)
        with stream:
            opened = self.streams[number] = OpenStream(stream=stream)
            try:
                yield Opened(replica=self.name, stream=number, keeps_words=stream.keeps_words)
                await opened.ended.wait()
            finally:
                del self.streams[number]

    async def push(self, number: int, samples: Samples, force_eou: bool) -> list[Event] | Failure:
        """Recognise more samples [S] of a stream."""
        try:
            return await self.opened(number).stream.push(samples, force_eou=force_eou)
        except Exception as error:
            return failure_of(error)

    async def finish(self, number: int) -> list[Event] | Failure:
        """Recognise the rest of a stream."""
        try:
            return await self.opened(number).stream.finish()
        except Exception as error:
            return failure_of(error)

    async def leave(self, number: int) -> None:
        """End a stream, finished or not."""
        if number in self.streams:
            self.streams[number].ended.set()

    async def change_adapters(self, work: str, name: str) -> Failure | None:
        """`load` or `unload` an adapter, or `scan` the folder."""
        try:
            await asyncio.to_thread(self.change, work, name)
        except Exception as error:
            return failure_of(error)
        return None

    def change(self, work: str, name: str) -> None:
        """Load or unload an adapter, or scan the folder; runs in a thread. Raises AdapterError and OverloadError."""
        store = self.server.store
        store.scan()
        if work == "load":
            store.acquire(name).release()
        elif work == "unload":
            store.unload(name)

    def opened(self, number: int) -> OpenStream:
        """Stream of a number. Raises WorkerError where there is none."""
        if number not in self.streams:
            raise WorkerError("The stream has ended: its replica does not know it any more.")
        return self.streams[number]

    async def look_for(self, job: Job) -> None:
        """Look at the folder of adapters where the front knows another version of one."""
        store = self.server.store
        for name, digest in zip(job.adapters, job.digests, strict=True):
            if name not in store or store.entry(name).digest != digest:
                await asyncio.to_thread(store.scan)
                return


def inner_settings(settings: ServerSettings) -> ServerSettings:
    """Settings of a replica: without ports, tokens, quotas and certificates, which are its fronts' business."""
    return replace(
        settings,
        learn=False,
        tokens=None,
        quotas=None,
        admin_token_file=None,
        tls_certificate=None,
        tls_key=None,
        client_authority=None,
    )


def outline_of(model: AsrModel) -> AsrModel:
    """A copy of a model without its weights, which are on PyTorch's device `meta`; its adapters are whole.

    It knows names, languages, tokenizer and fingerprint, and takes no memory.
    """
    fingerprint = model.fingerprint()
    own = {id(tensor) for tensor in (*model.adapters.parameters(), *model.adapters.buffers())}
    empty: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) in own:
            continue
        meta = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        empty[id(tensor)] = nn.Parameter(meta, requires_grad=False) if is_parameter else meta
    outline = copy.deepcopy(model, empty)
    outline.last_fingerprint.remember(fingerprint)
    return outline
