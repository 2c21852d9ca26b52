"""Client secrets of OpenAI's realtime interface: they stand for a token and hold the settings of a session."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from overtone.serving.auth.guard import Metadata, presented_tokens
from overtone.serving.errors import RequestError
from overtone.serving.http.requests import json_object
from overtone.serving.realtime.openai_session import TranscriptionSession, session_json, update_session
from overtone.serving.recognition.request import Endpointing

PREFIX = "ek_"
SECONDS = 600
RANGE = (10, 7200)
"""Seconds that a client may choose."""
MOST = 10_000

Minted = tuple[Metadata, TranscriptionSession | None]


class OpenAiSecrets:
    """Secrets that were minted and are not too old. Each is good for any number of sessions."""

    def __init__(self, endpointing: Endpointing) -> None:
        self.endpointing = endpointing
        self._known: OrderedDict[str, tuple[float, Minted]] = OrderedDict()

    def mint(self, metadata: Metadata, body: Any) -> dict[str, Any]:
        """Answer to POST /v1/realtime/client_secrets. Raises RequestError."""
        body = json_object(body, "body")
        session = TranscriptionSession()
        if body.get("session"):
            session = update_session(session, body["session"])
        secret = self._mint(metadata, session, seconds_of(body.get("expires_after") or {}))
        return {**secret, "session": session_json(session, beta=False, endpointing=self.endpointing)}

    def mint_beta(self, metadata: Metadata, body: Any) -> dict[str, Any]:
        """Answer to POST /v1/realtime/transcription_sessions of OpenAI's beta. Raises RequestError."""
        body = json_object(body, "body")
        session = update_session(TranscriptionSession(), body) if body else TranscriptionSession()
        secret = self._mint(metadata, session, SECONDS)
        return {**session_json(session, beta=True, endpointing=self.endpointing), "client_secret": secret}

    def find(self, metadata: Metadata) -> Minted | None:
        """Headers that a secret among these was minted with, and its session; None where there is none."""
        self._forget_old()
        for token in presented_tokens(metadata):
            kept = self._known.get(token)
            if kept is not None and kept[0] > time.monotonic():
                return kept[1]
        return None

    def _mint(self, metadata: Metadata, session: TranscriptionSession, seconds: int) -> dict[str, Any]:
        self._forget_old()
        value = f"{PREFIX}{secrets.token_urlsafe(32)}"
        kept = [(name, text) for name, text in metadata if name in ("authorization", "x-api-key")]
        self._known[value] = (time.monotonic() + seconds, (kept, session if session.configured else None))
        return {"value": value, "expires_at": int(time.time() + seconds)}

    def _forget_old(self) -> None:
        now = time.monotonic()
        old = [value for value, (until, _) in self._known.items() if until <= now]
        for value in old:
            del self._known[value]
        while len(self._known) >= MOST:
            self._known.popitem(last=False)


def seconds_of(expires_after: Any) -> int:
    """Lifetime of a secret. Raises RequestError."""
    value: Mapping[str, Any] = json_object(expires_after, "expires_after")
    seconds = value.get("seconds", SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not RANGE[0] <= seconds <= RANGE[1]:
        message = f"'expires_after.seconds' is a whole number from {RANGE[0]} to {RANGE[1]}."
        raise RequestError(message, "expires_after.seconds")
    return seconds
