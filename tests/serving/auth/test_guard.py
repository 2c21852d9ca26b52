"""Tokens, tenants, rates and TLS at both ports, and what the files of them may hold."""

from __future__ import annotations

import hashlib
import json
import shutil
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("starlette", reason="the serving extra is not installed")

from websockets.sync.client import connect  # noqa: E402

from overtone.errors import UsageError  # noqa: E402
from overtone.serving.auth.guard import Guard, Tenant, read_admin_token, read_tokens  # noqa: E402
from overtone.serving.auth.rates import Allowance  # noqa: E402
from overtone.serving.auth.tls import read_keys  # noqa: E402
from overtone.serving.errors import AccessError  # noqa: E402
from overtone.serving.server import Server, ServerSettings  # noqa: E402
from support.riva_service import Service, bearer, file_of, refusal  # noqa: E402
from support.speaking_model import SpeakingModel, pcm16, spoken  # noqa: E402
from support.web_service import WebService, eventually, web_service  # noqa: E402

ADMIN = "0123456789abcdef0123"


def hash_of(token: str) -> str:
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


def tokens_file(folder: Path, **tenants: dict[str, object]) -> Path:
    """JSON is YAML."""
    path = folder / "tokens.yaml"
    path.write_text(json.dumps({"tenants": tenants}))
    return path


def tenant(token: str, adapters: object = "all", **more: object) -> dict[str, object]:
    return {"tokens": [hash_of(token)], "adapters": adapters, **more}


def over_grpc(service: WebService, channel: object) -> Service:
    server = service.server
    return Service(
        recognition=server.service,
        engine=server.engine,
        store=server.store,
        port=service.addresses.grpc_port,
        channel=channel,
    )


def test_tenants_at_both_ports(tmp_path: Path) -> None:
    store, admin = tmp_path / "store", tmp_path / "admin"
    admin.write_text(ADMIN)
    tokens = tokens_file(tmp_path, anna=tenant("anna-1"), bert=tenant("bert-1", ["other"]))
    audio = file_of(spoken("abc"))
    with web_service(store, tokens=tokens, admin_token_file=admin) as guarded:
        assert guarded.transcribe(audio).status == 401
        assert guarded.transcribe(audio).headers["www-authenticate"] == "Bearer"
        assert guarded.transcribe(audio, token="guess").error["code"] == "invalid_api_key"
        assert guarded.text(audio, model="swap", token="anna-1") == "bac"
        assert guarded.calls[-1].tenant == "anna"
        assert guarded.transcribe(audio, token="bert-1").json["text"] == "abc"
        for model in ("swap", "other+swap", "legal"):
            answer = guarded.transcribe(audio, model=model, token="bert-1")
            assert (answer.status, answer.error["type"]) == (403, "permission_error")
        listed = guarded.get("/v1/models", token="bert-1").json["data"]
        assert [model["id"] for model in listed] == ["tones", "tones+other"]
        assert guarded.get("/v1/models/swap", token="bert-1").status == 404
        assert guarded.get("/v1/models").status == 401
        assert guarded.get("/v1/health/ready").status == 200
        assert [guarded.get("/v1/metrics", token=token).status for token in ("", "bert-1", "anna-1", ADMIN)] == [
            401, 403, 200, 200,
        ]  # fmt: skip
        assert guarded.get("/v1/admin/adapters", token="anna-1").status == 401
        assert guarded.get("/v1/admin/adapters", token=ADMIN).status == 200
        assert guarded.transcribe(audio, token=ADMIN).status == 401
        with grpc.insecure_channel(guarded.addresses.grpc) as channel:
            riva = over_grpc(guarded, channel)
            assert riva.text(audio, model="swap", metadata=bearer("anna-1") * 2) == "bac "
            assert refusal(lambda: riva.text(audio))[0] is grpc.StatusCode.UNAUTHENTICATED
            code, _ = refusal(lambda: riva.text(audio, model="swap", metadata=bearer("bert-1")))
            assert code is grpc.StatusCode.PERMISSION_DENIED
        eventually(lambda: guarded.calls[-1].code == "PERMISSION_DENIED")


def test_rates_at_both_ports(tmp_path: Path) -> None:
    tokens = tokens_file(
        tmp_path,
        few=tenant("few-1", requests_per_minute=2),
        short=tenant("short-1", audio_seconds_per_minute=1.5),
        free=tenant("free-1"),
    )
    audio = file_of(spoken("abc"))  # 1.08 s
    with web_service(tmp_path / "store", adapters=("swap",), tokens=tokens) as guarded:
        for model in ("swap", "tones"):
            assert guarded.transcribe(audio, model=model, token="few-1").status == 200
        answer = guarded.transcribe(audio, token="few-1")
        assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        with grpc.insecure_channel(guarded.addresses.grpc) as channel:
            riva = over_grpc(guarded, channel)
            code, _ = refusal(lambda: riva.text(audio, metadata=bearer("few-1")))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            told = len(guarded.calls)
            assert riva.text(audio, metadata=bearer("short-1")) == "abc "
            eventually(lambda: len(guarded.calls) > told)
        assert guarded.transcribe(audio, token="short-1").status == 429
        for _ in range(4):
            assert guarded.transcribe(audio, token="free-1").status == 200


