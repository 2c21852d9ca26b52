"""The Riva interface: streams, their utterances, their beginnings and ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc", reason="the serving extra is not installed")

from overtone.serving.riva import protobuf  # noqa: E402
from overtone.serving.riva.responses import responses_for  # noqa: E402
from overtone.serving.settings import ServerSettings  # noqa: E402
from overtone.serving.streaming.stream import Final, Interim  # noqa: E402
from support.riva_service import (  # noqa: E402
    CHUNK,
    SETTINGS,
    Service,
    file_of,
    finals_of,
    refusal,
    results_of,
    riva_service,
    stream_requests,
)
from support.speaking_model import pcm16, silence, spoken  # noqa: E402

Code = grpc.StatusCode


def test_a_stream(service: Service) -> None:
    samples = np.concatenate((spoken("bad cab"), silence(2.5), spoken("feed"), silence(0.05)))
    requests = list(stream_requests(samples, enable_word_time_offsets=True))
    requests[0].id.value = "nine"
    responses = list(service.stream(requests))
    assert {response.id.value for response in responses} == {"nine"}
    assert len(responses) in (len(requests) - 1, len(requests))
    results = results_of(responses)
    assert finals_of(responses) == ["bad cab ", "feed "]
    interim = [result for result in results if not result.is_final]
    assert interim
    for result in interim:
        assert len(result.alternatives) == 1
        assert not result.alternatives[0].words
        assert result.alternatives[0].confidence == 0
        assert 0 <= result.stability <= 1
    last = [result for result in results if result.is_final][-1]
    assert last.stability == 0
    [word] = last.alternatives[0].words
    begin = 1000 * (spoken("bad cab").size / 16_000 + 2.5 + 0.12)
    assert word.start_time == pytest.approx(begin, abs=50)
    assert word.end_time > word.start_time
    assert last.alternatives[0].confidence == pytest.approx(word.confidence)
    assert last.audio_processed == pytest.approx(samples.size / 16_000, abs=0.05)
    assert service.calls[-1].audio_seconds == pytest.approx(samples.size / 16_000, abs=0.01)


def test_one_response_for_each_chunk_in_time(service: Service) -> None:
    """A client that waits for each response gets it before it sends the next chunk."""
    requests = list(stream_requests(spoken("bad cab"), chunk=CHUNK))
    turn = threading.Semaphore(2)

    def paced() -> Iterator[Any]:
        for request in requests:
            assert turn.acquire(timeout=20)
            yield request

    seen = []
    for response in service.stream(paced()):
        seen.append(response)
        turn.release()
    assert len(seen) == len(requests)
    assert finals_of(seen) == ["bad cab "]


def test_final_results_only(service: Service) -> None:
    responses = list(service.stream(stream_requests(spoken("bad cab"), interim=False)))
    assert [result.is_final for result in results_of(responses)] == [True]


def test_a_file_is_streamed_in_pieces_of_any_size(service: Service) -> None:
    data = file_of(spoken("abc", 48_000), rate=48_000)
    config = protobuf.StreamingRecognitionConfig(config=protobuf.RecognitionConfig(model="swap"))
    requests = [protobuf.StreamingRecognizeRequest(streaming_config=config)]
    sizes = [1, 7, 30, 5, 1, 4001, 0]
    while data:
        size = sizes[len(requests) % len(sizes)]
        requests.append(protobuf.StreamingRecognizeRequest(audio_content=data[:size]))
        data = data[size:]
    assert finals_of(service.stream(requests)) == ["bac "]


def test_the_end_of_an_utterance_can_be_forced(service: Service) -> None:
    requests = list(stream_requests(spoken("abc"), interim=False))
    forced = protobuf.StreamingRecognizeRequest(runtime_config={"force_eou": "true"})
    more = list(stream_requests(spoken("fed"), interim=False))[1:]
    assert finals_of(service.stream([*requests, forced, *more])) == ["abc ", "fed "]


def test_endpointing_of_the_request(service: Service) -> None:
    samples = np.concatenate((spoken("abc"), silence(1.0), spoken("fed")))
    patient = protobuf.EndpointingConfig(stop_history=0, start_history=-1)
    assert finals_of(service.stream(stream_requests(samples, endpointing_config=patient))) == ["abcfed "]
    hasty = protobuf.EndpointingConfig(stop_history=400, stop_threshold=0.9)
    assert finals_of(service.stream(stream_requests(samples, endpointing_config=hasty))) == ["abc ", "fed "]


def test_the_early_end_of_an_utterance(service: Service) -> None:
    samples = np.concatenate((spoken("abc"), silence(2.5)))
    config = protobuf.EndpointingConfig(stop_history=1600, stop_history_eou=400)
    results = results_of(service.stream(stream_requests(samples, endpointing_config=config)))
    early = [index for index, result in enumerate(results) if result.stability == 1.0]
    assert len(early) == 1
    assert not results[early[0]].is_final
    assert results[early[0]].alternatives[0].transcript == "abc "
    assert results[-1].is_final
    results = results_of(service.stream(stream_requests(samples, interim=False, endpointing_config=config)))
    assert [result.is_final for result in results] == [True]


@pytest.mark.parametrize(
    "values", [{"stop_history": -5}, {"stop_threshold": 1.5}, {"stop_history": 400, "stop_history_eou": 400}]
)
def test_endpointing_that_cannot_be(service: Service, values: dict[str, Any]) -> None:
    config = protobuf.EndpointingConfig(**values)
    requests = list(stream_requests(spoken("a"), endpointing_config=config))
    code, details = refusal(lambda: list(service.stream(requests)))
    assert code is Code.INVALID_ARGUMENT
    assert details.startswith("endpointing_config: ")


def test_streams_of_all_adapters_at_once(service: Service) -> None:
    texts: dict[int, list[str]] = {}

    def listen(index: int) -> None:
        model = ("", "swap", "other")[index % 3]
        texts[index] = finals_of(service.stream(stream_requests(spoken("abc bad"), model=model)))

    threads = [threading.Thread(target=listen, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == {index: ["bac abd " if index % 3 == 1 else "abc bad "] for index in range(12)}


def test_streams_that_do_not_begin_as_they_should(service: Service) -> None:
    first, second = list(stream_requests(spoken("a"), chunk=10**6))
    assert refusal(lambda: list(service.stream([]))) == (Code.INVALID_ARGUMENT, "no messages received")
    expected = (Code.FAILED_PRECONDITION, "streaming_config was not received")
    assert refusal(lambda: list(service.stream([second]))) == expected
    expected = (Code.INVALID_ARGUMENT, "streaming_config was already received")
    assert refusal(lambda: list(service.stream([first, second, first]))) == expected


def test_a_stream_without_audio_is_no_fault(service: Service) -> None:
    responses = list(service.stream(list(stream_requests(silence(0)))))
    assert results_of(responses) == []


def test_damaged_audio_ends_a_stream(service: Service) -> None:
    config = protobuf.StreamingRecognitionConfig(config=protobuf.RecognitionConfig())
    requests = [
        protobuf.StreamingRecognizeRequest(streaming_config=config),
        protobuf.StreamingRecognizeRequest(audio_content=b"no header at all, and no rate " * 100),
    ]
    assert refusal(lambda: list(service.stream(requests)))[0] is Code.INVALID_ARGUMENT


def test_a_client_that_goes_away_frees_its_place(service: Service) -> None:
    going = threading.Event()

    def endless() -> Iterator[Any]:
        requests = stream_requests(np.tile(spoken("abc"), 200), model="swap")
        for request in requests:
            yield request
            going.wait(0.005)

    responses = service.stream(endless())
    next(response for response in responses if response.results)
    assert service.store.counters()["leased"] == 1
    before = len(service.calls)
    responses.cancel()
    deadline = time.monotonic() + 60
    while service.store.counters()["leased"] or len(service.calls) == before:
        assert time.monotonic() < deadline, "the lease of a stream that was given up is still held"
        time.sleep(0.02)
    going.set()
    assert service.calls[-1].code == "CANCELLED"
    assert service.text(pcm16(spoken("a"))) == "a "


@pytest.mark.parametrize("grace", [0.0, 0.2, 20.0])
def test_whether_calls_were_finished_is_told_at_the_end(tmp_path: Path, grace: float) -> None:
    """A stream goes on until it is cut off, or, where there is time for that, until its client has said everything."""
    stopped = threading.Event()

    def talking() -> Iterator[Any]:
        yield from stream_requests(spoken("abc"))
        if grace < 1.0:
            stopped.wait(20)

    with riva_service(tmp_path, adapters=(), settings=SETTINGS, grace=grace) as service:
        responses = service.stream(talking())
        next(responses)
        assert service.stop() is (grace > 1.0)
        stopped.set()
        if grace > 1.0:
            assert finals_of(responses) == ["abc "]
        else:
            assert refusal(lambda: list(responses))[0] in (Code.CANCELLED, Code.UNAVAILABLE)


def test_a_silent_client_is_sent_away(tmp_path: Path) -> None:
    with riva_service(tmp_path, adapters=(), settings=ServerSettings(grpc_port=0, idle_seconds=0.2)) as impatient:
        first = next(stream_requests(spoken("a")))

        def idle() -> Iterator[Any]:
            yield first
            time.sleep(2)

        code, details = refusal(lambda: list(impatient.stream(idle())))
        assert code is Code.DEADLINE_EXCEEDED
        assert "0.2 seconds" in details


# How events become responses


def interim(text: str, stability: float = 0.5) -> Interim:
    return Interim(text=text, stability=stability, words=(), audio_processed=1.0)


def final(text: str) -> Final:
    return Final(text=text, words=(), alternatives=(), confidence=1.0, start=0.0, end=1.0, audio_processed=1.0)


def test_responses_of_chunks() -> None:
    early = interim("a", 1.0)
    assert responses_for([], 2) == [[], []]
    assert responses_for([interim("a"), interim("b")], 1) == [[interim("b")]]
    assert responses_for([interim("a"), final("a")], 3) == [[], [], [final("a")]]
    assert responses_for([final("a"), interim("b")], 1) == [[final("a"), interim("b")]]
    assert responses_for([final("a"), interim("b")], 2) == [[final("a")], [interim("b")]]
    assert responses_for([final("a"), final("b")], 1) == [[final("a")], [final("b")]]
    assert responses_for([early, final("a")], 1) == [[early], [final("a")]]
