"""A front with two replicas on a Ray cluster: answers, streams, adapters, metrics; replicas that are killed or go."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("ray", reason="the ray extra is not installed")

from ray import serve  # noqa: E402
from ray.exceptions import RayError  # noqa: E402

from overtone.serving.ray.cluster import APPLICATION, engine_deployment  # noqa: E402
from overtone.serving.ray.front import deployed, front  # noqa: E402
from overtone.serving.recognition.request import Call, RecognitionRequest  # noqa: E402
from overtone.serving.riva import protobuf  # noqa: E402
from support.ray_service import ray_cluster, ray_plan, ray_service  # noqa: E402
from support.riva_service import METHODS, file_of, finals_of, stream_requests  # noqa: E402
from support.speaking_model import SpeakingModel, put_adapter, spoken  # noqa: E402
from support.web_service import WebService, eventually  # noqa: E402

AUDIO = file_of(spoken("abba"))
PATIENT: dict[str, Any] = {"grace_seconds": 300.0, "idle_seconds": 600.0}
"""Settings with which a stream lives for as long as a slow machine takes to replace replicas."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebService]:
    with ray_cluster(), ray_service(tmp_path_factory.mktemp("adapters"), **PATIENT) as service:
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


def test_another_front_of_the_same_plan_joins_the_replicas(service: WebService) -> None:
    before = pids(service)
    plan = ray_plan(service.server.store.folder, **PATIENT)  # type: ignore[arg-type]
    with deployed(plan):
        other = service.run(front(plan))
        try:
            call = Call(method="", adapter="swap")
            found = service.run(other.service.recognise(spoken("abba"), RecognitionRequest(model="swap"), call))
        finally:
            other.close()
    assert found.hypotheses[0].text == "baab"
    assert pids(service) == before


def test_replicas_know_the_fronts_that_share_quotas(service: WebService) -> None:
    replicas = service.server.service.elsewhere

    def told() -> bool:
        return {service.run(replicas.meet(name, 60.0)).count for name in ("one", "other")} == {2}  # type: ignore[union-attr]

    eventually(told, 120.0)  # the first one knows of the other at its second meeting, and a slow one is forgotten


def test_no_recording_is_lost_with_a_replica_that_is_killed(service: WebService) -> None:
    before = pids(service)
    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(service.text, AUDIO, model=("", "swap")[number % 2]) for number in range(40)]
        os.kill(next(iter(before.values())), signal.SIGKILL)
        assert [answer.result(120) for answer in answers] == ["abba", "baab"] * 20
    eventually(lambda: len(pids(service).keys() - before.keys()) == 1, 120.0)


class HalfStream:
    """A stream of `ab cd` whose second half comes later."""

    def __init__(self, channel: Any) -> None:
        shape, request, response = METHODS["StreamingRecognize"]
        path = f"/{protobuf.ASR_SERVICE}/StreamingRecognize"
        self.messages: SimpleQueue[Any] = SimpleQueue()
        first, *audio = stream_requests(spoken("ab cd"))
        for message in (first, *audio[: len(audio) // 2]):
            self.messages.put(message)
        self.rest = (*audio[len(audio) // 2 :], None)
        call = getattr(channel, shape)(path, request.SerializeToString, response.FromString)
        self.answers = call(iter(self.messages.get, None), timeout=900)

    def finish(self) -> str:
        """Send the rest. Returns the whole text."""
        for message in self.rest:
            self.messages.put(message)
        return "".join(finals_of(self.answers)).strip()


def streams_on_each(service: WebService, channel: Any) -> list[HalfStream]:
    """Streams of which every replica has one or more."""
    known = service.server.service.elsewhere.known  # type: ignore[union-attr]
    streams: list[HalfStream] = []

    def counts() -> list[int]:
        return [state.streams for state in known.states().values()]

    eventually(lambda: len(counts()) == 2, 120.0)  # each has told of itself
    while not streams or 0 in counts():
        assert len(streams) < 20
        streams.append(HalfStream(channel))
        eventually(lambda: sum(counts()) == len(streams), 120.0)
    return streams


def change_replicas(service: WebService, replicas: int) -> None:
    """Give the running replicas another plan, and go on at once: Serve's own wait lasts until old ones have ended."""
    other = {"profanities": frozenset(("another version",))}
    engine = engine_deployment(ray_plan(service.server.store.folder, replicas=replicas, **PATIENT, **other))  # type: ignore[arg-type]
    target = serve.RunTarget(engine, name=APPLICATION, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


@pytest.mark.parametrize("replicas", [2, 1], ids=["replaced", "taken away"])
def test_replicas_that_go_finish_what_they_have_while_others_take_what_is_new(
    service: WebService, replicas: int
) -> None:
    """Of two replicas: another version of both, and then one fewer."""
    eventually(lambda: len(pids(service)) == 2, 120.0)
    before = pids(service).keys()
    with grpc.insecure_channel(service.addresses.grpc) as channel:
        streams = streams_on_each(service, channel)
        change_replicas(service, replicas=replicas)
        answers = set()

        def changed() -> bool:
            answers.add(service.text(AUDIO, model="swap"))
            now = pids(service).keys()
            return len(now) == replicas and (replicas == 1 or not now & before)

        eventually(changed, 300.0)
        assert answers == {"baab"}
        assert [stream.finish() for stream in streams] == ["ab cd"] * len(streams)
    eventually(lambda: serve.status().applications[APPLICATION].status == "RUNNING", 120.0)  # the old ones have ended