def test_an_allowance_fills_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    allowance = Allowance(60.0)
    assert allowance.wait(1.0) == 0.0
    allowance.take(70.0)
    assert allowance.wait(1.0) == pytest.approx(11.0)
    now += 11.0
    assert allowance.wait(1.0) == pytest.approx(0.0)
    now += 1000.0
    assert allowance.wait(60.0) == 0.0
    allowance.take(60.0)
    assert allowance.wait(1.0) == pytest.approx(1.0)
    assert Allowance(float("inf")).wait(1e9) == 0.0


def test_an_allowance_that_becomes_a_part_keeps_what_was_overdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    used, overdrawn = Allowance(60.0), Allowance(60.0)
    used.take(30.0)
    overdrawn.take(70.0)
    for allowance in (used, overdrawn):
        allowance.become(Allowance(60.0, servers=3))
    assert (used.left, used.wait(20.0)) == (pytest.approx(10.0), pytest.approx(30.0))  # 10 of 20, 20 a minute
    assert (overdrawn.left, overdrawn.wait(1.0)) == (pytest.approx(-10.0), pytest.approx(33.0))
    used.become(Allowance(60.0))
    assert used.left == pytest.approx(30.0)
    free = Allowance(float("inf"))
    free.become(Allowance(float("inf"), servers=3))
    assert free.wait(1e9) == 0.0


def test_servers_that_share_limits_have_a_part_of_each_tenants_places() -> None:
    guard = Guard(tenants={hash_of("good"): Tenant(name="anna", adapters=None, sessions=3)})
    guard.share(2)
    with guard.session("anna"), pytest.raises(AccessError, match="1 calls and sessions open"), guard.session("anna"):
        pass
    more = {hash_of(name): Tenant(name=name, adapters=None, sessions=4) for name in ("anna", "berta")}
    guard.renew(tenants=more, admin_token="")
    for name in ("anna", "berta"):
        with guard.session(name), guard.session(name), pytest.raises(AccessError), guard.session(name):
            pass
    guard.share(1)
    with guard.session("anna"), guard.session("anna"), guard.session("anna"):
        pass


def test_sessions_end_that_began_before_other_limits() -> None:
    """Their places are free again, under the limits that hold now."""

    def tenants(sessions: int) -> dict[str, Tenant]:
        return {hash_of("good"): Tenant(name="anna", adapters=None, sessions=sessions)}

    guard = Guard(tenants=tenants(2))
    with guard.session("anna"):
        guard.renew(tenants=tenants(1), admin_token="")
        with pytest.raises(AccessError, match="1 calls and sessions open"), guard.session("anna"):
            pass
    with guard.session("anna"):
        pass


