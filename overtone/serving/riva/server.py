"""The Riva door: nvidia.riva.asr.RivaSpeechRecognition and grpc.health.v1 on one port.

A call is read (`riva_request`), authorised, run by the engine on a lease of its adapters, and answered
(`riva_results`). What each field does is told in `riva_fields`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc

from overtone.errors import UsageError
from overtone.serving.adapter_store.store import Shelf
from overtone.serving.auth.access import Authorise, open_to_all
from overtone.serving.engine.engine import Engine
from overtone.serving.recognition.held_audio import HeldAudio
from overtone.serving.riva.health import Health
from overtone.serving.riva.protobuf import (
    ASR_SERVICE,
    ConfigRequest,
    ConfigResponse,
    RecognizeRequest,
    RecognizeResponse,
    StreamingRecognizeRequest,
    StreamingRecognizeResponse,
    reader,
)
from overtone.serving.riva.servicer import OnCall, RivaCalls, RivaSettings, write_log

__all__ = ["RivaServer", "RivaSettings", "ServerKeys"]

ENVELOPE = 2**16
"""Bytes of a message around its audio."""
LARGEST_OPTION = 2**31 - 1
"""gRPC's options are integers of C; no message is larger anyway."""


@dataclass(frozen=True, kw_only=True)
class ServerKeys:
    """TLS, as PEM text."""

    certificate: bytes
    """The server's chain, its own certificate first."""
    key: bytes
    client_authority: bytes | None = None
    """Clients must show a certificate that this authority signed (mTLS)."""


class RivaServer:
    """`start` and `stop` it in a running event loop."""

    def __init__(
        self,
        engine: Engine,
        shelf: Shelf,
        *,
        settings: RivaSettings | None = None,
        keys: ServerKeys | None = None,
        authorise: Authorise = open_to_all,
        on_call: OnCall = write_log,
        held: HeldAudio | None = None,
    ) -> None:
        """on_call: told of each call when it has ended, for logs and metrics. held: shared with the other doors."""
        self.settings = settings or RivaSettings()
        self.keys = keys
        self.calls = RivaCalls(
            engine,
            shelf,
            settings=self.settings,
            authorise=authorise,
            on_call=on_call,
            held=held or HeldAudio(),
        )
        self.health = Health(engine)
        self.server: Any = None

    async def start(self) -> int:
        """The port that it listens on. Raises UsageError where that cannot be had."""
        settings = self.settings
        self.server = grpc.aio.server(options=channel_options(settings), maximum_concurrent_rpcs=settings.max_calls)
        self.server.add_generic_rpc_handlers((asr_handler(self.calls), self.health.handler()))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.port}"
        try:
            port = self._bind(address)
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"Port {settings.port} of '{settings.host}' cannot be used for gRPC: {error}") from error
        if port == 0:
            raise UsageError(f"Port {settings.port} of '{settings.host}' cannot be used for gRPC; is it taken?")
        await self.server.start()
        return port

    async def stop(self, grace: float = 0.0) -> bool:
        """Take no new calls; those that run are cancelled after `grace` seconds. Whether none had to be."""
        self.health.closing = True
        finished = True
        if self.server is not None:
            stopping = asyncio.ensure_future(self.server.stop(grace))
            await asyncio.wait({stopping}, timeout=grace)
            finished = self.calls.open == 0  # asked before a cancelled call can have ended
            await stopping
        self.calls.close()
        return finished

    def _bind(self, address: str) -> int:
        if self.keys is None:
            return int(self.server.add_insecure_port(address))
        credentials = grpc.ssl_server_credentials(
            [(self.keys.key, self.keys.certificate)],
            root_certificates=self.keys.client_authority,
            require_client_auth=self.keys.client_authority is not None,
        )
        return int(self.server.add_secure_port(address, credentials))


def channel_options(settings: RivaSettings) -> list[tuple[str, int]]:
    most = min(settings.limits.max_bytes + ENVELOPE, LARGEST_OPTION)
    return [
        ("grpc.max_receive_message_length", most),
        ("grpc.max_send_message_length", most),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def asr_handler(calls: RivaCalls) -> Any:
    methods = {
        "Recognize": grpc.unary_unary_rpc_method_handler(
            calls.recognize, reader(RecognizeRequest), RecognizeResponse.SerializeToString
        ),
        "StreamingRecognize": grpc.stream_stream_rpc_method_handler(
            calls.streaming_recognize,
            reader(StreamingRecognizeRequest),
            StreamingRecognizeResponse.SerializeToString,
        ),
        "GetRivaSpeechRecognitionConfig": grpc.unary_unary_rpc_method_handler(
            calls.get_config, reader(ConfigRequest), ConfigResponse.SerializeToString
        ),
    }
    return grpc.method_handlers_generic_handler(ASR_SERVICE, methods)
