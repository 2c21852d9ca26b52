"""Dialects of /v1/realtime: Riva's and OpenAI's, told apart by path, subprotocol, headers, query or the first message.

Neither side's clients say which one they speak. OpenAI's wait for `session.created`, Riva's for `conversation.created`
after they have made a session by POST: where nothing else tells, that POST does.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from starlette.websockets import WebSocket

from overtone.serving.auth.guard import Metadata
from overtone.serving.http.requests import metadata_of
from overtone.serving.realtime.pace import LARGEST

Dialect = Literal["riva", "openai"]

KEY_PREFIX = "openai-insecure-api-key."
BETA_PREFIX = "openai-beta."
RIVA_PREFIX = "realtime-token."
"""Subprotocols of browsers, which cannot send headers."""
OPENAI_PATH = "/openai/v1/realtime"
"""Path of OpenAI's dialect alone."""
RIVA_KEYS = frozenset(
    {
        "recognition_config", "input_audio_params", "speaker_diarization", "word_boosting", "endpointing_config",
        "custom_configuration",
    }
)  # fmt: skip
OPENAI_KEYS = frozenset({"turn_detection", "input_audio_noise_reduction", "include", "audio"})
"""Keys of a session that only one of the dialects has."""


@dataclass(frozen=True, kw_only=True)
class Handshake:
    """Facts of a handshake that tell the dialect."""

    dialect: Dialect | None
    """None where it does not tell."""
    beta: bool
    """OpenAI's beta, whose events have other names."""
    model: str
    """`?model=`; empty without."""
    is_transcription: bool
    """`?intent=transcription`."""


def read_handshake(websocket: WebSocket) -> Handshake:
    """Facts of a handshake."""
    protocols = websocket.scope.get("subprotocols", [])
    beta = "openai-beta" in websocket.headers or any(name.startswith(BETA_PREFIX) for name in protocols)
    model = websocket.query_params.get("model", "")
    is_openai = beta or model or websocket.url.path.rstrip("/") == OPENAI_PATH
    dialect: Dialect | None = None
    if is_openai or any(name.startswith(KEY_PREFIX) for name in protocols):
        dialect = "openai"
    elif any(name.startswith(RIVA_PREFIX) for name in protocols):
        dialect = "riva"
    return Handshake(
        dialect=dialect,
        beta=beta,
        model=model,
        is_transcription=websocket.query_params.get("intent") == "transcription",
    )


def dialect_of_message(message: str | bytes, default: Dialect) -> Dialect:
    """Dialect of a client's first message; the default where both have it, and of one too large to tell."""
    try:
        content = json.loads(message) if isinstance(message, str) and len(message) <= LARGEST else None
    except (ValueError, RecursionError):
        return default
    if not isinstance(content, dict):
        return default
    if content.get("type") == "session.update":
        return "openai"
    session = content.get("session")
    if content.get("type") != "transcription_session.update" or not isinstance(session, dict):
        return default
    if session.keys() & RIVA_KEYS:
        return "riva"
    return "openai" if session.keys() & OPENAI_KEYS else default


def openai_metadata(websocket: WebSocket) -> Metadata:
    """Headers of a handshake, with the key that a browser offers as a subprotocol."""
    metadata = metadata_of(websocket)
    protocols = websocket.scope.get("subprotocols", [])
    keys = [name.removeprefix(KEY_PREFIX) for name in protocols if name.startswith(KEY_PREFIX)]
    return [*metadata, *(("authorization", f"Bearer {key}") for key in keys)]


class MintedSessions:
    """Sessions made by POST whose WebSocket is still to come, by the address of their client."""

    SECONDS = 60.0
    MOST = 10_000

    def __init__(self) -> None:
        self._expected: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._count = 0

    def add(self, client: Any) -> None:
        """Expect a connection. client: host and port, or None."""
        self._forget_old()
        self._count += 1
        self._expected[(host_of(client), self._count)] = time.monotonic() + self.SECONDS

    def take(self, client: Any) -> bool:
        """Tell whether a connection from there is expected; the next one is not."""
        self._forget_old()
        host = host_of(client)
        found = next((key for key in self._expected if key[0] == host), None)
        if found is not None:
            del self._expected[found]
        return found is not None

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self._expected:
            oldest = next(iter(self._expected))
            if self._expected[oldest] > now and len(self._expected) < self.MOST:
                break
            del self._expected[oldest]


def host_of(client: Any) -> str:
    """Host of a client, as Starlette names it."""
    return client.host if client is not None else ""
