"""Reflection: the interface as tools see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("grpc_reflection", reason="grpcio-reflection is not installed")

from google.protobuf.descriptor_pb2 import FileDescriptorProto  # noqa: E402
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # noqa: E402

from overtone.serving.auth.guard import Guard, Tenant, hash_token  # noqa: E402
from overtone.serving.riva import protobuf  # noqa: E402
from support.riva_service import SETTINGS, bearer, refusal, riva_service  # noqa: E402


def ask(channel: Any, metadata: Any = None, **question: Any) -> Any:
    """Answer to one question."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(**question)
    [answer] = stub.ServerReflectionInfo(iter([request]), timeout=60.0, metadata=metadata)
    return answer


def test_services_and_files(tmp_path: Path) -> None:
    with riva_service(tmp_path, adapters=(), settings=SETTINGS) as service:
        listed = ask(service.channel, list_services="").list_services_response.service
        assert {protobuf.ASR_SERVICE, protobuf.HEALTH_SERVICE} < {each.name for each in listed}
        found = ask(service.channel, file_containing_symbol=protobuf.ASR_SERVICE).file_descriptor_response
        files = [FileDescriptorProto.FromString(data) for data in found.file_descriptor_proto]
        [asr] = [file for file in files if file.package == "nvidia.riva.asr"]
        methods = {method.name for method in asr.service[0].method}
        assert {"Recognize", "StreamingRecognize", "GetRivaSpeechRecognitionConfig"} <= methods
        missing = ask(service.channel, file_containing_symbol="no.such.Service")
        assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_a_token_is_needed_where_one_is(tmp_path: Path) -> None:
    guard = Guard(tenants={hash_token("anna"): Tenant(name="anna", adapters=None)})
    with riva_service(tmp_path, adapters=(), settings=SETTINGS, guard=guard) as service:
        assert refusal(lambda: ask(service.channel, list_services=""))[0] is grpc.StatusCode.UNAUTHENTICATED
        answer = ask(service.channel, bearer("anna"), list_services="")
        assert len(answer.list_services_response.service) == 3
