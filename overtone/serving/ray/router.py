"""Router of Ray Serve's requests by adapter affinity.

One lives in every process with a handle of the deployment. Serve gives it the replicas, and with them what each tells
of itself.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from overtone.serving.ray.affinity import HOMES, HeldAdapters, Homes, choose
from overtone.serving.ray.known import known_replicas
from overtone.serving.ray.messages import Job

MAX_BATCH = 16


class AffinityRouter(RequestRouter):  # type: ignore[misc]
    """Sends a request to a replica that holds its adapters and is not overloaded, else to the less busy one."""

    def initialize_state(self, homes: int = HOMES, max_batch: int = MAX_BATCH) -> None:
        """homes: replicas that may hold one adapter. max_batch: rows of a forward."""
        self.homes = Homes(homes)
        self.held = HeldAdapters()
        self.max_batch = max_batch
        self.chance = random.Random()
        self.known = known_replicas(self._deployment_id.app_name, self._deployment_id.name)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take note of the running replicas and of what they tell of themselves."""
        super().update_replicas(replicas)
        named = {replica.replica_id.unique_id: replica for replica in replicas}
        self.known.running = named
        for replica in replicas:
            if "try_send_request" not in vars(replica):
                replica.try_send_request = partial(self.send, replica, replica.try_send_request)
        self.homes.settle(tuple(named))
        self.held.keep(tuple(named))
        for name, state in self.known.states().items():
            self.held.tell(name, state.adapters, state.capacity)

    def send(self, replica: RunningReplica, sending: Any, request: PendingRequest, **options: Any) -> Any:
        """Send a request to a replica. Serve itself tells where it went only when the answer has come."""
        self.known.note_sending(request, replica)
        return sending(request, **options)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas for a request, one in each."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        busy = {name: self.busy(replica) for name, replica in named.items()}
        ranked = choose(
            busy,
            adapters_of(pending_request),
            homes=self.homes,
            held=self.held,
            max_batch=self.max_batch,
            chance=self.chance,
        )
        return [[named[name]] for name in ranked]

    def busy(self, replica: RunningReplica) -> int:
        """Requests that a replica has, as far as is known."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember what the replica will hold now."""
        self.known.metadata = pending_request.metadata
        self.held.send(replica_id.unique_id, adapters_of(pending_request))


def adapters_of(request: PendingRequest | None) -> tuple[str, ...]:
    """Adapters of a request; empty for the base, and for what is no job."""
    job = request.args[0] if request is not None and request.args else None
    return job.adapters if isinstance(job, Job) else ()
