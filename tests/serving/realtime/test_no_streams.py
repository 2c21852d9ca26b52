"""Realtime sessions with a model that has no live streams: refused before any audio, with what to do instead."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from overtone.checkpoints.load import load_model
from support.fixtures import fixture_file
from support.openai_client import client
from support.web_service import web_service

WORDS = "POST /v1/audio/transcriptions"


def test_sessions_are_refused_when_they_are_set_up() -> None:
    model = load_model(fixture_file("canary_aed/model.nemo"))
    with web_service(None, model=model) as service:
        session = service.post("/v1/realtime/transcription_sessions", {}).json
        riva = f"ws://localhost:{service.addresses.http_port}/v1/realtime?intent=transcription"
        with connect(riva) as websocket:
            assert json.loads(websocket.recv(timeout=60))["type"] == "conversation.created"
            websocket.send(json.dumps({"type": "transcription_session.update", "session": session}))
            answer = json.loads(websocket.recv(timeout=60))
            assert (answer["type"], WORDS in answer["error"]["message"]) == ("error", True)
            with pytest.raises(ConnectionClosed):
                websocket.recv(timeout=60)
        with client(service) as opened:
            opened.receive()
            answer = opened.update(model="base")
            assert (answer["type"], WORDS in answer["error"]["message"]) == ("error", True)
