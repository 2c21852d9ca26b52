"""HTTP: OpenAI's interface, models, health, metrics; limits and faults."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from overtone.audio.decode import AudioLimits
from support.riva_service import file_of
from support.speaking_model import silence, spoken
from support.web_service import WebService, form, web_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    limits = AudioLimits(max_bytes=2**21, max_seconds=120.0)
    with web_service(tmp_path_factory.mktemp("store"), limits=limits) as running:
        yield running


# Transcriptions


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG"])
def test_a_recording_and_its_adapter(service: WebService, format: str) -> None:
    audio = file_of(spoken("abc"), format=format)
    assert service.text(audio) == "abc"
    assert service.text(audio, model="swap") == "bac"
    assert service.text(audio, model="tones+swap") == "bac"
    assert service.text(audio, model="tones", adapter="swap") == "bac"
    assert service.text(audio, model="base", language="en") == "abc"
    assert service.text(file_of(spoken("abc", 48_000), rate=48_000), model="swap") == "bac"


def test_formats(service: WebService) -> None:
    samples = np.concatenate((spoken("ab c"), silence(1.5), spoken(" d")))
    audio = file_of(samples)
    answer = service.transcribe(audio)
    assert answer.json == {"text": "ab c d", "usage": {"type": "duration", "seconds": 4}}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["cache-control"] == "no-store"
    text = service.transcribe(audio, response_format="text")
    assert text.headers["content-type"].startswith("text/plain")
    assert text.text == f"{answer.json['text']}\n"
    srt = service.transcribe(audio, response_format="srt").text
    assert srt.startswith("1\n00:00:00,")
    assert " --> " in srt
    vtt = service.transcribe(audio, response_format="vtt")
    assert vtt.text.startswith("WEBVTT\n\n00:00:00.")
    assert vtt.headers["content-type"].startswith("text/vtt")


def test_words_and_segments(service: WebService) -> None:
    samples = np.concatenate((spoken("ab c"), silence(1.5), spoken(" d")))
    verbose = service.transcribe(
        file_of(samples), response_format="verbose_json", granularities=["word", "segment"]
    ).json
    assert verbose["task"] == "transcribe"
    assert verbose["language"] == "en"
    assert verbose["duration"] == pytest.approx(samples.size / 16_000, abs=1e-3)
    words = verbose["words"]
    assert [word["word"] for word in words[:2]] == ["ab", "c"]
    assert " ".join(word["word"] for word in words) == verbose["text"]
    assert all(0.0 <= word["start"] < word["end"] <= verbose["duration"] + 0.05 for word in words)
    assert all(0.0 < word["confidence"] <= 1.0 for word in words)
    assert words[0]["start"] == pytest.approx(0.12, abs=0.08)
    assert [segment["id"] for segment in verbose["segments"]] == list(range(len(verbose["segments"])))
    assert len(verbose["segments"]) >= 1
    assert " ".join(segment["text"] for segment in verbose["segments"]) == verbose["text"]
    only = service.transcribe(file_of(samples), response_format="verbose_json").json
    assert "words" not in only
    assert "segments" in only


def test_a_stream_of_events(service: WebService) -> None:
    samples = np.tile(np.concatenate((spoken("ab c "), silence(0.4))), 42)  # more than one window
    audio = file_of(samples, format="FLAC")
    whole = service.text(audio, model="swap")
    answer = service.transcribe(audio, model="swap", stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert {event["type"] for event in events[:-1]} == {"transcript.text.delta"}
    assert len(events) >= 3
    assert "".join(event["delta"] for event in events[:-1]).strip() == whole
    assert events[-1]["type"] == "transcript.text.done"
    assert events[-1]["text"] == whole
    assert service.calls[-1].audio_seconds == pytest.approx(samples.size / 16_000)


def test_silence_is_an_empty_text(service: WebService) -> None:
    audio = file_of(silence(1.0))
    assert service.text(audio) == ""
    verbose = service.transcribe(audio, response_format="verbose_json", granularities=["word", "segment"]).json
    assert (verbose["text"], verbose["words"], verbose["segments"]) == ("", [], [])
    assert service.transcribe(audio, response_format="vtt").text == "WEBVTT\n\n"
    events = service.transcribe(audio, stream="true").text
    assert json.loads(events.strip().removeprefix("data: "))["text"] == ""


def test_phrases_can_be_boosted(service: WebService) -> None:
    samples = spoken("ab")
    plain = service.text(file_of(samples))
    contexts = json.dumps([{"phrases": ["cc"], "boost": 5}])
    assert service.text(file_of(samples), speech_contexts=contexts) == plain
    for contexts in (
        '{"phrases": 1}',
        '[{"phrases": "metoprolol"}]',
        '[{"phrases": [1]}]',
        '["cc"]',
        "[{}]",
        f'[{{"boost": 1{400 * "0"}}}]',
    ):
        refused = service.transcribe(file_of(samples), speech_contexts=contexts)
        assert refused.status == 400
        assert refused.error["param"] == "speech_contexts"
    unwritable = json.dumps([{"phrases": ["cc", "größer", "ч"]}])
    for stream in ("false", "true"):
        service.transcribe(file_of(samples), speech_contexts=unwritable, stream=stream)
        assert service.calls[-1].ignored == ("2 phrases",)


# Refusals


def test_unknown_models(service: WebService) -> None:
    answer = service.transcribe(file_of(spoken("a")), model="whisper-1")
    assert answer.status == 404
    error = answer.error
    assert error["type"] == "invalid_request_error"
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["message"] == "The model 'whisper-1' does not exist. Available: tones, tones+other, tones+swap."


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "swap", "adapter": "other"}, 400, "Name it in one place"),
        ({"language": "de"}, 400, "'de' is not understood"),
        ({"response_format": "xml"}, 400, "json, text, srt"),
        ({"stream": "true", "response_format": "srt"}, 400, "stream"),
        ({"stream": "maybe"}, 400, "true or false"),
        ({"granularities": "letter"}, 400, "word"),
        ({"model": "../../etc/passwd"}, 404, "does not exist"),
        ({"model": "a" * 600}, 400, "at most 500"),
        ({"model": "x" * 300_000}, 400, "form"),
    ],
)
def test_refused_fields(service: WebService, fields: dict[str, str], status: int, words: str) -> None:
    answer = service.transcribe(file_of(spoken("a")), **fields)
    assert answer.status == status
    assert words in answer.error["message"]
    assert len(answer.error["message"]) < 1100


def test_refused_audio(service: WebService) -> None:
    assert service.transcribe(b"this is no audio at all").status == 415
    assert service.transcribe(b"RIFF____WAVEdata").status == 400
    assert service.transcribe(b"").status == 400
    assert service.transcribe(None).error["param"] == "file"
    assert service.transcribe(file_of(spoken("a"))[:60]).status in (200, 400)
    too_long = service.transcribe(file_of(silence(130.0), format="FLAC"))
    assert too_long.status == 413
    assert "longer than 120 s" in too_long.error["message"]
    too_large = service.transcribe(bytes(2**21 + 2**19))
    assert too_large.status == 413
    assert too_large.error["code"] == "too_large"


def test_bodies_that_are_no_forms(service: WebService) -> None:
    path = "/v1/audio/transcriptions"
    assert service.post(path, {"file": "x"}).status == 400
    content_type, body = form(file_of(spoken("a")))
    assert service.request("POST", path, body=body[:-80], headers={"Content-Type": content_type}).status in (200, 400)
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data; boundary="):
        assert service.request("POST", path, body=body, headers={"Content-Type": content_type}).status == 400
    assert service.get(path).status == 405
    assert service.get("/v1/nothing").error["code"] == "not_found"


@pytest.mark.parametrize("good_first", [False, True])
def test_bytes_that_are_no_http_are_answered_however_much_follows(service: WebService, good_first: bool) -> None:
    lines = [
        b"POST /v1/audio/transcriptions HTTP/1.1",
        b"Host: localhost",
        b"X-Odd: a\x00b",
        b"Content-Length: 8000000",
    ]
    good = b"GET /v1/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("localhost", service.addresses.http_port), timeout=30) as client:
        if good_first:
            client.sendall(good)
            told = b""
            while not told.endswith(b"}"):
                told += client.recv(65536)
            assert told.startswith(b"HTTP/1.1 200")
        client.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
        client.sendall(bytes(8_000_000))
        client.shutdown(socket.SHUT_WR)
        head, _, body = b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert "malformed" in json.loads(body)["error"]["message"]
    assert service.get("/v1/health/live").status == 200


def test_mutated_forms_are_answered(service: WebService) -> None:
    """Bytes changed, cut out and put in anywhere: a status each time, never a fault of ours."""
    generator = np.random.default_rng(5)
    content_type, whole = form(file_of(spoken("a")[:4000]), model="swap", response_format="verbose_json")
    seen = set()
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(int(generator.integers(1, 6))):
            place = int(generator.integers(0, len(data)))
            kind = generator.integers(0, 3)
            if kind == 0:
                data[place] = int(generator.integers(0, 256))
            elif kind == 1:
                del data[place : place + int(generator.integers(1, 40))]
            else:
                data[place:place] = generator.bytes(int(generator.integers(1, 40)))
        answer = service.request(
            "POST", "/v1/audio/transcriptions", body=bytes(data), headers={"Content-Type": content_type}
        )
        seen.add(answer.status)
    assert seen <= {200, 400, 404, 413, 415}
    assert len(seen) > 1
    assert service.text(file_of(spoken("abc"))) == "abc"


def test_overload_is_told_at_once(tmp_path: Path) -> None:
    with web_service(tmp_path, adapters=(), max_requests=1) as narrow:
        audio = file_of(np.tile(spoken("abc"), 60))
        requests = narrow.server.requests
        with requests.begin():
            answer = narrow.transcribe(audio)
            assert answer.status == 429
            assert answer.headers["retry-after"] == "1"
            assert answer.error["type"] == "rate_limit_error"
        with narrow.server.service.held.hold(narrow.server.service.held.max_seconds):
            answer = narrow.transcribe(audio)
            assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
        assert narrow.transcribe(audio).status == 200
        assert (requests.active, narrow.server.service.held.seconds) == (0, 0.0)
        requests.closing = True
        assert narrow.transcribe(audio).status == 503
        assert narrow.get("/v1/health/ready").status == 503
        assert narrow.get("/v1/health/live").status == 200


def test_a_fault_of_ours_stays_in_the_log(
    service: WebService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(service.server.store, "entry", broken)
    answer = service.transcribe(file_of(spoken("a")), model="swap")
    assert answer.status == 500
    assert "secret" not in answer.text
    assert answer.error["type"] == "server_error"
    assert "secret" in caplog.text


def test_calls_are_told_without_what_was_said(service: WebService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="overtone")
    service.text(file_of(spoken("bad")), model="swap", prompt="some words", temperature="0.3", colour="blue")
    call = service.calls[-1]
    assert (call.method, call.adapter, call.code) == ("POST /v1/audio/transcriptions", "swap", "200")
    assert call.audio_seconds == pytest.approx(spoken("bad").size / 16_000)
    assert call.ignored == ("field 'colour'", "prompt", "temperature")
    assert "bad" not in caplog.text
    assert "some words" not in caplog.text
    service.get("/v1/secret/place?token=x")
    assert service.calls[-1].method == "GET unknown"
    assert "place" not in caplog.text


# Models, health, metrics, documents


def test_models(service: WebService) -> None:
    listed = service.get("/v1/models").json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tones", "tones+other", "tones+swap"]
    swap = service.get("/v1/models/tones+swap").json
    assert swap == listed["data"][2]
    assert (swap["object"], swap["parent"], swap["adapter"]["kind"]) == ("model", "tones", "linear")
    assert service.get("/v1/models/swap").json == swap
    assert service.get("/v1/models/tones").json["parent"] is None
    assert service.get("/v1/models/legal").status == 404


def test_health_and_documents(service: WebService) -> None:
    assert service.get("/v1/health/live").json["status"] == "live"
    assert service.get("/v1/health/ready").json["status"] == "ready"
    index = service.get("/").json
    assert index["endpoints"]["/v1/audio/transcriptions"] == ["POST"]
    document = service.get("/openapi.json").json
    assert document["openapi"] == "3.1.0"
    for path, methods in document["paths"].items():
        for method in methods:
            answer = service.request(method.upper(), path.replace("{name}", "nobody"))
            assert answer.status not in (405, 500), (method, path)
            assert answer.status != 404 or path == "/v1/models/{name}" or path == "/v1/realtime", (method, path)


def test_metrics(service: WebService) -> None:
    service.text(file_of(spoken("ab")), model="swap")
    service.get("/v1/unknown/1")
    answer = service.get("/v1/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    key = 'overtone_requests_total{code="200",door="http",method="POST /v1/audio/transcriptions"}'
    assert float(lines[key]) >= 1
    assert float(lines['overtone_adapter_requests_total{adapter="swap"}']) >= 1
    assert float(lines["overtone_engine_rows_total"]) >= 1
    assert float(lines["overtone_engine_alive"]) == 1
    assert float(lines["overtone_adapters_names"]) >= 2
    assert 'method="GET unknown"' in answer.text
    assert "unknown/1" not in answer.text


OPENAI_SCRIPT = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
print(sorted(model.id for model in client.models.list()))
print(client.models.retrieve("tones+swap").id)
with open(sys.argv[2], "rb") as file:
    print(client.audio.transcriptions.create(model="swap", file=file).text)
with open(sys.argv[2], "rb") as file:
    verbose = client.audio.transcriptions.create(
        model="tones", file=file, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    print(verbose.text, [word.word for word in verbose.words], len(verbose.segments))
with open(sys.argv[2], "rb") as file:
    print(client.audio.transcriptions.create(model="tones", file=file, response_format="vtt").startswith("WEBVTT"))
with open(sys.argv[2], "rb") as file:
    for event in client.audio.transcriptions.create(model="swap", file=file, stream=True):
        last = event
    print(last.type, last.text)
try:
    client.audio.transcriptions.create(model="legal", file=("a.wav", open(sys.argv[2], "rb")))
except openai.NotFoundError as error:
    print(error.code, error.body["param"])
"""


def test_the_official_client(service: WebService, tmp_path: Path) -> None:
    python = os.environ.get("OVERTONE_OPENAI_PYTHON")
    if not python:
        pytest.skip("OVERTONE_OPENAI_PYTHON names no Python with the openai package")
    (tmp_path / "a.wav").write_bytes(file_of(spoken("abc")))
    url = f"http://localhost:{service.addresses.http_port}/v1"
    done = subprocess.run(
        [python, "-c", OPENAI_SCRIPT, url, str(tmp_path / "a.wav")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['tones', 'tones+other', 'tones+swap']",
        "tones+swap",
        "bac",
        "abc ['abc'] 1",
        "True",
        "transcript.text.done bac",
        "model_not_found model",
    ]
