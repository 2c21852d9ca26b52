"""Administration of the store over HTTP: lists, uploads, loading, and what is refused."""

from __future__ import annotations

import io
import math
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from support.riva_service import file_of
from support.speaking_model import SpeakingModel, put_adapter, spoken
from support.web_service import WebService, form, web_service

ADMIN = "an-administrators-token"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    token = tmp_path_factory.mktemp("secrets") / "admin"
    token.write_text(f"{ADMIN}\n")
    with web_service(tmp_path_factory.mktemp("store"), admin_token_file=token) as running:
        yield running


def packed(folder: Path, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, f"{folder.name}/{path.name}")
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            tar.add(folder, folder.name)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_adapter_is_uploaded_used_and_removed(service: WebService, tmp_path: Path, kind: str) -> None:
    put_adapter(SpeakingModel(), "swap", tmp_path)
    path = f"/v1/admin/adapters/fresh-{kind}"
    archive = packed(tmp_path / "swap", kind)
    assert service.request("PUT", path, body=archive).status == 401
    assert service.request("PUT", path, body=archive, token="guess").status == 401
    placed = service.request("PUT", path, body=archive, token=ADMIN)
    assert placed.status == 201, placed.text
    assert (placed.json["name"], placed.json["state"]) == (f"fresh-{kind}", "ready")
    assert service.post(f"{path}/load", token=ADMIN).json["state"] == "resident"
    assert service.transcribe(file_of(spoken("abc")), model=f"fresh-{kind}").status == 200
    assert service.post(f"{path}/unload", token=ADMIN).json["state"] == "ready"
    content_type, body = form(archive)
    again = service.request("POST", path, body=body, headers={"Content-Type": content_type}, token=ADMIN)
    assert again.status == 201
    names = [entry["name"] for entry in service.get("/v1/admin/adapters", token=ADMIN).json["data"]]
    assert f"fresh-{kind}" in names
    assert service.request("DELETE", path, token=ADMIN).status == 204
    assert service.get(path, token=ADMIN).status == 404
    assert service.transcribe(file_of(spoken("abc")), model=f"fresh-{kind}").status == 404


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fother", "..%2f..%2fetc", ".hidden", "a%00b", "a+b", "base", "a%5cb"])
def test_names_that_are_none_touch_nothing(service: WebService, tmp_path: Path, name: str) -> None:
    put_adapter(SpeakingModel(), "swap", tmp_path)
    folder = service.server.settings.adapters
    assert folder is not None
    before = sorted(path.relative_to(folder.parent) for path in folder.parent.rglob("*"))
    archive = packed(tmp_path / "swap", "zip")
    assert service.request("PUT", f"/v1/admin/adapters/{name}", body=archive, token=ADMIN).status in (400, 404, 405)
    assert service.request("DELETE", f"/v1/admin/adapters/{name}", token=ADMIN).status in (400, 404, 405)
    assert sorted(path.relative_to(folder.parent) for path in folder.parent.rglob("*")) == before


def test_uploads_that_are_none(service: WebService) -> None:
    path = "/v1/admin/adapters/broken"
    for body in (b"", b"no archive", packed(Path(__file__).parents[2] / "fixtures" / "mel", "zip")):
        answer = service.request("PUT", path, body=body, token=ADMIN)
        assert answer.status == 400
        assert answer.error["code"] == "invalid_adapter"
    assert service.get(path, token=ADMIN).status == 404
    declared = {"Content-Length": str(2**40)}
    assert service.request("PUT", path, headers=declared, token=ADMIN).status == 413


