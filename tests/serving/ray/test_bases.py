"""Two bases on one Ray cluster behind one front: recordings, streams, administration and metrics of each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("ray", reason="the ray extra is not installed")

from overtone.serving.ray.front import deployed  # noqa: E402
from overtone.serving.riva import protobuf  # noqa: E402
from overtone.serving.settings import BaseSettings  # noqa: E402
from support.ray_service import ray_cluster, ray_plan, ray_service  # noqa: E402
from support.riva_service import METHODS, file_of, finals_of, stream_requests  # noqa: E402
from support.speaking_model import Contrary, put_adapter, spoken  # noqa: E402
from support.web_service import WebService, eventually  # noqa: E402

ADMIN = "an-administrators-token"
AUDIO = file_of(spoken("abc"))


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of `ray_plan`: `tones` with `swap` and `other`, and `contrary` (de-DE) with `swap`, a replica each."""
    english, german, token = (tmp_path_factory.mktemp(name) for name in ("english", "german", "token"))
    (token / "admin").write_text(ADMIN)
    put_adapter(Contrary(), "swap", german)
    more = (BaseSettings(model="", base="contrary", adapters=german, language="de-DE"),)
    return {"folder": english, "replicas": 1, "more": more, "base": "tones", "admin_token_file": token / "admin"}


@pytest.fixture(scope="module")
def service(options: dict[str, Any]) -> Iterator[WebService]:
    with ray_cluster(), ray_service(**options) as running:
        yield running


def test_each_base_has_replicas_and_adapters_of_its_own(service: WebService) -> None:
    names = {"": "abc", "tones:swap": "bac", "contrary": "hgf", "contrary:swap": "ghf", "other": "abc"}
    assert {name: service.text(AUDIO, model=name) for name in names} == names
    assert service.text(AUDIO, language="de-DE") == "hgf"
    assert service.transcribe(AUDIO, model="swap").status == 400
    assert {model["id"]: model["parent"] for model in service.get("/v1/models").json["data"]} == {
        "tones": None, "tones+other": "tones", "tones+swap": "tones", "contrary": None, "contrary+swap": "contrary",
    }  # fmt: skip


def test_streams_reach_the_replica_of_their_base(service: WebService) -> None:
    shape, request, response = METHODS["StreamingRecognize"]
    with grpc.insecure_channel(service.addresses.grpc) as channel:
        path = f"/{protobuf.ASR_SERVICE}/StreamingRecognize"
        call = getattr(channel, shape)(path, request.SerializeToString, response.FromString)
        assert finals_of(call(stream_requests(spoken("abc"), language_code="de-DE"), timeout=60)) == ["hgf "]


def test_administration_and_metrics_reach_the_replicas_of_a_base(service: WebService) -> None:
    loaded = service.post("/v1/load_lora_adapter", {"lora_name": "contrary:swap"}, token=ADMIN)
    assert (loaded.status, loaded.text) == (200, "Success: LoRA adapter 'contrary:swap' added successfully.")

    def told() -> bool:
        metrics = service.get("/v1/metrics").text
        return all(f'base="{base}",replica=' in metrics for base in ("tones", "contrary"))

    eventually(told)
    assert service.get("/v1/health/ready").json["bases"] == ["tones", "contrary"]


def test_a_command_with_another_version_of_one_base_replaces_its_replicas_while_the_other_base_answers(
    service: WebService, options: dict[str, Any]
) -> None:
    known = [base.service.elsewhere.known for base in service.server.served]  # type: ignore[union-attr]
    before = [dict(replicas.running) for replicas in known]
    other = ray_plan(**{**options, "more": (replace(options["more"][0], language="de-AT"),)})

    running: Future[None] = Future()

    def command() -> None:
        try:
            with deployed(other):
                pass
        except BaseException as error:
            running.set_exception(error)
        else:
            running.set_result(None)

    answers = set()

    def is_done() -> bool:
        answers.add(service.text(AUDIO, model="tones:swap"))
        return running.done()

    threading.Thread(target=command, daemon=True).start()  # one that hangs holds up no other test
    eventually(is_done, 300.0)
    running.result(0)
    assert answers == {"bac"}
    eventually(lambda: bool(known[1].running) and not known[1].running.keys() & before[1].keys(), 120.0)
    assert known[0].running.keys() == before[0].keys()
    assert service.text(AUDIO, model="contrary") == "hgf"
