"""The table of fields: complete, true, and what the page shows. And the messages: the wire's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")

from overtone.serving.recognition.request import KNOWN_KEYS, TASK_KEYS, is_known_key  # noqa: E402
from overtone.serving.riva import protobuf  # noqa: E402
from overtone.serving.riva.fields import (  # noqa: E402
    CUSTOM_KEYS,
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
    Field,
    full_descriptor,
    renew_tables,
)
from overtone.serving.riva.requests import ENCODINGS  # noqa: E402
from overtone.serving.settings import ServerSettings  # noqa: E402
from overtone.serving.streaming.stream import StreamSettings  # noqa: E402
from support.riva_service import Service, refusal, riva_service, stream_requests  # noqa: E402
from support.speaking_model import pcm16, silence, spoken  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/riva.md"
ALL = [*REQUEST_FIELDS, *RESPONSE_FIELDS]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = ServerSettings(grpc_port=0, stream=StreamSettings(chunk=0.4, left=0.4, right=0.4))
    with riva_service(tmp_path_factory.mktemp("store"), settings=settings) as running:
        yield running


def test_every_field_of_the_interface_is_told_once() -> None:
    told = [(field.message, field.name) for field in ALL]
    assert len(told) == len(set(told))
    file = protobuf.POOL.FindFileByName("riva/proto/riva_asr.proto")
    wanted = {(name, field.name) for name, kind in file.message_types_by_name.items() for field in kind.fields}
    wanted |= {("Config", "model_name"), ("Config", "parameters"), ("RequestId", "value")}
    assert set(told) == wanted


def test_fields_of_requests_and_responses_are_not_mixed() -> None:
    assert {field.treatment for field in REQUEST_FIELDS} == {"honoured", "ignored", "rejected"}
    assert {field.treatment for field in RESPONSE_FIELDS} == {"set", "unset"}
    assert all(field.note for field in ALL if field.treatment in ("ignored", "rejected", "unset"))


def test_every_encoding_is_known() -> None:
    assert set(protobuf.ENCODING_NAMES) == set(ENCODINGS)


def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text("utf-8")
    assert page == renew_tables(page), "write it anew: python -m overtone.serving.riva.fields docs/riva.md"


CONFIGS: dict[tuple[str, str], dict[str, Any]] = {
    ("RecognitionConfig", "enable_automatic_punctuation"): {"enable_automatic_punctuation": True},
    ("RecognitionConfig", "verbatim_transcripts"): {"verbatim_transcripts": True},
    ("RecognitionConfig", "enable_separate_recognition_per_channel"): {
        "enable_separate_recognition_per_channel": True,
        "audio_channel_count": 2,
    },
    ("SpeakerDiarizationConfig", "max_speaker_count"): {"diarization_config": {"max_speaker_count": 3}},
    ("SpeakerDiarizationConfig", "enable_speaker_diarization"): {
        "diarization_config": {"enable_speaker_diarization": True}
    },
}
"""Configurations in which a field that is ignored or rejected is set."""


def fields_of(treatment: str) -> list[Field]:
    return [field for field in REQUEST_FIELDS if field.treatment == treatment]


def called(field: Field) -> str:
    return field.name


@pytest.mark.parametrize("field", fields_of("rejected"), ids=called)
def test_what_is_rejected_is_refused_by_name(service: Service, field: Field) -> None:
    config = CONFIGS[field.message, field.name]
    for call in (
        lambda: service.text(pcm16(spoken("abc")), **config),
        lambda: list(service.stream(stream_requests(spoken("abc"), **config))),
    ):
        code, details = refusal(call)
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert field.name in details


@pytest.mark.parametrize("field", fields_of("ignored"), ids=called)
def test_what_is_ignored_changes_nothing(service: Service, field: Field) -> None:
    audio = pcm16(spoken("abc"))
    plain, other = service.recognize(audio), service.recognize(audio, **CONFIGS[field.message, field.name])
    assert plain == other
    if field.message == "RecognitionConfig":
        assert service.calls[-1].ignored == (field.name,)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3"])
def test_channels_that_only_the_header_tells_of_are_refused(service: Service, format: str) -> None:
    """Of a short FLAC or an MP3 that is at its end."""
    import io

    import numpy as np
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([spoken("a")] * 2, axis=1), 16_000, format=format)
    config = {"encoding": 0, "sample_rate_hertz": 0, "enable_separate_recognition_per_channel": True}
    assert refusal(lambda: service.text(buffer.getvalue(), **config))[0] is grpc.StatusCode.UNIMPLEMENTED
    requests = [
        next(stream_requests(silence(0), **config)),
        protobuf.StreamingRecognizeRequest(audio_content=buffer.getvalue()),
    ]
    assert refusal(lambda: list(service.stream(requests)))[0] is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("key", CUSTOM_KEYS, ids=lambda key: key.name)
def test_keys_of_custom_configuration(service: Service, key: Any) -> None:
    name = {"neural_vad.*": "neural_vad.onset", "(any other)": "colour"}.get(key.name, key.name)
    assert is_known_key(name) == (name != "colour")
    assert name in KNOWN_KEYS or name in ("colour", "neural_vad.onset")
    config = {"custom_configuration": {name: "swap" if name == "adapter" else "1"}}
    audio = pcm16(spoken("abc"))
    if key.treatment == "rejected" or name == "att_context_size":  # which is not of the form 70/1
        assert key.treatment == ("honoured" if name == "att_context_size" else "rejected")
        code, details = refusal(lambda: service.text(audio, **config))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert name in details
    else:
        assert key.treatment == ("honoured" if name == "adapter" or name in TASK_KEYS else "ignored")
        assert service.text(audio, **config) == ("bac " if name == "adapter" else "abc ")  # a model without tasks
        assert ("task" in service.calls[-1].ignored) == (name in TASK_KEYS)


def test_phrases_have_limits(service: Service) -> None:
    for phrases, boost in ((["a"] * 5000, 1.0), (["a" * 300], 1.0), (["a"], float("nan"))):
        contexts = [protobuf.SpeechContext(phrases=phrases, boost=boost)]
        code, details = refusal(lambda contexts=contexts: service.text(pcm16(spoken("a")), speech_contexts=contexts))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith("speech_contexts: ")


def test_phrases_without_effect_are_counted_in_the_log(service: Service) -> None:
    contexts = [protobuf.SpeechContext(phrases=["b", "\u0447"], boost=5.0)]
    service.text(pcm16(spoken("a")), speech_contexts=contexts)
    assert service.calls[-1].ignored == ("1 phrase",)
    list(service.stream(stream_requests(spoken("a"), speech_contexts=contexts)))
    assert service.calls[-1].ignored == ("1 phrase",)


# The messages


def test_bytes_on_the_wire() -> None:
    """Numbers and types are the published ones."""
    request = protobuf.StreamingRecognizeRequest(audio_content=b"ab", runtime_config={"k": "v"})
    request.id.value = "x"
    assert request.SerializeToString(deterministic=True) == b"\x12\x02ab\x1a\x06\n\x01k\x12\x01v\xa2\x06\x03\n\x01x"
    config = protobuf.RecognitionConfig(encoding=20, model="m")
    config.endpointing_config.stop_history = 0
    assert config.SerializeToString() == b"\x08\x14j\x01m\xca\x01\x02\x18\x00"
    assert protobuf.HealthCheckResponse(status=protobuf.SERVING).SerializeToString() == b"\x08\x01"


def test_the_messages_are_in_a_pool_of_their_own() -> None:
    from google.protobuf import descriptor_pool

    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("riva/proto/riva_asr.proto")
    assert full_descriptor("RequestId").full_name == "nvidia.riva.RequestId"


# NVIDIA's client, where $OVERTONE_RIVA_PYTHON names a Python that has it


@pytest.fixture(scope="module")
def riva_python() -> str:
    python = os.environ.get("OVERTONE_RIVA_PYTHON", "")
    if not python:
        pytest.skip("OVERTONE_RIVA_PYTHON names no Python with nvidia-riva-client")
    finished = subprocess.run([python, "-c", "import riva.client"], capture_output=True, text=True, check=False)
    if finished.returncode:
        pytest.skip(f"{python} has no working nvidia-riva-client: {finished.stderr[-200:]}")
    return python


def client(python: str, code: str, *arguments: str) -> list[str]:
    command = [python, "-c", code, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


CLIENT = """
import sys, wave, riva.client
from riva.client.proto import riva_asr_pb2
service = riva.client.ASRService(riva.client.Auth(uri=sys.argv[1]))
names = service.stub.GetRivaSpeechRecognitionConfig(riva_asr_pb2.RivaSpeechRecognitionConfigRequest())
print(sorted({entry.model_name for entry in names.model_config}))
config = riva.client.RecognitionConfig(enable_word_time_offsets=True)
riva.client.add_custom_configuration_to_config(config, "adapter:swap")
riva.client.add_word_boosting_to_config(config, ["bac"], 4.0)
best = service.offline_recognize(open(sys.argv[2], "rb").read(), config).results[0].alternatives[0]
print(best.transcript, [word.word for word in best.words])
streaming = riva.client.StreamingRecognitionConfig(
    config=riva.client.RecognitionConfig(model="tones+swap"), interim_results=True
)
with riva.client.AudioChunkFileIterator(sys.argv[2], 1600) as chunks:
    for response in service.streaming_response_generator(chunks, streaming):
        for result in response.results:
            if result.is_final:
                print(result.alternatives[0].transcript)
