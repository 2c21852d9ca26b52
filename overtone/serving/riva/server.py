"""gRPC server of the Riva interface: nvidia.riva.asr.RivaSpeechRecognition and grpc.health.v1 on one port."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from overtone.errors import UsageError
from overtone.serving.auth.tls import ServerKeys
from overtone.serving.descriptors import most_connections
from overtone.serving.recognition.bases import Bases
from overtone.serving.recognition.service import RecognitionService
from overtone.serving.riva.health import Health
from overtone.serving.riva.protobuf import (
    ASR_SERVICE,
    ConfigRequest,
    ConfigResponse,
    RecognizeRequest,
    RecognizeResponse,
    StreamingRecognizeRequest,
    StreamingRecognizeResponse,
)
from overtone.serving.riva.reflection import reflection_handlers
from overtone.serving.riva.requests import reader
from overtone.serving.riva.servicer import OnCall, RivaServicer, write_log
from overtone.serving.settings import ServerSettings

__all__ = ["RivaServer"]

ENVELOPE = 2**16
"""Bytes of a message around its audio."""
LARGEST_OPTION = 2**31 - 1
"""gRPC's options are integers of C; no message is larger anyway."""
RESTING_SECONDS = 60.0
"""A connection may be so long without a call; then it ends, and clients open another one by themselves."""
SCARCE_SECONDS = 5.0
"""The same, and the time for a handshake, where descriptors are too few for as many connections as are wanted."""


class RivaServer:
    """`start` and `stop` it in a running event loop."""

    def __init__(
        self,
        service: RecognitionService,
        settings: ServerSettings,
        *,
        keys: ServerKeys | None = None,
        on_call: OnCall = write_log,
        bases: Bases | None = None,
    ) -> None:
        """service: of the first base. on_call: called with each call when it has ended, for logs and metrics.

        bases: all of them, where there are several.
        """
        bases = bases or Bases([service])
        self.settings = settings
        self.keys = keys
        """Keys of new connections; others may be assigned while it runs."""
        self.servicer = RivaServicer(bases, settings, on_call=on_call)
        self.health = Health(bases)
        self.guard = service.guard
        self.server: Any = None

    async def start(self) -> int:
        """Listen, and return the port. Raises UsageError where it cannot be had."""
        settings = self.settings
        self.server = grpc.aio.server(options=channel_options(settings))
        handlers = (asr_handler(self.servicer), self.health.handler(), *reflection_handlers(self.guard))
        self.server.add_generic_rpc_handlers(handlers)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            port = self._bind(f"{host}:{settings.grpc_port}")
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"Port {settings.grpc_port} of '{settings.host}' cannot be used for gRPC: {error}"
            ) from error
        if port == 0:
            raise UsageError(f"Port {settings.grpc_port} of '{settings.host}' cannot be used for gRPC; is it taken?")
        await self.server.start()
        return port

    async def stop(self, grace: float = 0.0) -> bool:
        """Take no new calls, and cancel running ones after `grace` seconds. Returns whether none had to be."""
        self.health.closing = True
        finished = True
        if self.server is not None:
            stopping = asyncio.ensure_future(self.server.stop(grace))
            await asyncio.wait({stopping}, timeout=grace)
            finished = self.servicer.open == 0  # read before a cancelled call can have ended
            await stopping
        return finished

    def _bind(self, address: str) -> int:
        if self.keys is None:
            return int(self.server.add_insecure_port(address))
        served = self.keys

        def renewed() -> Any:
            """Certificates for a new connection; None where they are those of the last one."""
            nonlocal served
            if self.keys is None or self.keys is served:
                return None
            served = self.keys
            return certificate_configuration(served)

        credentials = grpc.dynamic_ssl_server_credentials(
            certificate_configuration(served), renewed, served.client_authority is not None
        )
        return int(self.server.add_secure_port(address, credentials))


def certificate_configuration(keys: ServerKeys) -> Any:
    """Certificates as gRPC takes them."""
    return grpc.ssl_server_certificate_configuration(
        [(keys.key, keys.certificate)], root_certificates=keys.client_authority
    )


def channel_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Options of gRPC: sizes of messages, connections, keep-alive.

    gRPC closes what comes while every connection is taken. Therefore those without a call do not last.
    """
    most = min(settings.limits.max_bytes + ENVELOPE, LARGEST_OPTION)
    channels = most_connections("grpc", settings.max_channels)
    scarce = channels < settings.max_channels
    resting, opening = (SCARCE_SECONDS, SCARCE_SECONDS) if scarce else (RESTING_SECONDS, settings.opening_seconds)
    return [
        ("grpc.max_receive_message_length", most),
        ("grpc.max_send_message_length", most),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
        ("grpc.max_allowed_incoming_connections", channels),
        ("grpc.server_handshake_timeout_ms", milliseconds(min(opening, settings.opening_seconds))),
        ("grpc.max_connection_idle_ms", milliseconds(min(resting, settings.idle_seconds))),
        ("grpc.keepalive_time_ms", 60_000),  # a client that is gone without a word is noticed
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, at least one, as gRPC's options have them."""
    return max(1, min(LARGEST_OPTION, round(1000 * seconds)))


def asr_handler(servicer: RivaServicer) -> Any:
    """Handler of the three methods of nvidia.riva.asr.RivaSpeechRecognition."""
    methods = {
        "Recognize": (servicer.recognize, RecognizeRequest, RecognizeResponse),
        "StreamingRecognize": (
            servicer.streaming_recognize,
            StreamingRecognizeRequest,
            StreamingRecognizeResponse,
        ),
        "GetRivaSpeechRecognitionConfig": (servicer.get_config, ConfigRequest, ConfigResponse),
    }
    handlers = {
        name: grpc.stream_stream_rpc_method_handler(method, reader(request), response.SerializeToString)
        for name, (method, request, response) in methods.items()
    }
    return grpc.method_handlers_generic_handler(ASR_SERVICE, handlers)
