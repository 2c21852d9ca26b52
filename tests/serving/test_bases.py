"""Several bases in one server: every interface finds the base that a request means, and refuses what means two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")

from websockets.sync.client import connect  # noqa: E402

from overtone.errors import UsageError  # noqa: E402
from overtone.serving.auth.guard import hash_token  # noqa: E402
from overtone.serving.riva import protobuf  # noqa: E402
from overtone.serving.server import Server, share  # noqa: E402
from overtone.serving.settings import BaseSettings  # noqa: E402
from support.openai_client import client as openai_client  # noqa: E402
from support.openai_client import speech as openai_speech  # noqa: E402
from support.riva_service import file_of, finals_of, raw_config, refusal, stream_requests  # noqa: E402
from support.speaking_model import Contrary, SpeakingModel, pcm16, put_adapter, spoken  # noqa: E402
from support.web_service import SETTINGS, WebService, eventually, web_service  # noqa: E402

ADMIN = "an-administrators-token"
SAID = file_of(spoken("abc"))
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    """`tones` (en-US) with `swap` and `other`, and `contrary` (de-DE) with `swap` and `special`."""
    english, german, token = (tmp_path_factory.mktemp(name) for name in ("english", "german", "token"))
    (token / "admin").write_text(ADMIN)
    second = Contrary("second")
    for name in ("swap", "special"):
        put_adapter(second, name, german)
    more = BaseSettings(model="", base="contrary", adapters=german, language="de-DE")
    options: dict[str, Any] = {"admin_token_file": token / "admin", "aliases": {"whisper-1": "contrary:swap"}}
    with web_service(english, more=[(more, second)], **options) as running:
        yield running


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "abc"),
        ({"model": "tones"}, "abc"),
        ({"model": "base"}, "abc"),
        ({"model": "contrary"}, "hgf"),
        ({"model": "tones:swap"}, "bac"),
        ({"model": "contrary:swap"}, "ghf"),
        ({"model": "contrary+swap"}, "ghf"),
        ({"model": "contrary", "adapter": "swap"}, "ghf"),
        ({"adapter": "contrary:swap"}, "ghf"),
        ({"model": "contrary+swap+special"}, "ghf"),
        ({"model": "special"}, "hgf"),
        ({"model": "base+special"}, "hgf"),
        ({"model": "whisper-1"}, "ghf"),
        ({"language": "de-DE"}, "hgf"),
        ({"language": "de"}, "hgf"),
        ({"language": "en"}, "abc"),
        ({"model": "swap", "language": "de"}, "ghf"),
        ({"model": "swap", "language": "en-US"}, "bac"),
    ],
)
def test_names_and_languages_choose_the_base(service: WebService, fields: dict[str, str], text: str) -> None:
    assert service.text(SAID, **fields) == text


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({"model": "swap"}, 400, "tones+swap, contrary+swap"),
        ({"model": "nothing"}, 404, "tones, tones+other, tones+swap, contrary, contrary+special, contrary+swap"),
        ({"model": "elsewhere:swap"}, 404, "contrary+swap"),
        ({"model": "tones:special"}, 404, "Available: tones, tones+other, tones+swap."),
        ({"model": "other+special"}, 404, "contrary+special"),
        ({"model": "tones", "adapter": "contrary:swap"}, 400, "different bases"),
        ({"model": "contrary", "language": "en-US"}, 400, "de-DE"),
        ({"model": "special", "adapter": "swap"}, 400, "Name it in one place"),
        ({"language": "fr-FR"}, 400, "en-US, de-DE"),
    ],
)
def test_names_that_are_unknown_or_mean_two_bases_are_refused(
    service: WebService, fields: dict[str, str], status: int, told: str
) -> None:
    answer = service.transcribe(SAID, **fields)
    assert answer.status == status, answer.text
    assert told in answer.error["message"]


def test_models_are_listed_with_their_parents(service: WebService) -> None:
    listed = {own["id"]: own for own in service.get("/v1/models").json["data"]}
    assert {name: own["parent"] for name, own in listed.items()} == {
        "tones": None, "tones+other": "tones", "tones+swap": "tones",
        "contrary": None, "contrary+special": "contrary", "contrary+swap": "contrary", "whisper-1": "contrary",
    }  # fmt: skip
    assert {listed[name]["language"] for name in ("contrary", "contrary+swap", "whisper-1")} == {"de-DE"}
    assert service.get("/v1/models/contrary:swap").json == listed["contrary+swap"]
    assert service.get("/v1/models/special").json == listed["contrary+special"]
    assert service.get("/v1/models/swap").status == 400
    assert service.get("/v1/models/nothing").status == 404


# Riva


@pytest.fixture
def channel(service: WebService) -> Iterator[Any]:
    with grpc.insecure_channel(service.addresses.grpc) as opened:
        yield opened


def call(channel: Any, name: str, request: Any, response: Any, *, shape: str = "unary_unary") -> Any:
    path = f"/{protobuf.ASR_SERVICE}/{name}"
    return getattr(channel, shape)(path, type(request).SerializeToString, response.FromString)(request, timeout=60)


def riva_text(channel: Any, **config: Any) -> tuple[str, str]:
    """Transcript and language of a recording."""
    request = protobuf.RecognizeRequest(config=raw_config(**config), audio=pcm16(spoken("abc")))
    [result] = call(channel, "Recognize", request, protobuf.RecognizeResponse).results
    return result.alternatives[0].transcript, result.alternatives[0].language_code[0]


def test_riva_takes_a_language_without_a_model(channel: Any) -> None:
    assert riva_text(channel) == ("abc ", "en-US")
    assert riva_text(channel, language_code="de-DE") == ("hgf ", "de-DE")
    assert riva_text(channel, model="contrary:swap") == ("ghf ", "de-DE")
    code, details = refusal(lambda: riva_text(channel, model="swap"))
    assert code is Code.INVALID_ARGUMENT
    assert "tones+swap, contrary+swap" in details
    code, details = refusal(lambda: riva_text(channel, language_code="fr-FR"))
    assert (code, details) == (
        Code.INVALID_ARGUMENT,
        "Error: Unavailable model requested. Lang: fr-FR, Type: offline",
    )


def test_riva_streams_reach_their_base(channel: Any) -> None:
    method = channel.stream_stream(
        f"/{protobuf.ASR_SERVICE}/StreamingRecognize",
        protobuf.StreamingRecognizeRequest.SerializeToString,
        protobuf.StreamingRecognizeResponse.FromString,
    )
    for config, text in (({"language_code": "de-DE"}, "hgf "), ({"model": "tones:swap"}, "bac ")):
        assert finals_of(method(stream_requests(spoken("abc"), **config), timeout=60)) == [text]


def test_riva_lists_all_bases(channel: Any) -> None:
    def models(name: str = "") -> dict[str, str]:
        request = protobuf.ConfigRequest(model_name=name)
        found = call(channel, "GetRivaSpeechRecognitionConfig", request, protobuf.ConfigResponse).model_config
        return {own.model_name: own.parameters["language_code"] for own in found}

    assert models() == {
        "tones": "en-US", "tones+other": "en-US", "tones+swap": "en-US",
        "contrary": "de-DE", "contrary+special": "de-DE", "contrary+swap": "de-DE",
    }  # fmt: skip
    assert models("contrary:swap") == {"contrary+swap": "de-DE"}
    assert models("swap").keys() == {"tones+swap", "contrary+swap"}
    assert models("contrary").keys() == {"contrary"}


# Realtime


def test_openai_sessions_change_the_base(service: WebService) -> None:
    with openai_client(service) as session:
        session.receive()
        for model, text in (("tones:swap", "bac"), ("contrary:swap", "ghf"), ("special", "hgf")):
            transcription = {"model": model, "language": ""}
            assert session.update(turn_detection=None, transcription=transcription)["type"] == "session.updated"
            session.say(openai_speech("abc", 0.5))
            assert session.committed()["transcript"] == text
        assert session.update(transcription={"model": "swap", "language": ""})["type"] == "error"
        assert session.events[-1]["error"]["param"] == "model"


def test_riva_sessions_choose_by_language(service: WebService) -> None:
    session = service.post("/v1/realtime/transcription_sessions", {}).json
    session["input_audio_transcription"]["language"] = "de-DE"
    with connect(f"ws://localhost:{service.addresses.http_port}/v1/realtime?intent=transcription") as websocket:

        def receive() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(websocket.recv(timeout=60))
            return found

        assert receive()["type"] == "conversation.created"
        websocket.send(json.dumps({"type": "transcription_session.update", "session": session}))
        assert receive()["type"] == "transcription_session.updated"
        websocket.send(pcm16(spoken("abc")))
        websocket.send(json.dumps({"type": "input_audio_buffer.done"}))
        event = receive()
        while not event.get("is_last_result"):
            assert event["type"] != "error", event
            event = receive()
    assert event["transcript"].strip() == "hgf"


def test_an_openai_sessions_language_decides_about_the_model_of_its_address(service: WebService) -> None:
    with openai_client(service, "?intent=transcription&model=swap") as session:
        assert session.receive()["type"] == "session.created"
        assert session.update(transcription={"model": "swap", "language": ""})["type"] == "error"
        transcription = {"model": "swap", "language": "de-DE"}
        assert session.update(turn_detection=None, transcription=transcription)["type"] == "session.updated"
        session.say(openai_speech("abc", 0.5))
        assert session.committed()["transcript"] == "ghf"
    with openai_client(service, "?intent=transcription&model=nothing") as session:
        assert [session.receive()["type"] for _ in range(2)] == ["session.created", "error"]


def test_a_call_is_of_the_base_that_it_goes_on_with_after_a_refusal(service: WebService) -> None:
    ended = len(service.calls)
    with openai_client(service) as session:
        session.receive()
        for model, kind in (("tones:swap", "session.updated"), ("contrary:nothing", "error")):
            transcription = {"model": model, "language": ""}
            assert session.update(turn_detection=None, transcription=transcription)["type"] == kind
        session.say(openai_speech("abc", 0.5))
        assert session.committed()["transcript"] == "bac"
    eventually(lambda: len(service.calls) > ended)
    assert (service.calls[-1].base, service.calls[-1].adapter) == ("tones", "swap")


# Administration, health, metrics


def test_administration_names_the_base(service: WebService) -> None:
    listed = service.get("/v1/admin/adapters", token=ADMIN).json["data"]
    assert [(own["base"], own["name"]) for own in listed] == [
        ("tones", "other"), ("tones", "swap"), ("contrary", "special"), ("contrary", "swap"),
    ]  # fmt: skip

    def state(name: str) -> tuple[str, str]:
        found = service.get(f"/v1/admin/adapters/{name}", token=ADMIN).json
        return found["base"], found["state"]

    for name in ("tones:swap", "contrary:swap"):
        assert service.post("/v1/load_lora_adapter", {"lora_name": name}, token=ADMIN).status == 200
    assert service.post("/v1/unload_lora_adapter", {"lora_name": "contrary:swap"}, token=ADMIN).status == 200
    assert [state("tones:swap"), state("contrary:swap")] == [("tones", "resident"), ("contrary", "ready")]
    assert service.post("/v1/admin/adapters/special/load", token=ADMIN).json["base"] == "contrary"
    for path, told in (("swap", "tones+swap, contrary+swap"), ("fresh", "tones:fresh, contrary:fresh")):
        refused = service.request("PUT", f"/v1/admin/adapters/{path}", body=b"x", token=ADMIN)
        assert refused.status == 400
        assert told in refused.error["message"]
    assert service.post("/v1/load_lora_adapter", {"lora_name": "elsewhere:swap"}, token=ADMIN).status == 400


def test_an_upload_lands_in_its_bases_folder(service: WebService, tmp_path: Path) -> None:
    put_adapter(Contrary(), "swap", tmp_path)
    archive = tmp_path / "swap.zip"
    shutil.make_archive(str(archive.with_suffix("")), "zip", tmp_path, "swap")
    placed = service.request("PUT", "/v1/admin/adapters/contrary:late", body=archive.read_bytes(), token=ADMIN)
    assert placed.status == 201, placed.text
    folders = {base.service.base: base.settings.adapters for base in service.server.served}
    assert [(folder / "late").is_dir() for folder in folders.values() if folder is not None] == [False, True]
    assert service.transcribe(SAID, model="late").status == 200
    assert service.request("DELETE", "/v1/admin/adapters/late", token=ADMIN).status == 204


def test_health_and_metrics_tell_of_each_base(service: WebService, channel: Any) -> None:
    service.text(SAID, model="contrary:swap")
    metrics = service.get("/v1/metrics").text
    assert 'overtone_engine_alive{base="tones"} 1.0' in metrics
    assert 'overtone_engine_alive{base="contrary"} 1.0' in metrics
    assert 'overtone_adapter_requests_total{adapter="swap",base="contrary"}' in metrics
    assert 'overtone_request_audio_seconds_total{base="contrary",door="http"}' in metrics
    assert service.calls[-2].base == "contrary"
    assert service.get("/v1/health/ready").json["bases"] == ["tones", "contrary"]

    assert [health(channel, name) for name in ("", "tones", "contrary")] == [protobuf.SERVING] * 3
    assert refusal(lambda: health(channel, "elsewhere"))[0] is Code.NOT_FOUND


def test_a_base_that_does_not_work_is_named(service: WebService, channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = service.server.served[1].engine
    broken = replace(engine.state(), alive=False)
    monkeypatch.setattr(engine, "state", lambda: broken)
    answer = service.get("/v1/health/ready")
    assert (answer.status, answer.error["message"]) == (503, "Not ready: base 'contrary': the worker does not run.")
    assert [health(channel, name) for name in ("", "tones", "contrary")] == [
        protobuf.NOT_SERVING, protobuf.SERVING, protobuf.NOT_SERVING,
    ]  # fmt: skip
    assert service.text(SAID, model="tones") == "abc"


def health(channel: Any, name: str) -> int:
    """Status of a service of gRPC's health."""
    check = channel.unary_unary(
        f"/{protobuf.HEALTH_SERVICE}/Check",
        protobuf.HealthCheckRequest.SerializeToString,
        protobuf.HealthCheckResponse.FromString,
    )
    return int(check(protobuf.HealthCheckRequest(service=name), timeout=60).status)


