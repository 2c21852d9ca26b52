"""Tokens and secrets of OpenAI's realtime clients, and the official client itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from websockets.exceptions import InvalidStatus

from support.openai_client import BETA, client, speech
from support.speaking_model import pcm16
from support.web_service import eventually, web_service


def test_tokens_and_secrets(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"bert-token").hexdigest()
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"tenants:\n  bert:\n    tokens: ['sha256:{digest}']\n    adapters: [swap]\n")
    with web_service(tmp_path / "store", tokens=tokens) as guarded:
        for options in ({}, {"subprotocols": ["realtime", "openai-insecure-api-key.guess"]}):
            with pytest.raises(InvalidStatus) as refused, client(guarded, **options):
                pass
            assert refused.value.response.status_code == 401
        header = {"additional_headers": {"Authorization": "Bearer bert-token"}}
        with client(guarded, **header) as opened:
            opened.receive()
            assert opened.update("other")["error"]["type"] == "permission_error"
        session = {
            "type": "transcription",
            "audio": {"input": {"transcription": {"model": "swap"}, "turn_detection": None}},
        }
        body = {"expires_after": {"anchor": "created_at", "seconds": 60}, "session": session}
        path = "/v1/realtime/client_secrets"
        assert guarded.post(path, body).status == 401
        assert guarded.post(path, {"expires_after": {"seconds": 5}}, token="bert-token").status == 400
        secret = guarded.post(path, body, token="bert-token").json
        assert secret["value"].startswith("ek_")
        assert secret["session"]["audio"]["input"]["transcription"]["model"] == "swap"
        for _ in range(2):
            with client(guarded, subprotocols=["realtime", f"openai-insecure-api-key.{secret['value']}"]) as opened:
                assert opened.websocket.subprotocol == "realtime"
                created = opened.receive()
                assert created["session"]["audio"]["input"]["transcription"]["model"] == "swap"
                opened.say(speech("ab"))
                assert opened.committed()["transcript"] == "ba"
        eventually(lambda: guarded.calls[-1].tenant == "bert")
        beta = guarded.request(
            "POST",
            "/v1/realtime/transcription_sessions",
            body=json.dumps({"input_audio_transcription": {"model": "swap"}}).encode(),
            headers={**BETA, "Content-Type": "application/json"},
            token="bert-token",
        ).json
        assert beta["client_secret"]["value"].startswith("ek_")
        assert beta["input_audio_transcription"]["model"] == "swap"


# OpenAI's own client

SCRIPT = """
import asyncio, base64, sys
import openai

audio = open(sys.argv[2], "rb").read()
address = sys.argv[1]
client = openai.AsyncOpenAI(base_url=address, websocket_base_url=address.replace("http", "ws", 1), api_key="any")

async def main():
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert (await connection.recv()).type == "session.created"
        settings = {"format": {"type": "audio/pcm", "rate": 24000}, "transcription": {"model": "swap"}}
        await connection.session.update(
            session={"type": "transcription", "audio": {"input": {**settings, "turn_detection": None}}}
        )
        for first in range(0, len(audio), 4800):
            await connection.input_audio_buffer.append(audio=base64.b64encode(audio[first:first + 4800]).decode())
        await connection.input_audio_buffer.commit()
        async for event in connection:
            if event.type.endswith("completed"):
                print(event.transcript, event.usage.type)
                break

asyncio.run(main())
"""


def test_openais_client(tmp_path: Path) -> None:
    python = os.environ.get("OVERTONE_OPENAI_PYTHON")
    if not python:
        pytest.skip("OVERTONE_OPENAI_PYTHON names a Python with openai[realtime], which needs other versions than ours")
    (tmp_path / "client.py").write_text(SCRIPT)
    (tmp_path / "audio.pcm").write_bytes(pcm16(speech("ab")))
    with web_service(tmp_path / "store") as service:
        address = f"http://localhost:{service.addresses.http_port}/v1"
        command = [python, str(tmp_path / "client.py"), address, str(tmp_path / "audio.pcm")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "ba duration\n", done.stderr
