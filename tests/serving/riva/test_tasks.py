"""Riva's clients of a model with an attention decoder: recordings with a task, and no streams."""

from __future__ import annotations

from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")

from overtone.checkpoints.load import load_model  # noqa: E402
from overtone.inference.transcribe import transcribe  # noqa: E402
from support.fixtures import fixture_file, recordings  # noqa: E402
from support.riva_service import refusal, riva_service, stream_requests  # noqa: E402
from support.speaking_model import pcm16  # noqa: E402


def test_recordings_are_translated_and_streams_are_refused(tmp_path: Path) -> None:
    model = load_model(fixture_file("canary_aed/model.nemo"))
    samples = recordings(0)[0][0].numpy()
    with riva_service(tmp_path, adapters=(), model=model) as service:
        for language, custom, task in (
            ("en-US", {}, "en"),
            ("en-US", {"target_language": "de-DE", "task": "translate", "pnc": "no"}, "en>de,pnc=no"),
            ("", {"source_language": "de"}, "de"),
        ):
            (expected,) = transcribe(model, fixture_file("wavs/w0.wav"), language=task)
            answered = service.recognize(pcm16(samples), language_code=language, custom_configuration=custom)
            texts = [result.alternatives[0].transcript.strip() for result in answered.results]
            assert "".join(texts) == expected.text.strip()
        code, details = refusal(lambda: service.text(pcm16(samples), custom_configuration={"timestamp": "yes"}))
        assert (code, "timestamp" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        code, details = refusal(lambda: list(service.stream(stream_requests(samples))))
        assert (code, "no live streams" in details) == (grpc.StatusCode.UNIMPLEMENTED, True)
        (listed,) = service.models()
        assert (listed.parameters["type"], listed.parameters["decoder"]) == ("offline", "aed")
