"""Replicas that a process knows: what each tells of itself, and calls to one of them past the router.

A stream must reach the replica that it began on, also while that one drains and gets nothing new: it keeps the replica.
Serve copies the module of a router into each process that routes; so what is shared with it lives here.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RunningReplica

from overtone.serving.ray.messages import ReplicaState

STATE = "state"
"""Key of a `ReplicaState` in the statistics that Serve passes on."""
DIRECT_BYTES = 2 * 2**20
"""Samples of more bytes travel through Ray's object store: a replica takes messages of 4 MiB."""
DIRECT = {"_by_reference": False, "request_serialization": "pickle", "response_serialization": "pickle"}
"""Serve's options of a call that goes to the replica in one message of gRPC, as its answer does: past the object store,
and past Ray's own calls of actors."""
BY_REFERENCE = {"_by_reference": True}
HAS_DIRECT = DIRECT.keys() <= signature(DeploymentHandle.options).parameters.keys()
"""True where this version of Ray has such calls."""


def is_direct(*arguments: Any) -> bool:
    """Tell whether a call with these arguments goes in one message."""
    return HAS_DIRECT and sum(each.nbytes for each in arguments if isinstance(each, np.ndarray)) <= DIRECT_BYTES


@dataclass(kw_only=True)
class KnownReplicas:
    """Replicas of one deployment, as the router of this process knows them."""

    running: dict[str, RunningReplica] = field(default_factory=dict)
    """By name; those that take new work."""
    metadata: Any = None
    """Serve's description of a request of this deployment; others are made from it."""

    def states(self) -> dict[str, ReplicaState]:
        """Latest word of each running replica that has given one."""
        stats = {name: replica.routing_stats for name, replica in list(self.running.items())}
        return {name: found[STATE] for name, found in stats.items() if STATE in found}

    async def call(self, replica: RunningReplica, method: str, *arguments: Any) -> Any:
        """Answer of one replica. Raises RayError where it is gone."""
        number = uuid.uuid4().hex
        metadata = replace(
            self.metadata,
            request_id=number,
            internal_request_id=number,
            call_method=method,
            is_streaming=False,
            **(DIRECT if is_direct(*arguments) else BY_REFERENCE),
        )
        request = PendingRequest(args=list(arguments), kwargs={}, metadata=metadata, resolved=True)
        return await replica.try_send_request(request, with_rejection=False).get_async()


KNOWN: MutableMapping[asyncio.AbstractEventLoop, dict[str, KnownReplicas]] = WeakKeyDictionary()
"""By the event loop, to which connections belong, and the deployment's name in Serve, `application#deployment`."""


def known_replicas(application: str, deployment: str) -> KnownReplicas:
    """Replicas that the router of a deployment in this event loop knows."""
    of_loop = KNOWN.setdefault(asyncio.get_running_loop(), {})
    return of_loop.setdefault(f"{application}#{deployment}", KnownReplicas())