"""


def test_the_published_client(service: Service, riva_python: str, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", spoken("abc"), 16_000)
    lines = client(riva_python, CLIENT, f"localhost:{service.port}", str(tmp_path / "a.wav"))
    assert lines == ["['tones', 'tones+other', 'tones+swap']", "bac  ['bac']", "bac "]


SAME = """
import sys
from google.protobuf import descriptor_pb2
from riva.client.proto import riva_asr_pb2
files = descriptor_pb2.FileDescriptorSet.FromString(open(sys.argv[1], "rb").read()).file
ours = next(file for file in files if file.name.endswith("riva_asr.proto"))
theirs = descriptor_pb2.FileDescriptorProto()
riva_asr_pb2.DESCRIPTOR.CopyToProto(theirs)
def fields(messages, outer=""):
    for message in messages:
        for field in message.field:
            yield outer + message.name, field.name, field.number, field.type, field.label, field.type_name
        yield from fields(message.nested_type, outer + message.name + ".")
print(sorted(set(fields(theirs.message_type)) ^ set(fields(ours.message_type))))
"""


def test_the_descriptors_are_the_published_ones(riva_python: str) -> None:
    assert client(riva_python, SAME, str(ROOT / "overtone/serving/riva/protos/riva.binpb")) == ["[]"]


def test_both_live_in_one_process(riva_python: str) -> None:
    code = f"import riva.client, sys; sys.path.insert(0, {str(ROOT)!r}); from overtone.serving.riva import protobuf\n"
    code += "print(protobuf.RecognitionConfig(model='m').model, riva.client.RecognitionConfig(model='n').model)"
    assert client(riva_python, code) == ["m n"]


def test_the_descriptor_set_is_what_its_recipe_makes() -> None:
    python = os.environ.get("OVERTONE_RIVA_PYTHON") or sys.executable
    tools = subprocess.run([python, "-c", "import grpc_tools"], capture_output=True, check=False)
    if tools.returncode:
        pytest.skip("grpcio-tools is not installed")
    subprocess.run([python, str(ROOT / "recipes/protos/build.py"), "--check"], check=True)
