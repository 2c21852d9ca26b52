"""OpenAI's realtime transcription: the messages of its clients, as they send them, over a plain WebSocket."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from overtone.serving.streaming.stream import StreamSettings
from support.openai_client import BETA, EVENT, RATE, OpenAiClient, client, deltas, speech
from support.speaking_model import pcm16, silence, spoken
from support.web_service import WebService, eventually, web_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    folder = tmp_path_factory.mktemp("store")
    with web_service(folder, idle_seconds=20.0, prompt_boost=0.0) as running:
        yield running


def test_commits_end_items(service: WebService) -> None:
    """As Pipecat does it: it waits for `session.created`, and ends each turn itself."""
    with client(service) as opened:
        created = opened.receive()
        assert created["type"] == "session.created"
        assert created["session"]["type"] == "transcription"
        assert created["session"]["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": RATE}
        assert created["session"]["audio"]["input"]["transcription"] is None
        updated = opened.update(turn_detection=None)
        assert updated["type"] == "session.updated"
        assert updated["session"]["audio"]["input"]["transcription"]["model"] == "swap"
        assert updated["session"]["audio"]["input"]["turn_detection"] is None
        items = []
        for text, heard in (("abc", "bac"), ("d", "d")):
            opened.say(speech(text, 1.2))
            completed = opened.committed()
            assert completed["transcript"] == heard
            assert deltas(opened.events, completed["item_id"]) == heard
            items.append(completed["item_id"])
            assert completed["usage"] == {
                "type": "duration",
                "seconds": pytest.approx(speech(text, 1.2).size / RATE, abs=1e-3),
            }
        opened.say(silence(0.5, RATE))
        assert opened.committed()["transcript"] == ""
    commits = [event for event in opened.events if event["type"] == "input_audio_buffer.committed"]
    assert [event["item_id"] for event in commits[:2]] == items
    assert [event["previous_item_id"] for event in commits[:2]] == [None, items[0]]
    kinds = [event["type"] for event in opened.events if event.get("item", {}).get("id") == items[0]]
    assert kinds == ["conversation.item.added", "conversation.item.done"]
    completed = [event for event in opened.events if event["type"] == f"{EVENT}.completed"]
    assert len({event["item_id"] for event in completed}) == len(completed) == 3
    eventually(lambda: service.calls and service.calls[-1].adapter == "swap" and service.calls[-1].audio_seconds > 2)


def test_turn_detection_ends_items(service: WebService) -> None:
    """As LiveKit does it: it names the model twice, sets up at once, and lets the server find the turns."""
    detection = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 600, "silence_duration_ms": 350}
    with client(service, "?intent=transcription&model=swap") as opened:
        assert opened.update(turn_detection=detection)["type"] == "session.created"
        assert opened.receive()["session"]["audio"]["input"]["turn_detection"] == detection
        opened.say(np.concatenate((speech("ab", 1.6), speech("dc", 2.4))))
        events = [*opened.until(f"{EVENT}.completed"), *opened.until(f"{EVENT}.completed")]
    completed = [event for event in events if event["type"] == f"{EVENT}.completed"]
    assert [event["transcript"] for event in completed] == ["ba", "dc"]
    for event in completed:
        item = event["item_id"]
        own = [each["type"] for each in events if item in (each.get("item_id"), each.get("item", {}).get("id"))]
        expected = ["speech_started", "speech_stopped", "committed"]
        assert [kind.rpartition(".")[2] for kind in own if kind.startswith("input_audio_buffer")] == expected
        assert own[0] == "input_audio_buffer.speech_started"
        assert own[-1] == f"{EVENT}.completed"
        assert deltas(events, item) == event["transcript"]
    starts = [event["audio_start_ms"] for event in events if event["type"].endswith("speech_started")]
    assert starts[0] == pytest.approx(120, abs=120)
    assert starts[1] == pytest.approx(1000 * (speech("ab", 1.6).size / RATE + 0.12), abs=150)


@pytest.mark.parametrize(
    ("format", "rate"), [("audio/pcm", RATE), ("audio/pcmu", 8000), ("audio/pcma", 8000), ("binary", RATE)]
)
def test_formats(service: WebService, format: str, rate: int) -> None:
    samples = np.concatenate((spoken("abc", rate), silence(0.3, rate)))
    encode = {"audio/pcmu": mulaw, "audio/pcma": alaw}.get(format, pcm16)
    with client(service, "") as opened:
        opened.receive()
        wanted = {"type": "audio/pcm" if format == "binary" else format}
        assert opened.update("base", format=wanted, turn_detection=None)["session"]["audio"]["input"]["format"] == (
            {"type": "audio/pcm", "rate": RATE} if encode is pcm16 else wanted
        )
        if format == "binary":
            opened.websocket.send(pcm16(samples))
        else:
            opened.say(samples, encode)
        assert opened.committed()["transcript"] == "abc"


def mulaw(samples: Any) -> bytes:
    """ITU-T G.711."""
    whole = np.minimum(np.abs((samples * 32767).astype(np.int32)), 32635) + 132
    exponent = np.floor(np.log2(whole)).astype(np.int32) - 7
    mantissa = (whole >> (exponent + 3)) & 0x0F
    sign = np.where(samples < 0, 0x80, 0)
    return bytes((~(sign | (exponent << 4) | mantissa) & 0xFF).astype(np.uint8).tolist())


def alaw(samples: Any) -> bytes:
    """ITU-T G.711."""
    whole = np.minimum(np.abs((samples * 32767).astype(np.int32)) >> 3, 4095)
    exponent = np.maximum(np.floor(np.log2(np.maximum(whole, 1))).astype(np.int32) - 4, 0)
    segment = np.where(whole < 32, 0, exponent)
    mantissa = np.where(whole < 32, whole >> 1, (whole >> exponent) & 0x0F)
    sign = np.where(samples < 0, 0, 0x80)
    return bytes((((sign | (segment << 4) | mantissa) ^ 0x55) & 0xFF).astype(np.uint8).tolist())


@pytest.mark.parametrize("way", ["commit", "wait", "much"])
def test_a_session_that_is_never_set_up_is_refused(service: WebService, way: str) -> None:
    with client(service, "?model=swap") as opened:
        opened.receive()
        opened.say(speech("ab") if way != "much" else silence(23.0, RATE))
        if way == "commit":
            opened.send("input_audio_buffer.commit", event_id="event_mine")
        error = opened.until("error")[-1]["error"]
        assert error["code"] == "session_not_configured"
        assert "session.update" in error["message"]
        if way != "commit":
            with pytest.raises(ConnectionClosed):
                opened.receive()


def test_audio_before_the_settings_waits_for_them(service: WebService) -> None:
    with client(service) as opened:
        opened.say(speech("ab"))
        opened.receive()
        opened.update(turn_detection=None)
        assert opened.committed()["transcript"] == "ba"


def test_the_model_of_the_address_counts_where_the_session_names_none(service: WebService) -> None:
    with client(service, "?intent=transcription&model=swap") as opened:
        opened.receive()
        opened.send("session.update", session={"type": "transcription", "audio": {"input": {"turn_detection": None}}})
        assert opened.receive()["session"]["audio"]["input"]["transcription"]["model"] == "swap"
        opened.say(speech("ab"))
        assert opened.committed()["transcript"] == "ba"
    with client(service, "?model=legal") as opened:
        error = opened.until("error")[-1]["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "model_not_found")
        with pytest.raises(ConnectionClosed):
            opened.receive()


@pytest.mark.parametrize(
    ("session", "words"),
    [
        ({"type": "realtime"}, "'realtime' is not supported"),
        ({"type": "transcription"}, "names no model"),
        ({"audio": {"input": {"transcription": {"model": "legal"}}}}, "'legal' does not exist"),
        ({"audio": {"input": {"transcription": {"model": "swap", "language": "de"}}}}, "'de' is not understood"),
        ({"audio": {"input": {"transcription": {"model": "swap", "prompt": 3}}}}, "must be text"),
        ({"audio": {"input": {"transcription": {"model": "swap", "delay": "none"}}}}, "one of minimal, low"),
        ({"audio": {"input": {"transcription": None}}}, "must be an object"),
        ({"audio": {"input": {"format": {"type": "audio/opus"}}}}, "Allowed: audio/pcm"),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 7}}}}, "from 8000 to 96000"),
        ({"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}, "Allowed: server_vad"),
        (
            {"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 0}}}},
            "silence_duration",
        ),
        ({"audio": {"input": {"colour": "blue"}}}, "'session.audio.input.colour' is unknown"),
        ({"audio": {"output": {"voice": "alloy"}}}, "'session.audio.output' is unknown"),
        ({"include": ["everything"]}, "cannot be included"),
        (7, "must be an object"),
    ],
)
def test_mistakes_are_answered_and_the_session_goes_on(service: WebService, session: Any, words: str) -> None:
    with client(service) as opened:
        opened.receive()
        opened.send("session.update", session=session, event_id="event_mine")
        answer = opened.receive()
        assert answer["type"] == "error"
        assert set(answer["error"]) == {"type", "code", "message", "param", "event_id"}
        assert words in answer["error"]["message"]
        assert answer["error"]["event_id"] == "event_mine"
        assert opened.update(turn_detection=None)["type"] == "session.updated"
        opened.say(speech("ab"))
        assert opened.committed()["transcript"] == "ba"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "no JSON"),
        ("[]", "no JSON object"),
        ('{"type": "response.create"}', "'response.create' is not supported"),
        ('{"type": "input_audio_buffer.append", "audio": "???"}', "base64"),
        ('{"type": "input_audio_buffer.commit"}', "too small: 0 ms"),
    ],
)
def test_refused_messages(service: WebService, text: str, words: str) -> None:
    with client(service, "?model=swap") as opened:
        opened.receive()
        opened.update(turn_detection=None)
        opened.websocket.send(text)
        assert words in opened.until("error")[-1]["error"]["message"]
        opened.say(speech("ab"))
        assert opened.committed()["transcript"] == "ba"


def test_clear_forgets_the_audio(service: WebService) -> None:
    with client(service) as opened:
        opened.receive()
        opened.update(turn_detection=None)
        opened.say(speech("abcd", 1.5))
        opened.send("input_audio_buffer.clear")
        opened.until("input_audio_buffer.cleared")
        opened.say(speech("c"))
        assert opened.committed()["transcript"] == "c"


def test_settings_change_in_the_middle(service: WebService) -> None:
    with client(service) as opened:
        opened.receive()
        opened.update("swap", turn_detection=None)
        opened.say(speech("ab", 1.0))
        assert opened.update("base", turn_detection=None)["type"] in (f"{EVENT}.delta", "session.updated")
        opened.say(speech("ab", 1.0))
        assert opened.committed()["transcript"] == "ba ab"


def test_logprobs_and_keywords(service: WebService) -> None:
    with client(service) as opened:
        opened.receive()
        transcription = {"model": "swap", "keywords": ["ab"], "prompt": "ba"}
        content = {"transcription": transcription, "turn_detection": None, "noise_reduction": {"type": "near_field"}}
        include = ["item.input_audio_transcription.logprobs"]
        opened.send(
            "session.update", session={"type": "transcription", "include": include, "audio": {"input": content}}
        )
        opened.receive()
        opened.say(speech("ab"))
        [token] = opened.committed()["logprobs"]
        assert (token["token"], bytes(token["bytes"])) == ("ba", b"ba")
        assert math.exp(token["logprob"]) == pytest.approx(1.0, abs=0.3)
    eventually(lambda: service.calls[-1].ignored == ("prompt", "noise_reduction"))


@pytest.mark.parametrize("way", ["delay", "option"])
def test_words_come_while_they_are_spoken_where_that_is_asked_for(
    service: WebService, tmp_path: Path, way: str
) -> None:
    """Nothing said is taken back: the words are those of the final text."""
    transcription = {"model": "base", **({"delay": "low"} if way == "delay" else {})}
    quick = StreamSettings(chunk=0.4, left=0.4, right=0.4, finals="chunks")
    with (
        nullcontext(service) if way == "delay" else web_service(tmp_path, adapters=(), stream=quick) as running,
        client(running) as opened,
    ):
        opened.receive()
        opened.update(transcription=transcription, turn_detection=None)
        opened.say(speech("ab cd ef", 1.6))
        assert opened.until(f"{EVENT}.delta")[-1]["delta"].startswith("ab")
        completed = opened.committed()
        assert completed["transcript"] == "ab cd ef"
        assert deltas(opened.events, completed["item_id"]) == "ab cd ef"
        kinds = [event["type"] for event in opened.events]
        assert kinds.index(f"{EVENT}.delta") < kinds.index("input_audio_buffer.committed")


# The beta


@pytest.mark.parametrize("how", ["header", "subprotocol", "message"])
def test_the_names_of_the_beta(service: WebService, how: str) -> None:
    options: dict[str, Any] = {
        "header": {"additional_headers": BETA},
        "subprotocol": {"subprotocols": ["realtime", "openai-insecure-api-key.x", "openai-beta.realtime-v1"]},
    }.get(how, {})
    with client(service, **options) as opened:
        greeting = "session.created" if how == "message" else "transcription_session.created"
        assert opened.receive()["type"] == greeting
        session = {
            "input_audio_format": "pcm16",
            "input_audio_transcription": {"model": "swap", "language": "en", "prompt": ""},
            "turn_detection": None,
            "input_audio_noise_reduction": {"type": "near_field"},
        }
        opened.send("transcription_session.update", session=session)
        updated = opened.receive()
        assert updated["type"] == "transcription_session.updated"
        assert updated["session"]["input_audio_transcription"]["model"] == "swap"
        assert updated["session"]["input_audio_format"] == "pcm16"
        opened.say(speech("ab"))
        item = opened.committed()
        assert item["transcript"] == "ba"
        created = [event for event in opened.events if event["type"] == "conversation.item.created"]
        assert [event["item"]["id"] for event in created] == [item["item_id"]]


def test_the_path_of_its_own(service: WebService) -> None:
    with client(service, "", path="/openai/v1") as opened:
        assert opened.receive()["type"] == "session.created"
        opened.update(turn_detection=None)
        opened.say(speech("ab"))
        assert opened.committed()["transcript"] == "ba"


def test_a_silent_client_behind_a_minted_session_is_greeted_too(service: WebService) -> None:
    """Riva's clients make a session by POST before they connect; a client of OpenAI's may come from their address."""
    eventually(lambda: not service.server.requests.active)
    service.post("/v1/realtime/transcription_sessions", {})
    url = f"ws://localhost:{service.addresses.http_port}/v1/realtime?intent=transcription"
    with connect(url, additional_headers={"Authorization": "Bearer any"}) as websocket:
        assert json.loads(websocket.recv(timeout=60))["type"] == "conversation.created"
        opened = OpenAiClient(websocket)
        assert opened.receive()["type"] == "session.created"
        opened.update(turn_detection=None)
        opened.say(speech("ab"))
        assert opened.committed()["transcript"] == "ba"


def test_mutated_messages_are_answered(service: WebService) -> None:
    """Characters and values changed: an error or a result each time, never a fault of ours; nothing is left over."""
    generator = np.random.default_rng(11)
    audio = base64.b64encode(pcm16(speech("a")[:4000])).decode()
    content = {"format": {"type": "audio/pcm", "rate": RATE}, "transcription": {"model": "swap", "keywords": ["ab"]}}
    session = {"type": "transcription", "audio": {"input": {**content, "turn_detection": {"type": "server_vad"}}}}
    whole = [
        json.dumps({"type": "session.update", "session": session}),
        json.dumps({"type": "input_audio_buffer.append", "audio": audio}),
        '{"type": "input_audio_buffer.commit"}',
    ]
    values = ["null", "[]", "{}", "-1", "1e400", '"x"', "true", '"\\ud800"']
    for _ in range(40):
        with client(service) as opened:
            opened.receive()
            for text in whole:
                data = list(text)
                for _ in range(int(generator.integers(0, 3))):
                    data[int(generator.integers(0, len(data)))] = chr(int(generator.integers(32, 300)))
                changed = "".join(data)
                if generator.random() < 0.4:
                    [first, *rest] = changed.split(": ")
                    place = int(generator.integers(0, len(rest)))
                    rest[place] = values[int(generator.integers(0, len(values)))] + rest[place]
                    changed = ": ".join([first, *rest])
                opened.websocket.send(changed)
            opened.websocket.send('{"type": "input_audio_buffer.clear"}')
            while (event := opened.receive())["type"] != "input_audio_buffer.cleared":
                assert event.get("error", {}).get("type") != "server_error", event
    eventually(lambda: service.server.requests.active == 0)
    assert service.server.store.counters()["leased"] == 0