def test_what_counts_as_a_token() -> None:
    guard = Guard(tenants={hash_of("good"): Tenant(name="anna", adapters=frozenset({"a"}))})
    assert guard.authorise(bearer("good"), "a") == "anna"
    assert guard.authorise([("authorization", "bearer  good ")], None) == "anna"
    assert guard.authorise([("x-api-key", "good"), ("authorization", "Bearer good")], None) == "anna"
    with pytest.raises(AccessError, match="not among"):
        guard.authorise(bearer("good"), "ab")
    for metadata in ([], bearer("bad"), bearer("good") + bearer("bad"), [("authorization", "Basic good")]):
        with pytest.raises(AccessError) as error:
            guard.authorise(metadata, None)
        assert error.value.fault == "unauthenticated"
    with pytest.raises(AccessError, match="no administration"):
        guard.authorise_admin(bearer(""))
    with pytest.raises(AccessError):
        Guard(admin_token=ADMIN).authorise_admin(bearer(""))
    Guard(admin_token=ADMIN).authorise_admin(bearer(ADMIN))
    assert Guard().authorise([], "anything") == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tenants: [", "no YAML"),
        ("- a", "'tenants'"),
        ("tenants: {}", "no tenant"),
        ("tenants: {a: 3}", "tenant 'a'"),
        ("tenants: {a: {tokens: [], adapters: all}}", "list of hashes"),
        ("tenants: {a: {tokens: [secret], adapters: all}}", "told by its hash"),
        ("tenants: {a: {tokens: [HASH]}}", "'adapters' must be"),
        ("tenants: {a: {tokens: [HASH], adapters: [../b]}}", "cannot be an adapter's name"),
        ("tenants: {a: {tokens: [HASH], adapter: all}}", "Did you mean 'adapters'"),
        ("tenants: {a: {tokens: [HASH], adapters: all, requests_per_minute: 0}}", "above 0"),
        ("tenants: {a: {tokens: [HASH], adapters: all}, b: {tokens: [HASH], adapters: all}}", "listed twice"),
        ("tenants: !!python/object/apply:os.getcwd []", "no YAML"),
        ("tenants: {secret: {}, secret: {}}", "no YAML of plain values, each key once"),
        ("tenants: {2024: {tokens: [HASH], adapters: all}}", "tenant '2024'"),
        ("[" * 3000, "no YAML"),
        ("tenants: 0x_", "no YAML"),
        ("tenants: {a: {tokens: [HASH], adapters: all, requests_per_minute: 1.0e-320}}", "above 0"),
    ],
)
def test_files_of_tokens_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(text.replace("HASH", hash_of("x")))
    with pytest.raises(UsageError) as error:
        read_tokens(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "secret" not in str(error.value)


def test_files_that_are_missing_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_tokens(tmp_path / "nothing")
    (tmp_path / "short").write_text("short\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 20)
    for name, words in (("short", "16 characters"), ("binary", "UTF-8"), ("nothing", "cannot be read")):
        with pytest.raises(UsageError, match=words):
            read_admin_token(tmp_path / name)
    with pytest.raises(UsageError, match="give both"):
        read_keys(tmp_path / "short", None, None)
    with pytest.raises(UsageError, match="no certificate with its key"):
        read_keys(tmp_path / "short", tmp_path / "short", None)
    assert read_keys(None, None, None) is None
    with pytest.raises(UsageError, match="is no folder"):
        Server(ServerSettings(adapters=tmp_path / "nothing"), SpeakingModel())


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_at_both_ports(certificates: Path, tmp_path: Path, mutual: bool) -> None:
    def pem(name: str) -> bytes:
        return (certificates / name).read_bytes()

    context = ssl.create_default_context(cafile=certificates / "server.crt")
    stranger = ssl.create_default_context(cafile=certificates / "server.crt")
    if mutual:
        context.load_cert_chain(certificates / "client.crt", certificates / "client.key")
    options = {
        "tls_certificate": certificates / "server.crt",
        "tls_key": certificates / "server.key",
        "client_authority": certificates / "authority.crt" if mutual else None,
        "tls": context,
    }
    audio = file_of(spoken("abc"))
    with web_service(None, **options) as secure:
        assert secure.addresses.http.startswith("https://")
        assert secure.text(audio) == "abc"
        assert secure.post("/v1/realtime/transcription_sessions", {}).status == 200  # tells Riva's dialect
        with connect(f"wss://localhost:{secure.addresses.http_port}/v1/realtime", ssl=context) as websocket:
            assert json.loads(websocket.recv(timeout=10))["type"] == "conversation.created"
        if mutual:
            with pytest.raises((ssl.SSLError, OSError)):
                replace(secure, tls=stranger).get("/v1/health/live")
        credentials = grpc.ssl_channel_credentials(
            pem("server.crt"), *((pem("client.key"), pem("client.crt")) if mutual else ())
        )
        with grpc.secure_channel(f"localhost:{secure.addresses.grpc_port}", credentials) as channel:
            assert over_grpc(secure, channel).text(pcm16(spoken("abc"))) == "abc "
        eventually(lambda: secure.server.requests.active == 0)


def test_an_authority_that_is_none(certificates: Path, tmp_path: Path) -> None:
    (tmp_path / "none").write_text("none")
    with pytest.raises(UsageError, match="authority"):
        read_keys(certificates / "server.crt", certificates / "server.key", tmp_path / "none")
    shutil.copy(certificates / "client.key", tmp_path / "other.key")
    with pytest.raises(UsageError, match="no certificate with its key"):
        read_keys(certificates / "server.crt", tmp_path / "other.key", None)


def test_other_tenants_from_now_on() -> None:
    """Those with the limits of before have used what they have used; open sessions count in any case."""
    anna = Tenant(name="anna", adapters=None, requests_per_minute=2.0, sessions=1)
    guard = Guard(tenants={hash_of("first"): anna}, admin_token=ADMIN)
    guard.charge("anna", requests=2)
    with guard.session("anna"):
        guard.renew(tenants={hash_of("second"): anna}, admin_token="")
        with pytest.raises(AccessError) as error:
            guard.admit(bearer("first"))
        assert error.value.fault == "unauthenticated"
        with pytest.raises(AccessError) as error:
            guard.admit(bearer("second"))
        assert error.value.fault == "rate"
        assert not guard.has_admin
        guard.renew(tenants={hash_of("second"): replace(anna, requests_per_minute=9.0)}, admin_token="")
        assert guard.admit(bearer("second")) == "anna"
        with pytest.raises(AccessError, match="1 calls and sessions open"), guard.session("anna"):
            pass
    guard.renew(tenants=None, admin_token="")
    assert guard.admit([]) == ""
