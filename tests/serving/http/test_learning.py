"""Corrections over HTTP: who may hand them in, what becomes of them, and the version that is served then."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.errors import UsageError
from overtone.learning.corrections import Correction, Corrections
from overtone.learning.state import remember
from overtone.serving.learning import LearningJobs
from overtone.serving.server import Server
from overtone.tokenizers import CharTokenizer
from support.learning_worker import worker
from support.riva_service import file_of
from support.speaking_model import SpeakingModel, spoken
from support.web_service import SETTINGS, Answer, WebService, eventually, form, web_service

ADMIN = "an-administrators-token"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    with web_service(tmp_path_factory.mktemp("store"), learn=True) as running:
        assert running.server.jobs is not None
        running.server.jobs.command, running.server.jobs.yields = worker, False
        yield running


def correct(service: WebService, name: str, *, audio: bytes | None = None, token: str = "", **fields: Any) -> Answer:
    content_type, body = form(audio, **fields)
    headers = {"Content-Type": content_type}
    return service.request("POST", f"/v1/adapters/{name}/corrections", body=body, headers=headers, token=token)


def state(service: WebService, name: str) -> dict[str, Any]:
    answer = service.get(f"/v1/adapters/{name}/learning")
    assert answer.status == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def test_a_correction_is_learnt_and_served_without_restart(service: WebService) -> None:
    assert state(service, "swap") == {
        "object": "adapter.learning", "name": "swap", "version": None, "versions": 0, "corrections": 0,
        "recordings": 0, "phase": "idle",
    }  # fmt: skip
    before = service.get("/v1/models/swap").json["adapter"]["digest"]
    answer = correct(service, "swap", audio=file_of(spoken("abc")), text="bac fed")
    assert answer.status == 202, answer.text
    assert (answer.json["new"], answer.json["corrections"], answer.json["recordings"]) == (1, 1, 1)
    eventually(lambda: state(service, "swap")["version"] == 1 and state(service, "swap")["phase"] == "done")
    eventually(lambda: service.get("/v1/models/swap").json["adapter"]["digest"] != before)
    assert service.text(file_of(spoken("abc")), model="swap")
    assert correct(service, "swap", audio=file_of(spoken("abc")), text="bac fed").json["new"] == 0
    back = service.post("/v1/adapters/swap/back")
    assert (back.status, back.json["version"]) == (200, 0)
    assert service.get("/v1/models/swap").json["adapter"]["digest"] == before
    assert service.post("/v1/adapters/swap/back").status == 400


def test_texts_alone_make_a_new_adapter(service: WebService) -> None:
    eventually(lambda: state(service, "swap")["phase"] in ("idle", "done"))  # one adapter is learnt after the other
    texts = {"corrections": [{"text": "abc fed"}, {"text": "deed cafe"}]}
    assert service.post("/v1/adapters/fresh/corrections", texts).json["new"] == 2
    eventually(lambda: any(own["id"] == "tones+fresh" for own in service.get("/v1/models").json["data"]))
    eventually(lambda: state(service, "fresh")["phase"] == "done")


def test_texts_are_read_in_the_letters_of_the_adapter(service: WebService) -> None:
    """One with a vocabulary of its own learns what the base cannot write, and not what only the base writes."""
    jobs = service.server.jobs
    assert jobs is not None
    assert jobs.store.folder is not None
    model = SpeakingModel()
    model.adapters.add("capital", LinearAdapter(dim=4), tokenizer=CharTokenizer(list("XYZ ")))
    model.adapters.save("capital", jobs.store.folder / "capital")
    jobs.store.scan()
    refused = service.post("/v1/adapters/capital/corrections", {"corrections": [{"text": "abc"}]})
    assert (refused.status, "cannot write" in refused.text) == (400, True)
    answer = service.post("/v1/adapters/capital/corrections", {"corrections": [{"text": "xy zzy"}]})
    assert (answer.status, answer.json["new"]) == (202, 1)
    assert [own.text for own in Corrections(jobs.folder("capital"), sample_rate=16_000).read()] == ["XY ZZY"]
    eventually(lambda: state(service, "capital")["phase"] in ("idle", "done"))
    remember(jobs.folder("capital"), general=("general.json",))  # given for an adapter that was there before
    refused = service.post("/v1/adapters/capital/corrections", {"corrections": [{"text": "zyx"}]})
    assert (refused.status, "capital.learning/settings.json" in refused.text) == (400, True)
    assert state(service, "capital")["corrections"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"corrections": []}, "corrections"),
        ({"corrections": [{"text": " "}]}, "corrections"),
        ({"corrections": [{"text": 5}]}, "corrections"),
        ({"corrections": "abc"}, "corrections"),
        ([], "corrections"),
        ({"corrections": [{"text": "xyz"}]}, "cannot write"),
        ({"corrections": [{"text": "abc", "language": "de"}]}, "language"),
        ({"corrections": [{"text": "a\ud800"}]}, "half a surrogate pair"),
        ({"corrections": [{"text": "abc", "language": "\udfff"}]}, "half a surrogate pair"),
        ({"corrections": [{"text": "abc"}] * 1001}, "at most 1000"),
    ],
)
def test_bad_corrections_change_nothing(service: WebService, content: Any, message: str) -> None:
    answer = service.post("/v1/adapters/other/corrections", content)
    assert answer.status == 400
    assert message in answer.error["message"]
    assert state(service, "other")["corrections"] == 0


def test_bad_forms_change_nothing(service: WebService) -> None:
    assert correct(service, "other", audio=file_of(spoken("abc"))).status == 400
    assert correct(service, "other", audio=b"no audio", text="abc").status in (400, 415)
    long = file_of(spoken("a" * 200))
    assert "too long" in correct(service, "other", audio=long, text="abc").error["message"]
    assert state(service, "other")["corrections"] == 0
    folder = service.server.settings.adapters
    assert folder is not None
    assert not (folder / "other.learning").exists()


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2fetc", ".hidden", "a%00b", "base", "a%5cb"])
def test_names_that_are_none_touch_nothing(service: WebService, name: str) -> None:
    folder = service.server.settings.adapters
    assert folder is not None
    before = sorted(path.name for path in folder.parent.iterdir())
    assert service.post(f"/v1/adapters/{name}/corrections", {"corrections": [{"text": "abc"}]}).status in (400, 404)
    assert sorted(path.name for path in folder.parent.iterdir()) == before


@pytest.mark.skipif(os.name != "posix", reason="priorities are those of POSIX")
def test_workers_let_everything_else_go_first(service: WebService) -> None:
    jobs = LearningJobs("base", service.server.store, sample_rate=16_000)
    assert jobs.command(Path("swap"), ["--words-only"])[1:4] == ["-m", "overtone", "learn"]
    jobs.command = lambda folder, options: [sys.executable, "-c", "import os, sys; sys.exit(os.nice(0))"]
    jobs.add("quiet", [Correction(text="abc")])
    assert service.run(jobs.run("quiet", [])) == 19


# Who may


def test_a_server_that_does_not_learn(tmp_path: Path) -> None:
    with web_service(tmp_path) as service:
        for answer in (
            service.post("/v1/adapters/swap/corrections", {"corrections": [{"text": "abc"}]}),
            service.get("/v1/adapters/swap/learning"),
            service.post("/v1/adapters/swap/back"),
        ):
            assert answer.status == 403
            assert "--learn" in answer.error["message"]
    with pytest.raises(UsageError, match="needs a folder of adapters"):
        Server(SETTINGS.__class__(**{**vars(SETTINGS), "learn": True}), SpeakingModel())


def test_tenants_learn_what_their_entry_says(tmp_path: Path) -> None:
    tokens = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("learner", "reader", "other")}
    entries = {
        "learner": "adapters: [swap], learn: [swap, other]",
        "reader": "adapters: all",
        "other": "adapters: [other], learn: all",
    }
    lines = [f"  {name}: {{tokens: ['sha256:{tokens[name]}'], {entry}}}" for name, entry in entries.items()]
    (tmp_path / "tokens.yaml").write_text("\n".join(["tenants:", *lines]), "utf-8")
    (tmp_path / "admin").write_text(ADMIN, "utf-8")
    (tmp_path / "store").mkdir()
    options = {"tokens": tmp_path / "tokens.yaml", "admin_token_file": tmp_path / "admin", "learn": True}
    with web_service(tmp_path / "store", **options) as service:
        jobs = service.server.jobs
        assert jobs is not None
        jobs.start = lambda name: None  # type: ignore[method-assign]
        texts = {"corrections": [{"text": "abc"}]}
        allowed = {("learner", "swap"): 202, ("learner", "other"): 403, ("reader", "swap"): 403, ("other", "swap"): 403,
                   ("other", "other"): 202, ("nobody", "swap"): 401,
                   (ADMIN, "swap"): 202, (ADMIN, "fresh"): 202}  # fmt: skip
        for (token, name), status in allowed.items():
            answer = service.post(f"/v1/adapters/{name}/corrections", texts, token=token)
            assert answer.status == status, (token, name, answer.text)
            assert service.get(f"/v1/adapters/{name}/learning", token=token).status == (
                200 if status == 202 else status
            )
        assert len(Corrections(tmp_path / "store" / "swap", sample_rate=16_000).read()) == 1
