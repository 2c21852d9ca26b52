"""The whole server: a port for health, other sites' pages, files that are read again, and its end."""

from __future__ import annotations

import asyncio
import http.client
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")

from overtone.serving.riva import protobuf  # noqa: E402
from support.openai_client import EVENT, client  # noqa: E402
from support.openai_client import speech as openai_speech  # noqa: E402
from support.riva_service import file_of, stream_requests  # noqa: E402
from support.speaking_model import silence, spoken  # noqa: E402
from support.web_service import web_service  # noqa: E402


def status_of(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("localhost", port, timeout=60)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def test_health_has_a_port_of_its_own_without_certificates(tmp_path: Path, certificates: Path) -> None:
    mutual = {
        "tls_certificate": certificates / "server.crt",
        "tls_key": certificates / "server.key",
        "client_authority": certificates / "authority.crt",
    }
    with web_service(tmp_path, adapters=(), health_port=0, **mutual) as service:
        port = service.addresses.health_port
        assert port is not None
        assert [status_of(port, f"/v1/{path}") for path in ("health/live", "health/ready", "metrics")] == [200] * 3
        assert [status_of(port, path) for path in ("/v1/models", "/", "/v1/admin/adapters")] == [404] * 3
        trusting = ssl.create_default_context(cafile=str(certificates / "server.crt"))
        connection = http.client.HTTPSConnection("localhost", service.addresses.http_port, timeout=60, context=trusting)
        with suppress(ssl.SSLError, ConnectionError):
            connection.request("GET", "/v1/health/live")
            pytest.fail(f"answered with {connection.getresponse().status}")


def test_pages_of_chosen_sites_may_read_answers(tmp_path: Path) -> None:
    site = {"Origin": "https://example.org"}
    asking = {**site, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    path = "/v1/audio/transcriptions"
    with web_service(tmp_path, adapters=(), origins=frozenset({"https://example.org"})) as service:
        answer = service.request("OPTIONS", path, headers=asking)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert service.get("/v1/models", headers=site).headers["access-control-allow-origin"] == "https://example.org"
        other = service.get("/v1/models", headers={"Origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers
    with web_service(tmp_path, adapters=(), origins=frozenset("*")) as service:
        assert service.get("/v1/models", headers=site).headers["access-control-allow-origin"] == "*"
    with web_service(tmp_path, adapters=()) as service:
        assert "access-control-allow-origin" not in service.get("/v1/models", headers=site).headers


def test_metrics_forget_adapters_that_are_gone(tmp_path: Path) -> None:
    with web_service(tmp_path, adapters=("swap", "other")) as service:
        for name in ("swap", "other"):
            service.text(file_of(spoken("a")), model=name)
        assert 'overtone_adapter_requests_total{adapter="swap"}' in service.get("/v1/metrics").text
        service.server.store.remove("swap")
        metrics = service.get("/v1/metrics").text
        assert 'adapter="swap"' not in metrics
        assert 'overtone_adapter_requests_total{adapter="other"} 1.0' in metrics


# The end


def test_streams_are_told_their_open_utterance_before_the_grace_is_over(tmp_path: Path) -> None:
    stopped = threading.Event()

    def talking() -> Iterator[protobuf.StreamingRecognizeRequest]:
        yield from stream_requests(speech(), model="swap")
        stopped.wait(60)

    with (
        web_service(tmp_path, adapters=("swap",)) as service,
        grpc.insecure_channel(service.addresses.grpc) as channel,
        client(service) as openai,
    ):
        method = channel.stream_stream(
            f"/{protobuf.ASR_SERVICE}/StreamingRecognize",
            protobuf.StreamingRecognizeRequest.SerializeToString,
            protobuf.StreamingRecognizeResponse.FromString,
        )
        openai.receive()
        openai.update(turn_detection=None, transcription={"model": "swap", "delay": "low"})
        openai.say(openai_speech("ab cd", 1.6))
        openai.until(f"{EVENT}.delta")
        responses = method(talking(), timeout=60.0)
        results = (result for response in responses for result in response.results)
        assert not next(results).is_final
        stopping = asyncio.run_coroutine_threadsafe(service.server.stop(4.0), service.loop)
        finals: list[str] = []
        with pytest.raises(grpc.RpcError) as cut:
            finals.extend(result.alternatives[0].transcript for result in results if result.is_final)
        stopped.set()
        assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in cut.value.details()
        assert openai.until(f"{EVENT}.completed")[-1]["transcript"] == "ba cd"
        assert openai.receive()["error"]["code"] == "unavailable"
        assert stopping.result(60) is False
    assert finals == ["ba "]


def speech() -> np.ndarray:
    """[S]: an utterance that goes on, as far as anybody can hear."""
    return np.concatenate((spoken("ab"), silence(0.5)))


# Files that are read again


def test_certificates_are_read_again(tmp_path: Path, certificates: Path) -> None:
    """New connections, of both ports, get the new certificate; a faulty one changes nothing."""
    for name in ("crt", "key"):
        shutil.copy(certificates / f"server.{name}", tmp_path / f"tls.{name}")
    files = {"tls_certificate": tmp_path / "tls.crt", "tls_key": tmp_path / "tls.key"}
    with web_service(tmp_path / "store", adapters=("swap",), **files) as service:
        ports = (service.addresses.http_port, service.addresses.grpc_port)
        first = (certificates / "server.crt").read_text()
        assert [shown(port) for port in ports] == [first] * 2
        (tmp_path / "tls.crt").write_text("no certificate")
        assert service.run(service.server.reload()) is False
        assert [shown(port) for port in ports] == [first] * 2
        for name in ("crt", "key"):
            shutil.copy(certificates / f"authority.{name}", tmp_path / f"tls.{name}")
        assert service.run(service.server.reload()) is True
        assert [shown(port) for port in ports] == [(certificates / "authority.crt").read_text()] * 2
        service.tls = ssl.create_default_context(cafile=str(certificates / "authority.crt"))
        assert service.get("/v1/health/ready").status == 200


def shown(port: int) -> str:
    """Certificate that a port shows, as PEM."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = socket.create_connection(("localhost", port), timeout=60)
    with context.wrap_socket(plain, server_hostname="localhost") as encrypted:
        found = encrypted.getpeercert(binary_form=True)
    assert found is not None
    return ssl.DER_cert_to_PEM_cert(found)
