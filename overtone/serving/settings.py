"""Settings of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from overtone.audio.decode import AudioLimits
from overtone.serving.engine.engine import EngineSettings
from overtone.serving.recognition.service import PROFANITIES
from overtone.serving.streaming.stream import StreamSettings


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """A further base of a server; all that is not named here is as for the first one."""

    model: str
    """A .nemo file, a model folder, or a name."""
    base: str
    """Name of the base in requests."""
    adapters: Path | None = None
    """A folder of adapter folders, watched: this base's own."""
    adapters_from: str = ""
    """URI of a folder of adapter folders that is mirrored, in place of `adapters`."""
    language: str = "en-US"
    """Language of the model, as a BCP-47 tag."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Everything that a server may be told."""

    model: str = "fundamental"
    """A .nemo file, a model folder, or a name."""
    adapters: Path | None = None
    """A folder of adapter folders, watched; None serves the model's own adapters alone."""
    adapters_from: str = ""
    """URI of a folder of adapter folders (`s3://bucket/adapters`) that is mirrored, in place of `adapters`."""
    adapter_sources: tuple[str, ...] = ()
    """Beginnings of the URIs that `POST /v1/load_lora_adapter` may name."""
    learn: bool = False
    """Adapters of the folder learn from corrections that are sent to the server."""
    capacity: int = 64
    """Adapters of the folder in the model at a time; the least recently used makes way."""
    base: str = ""
    """Name of the base in requests; the model's own, or `base`, unless given."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of models in requests (`whisper-1`), with the models that they mean (`medical`)."""
    language: str = "en-US"
    """Language of the model, as a BCP-47 tag."""
    more: tuple[BaseSettings, ...] = ()
    """Further bases, each with an engine and adapters of its own; `base` is then the first one's name."""
    profanities: frozenset[str] = PROFANITIES
    """Lower-case words that are masked where a request asks for it."""
    host: str = "127.0.0.1"
    """Address of both ports; `0.0.0.0` is all of IPv4."""
    grpc_port: int = 50051
    """Port of Riva's gRPC interface; 0 takes any free port."""
    http_port: int = 9000
    """Port of HTTP and WebSockets; 0 takes any free port."""
    health_port: int | None = None
    """Port of health and metrics alone, without TLS and client certificates; None opens none, 0 takes any free one."""
    tokens: Path | None = None
    """A file of tenants and the hashes of their tokens (`auth.guard.read_tokens`); None asks for no tokens."""
    quotas: Path | None = None
    """A file of quotas and priorities of adapters (`auth.quotas.read_quotas`); None limits none of them."""
    admin_token_file: Path | None = None
    """A file with the administrator's token; None closes the administration."""
    tls_certificate: Path | None = None
    """PEM, the server's own certificate first; TLS for both ports."""
    tls_key: Path | None = None
    client_authority: Path | None = None
    """PEM; clients must show a certificate that this authority signed."""
    origins: frozenset[str] = frozenset()
    """Web sites (`https://example.org`) whose pages may use the HTTP interface besides the server's own; `*` is all."""
    host_names: frozenset[str] = frozenset()
    """Names by which requests may call the server (the header `Host`). A server on the loopback always goes by
    `localhost`, one on another address by any name unless some are given; both by IP addresses."""
    prompt_boost: float = 0.0
    """Boost of the words in a `prompt` of OpenAI's interfaces; 0 leaves it without effect."""
    compute_dtype: str = "auto"
    """Dtype of the frozen base: auto, float32, bfloat16 or openvino."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    """Chunks, context and endpointing of streams, unless the request says otherwise."""
    limits: AudioLimits = field(default_factory=AudioLimits)
    """Limits of one request's or session's audio."""
    max_adapter_bytes: int = 64 * 2**20
    """Bytes of an uploaded archive."""
    max_calls: int = 1024
    """gRPC calls at a time, those of health left out; more are refused with RESOURCE_EXHAUSTED."""
    max_requests: int = 256
    """HTTP transcriptions and realtime sessions at a time; more are refused with 429."""
    max_connections: int = 2048
    """HTTP connections at a time. One without a request makes way for a new one; where there is none, that gets 503."""
    max_channels: int = 8192
    """gRPC connections at a time; more are closed."""
    request_seconds: float = 600.0
    """Time after which an HTTP transcription is given up with 504."""
    idle_seconds: float = 300.0
    """Time after which a stream, or the body of a request, that sends nothing is ended."""
    message_seconds: float = 120.0
    """Time for the one message of a gRPC call: the recording."""
    opening_seconds: float = 20.0
    """Time for the head of an HTTP request, a TLS handshake, and the first message of a gRPC stream."""
    poll_seconds: float = 1.0
    """Time between two looks at the folder of adapters."""
    grace_seconds: float = 30.0
    """Time for running requests when the server is told to stop."""

    def of_each_base(self) -> tuple[ServerSettings, ...]:
        """Settings of each base alone, the first one's first."""
        return (replace(self, more=()), *(replace(self, more=(), **vars(own)) for own in self.more))
