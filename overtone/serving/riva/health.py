"""Health service of gRPC, grpc.health.v1: does the engine work and take requests?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import grpc

from overtone.serving.engine.engine import EngineState
from overtone.serving.riva.protobuf import (
    ASR_SERVICE,
    HEALTH_SERVICE,
    NOT_SERVING,
    SERVICE_UNKNOWN,
    SERVING,
    HealthCheckRequest,
    HealthCheckResponse,
)
from overtone.serving.riva.requests import reader

SERVICES = ("", ASR_SERVICE)
LOOK_SECONDS = 1.0
"""Time between two looks of a watch."""
MESSAGE_SECONDS = 10.0
"""Time for the message of a call."""
MOST_WAITING = 128
"""Calls that wait for their message."""
MOST_WATCHES = 128


class HasState(Protocol):
    """An engine, or a service of engines."""

    def state(self) -> EngineState: ...


class HasBases(HasState, Protocol):
    """Engines of one base or several."""

    @property
    def apart(self) -> Mapping[str, HasState]:
        """Each base by its name, where there are several."""


class Health:
    """Health of the engines, for one check or a watch; with several bases also of each, by its name."""

    def __init__(self, bases: HasBases) -> None:
        self.asked: dict[str, HasState] = {**bases.apart, **dict.fromkeys(SERVICES, bases)}
        """Engines that a check asks for, by the service's name in it."""
        self.closing = False
        """Set when the server stops, so that watches do not keep it waiting."""
        self._waiting: dict[asyncio.Timeout, None] = {}
        """Calls whose message has not come, the oldest first."""
        self._watches = 0

    def status(self, service: str) -> int:
        if service not in self.asked:
            return SERVICE_UNKNOWN
        state = self.asked[service].state()
        return SERVING if state.alive and not state.draining and not self.closing else NOT_SERVING

    async def check(self, messages: AsyncIterator[Any], context: Any) -> None:
        """Answer the one message of a check."""
        request = await self.receive(messages, context)
        if request is None or (status := self.status(request.service)) == SERVICE_UNKNOWN:
            known = ", ".join(f"'{service}'" for service in sorted(self.asked))
            await context.abort(grpc.StatusCode.NOT_FOUND, f"This service is unknown. Known: {known}.")
        await context.write(HealthCheckResponse(status=status))

    async def receive(self, messages: AsyncIterator[Any], context: Any) -> Any:
        """The one message of a call; None where it is damaged or missing. One that does not come ends the call.

        Where too many wait for theirs, the one that has waited longest ends: a check always gets in.
        """
        if len(self._waiting) >= MOST_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            if not oldest.expired():
                oldest.reschedule(0.0)
        limit = asyncio.timeout(MESSAGE_SECONDS)
        try:
            async with limit:
                self._waiting[limit] = None
                return await anext(messages, None)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "The message of this call did not come in time.")
        finally:
            self._waiting.pop(limit, None)

    async def watch(self, messages: AsyncIterator[Any], context: Any) -> None:
        """Send the status and each change of it, until the client leaves or the server stops."""
        if self._watches >= MOST_WATCHES:
            message = f"{self._watches} watches are open, as many as are allowed; use Check."
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        self._watches += 1
        try:
            await self.send_changes(await self.receive(messages, context), context)
        finally:
            self._watches -= 1

    async def send_changes(self, request: Any, context: Any) -> None:
        """Send the status of the service that a watch asks for, whenever it changes."""
        sent = None
        while True:
            last = self.closing
            status = SERVICE_UNKNOWN if request is None else self.status(request.service)
            if status != sent:
                await context.write(HealthCheckResponse(status=status))
                sent = status
            if last:
                return
            await asyncio.sleep(LOOK_SECONDS)

    def handler(self) -> Any:
        """Handler of both methods. They need no token, and take no place of other calls."""
        methods = {"Check": self.check, "Watch": self.watch}
        handlers = {
            name: grpc.stream_stream_rpc_method_handler(
                method, reader(HealthCheckRequest), HealthCheckResponse.SerializeToString
            )
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers)
