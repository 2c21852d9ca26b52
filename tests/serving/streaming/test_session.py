"""Cache-aware streams through the server's protocols: their texts are those of the model offline."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("starlette", reason="the serving extra is not installed")

from websockets.sync.client import connect  # noqa: E402

from overtone.adapters.kinds.linear import LinearAdapter  # noqa: E402
from overtone.models.asr_model import AsrModel  # noqa: E402
from overtone.serving.recognition.request import Endpointing  # noqa: E402
from overtone.serving.streaming.stream import StreamSettings  # noqa: E402
from support.families import family_model  # noqa: E402
from support.riva_service import SETTINGS, finals_of, refusal, results_of, riva_service, stream_requests  # noqa: E402
from support.serving_models import make_adapter, noise  # noqa: E402
from support.speaking_model import pcm16  # noqa: E402
from support.web_service import web_service  # noqa: E402

STREAM = StreamSettings(endpointing=Endpointing(stop_history=0))
WHOLE = pcm16(noise(2.0))
SAMPLES = np.frombuffer(WHOLE, dtype=np.int16).astype(np.float32) / 32768


@pytest.fixture
def model(tmp_path: Path) -> AsrModel:
    model = family_model("streaming")
    model.preprocessor.normalize = "NA"
    make_adapter(model, tmp_path / "voice", kind=LinearAdapter(dim=4))
    return model


def texts(model: AsrModel, folder: Path) -> list[str]:
    """Texts of the base and of the adapter, offline."""
    waveforms, lengths = torch.from_numpy(SAMPLES)[None], torch.tensor([SAMPLES.size])
    adapter = model.adapters.load(folder / "voice", name="voice")
    found = []
    for choice in (None, adapter.name):
        with model.adapters.use(choice):
            found.append(" ".join(model.transcribe(waveforms, lengths)[0].text.split()))
    model.adapters.remove(adapter.name)
    assert len(set(found)) == 2
    assert all(found)
    return found


def test_riva_streams(model: AsrModel, tmp_path: Path) -> None:
    expected = texts(model, tmp_path)
    with riva_service(tmp_path, adapters=(), settings=replace(SETTINGS, stream=STREAM), model=model) as service:
        for name, text in zip(("base", "voice"), expected, strict=True):
            before = service.engine.state().rows
            responses = list(service.stream(stream_requests(SAMPLES, model=name)))
            assert " ".join(finals_of(responses)).split() == text.split()
            assert any(not result.is_final for result in results_of(responses))
            assert service.engine.state().rows - before == 26  # 200 mel frames: 5, then 8 at a time


def test_each_stream_may_choose_its_context(tmp_path: Path) -> None:
    model = family_model("streaming", attention_contexts=[[4, 1], [4, 3]])
    with riva_service(tmp_path, adapters=(), settings=replace(SETTINGS, stream=STREAM), model=model) as service:
        for form, rows in (("4/1", 26), ("[4,3]", 1 + 12)):  # 200 mel frames: 5 and 8 at a time, 13 and 16 at a time
            before = service.engine.state().rows
            requests = stream_requests(SAMPLES, custom_configuration={"att_context_size": form})
            assert finals_of(service.stream(requests))
            assert service.engine.state().rows - before == rows
        for form, message in (("6/1", "not with the attention context"), ("4", "70/1 is the form")):
            requests = stream_requests(SAMPLES, custom_configuration={"att_context_size": form})
            code, details = refusal(lambda requests=requests: list(service.stream(requests)))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert message in details
        config = {"custom_configuration": {"att_context_size": "4/3"}}
        assert refusal(lambda: service.text(WHOLE, **config))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_realtime_sessions(model: AsrModel, tmp_path: Path) -> None:
    expected = texts(model, tmp_path)[1]
    with web_service(tmp_path, adapters=(), model=model, stream=STREAM) as service:
        session = service.post("/v1/realtime/transcription_sessions", {}).json
        session["input_audio_transcription"]["model"] = "voice"
        session["custom_configuration"] = {"att_context_size": "4/1"}
        with connect(f"ws://localhost:{service.addresses.http_port}/v1/realtime?intent=transcription") as websocket:
            websocket.send(json.dumps({"type": "transcription_session.update", "session": session}))
            for first in range(0, len(WHOLE), 3200):
                audio = base64.b64encode(WHOLE[first : first + 3200]).decode()
                websocket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            websocket.send(json.dumps({"type": "input_audio_buffer.done"}))
            events: list[dict[str, Any]] = [json.loads(websocket.recv(timeout=20))]
            while not events[-1].get("is_last_result") and events[-1]["type"] != "error":
                events.append(json.loads(websocket.recv(timeout=20)))
    assert events[-1]["transcript"].split() == expected.split()
    assert any(event["type"].endswith("transcription.delta") for event in events)