def test_bases_share_the_threads() -> None:
    assert [share(*given) for given in ((8, 1), (8, 3), (1, 4))] == [8, 2, 1]


def test_tenants_are_not_told_of_bases_by_adapters_that_they_may_not_use(tmp_path: Path) -> None:
    english, german, tokens = tmp_path / "english", tmp_path / "german", tmp_path / "tokens.yaml"
    german.mkdir()
    second = Contrary("contrary")
    for name in ("swap", "special"):
        put_adapter(second, name, german)
    tokens.write_text(f"tenants: {{anna: {{tokens: ['{hash_token('a' * 32)}'], adapters: [swap]}}}}\n")
    more = BaseSettings(model="", base="contrary", adapters=german)
    with web_service(english, more=[(more, second)], tokens=tokens) as service:
        assert service.transcribe(SAID, model="special", token="a" * 32).status == 403
        assert service.transcribe(SAID, model="swap", token="a" * 32).status == 400
        assert service.text(SAID, model="contrary:swap", token="a" * 32) == "ghf"
        unknown = service.transcribe(SAID, model="tones:nothing", token="a" * 32)
        assert unknown.status == 403


def test_a_tenant_may_have_an_adapter_on_one_base_alone(tmp_path: Path) -> None:
    german, tokens, token = tmp_path / "german", tmp_path / "tokens.yaml", "a" * 32
    put_adapter(Contrary(), "swap", german)
    tokens.write_text(f"tenants: {{anna: {{tokens: ['{hash_token(token)}'], adapters: ['contrary:swap']}}}}\n")
    more = BaseSettings(model="", base="contrary", adapters=german)
    with web_service(tmp_path / "english", more=[(more, Contrary())], tokens=tokens) as service:
        assert service.text(SAID, model="swap", token=token) == "ghf"
        assert [service.transcribe(SAID, model=f"tones:{name}", token=token).status for name in ("swap", "other")] == [
            403, 403,
        ]  # fmt: skip
        listed = [own["id"] for own in service.get("/v1/models", token=token).json["data"]]
        assert listed == ["tones", "contrary", "contrary+swap"]


