"""Reflection service of gRPC, grpc.reflection.v1alpha: tools such as grpcurl learn the interface from the server.

It needs the package `grpcio-reflection`; without it, the server has no reflection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.util import find_spec
from typing import Any

import grpc

from overtone.serving.auth.guard import Guard
from overtone.serving.errors import AccessError
from overtone.serving.riva.errors import abort
from overtone.serving.riva.protobuf import ASR_SERVICE, HEALTH_SERVICE, POOL

MESSAGE_SECONDS = 10.0
"""Time between two messages of a call."""
MOST_CALLS = 32


class Reflection:
    """Calls of the reflection service, for those who may use the server."""

    def __init__(self, guard: Guard) -> None:
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        self.guard = guard
        self.name: str = reflection.SERVICE_NAME
        self.messages = reflection_pb2
        self.servicer = reflection.aio.ReflectionServicer((ASR_SERVICE, HEALTH_SERVICE, self.name), pool=POOL)
        self._calls = 0

    async def reflect(self, messages: AsyncIterator[Any], context: Any) -> None:
        """Answer the questions of one client."""
        try:
            self.guard.authorise(context.invocation_metadata() or (), None)
        except AccessError as error:
            await abort(context, error)
        if self._calls >= MOST_CALLS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many ask for reflection; try again later.")
        self._calls += 1
        try:
            async for answer in self.servicer.ServerReflectionInfo(in_time(messages), context):
                await context.write(answer)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "The message of this call did not come in time.")
        finally:
            self._calls -= 1

    def handler(self) -> Any:
        method = grpc.stream_stream_rpc_method_handler(
            self.reflect,
            self.messages.ServerReflectionRequest.FromString,
            self.messages.ServerReflectionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(self.name, {"ServerReflectionInfo": method})


async def in_time(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The messages, each within MESSAGE_SECONDS. Raises TimeoutError."""
    while True:
        async with asyncio.timeout(MESSAGE_SECONDS):
            message = await anext(messages, None)
        if message is None:
            return
        yield message


def reflection_handlers(guard: Guard) -> tuple[Any, ...]:
    """Handler of the reflection service, where its package is installed."""
    return (Reflection(guard).handler(),) if find_spec("grpc_reflection") is not None else ()
