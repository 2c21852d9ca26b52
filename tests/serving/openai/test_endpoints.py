"""OpenAI's fields beyond the plain transcription: aliases, keywords, prompts that boost, log-probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from support.riva_service import file_of
from support.speaking_model import silence, spoken
from support.web_service import WebService, eventually, web_service

ALIASES = {"whisper-1": "swap", "gpt-4o-transcribe": "tones+other", "gone": "legal", "plain": "base"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    with web_service(tmp_path_factory.mktemp("store"), aliases=ALIASES, prompt_boost=4.0) as running:
        yield running


def audio(text: str = "ab") -> bytes:
    return file_of(np.concatenate((spoken(text), silence(0.2))))


def test_an_alias_is_another_name(service: WebService) -> None:
    assert service.text(audio(), model="whisper-1") == "ba"
    assert service.calls[-1].adapter == "swap"
    assert service.text(audio(), adapter="whisper-1") == "ba"
    assert service.text(audio(), model="gpt-4o-transcribe") == "ab"
    assert service.calls[-1].adapter == "other"
    assert service.text(audio(), model="plain") == "ab"
    answer = service.transcribe(audio(), model="gone")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    listed = {model["id"] for model in service.get("/v1/models").json["data"]}
    assert listed == {"tones", "tones+swap", "tones+other", "whisper-1", "gpt-4o-transcribe", "plain"}
    found = service.get("/v1/models/whisper-1").json
    assert (found["id"], found["adapter"]["name"]) == ("whisper-1", "swap")


def test_the_log_probabilities_of_words(service: WebService) -> None:
    [token] = service.transcribe(audio(), include="logprobs").json["logprobs"]
    assert (token["token"], bytes(token["bytes"])) == ("ab", b"ab")
    assert 0.5 < math.exp(token["logprob"]) <= 1.0
    assert "logprobs" not in service.transcribe(audio()).json
    stream = service.transcribe(audio(), stream="true", include=["logprobs"]).text
    last = json.loads(stream.strip().rpartition("data: ")[2])
    assert last["logprobs"] == [token]
    for fields in ({"include": "everything"}, {"include": "logprobs", "response_format": "srt"}):
        answer = service.transcribe(audio(), **fields)
        assert (answer.status, answer.error["param"]) == (400, "include")


@pytest.mark.parametrize("field", ["keywords", "prompt"])
def test_keywords_and_words_of_the_prompt_are_boosted(service: WebService, field: str, tmp_path: Path) -> None:
    """Letters that the model does not have: what has no effect is told, as it is of Riva's phrases."""
    service.text(audio(), **{field: "Жж, ab"})
    eventually(lambda: service.calls[-1].ignored == ("1 phrase",))
    with web_service(tmp_path, adapters=()) as other:
        other.text(audio(), **{field: "Жж, ab"})
        eventually(lambda: other.calls[-1].ignored == (("prompt",) if field == "prompt" else ("1 phrase",)))


def test_languages_are_one(service: WebService) -> None:
    assert service.text(audio(), languages=["en"]) == "ab"
    for languages, words in ((["de"], "'de' is not understood"), (["en", "de"], "names 2 languages")):
        answer = service.transcribe(audio(), languages=languages)
        assert answer.status == 400
        assert words in answer.error["message"]