def test_a_quota_may_be_of_an_adapter_on_one_base(tmp_path: Path) -> None:
    german, quotas = tmp_path / "german", tmp_path / "quotas.yaml"
    put_adapter(Contrary(), "swap", german)
    quotas.write_text("adapters: {'contrary:swap': {audio_seconds_per_minute: 0.001}, swap: {sessions: 1}}")
    more = BaseSettings(model="", base="contrary", adapters=german)
    with web_service(tmp_path / "english", more=[(more, Contrary())], quotas=quotas) as service:
        assert service.text(SAID, model="contrary:swap") == "ghf"
        refused = service.transcribe(SAID, model="contrary:swap")
        assert (refused.status, "'contrary:swap' has used up" in refused.error["message"]) == (429, True)
        assert [service.text(SAID, model="tones:swap") for _ in range(2)] == ["bac", "bac"]
        with openai_client(service) as session:
            session.receive()
            transcription = {"model": "tones:swap", "language": ""}
            assert session.update(turn_detection=None, transcription=transcription)["type"] == "session.updated"
            session.say(openai_speech("abc", 0.5))
            assert session.committed()["transcript"] == "bac"
            transcription = {"model": "contrary:swap", "language": ""}
            assert session.update(turn_detection=None, transcription=transcription)["type"] == "error"
            assert session.events[-1]["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("names", "told"),
    [(("tones", "tones"), "Two bases are called 'tones'"), (("tones", "base"), "'base'"), (("a+b", "c"), "'a+b'")],
)
def test_bases_that_cannot_be_told_apart_are_refused(names: tuple[str, str], told: str) -> None:
    settings = replace(SETTINGS, base=names[0], more=(BaseSettings(model="", base=names[1]),))
    with pytest.raises(UsageError, match=r"among several|Two bases") as refused:
        Server(settings, SpeakingModel(), more=[(SpeakingModel(), None)])
    assert told in str(refused.value)
