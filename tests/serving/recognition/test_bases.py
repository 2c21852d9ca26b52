"""Bases among which requests choose: refused adapters, languages, aliases, and the names in tokens and quotas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
pytest.importorskip("grpc", reason="the serving extra is not installed")

from overtone.errors import UsageError
from overtone.serving.auth.guard import hash_token
from overtone.serving.server import Server
from overtone.serving.settings import BaseSettings
from support.riva_service import file_of
from support.speaking_model import Contrary, SpeakingModel, put_adapter, spoken
from support.web_service import SETTINGS, web_service

ADMIN = "an-administrators-token"
SAID = file_of(spoken("abc"))


def admin_file(folder: Path) -> Path:
    """File of the administrator's token."""
    path = folder / "admin"
    path.write_text(ADMIN)
    return path


def test_an_adapter_that_one_base_refuses_hides_none_of_another(tmp_path: Path) -> None:
    german = tmp_path / "german"
    put_adapter(Contrary(), "special", german)
    for name in ("swap", "special"):
        (german / name).mkdir(exist_ok=True)
        (german / name / "adapter.yaml").write_text("nothing: of an adapter")
    more = BaseSettings(model="", base="contrary", adapters=german)
    with web_service(tmp_path / "english", more=[(more, Contrary())], admin_token_file=admin_file(tmp_path)) as service:
        assert service.text(SAID, model="swap") == "bac"
        assert service.transcribe(SAID, model="contrary:swap").status == 404
        refused = service.transcribe(SAID, model="special")
        assert (refused.status, "'special' is refused" in refused.error["message"]) == (404, True)
        assert service.request("DELETE", "/v1/admin/adapters/swap", token=ADMIN).status == 400
        assert service.request("DELETE", "/v1/admin/adapters/contrary:swap", token=ADMIN).status == 204


def test_a_language_alone_means_the_first_base_that_understands_it(tmp_path: Path) -> None:
    more = BaseSettings(model="", base="contrary", language="de")
    with web_service(tmp_path, more=[(more, Contrary())], language="de-DE") as service:
        assert [service.text(SAID, language=language) for language in ("de-DE", "de")] == ["abc", "abc"]


def test_an_adapter_of_the_bases_name_changes_nothing_of_access_and_quotas(tmp_path: Path) -> None:
    tokens, quotas, token = tmp_path / "tokens.yaml", tmp_path / "quotas.yaml", "a" * 32
    tokens.write_text(f"tenants: {{anna: {{tokens: ['{hash_token(token)}'], adapters: ['tones:swap']}}}}\n")
    quotas.write_text("adapters: {'tones:swap': {requests_per_minute: 1}}")
    put_adapter(SpeakingModel(), "tones", tmp_path / "adapters")
    with web_service(tmp_path / "adapters", tokens=tokens, quotas=quotas) as service:
        assert service.text(SAID, model="swap", token=token) == "bac"
        assert service.transcribe(SAID, model="swap", token=token).status == 429
        assert service.transcribe(SAID, model="tones", token=token).status == 403
        listed = [own["id"] for own in service.get("/v1/models", token=token).json["data"]]
        assert listed == ["base", "base+swap"]


def test_an_alias_cannot_be_called_as_one_of_several_bases() -> None:
    settings = replace(SETTINGS, base="en", more=(BaseSettings(model="", base="de"),), aliases={"de": "medical"})
    with pytest.raises(UsageError, match="--alias de: a base is called so"):
        Server(settings, SpeakingModel(), more=[(SpeakingModel(), None)])


@pytest.mark.parametrize("kind", ["tokens", "quotas"])
def test_tokens_and_quotas_of_a_base_that_is_not_there_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.yaml"
    content = {
        "tokens": f"tenants: {{anna: {{tokens: ['{hash_token('a' * 32)}'], adapters: ['NAME:swap']}}}}",
        "quotas": "adapters: {'NAME:swap': {sessions: 1}}",
    }[kind]
    path.write_text(content.replace("NAME", "tonse"))
    with pytest.raises(UsageError, match=r"'tonse:swap': no base is called 'tonse'\. Did you mean 'tones'"):
        Server(replace(SETTINGS, **{kind: path}), SpeakingModel())  # type: ignore[arg-type]
    path.write_text(content.replace("NAME", "tones"))
    with web_service(None, **{kind: path}) as service:
        path.write_text(content.replace("NAME", "tonse"))
        assert service.run(service.server.reload()) is False


def test_the_base_whose_settings_do_not_fit_is_named(tmp_path: Path) -> None:
    more = BaseSettings(model="", base="second", adapters=tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"The base 'second': .*nowhere is no folder"):
        Server(replace(SETTINGS, base="first", more=(more,)), SpeakingModel(), more=[(SpeakingModel(), None)])
