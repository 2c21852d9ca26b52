"""Replicas that a process knows: what each tells of itself, and calls to one of them past the router.

A stream must reach the replica that it began on, also while that one drains and gets nothing new: it keeps the replica.
Serve copies the module of a router into each process that routes; so what is shared with it lives here.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RunningReplica

from overtone.serving.errors import DeadlineError
from overtone.serving.ray.messages import ReplicaState

STATE = "state"
"""Key of a `ReplicaState` in the statistics that Serve passes on."""
DIRECT_BYTES = 2 * 2**20
"""Samples of more bytes travel through Ray's object store: a replica takes messages of 4 MiB."""
DIRECT = {"_by_reference": False, "request_serialization": "pickle", "response_serialization": "pickle"}
"""Serve's options of a call that goes to the replica in one message of gRPC, as its answer does: past the object store,
and past Ray's own calls of actors."""
BY_REFERENCE = {"_by_reference": True}
WATCH_SECONDS = 5.0
"""Time between two looks at the replica of a call that lasts. gRPC itself takes seven minutes to find that a node has
vanished without a word."""
HAS_DIRECT = DIRECT.keys() <= signature(DeploymentHandle.options).parameters.keys()
"""True where this version of Ray has such calls."""


def is_direct(*arguments: Any) -> bool:
    """Tell whether a call with these arguments goes in one message."""
    return HAS_DIRECT and sum(each.nbytes for each in arguments if isinstance(each, np.ndarray)) <= DIRECT_BYTES


@dataclass
class Way:
    """A call on its way: the replica to which it was sent last, None before that."""

    replica: RunningReplica | None = None


@dataclass(kw_only=True)
class KnownReplicas:
    """Replicas of one deployment, as the router of this process knows them."""

    running: dict[str, RunningReplica] = field(default_factory=dict)
    """By name; those that take new work."""
    metadata: Any = None
    """Serve's description of a request of this deployment; others are made from it."""
    ways: dict[int, Way] = field(default_factory=dict)
    """Ways of the routed calls whose answer is awaited, by the `id` of their first argument."""

    def states(self) -> dict[str, ReplicaState]:
        """Latest word of each running replica that has given one."""
        stats = {name: replica.routing_stats for name, replica in list(self.running.items())}
        return {name: found[STATE] for name, found in stats.items() if STATE in found}

    async def call(self, replica: RunningReplica, method: str, *arguments: Any) -> Any:
        """Answer of one replica. Raises RayError where it is gone."""
        if not is_direct(*arguments):
            return await self.send(replica, method, arguments, BY_REFERENCE)
        async with self.watched(Way(replica)):
            return await self.send(replica, method, arguments, DIRECT)

    async def send(self, replica: RunningReplica, method: str, arguments: Any, options: dict[str, Any]) -> Any:
        """Answer of one replica by a call with these options of Serve, however long it takes."""
        number = uuid.uuid4().hex
        metadata = replace(
            self.metadata,
            request_id=number,
            internal_request_id=number,
            call_method=method,
            is_streaming=False,
            **options,
        )
        request = PendingRequest(args=list(arguments), kwargs={}, metadata=metadata, resolved=True)
        return await replica.try_send_request(request, with_rejection=False).get_async()

    @contextmanager
    def way_of(self, argument: Any) -> Iterator[Way]:
        """The way of a call that a router sends; argument: its first one."""
        way = self.ways[id(argument)] = Way()
        try:
            yield way
        finally:
            del self.ways[id(argument)]

    def note_sending(self, request: PendingRequest, replica: RunningReplica) -> None:
        """Remember to which replica a routed call goes."""
        way = self.ways.get(id(request.args[0])) if request.args else None
        if way is not None:
            way.replica = replica

    @asynccontextmanager
    async def watched(self, way: Way, deadline: float | None = None) -> AsyncGenerator[None]:
        """A wait for an answer. It ends where Ray says that the call's replica is dead, and at the deadline.

        Raises RayError and DeadlineError.
        """
        watcher: list[asyncio.Task[None]] = []
        is_lost = False
        limit = asyncio.timeout_at(deadline)

        async def watch() -> None:
            nonlocal is_lost
            while way.replica is None or not await self.is_dead(way.replica):
                await asyncio.sleep(WATCH_SECONDS)
            is_lost = True
            limit.reschedule(0.0)

        loop = asyncio.get_running_loop()
        begin = loop.call_later(WATCH_SECONDS, lambda: watcher.append(loop.create_task(watch())))
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            if is_lost:
                raise ActorUnavailableError("Ray says that the replica is dead.", None) from None
            raise DeadlineError("The deadline passed before a replica had answered.") from None
        finally:
            begin.cancel()
            for task in watcher:
                task.cancel()

    async def is_dead(self, replica: RunningReplica) -> bool:
        """Tell whether Ray says that a replica is dead. One that drains has left `running` too, but it answers."""
        if replica.replica_id.unique_id in self.running:
            return False
        try:
            async with asyncio.timeout(WATCH_SECONDS):
                await self.send(replica, "process", (), BY_REFERENCE)
        except (TimeoutError, RayTaskError):
            return False
        except RayError:
            return True
        return False


KNOWN: MutableMapping[asyncio.AbstractEventLoop, dict[str, KnownReplicas]] = WeakKeyDictionary()
"""By the event loop, to which connections belong, and the deployment's name in Serve, `application#deployment`."""


def known_replicas(application: str, deployment: str) -> KnownReplicas:
    """Replicas that the router of a deployment in this event loop knows."""
    of_loop = KNOWN.setdefault(asyncio.get_running_loop(), {})
    return of_loop.setdefault(f"{application}#{deployment}", KnownReplicas())
