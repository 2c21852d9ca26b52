"""A client of OpenAI's realtime transcription over a plain WebSocket, with the messages of the official ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from websockets.sync.client import connect

from support.speaking_model import pcm16, silence, spoken
from support.web_service import WebService

EVENT = "conversation.item.input_audio_transcription"
RATE = 24_000
BETA = {"OpenAI-Beta": "realtime=v1"}


class OpenAiClient:
    def __init__(self, websocket: Any) -> None:
        self.websocket = websocket
        self.events: list[dict[str, Any]] = []

    def send(self, kind: str, **content: Any) -> None:
        self.websocket.send(json.dumps({"type": kind, **content}))

    def receive(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.websocket.recv(timeout=60))
        assert "event_id" in found
        self.events.append(found)
        return found

    def until(self, kind: str) -> list[dict[str, Any]]:
        """Events up to one of the kind."""
        events = [self.receive()]
        while events[-1]["type"] != kind:
            assert events[-1]["type"] != "error" or kind == "error", events[-1]
            events.append(self.receive())
        return events

    def say(self, samples: Any, encode: Callable[[Any], bytes] = pcm16, chunk: int = 4800) -> None:
        audio = encode(samples)
        for first in range(0, len(audio), chunk):
            self.send("input_audio_buffer.append", audio=base64.b64encode(audio[first : first + chunk]).decode())

    def update(self, model: str = "swap", **audio_input: Any) -> dict[str, Any]:
        transcription = {"model": model, "language": "en"}
        content = {"format": {"type": "audio/pcm", "rate": RATE}, "transcription": transcription, **audio_input}
        self.send("session.update", session={"type": "transcription", "audio": {"input": content}})
        return self.receive()

    def committed(self) -> dict[str, Any]:
        """Transcript of an item that is committed now."""
        self.send("input_audio_buffer.commit")
        return self.until(f"{EVENT}.completed")[-1]


@contextmanager
def client(
    service: WebService, query: str = "?intent=transcription", path: str = "/v1", **options: Any
) -> Iterator[OpenAiClient]:
    url = f"ws://localhost:{service.addresses.http_port}{path}/realtime{query}"
    with connect(url, **options) as websocket:
        yield OpenAiClient(websocket)


def speech(text: str, pause: float = 0.2) -> Any:
    return np.concatenate((spoken(text, RATE), silence(pause, RATE)))


def deltas(events: list[dict[str, Any]], item: str) -> str:
    return "".join(event["delta"] for event in events if event["type"] == f"{EVENT}.delta" and event["item_id"] == item)
