"""The Riva interface: tenants, limits, faults, TLS."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")

from overtone.errors import UsageError  # noqa: E402
from overtone.serving.auth.guard import Guard, Tenant, hash_token  # noqa: E402
from overtone.serving.auth.tls import ServerKeys  # noqa: E402
from overtone.serving.riva import protobuf  # noqa: E402
from overtone.serving.riva.server import RivaServer  # noqa: E402
from overtone.serving.settings import ServerSettings  # noqa: E402
from support.riva_service import SETTINGS, Service, bearer, file_of, refusal, riva_service, stream_requests  # noqa: E402
from support.serving_models import until  # noqa: E402
from support.speaking_model import pcm16, spoken  # noqa: E402

Code = grpc.StatusCode


def two_tenants() -> Guard:
    """Tokens are their tenants' names; `swap` is Anna's alone."""
    anna = Tenant(name="anna", adapters=None)
    bert = Tenant(name="bert", adapters=frozenset({"other"}))
    return Guard(tenants={hash_token("anna"): anna, hash_token("bert"): bert})


def test_access(tmp_path: Path) -> None:
    with riva_service(tmp_path, settings=SETTINGS, guard=two_tenants()) as guarded:
        audio = pcm16(spoken("abc"))
        assert refusal(lambda: guarded.text(audio))[0] is Code.UNAUTHENTICATED
        assert refusal(guarded.models)[0] is Code.UNAUTHENTICATED
        assert refusal(lambda: guarded.text(audio, metadata=bearer("eve")))[0] is Code.UNAUTHENTICATED
        assert guarded.text(audio, model="swap", metadata=bearer("anna", times=2)) == "bac "
        assert guarded.calls[-1].tenant == "anna"
        code, details = refusal(lambda: guarded.text(audio, model="other+swap", metadata=bearer("bert")))
        assert code is Code.PERMISSION_DENIED
        assert details == "The adapter 'swap' is not among those that this token may use."
        names = {entry.model_name for entry in guarded.models(metadata=bearer("bert"))}
        assert names == {"tones", "tones+other"}
        _, details = refusal(lambda: guarded.text(audio, model="legal", metadata=bearer("bert")))
        assert "swap" not in details
        requests = list(stream_requests(spoken("a"), model="swap"))
        code, _ = refusal(lambda: list(guarded.stream(requests, metadata=bearer("bert"))))
        assert code is Code.PERMISSION_DENIED
        assert guarded.health("Check").status == protobuf.SERVING


def test_nothing_is_waited_for_before_a_token_is_good(tmp_path: Path) -> None:
    asked = threading.Event()

    def silent() -> Iterator[Any]:
        asked.wait(30)
        yield from ()

    settings = replace(SETTINGS, idle_seconds=3.0)
    with riva_service(tmp_path, adapters=(), settings=settings, guard=two_tenants()) as guarded:
        code, _ = refusal(lambda: list(guarded.stream(silent(), metadata=bearer("eve"))))
        asked.set()
        assert code is Code.UNAUTHENTICATED
        with_nonsense = refusal(lambda: guarded.text(b"", language_code="?" * 100))
        assert with_nonsense[0] is Code.UNAUTHENTICATED


def test_calls_are_told_without_what_was_said(service: Service) -> None:
    keys = {"apply_partial_itn": "true", "neural_vad.onset": "0.8", "colour": "blue"}
    service.text(pcm16(spoken("bad")), model="swap", verbatim_transcripts=True, custom_configuration=keys)
    call = service.calls[-1]
    assert (call.method, call.adapter, call.code) == ("Recognize", "swap", "OK")
    assert call.audio_seconds == pytest.approx(spoken("bad").size / 16_000)
    assert call.ignored == ("verbatim_transcripts", "custom_configuration['colour']")
    assert "bad" not in repr(call)


def test_too_many_calls_are_refused_at_once_and_health_answers(tmp_path: Path) -> None:
    with riva_service(tmp_path, adapters=(), settings=replace(SETTINGS, max_calls=1)) as narrow:
        watch = narrow.health("Watch")
        assert next(watch).status == protobuf.SERVING
        asked = threading.Event()

        def silent() -> Iterator[Any]:
            asked.wait(60)
            yield from ()

        stream = narrow.stream(silent())
        try:
            until(lambda: narrow.servicer.admitted == 1, 60)
            assert refusal(lambda: narrow.text(pcm16(spoken("a"))))[0] is Code.RESOURCE_EXHAUSTED
            assert narrow.health("Check").status == protobuf.SERVING
        finally:
            asked.set()
        stream.cancel()
        watch.cancel()
        until(lambda: narrow.servicer.admitted == 0, 60)
        assert narrow.text(pcm16(spoken("a"))) == "a "


def test_a_deadline_is_kept(service: Service) -> None:
    audio = pcm16(np.tile(spoken("abc"), 40))
    assert refusal(lambda: service.text(audio, timeout=0.001))[0] is Code.DEADLINE_EXCEEDED


def test_a_fault_of_ours_stays_in_the_log(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(service.store, "entry", broken)
    code, details = refusal(lambda: service.text(pcm16(spoken("a")), model="swap"))
    assert code is Code.INTERNAL
    assert "secret" not in details
    assert "secret" in caplog.text


def test_messages_that_quote_the_request_stay_short(service: Service) -> None:
    for config in ({"model": "ä" * 100_000}, {"language_code": "ä" * 100_000}):
        code, details = refusal(lambda config=config: service.text(b"x", **config))
        assert code is Code.INVALID_ARGUMENT
        assert len(details) < 1100


def test_mutated_requests_are_answered(service: Service) -> None:
    """Bytes changed, cut out and put in anywhere: a status each time, never a fault of ours."""
    generator = np.random.default_rng(5)
    whole = protobuf.RecognizeRequest(
        config=protobuf.RecognitionConfig(model="swap", custom_configuration={"adapter": "swap"}, max_alternatives=2),
        audio=file_of(spoken("a")[:4000]),
    ).SerializeToString()
    call = service.channel.unary_unary(f"/{protobuf.ASR_SERVICE}/Recognize")
    seen = set()
    for _ in range(100):
        mutated = bytearray(whole)
        for _ in range(generator.integers(1, 6)):
            place = int(generator.integers(0, 150 if generator.random() < 0.8 else len(mutated)))
            length = int(generator.integers(0, 3))
            mutated[place : place + length] = generator.bytes(int(generator.integers(0, 3)))
        try:
            call(bytes(mutated), timeout=20)
        except grpc.RpcError as error:
            seen.add(error.code())
    assert seen <= {Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED, Code.UNIMPLEMENTED}
    for method in ("Recognize", "StreamingRecognize", "GetRivaSpeechRecognitionConfig"):
        raw = service.channel.stream_stream(f"/{protobuf.ASR_SERVICE}/{method}")
        code, details = refusal(lambda raw=raw: list(raw(iter([b"\xff\xff"]), timeout=20)))
        assert code is Code.INVALID_ARGUMENT
        assert "damaged" in details
    assert service.text(pcm16(spoken("a"))) == "a "


# TLS


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(certificates: Path, tmp_path: Path, mutual: bool) -> None:
    def pem(name: str) -> bytes:
        return (certificates / name).read_bytes()

    keys = ServerKeys(
        certificate=pem("server.crt"), key=pem("server.key"), client_authority=pem("authority.crt") if mutual else None
    )
    plain = grpc.ssl_channel_credentials(pem("server.crt"))
    shown = grpc.ssl_channel_credentials(pem("server.crt"), pem("client.key"), pem("client.crt"))
    options = {"settings": ServerSettings(grpc_port=0), "guard": two_tenants(), "keys": keys}
    with riva_service(tmp_path, adapters=(), **options) as secure:
        code, _ = refusal(lambda: secure.text(pcm16(spoken("a"))))
        assert code is Code.UNAVAILABLE
        for credentials, good in ((plain, not mutual), (shown, True)):
            # NVIDIA's client sends each header twice over TLS: with the channel and with the call.
            twice = grpc.metadata_call_credentials(lambda _, tell: tell(bearer("anna"), None))
            both = grpc.composite_channel_credentials(credentials, twice)
            with grpc.secure_channel(f"localhost:{secure.port}", both) as channel:
                caller = replace(secure, channel=channel)
                if good:
                    assert caller.text(pcm16(spoken("a")), metadata=bearer("anna")) == "a "
                else:
                    code, _ = refusal(lambda caller=caller: caller.text(pcm16(spoken("a"))))
                    assert code is Code.UNAVAILABLE


def test_a_port_that_is_taken_is_told(service: Service) -> None:
    server = RivaServer(service.recognition, ServerSettings(grpc_port=service.port))
    with pytest.raises(UsageError, match=f"Port {service.port}"):
        asyncio.run(server.start())
