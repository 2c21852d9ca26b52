"""Messages of the Riva interface, in a descriptor pool of our own.

A private pool keeps them apart from NVIDIA's generated modules: both may live in one process, and no version of
protoc's output has to match the installed protobuf. Wire format and names are those of `protos/`.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

ASR_SERVICE = "nvidia.riva.asr.RivaSpeechRecognition"
HEALTH_SERVICE = "grpc.health.v1.Health"


def load_pool() -> DescriptorPool:
    """Pool with the messages of `protos/`."""
    pool = DescriptorPool()
    data = files("overtone.serving.riva").joinpath("protos", "riva.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(data).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = load_pool()


def descriptor(name: str) -> Any:
    """Descriptor of a message by its full name."""
    return POOL.FindMessageTypeByName(name)


def message_class(name: str) -> Any:
    return GetMessageClass(descriptor(name))


def asr_message(name: str) -> Any:
    return message_class(f"nvidia.riva.asr.{name}")


RequestId = message_class("nvidia.riva.RequestId")

RecognitionConfig = asr_message("RecognitionConfig")
EndpointingConfig = asr_message("EndpointingConfig")
SpeechContext = asr_message("SpeechContext")
SpeakerDiarizationConfig = asr_message("SpeakerDiarizationConfig")
StreamingRecognitionConfig = asr_message("StreamingRecognitionConfig")

RecognizeRequest = asr_message("RecognizeRequest")
RecognizeResponse = asr_message("RecognizeResponse")
SpeechRecognitionResult = asr_message("SpeechRecognitionResult")
SpeechRecognitionAlternative = asr_message("SpeechRecognitionAlternative")
WordInfo = asr_message("WordInfo")

StreamingRecognizeRequest = asr_message("StreamingRecognizeRequest")
StreamingRecognizeResponse = asr_message("StreamingRecognizeResponse")
StreamingRecognitionResult = asr_message("StreamingRecognitionResult")

ConfigRequest = asr_message("RivaSpeechRecognitionConfigRequest")
ConfigResponse = asr_message("RivaSpeechRecognitionConfigResponse")

HealthCheckRequest = message_class("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = message_class("grpc.health.v1.HealthCheckResponse")
UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)
"""Values of HealthCheckResponse.ServingStatus; the last one, of the standard protocol, is not in NVIDIA's copy."""

ENCODINGS = dict(POOL.FindEnumTypeByName("nvidia.riva.AudioEncoding").values_by_name.items())
ENCODING_NAMES = {value.number: name for name, value in ENCODINGS.items()}
