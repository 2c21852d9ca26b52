"""Tasks of requests: languages, translation and further slots of a multitask model's prompt; no live streams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import soundfile
from starlette.datastructures import FormData

from overtone.checkpoints.load import load_model
from overtone.inference.transcribe import transcribe
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.errors import LanguageError, RequestError, UnsupportedError
from overtone.serving.openai.endpoints import recognition_request
from overtone.serving.recognition.request import Call, RecognitionRequest, custom_task
from overtone.serving.recognition.service import RecognitionService
from overtone.serving.streaming.session import open_session
from overtone.serving.streaming.stream import StreamSettings
from support.fixtures import fixture_file, recordings
from support.serving_models import tiny_model
from support.streams import run


def canary() -> AsrModel:
    return load_model(fixture_file("canary_aed/model.nemo"))


def with_service(model: AsrModel, work: object) -> object:
    with (
        Engine(model, EngineSettings(threads=1)) as engine,
        AdapterStore(model, None, lock=engine.lock, poll_seconds=0) as store,
    ):
        service = RecognitionService(engine, store)
        try:
            return work(service)  # type: ignore[operator]
        finally:
            service.close()


def test_requests_name_their_task() -> None:
    samples = recordings(0)[0][0].numpy()
    asked = {
        "en": RecognitionRequest(language="en-US"),
        "en>de,pnc=no": RecognitionRequest(
            language="en-US", task=custom_task({"target_language": "de-DE", "task": "translate", "pnc": "false"})
        ),
        "de": RecognitionRequest(task=custom_task({"source_language": "de"})),
    }

    def work(service: RecognitionService) -> None:
        for task, request in asked.items():
            service.check(request, [], Call(method=""))
            assert service.told_language(request) == task
            assert service.spoken_language(request) == task.partition(",")[0].rpartition(">")[2]
            found = run(service.recognise(samples, request, Call(method="")))
            (expected,) = transcribe(service.engine.model, fixture_file("wavs/w0.wav"), language=task)
            assert found.hypotheses[0].text == expected.text
        with pytest.raises(LanguageError, match="xx"):
            service.check(RecognitionRequest(language="xx-XX"), [], Call(method=""))
        with pytest.raises(RequestError, match="timestamp"):
            service.check(RecognitionRequest(task="timestamp=yes"), [], Call(method=""))

    with_service(canary(), work)


def test_a_form_has_the_same_names() -> None:
    form = FormData([("model", ""), ("language", "en"), ("target_language", "de"), ("decodercontext", "a, b")])
    request = recognition_request(form)
    assert (request.language, request.task) == ("en", "target_lang=de,decodercontext=a, b")
    assert not request.ignored


def test_a_model_without_tasks_notes_them_in_the_log() -> None:
    def work(service: RecognitionService) -> None:
        call = Call(method="")
        service.check(RecognitionRequest(task="target_lang=de"), [], call)
        assert call.ignored == ("task",)

    with_service(tiny_model(), work)


def test_live_streams_are_refused() -> None:
    def work(service: RecognitionService) -> None:
        async def stream() -> None:
            async with open_session(service, RecognitionRequest(), Call(method=""), StreamSettings()):
                await asyncio.sleep(0)

        with pytest.raises(UnsupportedError, match="no live streams"):
            run(stream())

    with_service(canary(), work)


def test_long_recordings_are_heard_in_windows(tmp_path: Path) -> None:
    """Every window has its own text, and their words come in order; the server hears the same windows."""
    whole = np.tile(np.concatenate([recordings(row)[0][0].numpy() for row in range(3)]), 5)
    soundfile.write(tmp_path / "long.wav", whole, 16_000)
    model = canary()
    (found,) = transcribe(model, tmp_path / "long.wav", language="en>de")
    starts = [word.start for word in found.words]
    assert starts == sorted(starts)
    assert starts[-1] > 30.0

    def work(service: RecognitionService) -> None:
        request = RecognitionRequest(language="en", task="target_lang=de")
        answer = run(service.recognise(whole, request, Call(method="")))
        served = [word.start for word in answer.hypotheses[0].words]
        assert served == sorted(served)
        assert served[-1] > 30.0
        assert answer.seconds == pytest.approx(len(whole) / 16_000)

    with_service(model, work)
