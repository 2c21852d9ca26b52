"""Requests in plain values: every interface fills in the same one, and what cannot be followed is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("starlette", reason="the serving extra is not installed")

from starlette.datastructures import FormData

from overtone.decoding.phrase_boost import Boost
from overtone.errors import OvertoneError
from overtone.serving.errors import RequestError, UnsupportedError
from overtone.serving.openai import endpoints as openai
from overtone.serving.realtime import session as realtime
from overtone.serving.recognition.request import (
    Endpointing,
    RecognitionRequest,
    changed_endpointing,
    understands,
)
from overtone.serving.riva import protobuf
from overtone.serving.riva import requests as riva

DEFAULT = Endpointing(stop_history=1200, stop_history_eou=600)
PHRASES = [{"phrases": ["ab", "cd"], "boost": 2.5}, {"phrases": ["ef"]}, {"phrases": [" "]}]
BOOSTS = (Boost(phrases=("ab", "cd"), boost=2.5), Boost(phrases=("ef",), boost=4.0))


def from_riva(**config: Any) -> RecognitionRequest:
    return riva.recognition_request(protobuf.RecognitionConfig(**config), endpointing=DEFAULT)


def from_realtime(**changes: Any) -> RecognitionRequest:
    session = realtime.new_session(language="", model="", sample_rate=0, secret=None)
    return realtime.recognition_request(
        realtime.update_session(session, {"input_audio_format": "none", **changes}), DEFAULT
    )


def from_openai(**fields: str) -> RecognitionRequest:
    return openai.recognition_request(FormData(fields))


def test_a_request_that_asks_for_nothing_is_the_same_everywhere() -> None:
    plain = RecognitionRequest(endpointing=DEFAULT)
    assert replace(from_riva(), alternatives=1) == plain  # 0 there, which is 1
    assert replace(from_realtime(), channels=0) == plain  # 1 there
    assert replace(from_openai(), endpointing=DEFAULT) == plain


def test_a_request_for_everything_is_the_same_everywhere() -> None:
    expected = RecognitionRequest(
        model="tones+swap", adapter="swap", language="en", boosts=BOOSTS, mask_profanity=True, endpointing=DEFAULT
    )
    found = from_openai(
        model="tones+swap",
        adapter="swap",
        language="en",
        speech_contexts=json.dumps(PHRASES),
        profanity_filter="true",
    )
    assert replace(found, endpointing=DEFAULT) == expected
    expected = replace(
        expected,
        encoding="mulaw",
        sample_rate=8000,
        channels=2,
        alternatives=3,
        word_times=True,
        endpointing=replace(DEFAULT, stop_history=800, stop_threshold=0.5),
    )
    found = from_riva(
        model="tones+swap",
        custom_configuration={"adapter": "swap"},
        language_code="en",
        speech_contexts=PHRASES,
        profanity_filter=True,
        encoding=3,
        sample_rate_hertz=8000,
        audio_channel_count=2,
        max_alternatives=3,
        enable_word_time_offsets=True,
        endpointing_config={"stop_history": 800, "stop_threshold": 0.5, "start_history": -1},
    )
    assert found == expected
    found = from_realtime(
        input_audio_format="g711_ulaw",
        input_audio_transcription={"model": "tones+swap", "language": "en"},
        input_audio_params={"sample_rate_hz": 8000, "num_channels": 2},
        recognition_config={
            "max_alternatives": 3, "enable_word_time_offsets": True, "enable_profanity_filter": True,
        },
        word_boosting={"enable_word_boosting": True, "word_boosting_list": PHRASES},
        endpointing_config={"stop_history": 800, "stop_threshold": 0.5, "start_history": -1},
        custom_configuration={"adapter": "swap"},
    )  # fmt: skip
    assert found == replace(expected, ignored=("max_alternatives",))  # a session's results hold one


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"sample_rate": -1}, RequestError),
        ({"channels": -1}, RequestError),
        ({"alternatives": -1}, RequestError),
        ({"model": "a" * 501}, RequestError),
        ({"adapter": "a" * 501}, RequestError),
        ({"separate_speakers": True}, UnsupportedError),
        ({"separate_channels": True, "channels": 2}, UnsupportedError),
    ],
)
def test_a_request_that_cannot_be_followed_is_refused(values: dict[str, Any], error: type[OvertoneError]) -> None:
    with pytest.raises(error):
        RecognitionRequest(**values)


@pytest.mark.parametrize(("asked", "hypotheses"), [(0, 1), (1, 1), (16, 16), (100, 16)])
def test_hypotheses_are_limited(asked: int, hypotheses: int) -> None:
    assert RecognitionRequest(alternatives=asked).hypotheses == hypotheses


def test_endpointing_of_a_client_replaces_the_servers() -> None:
    assert changed_endpointing(DEFAULT, {}) == DEFAULT
    assert changed_endpointing(DEFAULT, {"stop_history": 0}) == replace(DEFAULT, stop_history=0)
    shorter = changed_endpointing(DEFAULT, {"stop_history": 400})  # the server's early end would come after it
    assert (shorter.stop_history, shorter.stop_history_eou) == (400, None)
    for changes in ({"stop_history": 400, "stop_history_eou": 400}, {"stop_history": -5}, {"stop_threshold": 1.5}):
        with pytest.raises(RequestError, match="endpointing_config: "):
            changed_endpointing(DEFAULT, changes)


def test_languages() -> None:
    assert all(understands("en-US", asked) for asked in ("", "en", "EN-us"))
    assert not any(understands("en-US", asked) for asked in ("en-GB", "e", "de"))
    assert understands("en", "en-GB")
