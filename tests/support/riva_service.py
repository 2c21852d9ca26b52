"""A Riva server in a thread of its own, and calls to it over a plain channel with our own messages."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import soundfile

from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.auth.guard import Guard
from overtone.serving.auth.tls import ServerKeys
from overtone.serving.engine.engine import Engine
from overtone.serving.recognition.request import Call
from overtone.serving.recognition.service import HeldAudio, RecognitionService
from overtone.serving.riva import protobuf
from overtone.serving.riva.server import RivaServer
from overtone.serving.settings import ServerSettings
from overtone.serving.streaming.stream import StreamSettings
from support.serving_models import until
from support.speaking_model import SAMPLE_RATE, SpeakingModel, pcm16, put_adapter

METHODS = {
    "Recognize": ("unary_unary", protobuf.RecognizeRequest, protobuf.RecognizeResponse),
    "StreamingRecognize": (
        "stream_stream",
        protobuf.StreamingRecognizeRequest,
        protobuf.StreamingRecognizeResponse,
    ),
    "GetRivaSpeechRecognitionConfig": ("unary_unary", protobuf.ConfigRequest, protobuf.ConfigResponse),
}
CHUNK = SAMPLE_RATE // 10

SETTINGS = ServerSettings(grpc_port=0, stream=StreamSettings(chunk=0.4, left=0.4, right=0.4), idle_seconds=20.0)


@dataclass(kw_only=True)
class Service:
    recognition: RecognitionService
    engine: Engine
    store: AdapterStore
    port: int
    calls: list[Call] = field(default_factory=list)
    channel: Any = None
    servicer: Any = None
    stop: Callable[[], bool] = lambda: True

    def method(self, name: str) -> Any:
        shape, request, response = METHODS[name]
        path = f"/{protobuf.ASR_SERVICE}/{name}"
        return getattr(self.channel, shape)(path, request.SerializeToString, response.FromString)

    def recognize(self, audio: bytes, *, metadata: Any = None, timeout: float = 30.0, **config: Any) -> Any:
        request = protobuf.RecognizeRequest(config=raw_config(**config), audio=audio)
        return self.method("Recognize")(request, timeout=timeout, metadata=metadata)

    def text(self, audio: bytes, **options: Any) -> str:
        results = self.recognize(audio, **options).results
        return str(results[0].alternatives[0].transcript) if results else ""

    def stream(self, requests: Iterable[Any], **options: Any) -> Any:
        return self.method("StreamingRecognize")(iter(requests), timeout=30.0, **options)

    def models(self, name: str = "", **options: Any) -> list[Any]:
        request = protobuf.ConfigRequest(model_name=name)
        return list(self.method("GetRivaSpeechRecognitionConfig")(request, timeout=30.0, **options).model_config)

    def health(self, method: str, service: str = "") -> Any:
        shape = "unary_unary" if method == "Check" else "unary_stream"
        call = getattr(self.channel, shape)(
            f"/{protobuf.HEALTH_SERVICE}/{method}",
            protobuf.HealthCheckRequest.SerializeToString,
            protobuf.HealthCheckResponse.FromString,
        )
        return call(protobuf.HealthCheckRequest(service=service), timeout=30.0)


def bearer(token: str, times: int = 1) -> list[tuple[str, str]]:
    """Metadata that shows a token."""
    return [("authorization", f"Bearer {token}")] * times


def raw_config(**config: Any) -> Any:
    """For samples without a header, unless the configuration says otherwise."""
    return protobuf.RecognitionConfig(**{"encoding": 1, "sample_rate_hertz": SAMPLE_RATE, **config})


def stream_requests(
    samples: npt.NDArray[np.float32], *, interim: bool = True, chunk: int = CHUNK, **config: Any
) -> Iterator[Any]:
    yield protobuf.StreamingRecognizeRequest(
        streaming_config=protobuf.StreamingRecognitionConfig(config=raw_config(**config), interim_results=interim)
    )
    for first in range(0, samples.size, chunk):
        yield protobuf.StreamingRecognizeRequest(audio_content=pcm16(samples[first : first + chunk]))


def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """Status and message of a call that must fail; call: a function that makes it and reads all of it."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("the call was answered")


def file_of(samples: npt.NDArray[np.float32], format: str = "WAV", rate: int = SAMPLE_RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format)
    return buffer.getvalue()


def results_of(responses: Any) -> list[Any]:
    return [result for response in responses for result in response.results]


def finals_of(responses: Any) -> list[str]:
    return [result.alternatives[0].transcript for result in results_of(responses) if result.is_final]


@contextmanager
def riva_service(
    folder: Path,
    *,
    adapters: Sequence[str] = ("swap", "other"),
    settings: ServerSettings = SETTINGS,
    guard: Guard | None = None,
    held: HeldAudio | None = None,
    keys: ServerKeys | None = None,
    grace: float = 0.0,
    model: Any = None,
) -> Iterator[Service]:
    """grace: seconds for running calls at the end. model: a SpeakingModel unless given."""
    model = model or SpeakingModel()
    for name in adapters:
        put_adapter(model, name, folder)
    with Engine(model) as engine, AdapterStore(model, folder, lock=engine.lock, poll_seconds=0) as store:
        calls: list[Call] = []
        until(lambda: engine.state().alive)
        recognition = RecognitionService(
            engine, store, guard=guard, limits=settings.limits, profanities=settings.profanities, held=held
        )
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        async def build() -> tuple[RivaServer, int]:
            server = RivaServer(recognition, settings, keys=keys, on_call=calls.append)
            return server, await server.start()

        server, port = asyncio.run_coroutine_threadsafe(build(), loop).result(30)

        def stop() -> bool:
            return asyncio.run_coroutine_threadsafe(server.stop(grace), loop).result(30)

        try:
            with grpc.insecure_channel(f"localhost:{port}") as channel:
                yield Service(
                    recognition=recognition,
                    engine=engine,
                    store=store,
                    port=port,
                    calls=calls,
                    channel=channel,
                    servicer=server.servicer,
                    stop=stop,
                )
        finally:
            stop()
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.close()
            recognition.close()
