"""Replicas that a process knows: what each tells of itself, and calls to one of them past the router.

A stream must reach the replica that it began on, also while that one drains and gets nothing new: it keeps the replica.
Serve copies the module of a router into each process that routes; so what is shared with it lives here.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import Any

from ray.serve.request_router import PendingRequest, RunningReplica

from overtone.serving.ray.messages import ReplicaState

STATE = "state"
"""Key of a `ReplicaState` in the statistics that Serve passes on."""


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
            self.metadata, request_id=number, internal_request_id=number, call_method=method, is_streaming=False
        )
        request = PendingRequest(args=list(arguments), kwargs={}, metadata=metadata, resolved=True)
        return await replica.try_send_request(request, with_rejection=False).get_async()


KNOWN: dict[str, KnownReplicas] = {}
"""By the deployment's name in Serve, `application#deployment`."""


def known_replicas(application: str, deployment: str) -> KnownReplicas:
    """Replicas that this process's router of a deployment knows."""
    return KNOWN.setdefault(f"{application}#{deployment}", KnownReplicas())
