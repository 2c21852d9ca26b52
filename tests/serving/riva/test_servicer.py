"""The Riva interface over a plain gRPC channel: recordings, models, health."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")

from overtone.audio.decode import AudioLimits  # noqa: E402
from overtone.errors import UsageError  # noqa: E402
from overtone.serving.adapter_store.names import adapter_names, chosen_adapters, model_name  # noqa: E402
from overtone.serving.recognition.service import HeldAudio  # noqa: E402
from overtone.serving.riva import protobuf  # noqa: E402
from overtone.serving.settings import ServerSettings  # noqa: E402
from support.riva_service import (  # noqa: E402
    SETTINGS,
    Service,
    file_of,
    finals_of,
    raw_config,
    refusal,
    riva_service,
    stream_requests,
)
from support.serving_models import until  # noqa: E402
from support.speaking_model import pcm16, silence, spoken  # noqa: E402

Code = grpc.StatusCode
WAV = {"encoding": 0, "sample_rate_hertz": 0}


# Recognize


def test_a_recording_is_recognised(service: Service) -> None:
    request = protobuf.RecognizeRequest(
        config=raw_config(enable_word_time_offsets=True),
        audio=pcm16(spoken("bad cab")),
        id=protobuf.RequestId(value="seven"),
    )
    response = service.method("Recognize")(request, timeout=30)
    assert response.id.value == "seven"
    [result] = response.results
    assert result.channel_tag == 1
    assert result.audio_processed == pytest.approx(spoken("bad cab").size / 16_000)
    best = result.alternatives[0]
    assert best.transcript == "bad cab "
    assert list(best.language_code) == ["en-US"]
    assert [word.word for word in best.words] == ["bad", "cab"]
    assert [word.start_time for word in best.words] == [120, 1400]
    assert all(word.start_time < word.end_time and 0.9 < word.confidence <= 1 for word in best.words)
    assert best.confidence == pytest.approx(np.mean([word.confidence for word in best.words]))


def test_words_come_only_when_asked_for(service: Service) -> None:
    assert not service.recognize(pcm16(spoken("bad"))).results[0].alternatives[0].words


def test_silence_has_no_result(service: Service) -> None:
    response = service.recognize(pcm16(silence(1)))
    assert not response.results
    assert not response.HasField("id")


@pytest.mark.parametrize(
    ("model", "custom", "text"),
    [
        ("", "", "abc "),
        ("tones", "", "abc "),
        ("base", "", "abc "),
        ("none", "", "abc "),
        ("tones+swap", "", "bac "),
        ("base+swap", "", "bac "),
        ("swap", "", "bac "),
        ("other", "", "abc "),
        ("other+swap", "", "bac "),
        ("", "swap", "bac "),
        ("tones", "swap", "bac "),
        ("tones", "tones+swap", "bac "),
        ("swap", "swap", "bac "),
        ("", "none", "abc "),
        ("tones", "base", "abc "),
    ],
)
def test_models_and_adapters(service: Service, model: str, custom: str, text: str) -> None:
    keys = {"adapter": custom} if custom else {}
    assert service.text(pcm16(spoken("abc")), model=model, custom_configuration=keys) == text


@pytest.mark.parametrize(("model", "custom"), [("swap", "other"), ("tones+swap", "none"), ("a+b", "b+a")])
def test_two_meanings_are_refused(service: Service, model: str, custom: str) -> None:
    code, details = refusal(lambda: service.text(b"x", model=model, custom_configuration={"adapter": custom}))
    assert code is Code.INVALID_ARGUMENT
    assert custom in details or "base alone" in details
    assert "same in both" in details


@pytest.mark.parametrize(
    "config", [{"model": "legal"}, {"model": "tones+legal"}, {"custom_configuration": {"adapter": "legal"}}]
)
def test_an_unknown_model_tells_what_there_is(service: Service, config: dict[str, Any]) -> None:
    code, details = refusal(lambda: service.text(b"x", **config))
    assert code is Code.INVALID_ARGUMENT
    assert details.startswith("Error: Unavailable model requested. Lang: en-US, Type: offline; ")
    assert "legal; available: tones, tones+other, tones+swap" in details


def test_names() -> None:
    assert adapter_names("a+base+b", "base+b") == ("a", "base", "b")
    assert adapter_names("m+x+y", "m") == ("x", "y")
    assert adapter_names("x", "") == ("x",)
    assert adapter_names(model_name("m", ["x", "y"]), "m") == ("x", "y")
    with pytest.raises(UsageError, match="'x'"):
        chosen_adapters("x", "y", "m")


@pytest.mark.parametrize("language", ["", "en", "EN-us", "en-US"])
def test_languages_of_the_server(service: Service, language: str) -> None:
    assert service.text(pcm16(spoken("a")), language_code=language) == "a "


@pytest.mark.parametrize("language", ["ru-RU", "en-GB", "e"])
def test_other_languages_get_the_words_that_clients_know(service: Service, language: str) -> None:
    expected = (Code.INVALID_ARGUMENT, f"Error: Unavailable model requested. Lang: {language}, Type: ")
    code, details = refusal(lambda: service.text(b"x", language_code=language))
    assert (code, details) == (expected[0], f"{expected[1]}offline")
    code, details = refusal(lambda: list(service.stream(stream_requests(spoken("a"), language_code=language))))
    assert (code, details) == (expected[0], f"{expected[1]}online")


@pytest.mark.parametrize(
    "audio",
    [
        (file_of(spoken("abc")), WAV),
        (file_of(spoken("abc")), {}),
        (file_of(spoken("abc"), "FLAC"), WAV),
        (file_of(spoken("abc", 48_000), "WAV", 48_000), WAV),
        (file_of(np.stack([spoken("abc")] * 2, axis=1)), WAV),
        (pcm16(spoken("abc", 22_050)), {"sample_rate_hertz": 22_050}),
    ],
    ids=["wav", "wav declared as samples", "flac", "48 kHz", "stereo", "raw 22.05 kHz"],
)
def test_audio_of_all_kinds(service: Service, audio: tuple[bytes, dict[str, Any]]) -> None:
    data, config = audio
    assert service.text(data, **config) == "abc "


@pytest.mark.parametrize(
    ("audio", "config", "expected"),
    [
        (b"", {}, "empty audio"),
        (pcm16(spoken("a")), WAV, ""),
        (b"RIFF\x00", WAV, ""),
        (file_of(np.zeros(1, np.float32), rate=96_000), WAV, "too short"),
        (pcm16(spoken("a")), {"encoding": 7}, "encoding 7 is unknown"),
        (pcm16(spoken("a")), {"sample_rate_hertz": -1}, "sample_rate_hertz is -1"),
        (pcm16(spoken("a")), {"sample_rate_hertz": 10}, "10"),
        (pcm16(spoken("a")), {"max_alternatives": -2}, "max_alternatives is -2"),
    ],
)
def test_unusable_audio_is_refused(service: Service, audio: bytes, config: dict[str, Any], expected: str) -> None:
    code, details = refusal(lambda: service.text(audio, **config))
    assert code is Code.INVALID_ARGUMENT
    assert expected in details


def test_a_message_may_be_larger_than_4_megabytes(service: Service) -> None:
    audio = pcm16(np.concatenate((spoken("abc"), silence(150))))
    assert len(audio) > 4 * 2**20
    assert service.text(audio) == "abc "


def test_recordings_that_are_too_long_together_are_refused(tmp_path: Path) -> None:
    held = HeldAudio(max_seconds=10.0)
    with riva_service(tmp_path, adapters=(), settings=SETTINGS, held=held) as narrow:
        with held.hold(10.0):
            code, details = refusal(lambda: narrow.text(pcm16(spoken("abc"))))
        assert code is Code.RESOURCE_EXHAUSTED
        assert "too long together" in details
        assert narrow.text(pcm16(spoken("abc"))) == "abc "
        assert (held.recordings, held.seconds) == (0, 0.0)


def test_a_recording_by_itself_is_never_too_long() -> None:
    held = HeldAudio(max_seconds=0.5)
    first, second = held.hold(0.1), held.hold(0.2)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert held.seconds != 0.0  # what rounding leaves
    with held.hold(9.0):
        assert held.recordings == 1


def test_a_limit_may_be_larger_than_any_message(tmp_path: Path) -> None:
    limits = AudioLimits(max_bytes=4096 * 2**20)
    with riva_service(tmp_path, adapters=(), settings=replace(SETTINGS, limits=limits)) as generous:
        assert generous.text(pcm16(spoken("abc"))) == "abc "


def test_alternatives_and_boosts(service: Service) -> None:
    contexts = [protobuf.SpeechContext(phrases=["bad"], boost=20.0), protobuf.SpeechContext()]
    response = service.recognize(pcm16(spoken("bad")), max_alternatives=3, speech_contexts=contexts)
    alternatives = response.results[0].alternatives
    assert 1 <= len(alternatives) <= 3
    assert alternatives[0].transcript == "bad "
    assert len({alternative.transcript for alternative in alternatives}) == len(alternatives)


def test_a_boost_acts(service: Service) -> None:
    plain = pcm16(spoken("bad cab"))
    contexts = [protobuf.SpeechContext(phrases=["bad"], boost=-100.0)]
    assert service.text(plain, speech_contexts=contexts) != "bad cab "
    assert service.text(plain) == "bad cab "


def test_profanity_is_masked(tmp_path: Path) -> None:
    settings = ServerSettings(grpc_port=0, profanities=frozenset({"bad"}))
    with riva_service(tmp_path, adapters=(), settings=settings) as strict:
        options = {"profanity_filter": True, "enable_word_time_offsets": True}
        best = strict.recognize(pcm16(spoken("bad cab")), **options).results[0].alternatives[0]
        assert best.transcript == "b** cab "
        assert [word.word for word in best.words] == ["b**", "cab"]
        assert strict.text(pcm16(spoken("bad cab"))) == "bad cab "


# Models and health


def test_the_list_of_models(service: Service) -> None:
    models = {(entry.model_name, entry.parameters["type"]): entry.parameters for entry in service.models()}
    names = ("tones", "tones+other", "tones+swap")
    assert set(models) == {(name, kind) for name in names for kind in ("offline", "online")}
    parameters = models["tones+swap", "online"]
    assert parameters["language_code"] == "en-US"
    assert parameters["sample_rate_hertz"] == "16000"
    assert parameters["adapter"] == "swap"
    assert parameters["adapter_type"] == "linear"
    assert parameters["adapter_digest"].startswith("sha256:")
    assert parameters["streaming"] == "True"
    assert "adapter" not in models["tones", "offline"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tones", ["tones"] * 2), ("swap", ["tones+swap"] * 2), ("tones+swap", ["tones+swap"] * 2), ("legal", [])],
)
def test_one_model_of_the_list(service: Service, name: str, expected: list[str]) -> None:
    assert [entry.model_name for entry in service.models(name)] == expected


def test_health(service: Service) -> None:
    assert service.health("Check").status == protobuf.SERVING
    assert service.health("Check", protobuf.ASR_SERVICE).status == protobuf.SERVING
    assert refusal(lambda: service.health("Check", "tts"))[0] is Code.NOT_FOUND
    watch = service.health("Watch", "tts")
    assert next(watch).status == protobuf.SERVICE_UNKNOWN
    watch.cancel()


def test_draining_is_told(tmp_path: Path) -> None:
    with riva_service(tmp_path, adapters=(), settings=ServerSettings(grpc_port=0)) as closing:
        watch = closing.health("Watch")
        assert next(watch).status == protobuf.SERVING
        closing.engine.drain(10)
        assert next(watch).status == protobuf.NOT_SERVING
        assert closing.health("Check").status == protobuf.NOT_SERVING
        assert refusal(lambda: closing.text(pcm16(spoken("a"))))[0] is Code.UNAVAILABLE


def test_a_watch_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with riva_service(tmp_path, adapters=(), settings=ServerSettings(grpc_port=0), grace=20.0) as stopping:
        watch = stopping.health("Watch")
        assert next(watch).status == protobuf.SERVING
        began = time.monotonic()
        stopping.stop()
        assert [answer.status for answer in watch] == [protobuf.NOT_SERVING]
        assert time.monotonic() - began < 10


def test_the_function_id_names_a_model_where_nothing_else_does(service: Service) -> None:
    """Pipecat's service of segments sends no other name; NVIDIA's ids of hosted functions mean nothing here."""
    audio = pcm16(spoken("abc"))
    assert service.text(audio, metadata=[("function-id", "swap")]) == "bac "
    assert service.calls[-1].adapter == "swap"
    assert service.text(audio, metadata=[("function-id", "ee8dc628-76de-4acc-8595-1836e7e857bd")]) == "abc "
    assert service.text(audio, model="other", metadata=[("function-id", "swap")]) == "abc "
    requests = list(stream_requests(spoken("abc")))
    assert finals_of(service.stream(requests, metadata=[("function-id", "swap")])) == ["bac "]


def test_answers_and_refusals_have_the_id_of_their_line_in_the_log(service: Service) -> None:
    request = protobuf.RecognizeRequest(config=raw_config(), audio=pcm16(spoken("a")))
    _, call = service.method("Recognize").with_call(request, timeout=60.0)
    until(lambda: service.calls[-1].request_id == dict(call.trailing_metadata())["x-request-id"], seconds=60.0)
    with pytest.raises(grpc.RpcError) as refused:
        service.text(b"", model="legal")
    told = dict(refused.value.trailing_metadata())["x-request-id"]
    until(lambda: service.calls[-1].request_id == told != "", seconds=60.0)
