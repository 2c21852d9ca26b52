"""Front: the ordinary server with all its ports, whose recordings and streams are recognised on a cluster's replicas.

Tokens, tenants, TLS, limits and protocols are those of the server of one machine, because it is that one: nothing
is read or held before a token is valid. Serve's own proxies are not in the way; any number of fronts may stand beside
each other.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from ray import serve

from overtone.clusters import HERE, cluster
from overtone.errors import UsageError
from overtone.inference.rows import one_thread
from overtone.serving.descriptors import raise_limit
from overtone.serving.memory import keep_freed_memory
from overtone.serving.ray.cluster import ENGINE, ReplicaPlan, applications_of, engine_deployment, engine_handle
from overtone.serving.ray.remote import Replicas
from overtone.serving.server import Server, Started, run

LOG = logging.getLogger("overtone.serving.ray")
SERVE_LOG = logging.getLogger("ray.serve")
MEETING_SECONDS = 10.0
"""Time between two words of a front to the replicas that it is there."""


def serve_on_cluster(
    plan: ReplicaPlan,
    *,
    address: str = HERE,
    started: Started = lambda server, addresses: None,
) -> bool:
    """Serve until a signal comes, as `server.serve`, on a Ray cluster. Returns whether all requests were finished.

    address: as for `clusters.cluster`. Raises UsageError.
    """
    raise_limit()
    keeps_memory = keep_freed_memory()
    with ExitStack() as ending, one_thread(), cluster(address), deployed(plan):
        try:
            return asyncio.run(run_front(plan, started, keeps_memory=keeps_memory))
        finally:
            ending.callback(SERVE_LOG.setLevel, SERVE_LOG.level)
            SERVE_LOG.setLevel(logging.CRITICAL)  # its router would report as an error that the front has ended


async def run_front(plan: ReplicaPlan, started: Started, *, keeps_memory: bool) -> bool:
    """Run a front until a signal comes. Returns whether all requests were finished."""
    server = await front(plan)
    try:
        return await run(server, started, keeps_memory=keeps_memory)
    finally:
        server.close()


async def front(plan: ReplicaPlan, places: Sequence[tuple[str, str]] | None = None) -> Server:
    """A server whose engines are the running replicas of a plan; `start`, `stop` and `close` it as any other.

    places: application and deployment of each base's replicas; those of `deployed` unless given.
    """
    bases = [
        Replicas(engine_handle(deployment, application), application=application, deployment=deployment)
        for application, deployment in places or applications_of(plan)
    ]
    first, *more = [(await replicas.describe(), replicas) for replicas in bases]
    settings = replace(plan.settings, engine=replace(plan.settings.engine, threads=1))
    server = Server(settings, *first, more=more)
    for replicas, served in zip(bases, server.served, strict=True):
        replicas.store = served.store
    if settings.tokens is not None or settings.quotas is not None:
        sharing = Sharing(server, bases)
        await sharing.meet()
        server.background.append(asyncio.create_task(sharing.go_on()))
    return server


class Sharing:
    """Division of the quotas of tenants and adapters among the fronts that are there, each with an equal part."""

    def __init__(self, server: Server, bases: Sequence[Replicas]) -> None:
        self.server = server
        self.bases = bases
        self.name = uuid.uuid4().hex
        self.fronts = 1

    async def meet(self) -> None:
        """Tell the replicas that this front is there, and take its part. Where none answers, the part stays.

        The part grows only on the word of replicas that are old enough to know all fronts.
        """
        heard = await asyncio.gather(*(replicas.meet(self.name, MEETING_SECONDS / 2) for replicas in self.bases))
        fronts = max(each.count for each in heard)
        if fronts == 0 or not all(each.settled for each in heard if each.count):
            fronts = max(fronts, self.fronts)
        if fronts != self.fronts:
            LOG.info("quotas are divided among %d fronts", fronts)
            self.server.share(fronts)
            self.fronts = fronts

    async def go_on(self) -> None:
        """Meet the replicas again and again, whatever goes wrong once."""
        while True:
            await asyncio.sleep(MEETING_SECONDS)
            try:
                await self.meet()
            except Exception:
                LOG.exception("the quotas could not be divided among the fronts")


@contextmanager
def deployed(plan: ReplicaPlan) -> Iterator[None]:
    """Run the replicas of a plan, of all its bases.

    Those of another front are shared and stay: they end with the front that began them. Raises UsageError where they do
    not start.
    """
    serve.start(proxy_location="Disabled")
    present = serve.status().applications
    places = [(own, place) for own, (place, _) in zip(plan.of_each_base(), applications_of(plan), strict=True)]
    # New ones first: where their replicas do not start, none that run have been replaced yet.
    with ExitStack() as running:
        for own, application in sorted(places, key=lambda each: each[1] in present):
            running.enter_context(base_deployed(own, application))
        yield


@contextmanager
def base_deployed(plan: ReplicaPlan, application: str) -> Iterator[None]:
    """Run the replicas of one base's plan. Raises UsageError where they do not start."""
    present = serve.status().applications.get(application)
    shared = present is not None and present.status == "RUNNING"
    try:
        if shared and engine_handle(ENGINE, application).plan_version.remote().result() == plan.version:
            LOG.info("joining the replicas of %s", plan.settings.model)
        else:
            LOG.info("%s replicas of %s", "replacing the" if shared else "starting", plan.settings.model)
            try:
                serve.run(engine_deployment(plan), name=application, route_prefix=None)
            except RuntimeError as error:
                raise UsageError(f"The replicas did not start: {error}") from error
        yield
    finally:
        if not shared:
            serve.delete(application)
