"""The whole server: a port for health, other sites' pages, files that are read again, and its end."""

from __future__ import annotations

import http.client
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from support.riva_service import file_of
from support.speaking_model import spoken
from support.web_service import web_service


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
