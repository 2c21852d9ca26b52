"""Health service of gRPC, grpc.health.v1: does the engine work and take requests?"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from overtone.serving.engine.engine import Engine
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


class Health:
    """Health of the engine, for one check or a watch."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.closing = False
        """Set when the server stops, so that watches do not keep it waiting."""

    def status(self, service: str) -> int:
        if service not in SERVICES:
            return SERVICE_UNKNOWN
        state = self.engine.state()
        return SERVING if state.alive and not state.draining and not self.closing else NOT_SERVING

    async def check(self, request: Any, context: Any) -> Any:
        if request is None or (status := self.status(request.service)) == SERVICE_UNKNOWN:
            known = ", ".join(f"'{service}'" for service in SERVICES)
            await context.abort(grpc.StatusCode.NOT_FOUND, f"This service is unknown. Known: {known}.")
        return HealthCheckResponse(status=status)

    async def watch(self, request: Any, context: Any) -> None:
        """Send the status and each change of it, until the client leaves or the server stops."""
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
        codec = {
            "request_deserializer": reader(HealthCheckRequest),
            "response_serializer": HealthCheckResponse.SerializeToString,
        }
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check, **codec),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch, **codec),
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, methods)
