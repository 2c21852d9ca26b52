"""A front with two replicas on a Ray cluster: answers, streams, adapters and metrics, and a replica that is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("ray", reason="the ray extra is not installed")

from ray.exceptions import RayError  # noqa: E402

from overtone.serving.riva import protobuf  # noqa: E402
from support.ray_service import ray_cluster, ray_service  # noqa: E402
from support.riva_service import METHODS, file_of, finals_of, stream_requests  # noqa: E402
from support.speaking_model import SpeakingModel, put_adapter, spoken  # noqa: E402
from support.web_service import WebService, eventually  # noqa: E402

AUDIO = file_of(spoken("abba"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    with ray_cluster(), ray_service(tmp_path_factory.mktemp("adapters")) as service:
        yield service


def pids(service: WebService) -> dict[str, int]:
    """Processes of the replicas that take work; one that has died is left out."""
    known = service.server.service.elsewhere.known  # type: ignore[union-attr]
    found: dict[str, int] = {}
    for name, replica in dict(known.running).items():
        with suppress(RayError):
            found[name] = service.run(known.call(replica, "process"))
    return found


def test_requests_choose_their_adapter_by_each_of_its_names(service: WebService) -> None:
    names = {"": "abba", "tones": "abba", "swap": "baab", "tones+swap": "baab", "tones:swap": "baab", "other": "abba"}
    assert {name: service.text(AUDIO, model=name) for name in names} == names
    refused = service.transcribe(AUDIO, model="tones:nobody")
    assert (refused.status, refused.error["code"]) == (404, "model_not_found")
    models = service.get("/v1/models").json["data"]
    assert {model["id"]: model["parent"] for model in models} == {
        "tones": None,
        "tones+other": "tones",
        "tones+swap": "tones",
    }


def test_a_stream_keeps_to_its_replica_and_a_recording_in_parts_is_told(service: WebService) -> None:
    shape, request, response = METHODS["StreamingRecognize"]
    with grpc.insecure_channel(service.addresses.grpc) as channel:
        path = f"/{protobuf.ASR_SERVICE}/StreamingRecognize"
        call = getattr(channel, shape)(path, request.SerializeToString, response.FromString)
        streams = [call(iter(stream_requests(spoken("ab cd"), model=name)), timeout=60) for name in ("", "swap")]
        assert ["".join(finals_of(stream)).strip() for stream in streams] == ["ab cd", "ba cd"]
    answer = service.transcribe(AUDIO, model="swap", stream="true")
    assert '"text": "baab"' in answer.text


def test_requests_of_one_adapter_find_it_and_one_scrape_tells_of_every_replica(service: WebService) -> None:
    for _ in range(5):
        service.text(AUDIO, model="other")

    def counts(name: str) -> list[float]:
        lines = service.get("/v1/metrics").text.splitlines()
        return [
            float(line.split()[-1]) for line in lines if line.startswith(f"overtone_adapters_{name}_total{{replica=")
        ]

    eventually(lambda: len(found := counts("hits")) == 2 and sum(found) >= 4)
    assert sum(counts("misses")) <= 2  # each of the two adapters was loaded once in all


def test_a_replaced_adapter_is_the_same_everywhere_at_once(service: WebService) -> None:
    store = service.server.store
    put_adapter(SpeakingModel(), "late", store.folder)  # type: ignore[arg-type]
    store.scan()  # by this front alone: replicas that do not know it look for themselves
    assert service.text(AUDIO, model="late") == "abba"
    store.remove("late")
    assert service.transcribe(AUDIO, model="late").status == 404


def test_no_recording_is_lost_with_a_replica_that_is_killed(service: WebService) -> None:
    before = pids(service)
    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(service.text, AUDIO, model=("", "swap")[number % 2]) for number in range(40)]
        os.kill(next(iter(before.values())), signal.SIGKILL)
        assert [answer.result(120) for answer in answers] == ["abba", "baab"] * 20
    eventually(lambda: len(pids(service).keys() - before.keys()) == 1, 120.0)
