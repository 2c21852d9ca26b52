"""Riva's realtime sessions: sessions, messages, transcripts, refusals, and NVIDIA's own client."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from support.riva_service import file_of
from support.speaking_model import pcm16, silence, spoken
from support.web_service import WebService, eventually, web_service

SESSIONS = "/v1/realtime/transcription_sessions"
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
CHUNK = 3200


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    with web_service(tmp_path_factory.mktemp("store"), idle_seconds=3.0) as running:
        yield running


class Client:
    """A realtime client over a plain WebSocket."""

    def __init__(self, websocket: Any, session: dict[str, Any]) -> None:
        self.websocket = websocket
        self.session = session

    def send(self, kind: str, **content: Any) -> None:
        self.websocket.send(json.dumps({"type": kind, **content}))

    def receive(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.websocket.recv(timeout=20))
        return found

    def update(self, **changes: Any) -> dict[str, Any]:
        self.send("transcription_session.update", session={**self.session, **changes})
        return self.receive()

    def say(self, audio: bytes, chunk: int = CHUNK) -> None:
        for first in range(0, len(audio), chunk):
            part = base64.b64encode(audio[first : first + chunk]).decode()
            self.send("input_audio_buffer.append", audio=part)
            self.send("input_audio_buffer.commit")

    def rest(self) -> list[dict[str, Any]]:
        """Everything to the last result."""
        self.send("input_audio_buffer.done")
        events = [self.receive()]
        while not events[-1].get("is_last_result") and events[-1]["type"] != "error":
            events.append(self.receive())
        return events


@contextmanager
def client(service: WebService, **options: Any) -> Iterator[Client]:
    """options: of `connect`."""
    session = service.post(SESSIONS, {}).json if "session" not in options else options.pop("session")
    with connect(url(service), **options) as websocket:
        opened = Client(websocket, session)
        assert opened.receive()["type"] == "conversation.created"
        yield opened


def url(service: WebService) -> str:
    return f"ws://localhost:{service.addresses.http_port}/v1/realtime?intent=transcription"


def completed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == COMPLETED]


def model(name: str) -> dict[str, Any]:
    return {"input_audio_transcription": {"model": name}}


def test_a_session(service: WebService) -> None:
    session = service.post(SESSIONS, {}).json
    assert session["object"] == "realtime.transcription_session"
    assert session["input_audio_transcription"] == {"language": "en-US", "model": "tones", "prompt": ""}
    assert session["client_secret"] is None
    assert service.request("POST", SESSIONS).status == 200
    other = service.post(SESSIONS, {"input_audio_params": {"sample_rate_hz": 8000}, "colour": "blue"}).json
    assert other["input_audio_params"] == {"sample_rate_hz": 8000, "num_channels": 1}
    assert "colour" not in other
    assert service.post(SESSIONS, {"input_audio_format": "mp5"}).status == 400
    assert service.post(SESSIONS, []).status == 400


def test_utterances_words_and_the_last_result(service: WebService) -> None:
    samples = np.concatenate((spoken("ab"), silence(1.6), spoken("dc"), silence(0.3)))
    with client(service) as opened:
        wishes = {"enable_word_time_offsets": True}
        answer = opened.update(recognition_config=wishes, **model("tones+swap"))
        assert answer["type"] == "transcription_session.updated"
        assert answer["session"]["input_audio_transcription"]["model"] == "tones+swap"
        assert answer["session"]["recognition_config"]["max_alternatives"] == 1
        opened.say(pcm16(samples))
        events = opened.rest()
        with pytest.raises(ConnectionClosed):
            opened.receive()
    finals = completed(events)
    assert [event["utterance"] for event in finals] == ["ba", "dc"]
    assert [event["transcript"] for event in finals] == ["ba", "ba dc"]
    assert [event["is_last_result"] for event in finals] == [False, True]
    [word] = finals[1]["words_info"]["words"]
    assert word["word"] == "dc"
    assert word["start_time"] == pytest.approx(1000 * (spoken("ab").size / 16_000 + 1.6 + 0.12), abs=120)
    assert isinstance(word["start_time"], int)
    assert word["start_time"] < word["end_time"] <= 1000 * samples.size / 16_000
    deltas = [event for event in events if event["type"] == DELTA]
    assert deltas
    assert {event["delta"] for event in deltas} <= {"b", "ba", "d", "dc"}
    for index, event in enumerate(events[:-1]):
        assert event["type"] == COMPLETED or event["item_id"] == completed(events[index:])[0]["item_id"]
    assert finals[0]["item_id"] != finals[1]["item_id"]
    eventually(lambda: service.calls[-1].method == "WEBSOCKET /v1/realtime")
    call = service.calls[-1]
    assert (call.adapter, call.code) == ("swap", "OK")
    assert call.audio_seconds == pytest.approx(samples.size / 16_000)


@pytest.mark.parametrize("form", ["file", "48 kHz file", "binary", "mu-law", "no update"])
def test_ways_of_sending(service: WebService, form: str) -> None:
    samples = np.concatenate((spoken("abc"), silence(0.2)))
    with client(service) as opened:
        if form == "file":
            opened.update(input_audio_format="none")
            opened.say(file_of(samples), 1001)
        elif form == "48 kHz file":
            opened.update(input_audio_format="none", input_audio_params={"sample_rate_hz": 16_000})
            opened.say(file_of(np.concatenate((spoken("abc", 48_000), silence(0.2, 48_000))), rate=48_000))
        elif form == "binary":
            opened.websocket.send(pcm16(samples))
        elif form == "mu-law":
            opened.update(input_audio_format="g711_ulaw", input_audio_params={"sample_rate_hz": 16_000})
            opened.say(mulaw(samples))
        else:
            opened.say(pcm16(samples))
        assert opened.rest()[-1]["transcript"] == "abc"


def mulaw(samples: Any) -> bytes:
    """ITU-T G.711."""
    whole = np.minimum(np.abs((samples * 32767).astype(np.int32)), 32635) + 132
    exponent = np.floor(np.log2(whole)).astype(np.int32) - 7
    mantissa = (whole >> (exponent + 3)) & 0x0F
    sign = np.where(samples < 0, 0x80, 0)
    return bytes((~(sign | (exponent << 4) | mantissa) & 0xFF).astype(np.uint8).tolist())


def test_an_utterance_can_be_forced_to_end(service: WebService) -> None:
    with client(service) as opened:
        opened.update()
        audio = base64.b64encode(pcm16(spoken("ab"))).decode()
        opened.send("input_audio_buffer.append", audio=audio, runtime_config={"force_eou": "true"})
        opened.send("input_audio_buffer.commit")
        while (event := opened.receive())["type"] != COMPLETED:
            pass
        assert (event["transcript"], event["is_last_result"]) == ("ab", False)
        opened.say(pcm16(spoken("c")))
        assert opened.rest()[-1]["transcript"] == "ab c"


def test_custom_configuration_of_both_generations_of_clients(service: WebService) -> None:
    samples = pcm16(spoken("ab"))
    for changes in (
        {"custom_configuration": {"adapter": "swap"}},
        {"recognition_config": {"custom_configuration": "adapter:swap, colour:blue"}},
    ):
        with client(service) as opened:
            endpointing = {"start_history": -1, "stop_history": 1200, "stop_history_eou": -1, "stop_threshold": -1.0}
            assert opened.update(endpointing_config=endpointing, **changes)["type"] == "transcription_session.updated"
            opened.say(samples)
            assert opened.rest()[-1]["transcript"] == "ba"


def test_silence_and_nothing_at_all_and_wishes_without_effect(service: WebService) -> None:
    wishes = {"max_alternatives": 3, "enable_automatic_punctuation": True, "custom_configuration": "colour:blue"}
    boosts = {"enable_word_boosting": True, "word_boosting_list": [{"phrases": ["\u0447"]}]}
    with client(service) as opened:
        opened.update(input_audio_transcription={"prompt": "x"}, recognition_config=wishes, word_boosting=boosts)
        opened.say(pcm16(silence(0.5)))
        [event] = opened.rest()
        assert (event["transcript"], event["is_last_result"]) == ("", True)
    eventually(lambda: service.calls[-1].ignored != ())
    told = ("prompt", *list(wishes)[:2], "custom_configuration['colour']", "1 phrase")
    assert service.calls[-1].ignored == told
    with client(service) as opened:
        [event] = opened.rest()
        assert (event["transcript"], event["is_last_result"]) == ("", True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (model("legal"), "'legal' does not exist. Available: tones, tones+other, tones+swap"),
        ({"input_audio_transcription": {"language": "de"}}, "'de' is not understood"),
        ({"input_audio_format": "mp3"}, "input_audio_format"),
        ({"input_audio_format": {"kind": "pcm16"}}, "input_audio_format"),
        ({"input_audio_params": {"sample_rate_hz": 2**70}}, "wrong kind"),
        ({"input_audio_transcription": {"prompt": float("nan")}}, "JSON cannot say"),
        ({"input_audio_transcription": {"prompt": "\ud800"}}, "JSON cannot say"),
        ({"input_audio_params": {"sample_rate_hz": "fast"}}, "wrong kind"),
        ({"input_audio_params": 7}, "must be an object"),
        ({"speaker_diarization": {"enable_speaker_diarization": True}}, "not supported"),
        ({"endpointing_config": {"stop_threshold": 7.0}}, "stop_threshold"),
        ({"custom_configuration": "a:b:c"}, "key:value"),
        ({"word_boosting": {"enable_word_boosting": True, "word_boosting_list": [1]}}, "wrong kind"),
        ({"word_boosting": {"enable_word_boosting": True, "word_boosting_list": [{"phrases": "ab"}]}}, "list of texts"),
    ],
)
def test_refused_sessions(service: WebService, changes: dict[str, Any], words: str) -> None:
    with client(service) as opened:
        answer = opened.update(**changes)
        assert answer["type"] == "error"
        assert words in answer["error"]["message"]
        with pytest.raises(ConnectionClosed):
            opened.receive()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "no JSON"),
        ("[" * 10_000, "no JSON"),
        ("[]", "unknown"),
        ('{"type": "response.create"}', "unknown"),
        ('{"type": "input_audio_buffer.append", "audio": "???"}', "base64"),
        ('{"type": "input_audio_buffer.append"}', "base64"),
        ('{"type": "transcription_session.update", "session": 3}', "must be an object"),
    ],
)
def test_refused_messages(service: WebService, text: str, words: str) -> None:
    with client(service) as opened:
        opened.websocket.send(text)
        answer = opened.receive()
        assert answer["type"] == "error"
        assert words in answer["error"]["message"]


def test_a_session_cannot_change_once_audio_was_sent(service: WebService) -> None:
    with client(service) as opened:
        opened.say(pcm16(spoken("a")))
        opened.send("transcription_session.update", session={})
        while (answer := opened.receive())["type"] != "error":
            pass
        assert "cannot be changed" in answer["error"]["message"]


def test_malformed_audio_and_idle_sessions_end(service: WebService) -> None:
    with client(service) as opened:
        opened.update(input_audio_format="none")
        opened.say(b"RIFF\xff\xff\xff\xffWAVEfmt \x01\x00\x00\x00zzzzzzzzzzzzzz")
        assert opened.rest()[-1]["type"] == "error"
    with client(service) as opened:
        answer = opened.receive()
        assert "Nothing was sent for 3 seconds" in answer["error"]["message"]
    eventually(lambda: service.server.requests.active == 0)


def test_clients_that_vanish_free_their_place(service: WebService) -> None:
    with client(service) as opened:
        opened.update(**model("swap"))
        opened.say(pcm16(spoken("abc")))
        eventually(lambda: service.server.requests.active == 1)
        opened.websocket.socket.close()
    eventually(lambda: service.server.requests.active == 0)
    assert service.server.store.counters()["leased"] == 0


def test_pages_of_other_sites_are_refused(service: WebService) -> None:
    port = service.addresses.http_port
    with client(service, origin=f"http://localhost:{port}") as opened:
        assert opened.rest()[-1]["is_last_result"]
    with pytest.raises(InvalidStatus) as refused:
        connect(url(service), origin="https://example.org").__enter__()
    assert refused.value.response.status_code == 403


def test_too_many_sessions(tmp_path: Path) -> None:
    with web_service(tmp_path, adapters=(), max_requests=1) as narrow, client(narrow) as opened:
        opened.update()
        with pytest.raises(InvalidStatus) as refused:
            connect(url(narrow)).__enter__()
        assert refused.value.response.status_code == 429


def test_mutated_messages_are_answered(service: WebService) -> None:
    """Characters changed, cut out and put in: an error or a result each time, never a fault of ours."""
    generator = np.random.default_rng(5)
    session = service.post(SESSIONS, {}).json
    audio = base64.b64encode(file_of(spoken("a")[:2000])).decode()
    update = {"type": "transcription_session.update", "session": session}
    whole = [json.dumps(update), json.dumps({"type": "input_audio_buffer.append", "audio": audio})]
    for _ in range(40):
        with connect(url(service)) as websocket:
            opened = Client(websocket, session)
            opened.receive()
            messages = []
            for text in whole:
                data = list(text)
                for _ in range(int(generator.integers(0, 3))):
                    data[int(generator.integers(0, len(data)))] = chr(int(generator.integers(32, 300)))
                messages.append("".join(data))
            with suppress(ConnectionClosed):  # what is no JSON ends the session behind its error
                for message in [*messages, '{"type": "input_audio_buffer.done"}']:
                    websocket.send(message)
            while (event := opened.receive())["type"] != "error" and not event.get("is_last_result"):
                pass
            assert event.get("error", {}).get("type") != "server_error", event
    eventually(lambda: service.server.requests.active == 0)


# Tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    digest = hashlib.sha256(b"bert-token").hexdigest()
    path = tmp_path / "tokens.yaml"
    path.write_text(f"tenants:\n  bert:\n    tokens: ['sha256:{digest}']\n    adapters: [other]\n")
    return path


def test_secrets_stand_for_tokens(tmp_path: Path, tokens: Path) -> None:
    with web_service(tmp_path / "store", tokens=tokens) as guarded:
        refused = guarded.post(SESSIONS, {})
        assert refused.status == 401
        assert refused.json["detail"] == refused.error["message"]
        session = guarded.post(SESSIONS, {}, token="bert-token").json
        secret = session["client_secret"]["value"]
        protocols = ["realtime", f"realtime-token.{secret}"]
        with client(guarded, session=session, subprotocols=protocols) as opened:
            assert opened.websocket.subprotocol == "realtime"
            assert opened.update(**model("swap"))["error"]["type"] == "permission_error"
        for options in (
            {"subprotocols": protocols},
            {"subprotocols": ["realtime", "realtime-token.guess"]},
            {},
        ):
            with pytest.raises(InvalidStatus) as error:
                connect(url(guarded), **options).__enter__()
            assert error.value.response.status_code == 401
        header = {"Authorization": "Bearer bert-token"}
        with client(guarded, session=session, additional_headers=header) as opened:
            opened.update(**model("other"))
            opened.say(pcm16(spoken("abc")))
            assert opened.rest()[-1]["is_last_result"]
        eventually(lambda: guarded.calls[-1].tenant == "bert")


# NVIDIA's client


@pytest.mark.parametrize("with_tokens", [False, True])
def test_nvidias_client(tmp_path: Path, tokens: Path, with_tokens: bool) -> None:
    python, checkout = os.environ.get("OVERTONE_RIVA_PYTHON"), os.environ.get("OVERTONE_RIVA_CLIENTS")
    if not python or not checkout:
        pytest.skip("OVERTONE_RIVA_PYTHON and OVERTONE_RIVA_CLIENTS name a Python and a checkout of NVIDIA's clients")
    samples = np.concatenate((spoken("ab"), silence(1.6), spoken("dc"), silence(0.3)))
    (tmp_path / "a.wav").write_bytes(file_of(samples))
    options = {"tokens": tokens} if with_tokens else {}
    with web_service(tmp_path / "store", **options) as running:
        words = [
            "--server", f"localhost:{running.addresses.http_port}", "--input-file", str(tmp_path / "a.wav"),
            "--output-text", str(tmp_path / "out.txt"), "--word-time-offsets", "--boosted-lm-words", "ab",
            "--model-name", "other" if with_tokens else "tones+swap", "--stop-history", "800",
        ]  # fmt: skip
        script = [python, f"{checkout}/scripts/asr/realtime_asr_client.py", *words]
        if with_tokens:
            denied = subprocess.run(script, capture_output=True, text=True, check=False, timeout=60)
            assert denied.returncode == 1
            assert "HTTP 401: A valid token is needed" in denied.stdout
            script += ["--mint-api-key", "bert-token"]
        done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "out.txt").read_text() == ("ab dc" if with_tokens else "ba dc")
        assert "Start (ms)" in done.stdout
