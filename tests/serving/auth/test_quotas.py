"""Quotas and priorities of adapters: their file, their counting, and what both ports answer beyond them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("starlette", reason="the serving extra is not installed")

from overtone.errors import AdapterError, UsageError  # noqa: E402
from overtone.serving.auth.guard import hash_token  # noqa: E402
from overtone.serving.auth.quotas import Quota, Quotas, QuotaTable, read_quotas  # noqa: E402
from overtone.serving.auth.rates import rank_of  # noqa: E402
from overtone.serving.errors import AccessError, DrainingError, OverloadError  # noqa: E402
from support.openai_client import client, speech  # noqa: E402
from support.riva_service import METHODS, file_of, stream_requests  # noqa: E402
from support.speaking_model import spoken  # noqa: E402
from support.web_service import eventually, web_service  # noqa: E402


def test_a_file_of_quotas(tmp_path: Path) -> None:
    path = tmp_path / "quotas.yaml"
    path.write_text(
        "adapters:\n  swap: {requests_per_minute: 600, sessions: 16, priority: high}\nothers: {sessions: 4}\n"
    )
    table = read_quotas(path)
    assert table.of("swap") == Quota(requests_per_minute=600.0, sessions=16, priority="high")
    assert table.of("another") == Quota(sessions=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "keys are expected: adapters, others"),
        ("{", "is no YAML"),
        ("adaptors: {}", r"'adaptors' is unknown\. Did you mean 'adapters'"),
        ("adapters: [swap]", "'adapters' must name adapters"),
        ("adapters: {swap: 5}", "adapter 'swap': an entry of"),
        ("adapters: {../swap: {}}", r"adapter '\.\./swap'"),
        ("adapters: {'de:': {}}", "adapter 'de:'"),
        ("adapters: {':swap': {}}", "adapter ':swap'"),
        ("adapters: {'a:de:swap': {}}", "adapter 'a:de:swap'"),
        ("adapters: {swap: {session: 1}}", r"adapter 'swap': 'session' is unknown\. Did you mean 'sessions'"),
        ("adapters: {swap: {sessions: 1.5}}", "'sessions' must be a whole number above 0"),
        ("adapters: {swap: {requests_per_minute: 0}}", "'requests_per_minute' must be a number above 0"),
        ("adapters: {2024: {}}", "adapter '2024': a name must be a text; put it in quotes"),
        ("adapters: {null: {}}", "adapter 'None': a name must be a text"),
        ("adapters: {2024-99-99: 5}", "adapter '2024-99-99': an entry of"),
        ("adapters: {0x_: {}}", "is no YAML"),
        ("[" * 3000, "is no YAML of plain values: it nests deeper than"),
        (f"others: {{requests_per_minute: 1{'0' * 400}}}", "is no YAML of plain values: .* too large"),
        (
            "others: {requests_per_minute: 1.0e-320}",
            "'requests_per_minute' must be a number above 0, finite and at least",
        ),
        ("others: {requests_per_minute: .inf}", "'requests_per_minute' must be a number above 0, finite"),
        ("adapters: {swap: {sessions: 1}, swap: {sessions: 2}}", "key 'swap' occurs twice"),
        ("others: {priority: highest}", "'others': 'priority' must be one of low, normal, high"),
    ],
)
def test_a_faulty_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "quotas.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as refused:
        read_quotas(path)
    assert str(path) in str(refused.value)


def test_the_lowest_priority_that_is_given_counts() -> None:
    assert [rank_of(given) for given in ((), ("", ""), ("", "high"), ("high", "low"), ("normal", "high"))] == [
        0, 0, 1, -1, 0,
    ]  # fmt: skip


def test_places_and_rates_are_counted_in_each_adapter_or_in_none() -> None:
    table = QuotaTable(adapters={"a": Quota(sessions=1), "b": Quota(audio_seconds_per_minute=1e-3)})
    quotas = Quotas(table)
    with quotas.session(["a"]):
        for refused in (["a"], ["b", "a"]):
            with pytest.raises(AccessError, match="'a' has 1 recordings and streams running"), quotas.session(refused):
                pass
        with quotas.session(["free"]):
            quotas.admit(["b", "free"])  # the refusal was not charged to it
    with quotas.session(["a", "b"], audio_seconds=5.0):
        pass
    quotas.admit(["a"])
    with pytest.raises(AccessError, match="'b' has used up its quota of a minute") as refusal:
        quotas.admit(["a", "b"])
    assert (refusal.value.fault, refusal.value.retry_after > 60) == ("rate", True)
    quotas.renew(QuotaTable())
    quotas.admit(["a", "b"])


def test_an_adapter_of_one_base_is_counted_apart_where_the_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "quotas.yaml"
    path.write_text("adapters: {swap: {sessions: 1}, 'de:swap': {sessions: 1, priority: low}}")
    quotas = Quotas(read_quotas(path))
    assert quotas.names(["swap", "other"], "de") == ("de:swap", "other")
    assert quotas.names(["swap", "other"], "en") == quotas.names(["swap", "other"], "nl") == ("swap", "other")
    assert quotas.priorities(quotas.names(["swap"], "de")) == ("low",)
    with quotas.session(quotas.names(["swap"], "de")):
        with pytest.raises(AccessError, match="'de:swap' has 1 recordings"):
            quotas.admit(quotas.names(["swap"], "de"))
        with quotas.session(quotas.names(["swap"], "en")), pytest.raises(AccessError, match="'swap' has 1 recordings"):
            quotas.admit(quotas.names(["swap"], "nl"))


def test_servers_that_share_quotas_have_a_part_of_each_and_one_place_at_least() -> None:
    table = QuotaTable(adapters={"a": Quota(sessions=5), "b": Quota(sessions=1)}, others=Quota(requests_per_minute=4))
    quotas = Quotas(table)
    quotas.admit(["a"])  # known before, the others afterwards
    quotas.share(2)
    with quotas.session(["a"]), quotas.session(["a"]), quotas.session(["b"]):
        for name in ("a", "b"):
            with pytest.raises(AccessError, match="recordings and streams running"):
                quotas.admit([name])
    for _ in range(2):
        with quotas.session(["free"]):
            pass
    with pytest.raises(AccessError, match="'free' has used up its quota"):
        quotas.admit(["free"])
    quotas.share(1)
    with quotas.session(["a"]), quotas.session(["a"]), quotas.session(["a"]):
        quotas.admit(["a"])


def test_an_adapter_that_a_request_names_twice_is_counted_once() -> None:
    quotas = Quotas(QuotaTable(others=Quota(sessions=2, audio_seconds_per_minute=60)))
    with quotas.session(["a", "a"], audio_seconds=20.0), quotas.session(["a"]):
        quotas.charge(["a", "a"], audio_seconds=20.0)
    quotas.admit(["a"])


@pytest.mark.parametrize("error", [AdapterError, DrainingError, OverloadError])
def test_what_the_server_could_not_take_on_is_not_charged(error: type[Exception]) -> None:
    quotas = Quotas(QuotaTable(others=Quota(sessions=1, requests_per_minute=1, audio_seconds_per_minute=60)))
    for _ in range(5):
        with pytest.raises(error), quotas.session(["a"], audio_seconds=60.0):
            raise error("no room")
    with pytest.raises(RuntimeError), quotas.session(["a"], audio_seconds=60.0):
        raise RuntimeError
    with pytest.raises(AccessError, match="'a' has used up its quota"):
        quotas.admit(["a"])


def test_both_ports_refuse_what_is_beyond_a_quota_and_go_on_with_other_adapters(tmp_path: Path) -> None:
    quotas, tokens = tmp_path / "quotas.yaml", tmp_path / "tokens.yaml"
    quotas.write_text("adapters: {swap: {audio_seconds_per_minute: 0.001, priority: high}}")
    entries = {"slow": {"tokens": [hash_token("t")], "adapters": "all", "priority": "low"}}
    tokens.write_text(json.dumps({"tenants": {**entries, "any": {"tokens": [hash_token("u")], "adapters": "all"}}}))
    audio = file_of(spoken("abc"))
    with web_service(tmp_path / "store", quotas=quotas, tokens=tokens) as service:
        assert service.text(audio, model="swap", token="u") == "bac"
        assert service.calls[-1].rank == 1
        refused = service.transcribe(audio, model="swap", token="u")
        assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) > 60
        assert "'swap' has used up its quota" in refused.error["message"]
        assert service.text(audio, model="other", token="t") == "abc"
        assert service.calls[-1].rank == -1
        shape, request, response = METHODS["StreamingRecognize"]
        with grpc.insecure_channel(service.addresses.grpc) as channel:
            path = "/nvidia.riva.asr.RivaSpeechRecognition/StreamingRecognize"
            call = getattr(channel, shape)(path, request.SerializeToString, response.FromString)
            messages = stream_requests(spoken("ab"), model="swap")
            with pytest.raises(grpc.RpcError) as error:
                list(call(iter(messages), timeout=60, metadata=[("authorization", "Bearer u")]))
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        quotas.write_text("others: {}")
        assert service.run(service.server.reload())
        assert service.text(audio, model="swap", token="t") == "bac"
        quotas.write_text("others: 5")
        assert not service.run(service.server.reload())


def test_a_file_that_breaks_while_the_server_runs_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quotas, tokens = tmp_path / "quotas.yaml", tmp_path / "tokens.yaml"
    quotas.write_text("others: {sessions: 3}")
    tokens.write_text(json.dumps({"tenants": {"any": {"tokens": [hash_token("u")], "adapters": "all"}}}))
    with web_service(tmp_path / "store", quotas=quotas, tokens=tokens) as service:
        for path in (quotas, tokens):
            before, whole = service.server.quotas.table, path.read_text()
            path.write_text("[" * 3000)
            caplog.clear()
            assert service.run(service.server.reload()) is False
            assert f"not reloaded, all stays as it was: {path} is no YAML" in caplog.text
            assert service.server.quotas.table is before
            assert service.text(file_of(spoken("abc")), model="swap", token="u") == "bac"
            path.write_text(whole)


def test_a_conversation_changes_its_settings_within_its_own_place(tmp_path: Path) -> None:
    """What is open goes on: the only place of the adapter is the conversation's own."""
    quotas = tmp_path / "quotas.yaml"
    quotas.write_text("adapters: {swap: {sessions: 1, audio_seconds_per_minute: 0.001}}")
    with web_service(tmp_path / "store", quotas=quotas, prompt_boost=0.0) as service, client(service) as opened:
        opened.receive()
        opened.update(turn_detection=None)
        opened.say(speech("abc", 1.2))
        eventually(lambda: service.server.quotas._usage["swap"].open == 1)
        opened.update(turn_detection=None)
        assert opened.committed()["transcript"] == "bac"
    assert [event["type"] for event in opened.events].count("session.updated") == 2