def test_a_refused_adapter_is_shown_and_others_go_on(service: WebService, tmp_path: Path) -> None:
    folder = service.server.settings.adapters
    assert folder is not None
    shutil.copytree(folder / "other", folder / "damaged")
    (folder / "damaged" / "adapter.safetensors").write_bytes(b"no tensors")
    listed = service.post("/v1/admin/scan", token=ADMIN).json["data"]
    entry = next(entry for entry in listed if entry["name"] == "damaged")
    assert entry["state"] == "refused"
    assert entry["reason"] != ""
    assert service.transcribe(file_of(spoken("a")), model="damaged").status == 404
    assert "tones+damaged" not in service.get("/v1/models").text
    assert service.text(file_of(spoken("ab")), model="swap") == "ba"
    shutil.rmtree(folder / "damaged")
    service.post("/v1/admin/scan", token=ADMIN)


def test_odd_cards_and_names_do_not_keep_others_from_being_listed(
    service: WebService, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep: dict[str, Any] = {"wer": 0.1}
    deep["deep"] = [deep]
    numbers = [math.nan, math.inf, 2**80, 1.5]
    card = {"when": date(2026, 1, 2), "numbers": numbers, 7: "\ud800", "deep": deep}
    entries = service.server.store.entries
    odd = replace(entries()[0], name="odd\udcff", card=card)
    monkeypatch.setattr(service.server.store, "entries", lambda: [*entries(), odd])
    answer = service.get("/v1/admin/adapters", token=ADMIN)
    assert answer.status == 200
    assert [entry["name"] for entry in answer.json["data"]] == ["other", "swap", "odd?"]
    shown = answer.json["data"][-1]["card"]
    assert (shown["when"], shown["numbers"], shown["7"]) == ("2026-01-02", [None, None, None, 1.5], "?")
    assert shown["deep"]["deep"][0]["wer"] == 0.1


def test_without_a_token_there_is_no_administration(tmp_path: Path) -> None:
    with web_service(None) as plain:
        assert plain.get("/v1/admin/adapters", token="anything").status == 403
        assert plain.text(file_of(spoken("abc"))) == "abc"


def test_vllms_endpoints_load_and_unload_by_name_and_fetch_only_from_where_they_may(tmp_path: Path) -> None:
    token, store, source = tmp_path / "admin", tmp_path / "store", tmp_path / "source"
    token.write_text(ADMIN)
    put_adapter(SpeakingModel(), "swap", source)
    store.mkdir()
    allowed = (source.as_uri(),)
    with web_service(store, adapters=("other",), admin_token_file=token, adapter_sources=allowed) as service:

        def post(path: str, *, token: str = ADMIN, **content: str) -> tuple[int, str]:
            answer = service.post(f"/v1/{path}_lora_adapter", content, token=token)
            return answer.status, answer.text

        def state(name: str) -> str:
            return str(service.get(f"/v1/admin/adapters/{name}", token=ADMIN).json["state"])

        assert post("load", token="nobody", lora_name="other")[0] == 401
        assert post("load", lora_name="other") == (200, "Success: LoRA adapter 'other' added successfully.")
        assert state("other") == "resident"
        assert post("unload", lora_name="other")[0] == 200
        assert state("other") == "ready"
        assert post("load", lora_name="mine", lora_path=f"{source.as_uri()}/swap")[0] == 200
        assert state("mine") == "resident"
        assert {
            name: post("load", lora_name="bad", lora_path=path)[0]
            for name, path in {
                "elsewhere": store.as_uri() + "/other",
                "upwards": source.as_uri() + "/../store/other",
                "plain": str(source / "swap"),
                "absent": source.as_uri() + "/absent",
                "encoded": source.as_uri() + "/%2e%2e/store/other",
                "backwards": source.as_uri() + "/..\\store\\other",
                "chained": source.as_uri() + "/swap::file://" + str(store),
                "query": source.as_uri() + "/swap?x",
                "fragment": source.as_uri() + "/swap#x",
            }.items()
        } == {"absent": 400} | dict.fromkeys(
            ("elsewhere", "upwards", "plain", "encoded", "backwards", "chained", "query", "fragment"), 403
        )
        assert [post("load", lora_name=name)[0] for name in ("absent", "../x", "")] == [404, 400, 400]
        assert post("unload", lora_name="absent")[0] == 404
