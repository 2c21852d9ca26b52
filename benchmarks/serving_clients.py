"""The clients of a load test, in a process of their own: one job as JSON a line in, one result as JSON a line out.

Jobs: `clips` reads the audio; `saturate` keeps a number of requests in flight; `arrive` sends requests and streams at
the times of a Poisson process, whatever has become of those before; `talk` keeps a number of streams going in real
time; `sequence` sends one request after the other.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from benchmarks.harness import ROOT
from overtone.serving.riva import protobuf

RATE = 16_000
PIECE = round(0.16 * RATE) * 2
"""Bytes of audio in one message of a stream."""
CHANNELS = 4
UNTOLD = "Internal error from Core"
"""What grpc.aio makes of any status that comes while a message is being written."""
TIMEOUT = 60.0
LINE_LIMIT = 2**28


@dataclass(kw_only=True)
class Answer:
    """What a client saw of one request. Times are of the machine's monotonic clock."""

    interface: str
    clip: str
    adapter: str | None
    streamed: bool = False
    due: float
    """When it was to be sent."""
    ended: float = 0.0
    status: str = "OK"
    """OK, another status of gRPC, an HTTP status, GONE where the client went away itself, or UNTOLD."""
    text: str = ""
    chunks: list[float] = field(default_factory=list)
    """Seconds from the last audio that a result covers to the result, of a stream in real time."""
    told: list[float] = field(default_factory=list)
    """When these results came."""


class Riva:
    """Calls to the gRPC interface over a few connections."""

    def __init__(self, address: str, clips: dict[str, bytes]) -> None:
        self.address = address
        self.clips = clips
        self.turn = 0
        self.channels = [
            grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(CHANNELS)
        ]

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()

    def method(self, name: str, shape: str, request: Any, response: Any) -> Any:
        self.turn += 1
        channel = self.channels[self.turn % CHANNELS]
        path = f"/{protobuf.ASR_SERVICE}/{name}"
        return getattr(channel, shape)(path, request.SerializeToString, response.FromString)

    async def recognize(self, clip: str, adapter: str | None, *, due: float = 0.0, leave: float = 0.0) -> Answer:
        """leave: seconds after which the client goes away."""
        answer = Answer(interface="grpc", clip=clip, adapter=adapter, due=due or time.monotonic())
        request = protobuf.RecognizeRequest(config=config_for(adapter), audio=self.clips[clip])
        call = self.method("Recognize", "unary_unary", protobuf.RecognizeRequest, protobuf.RecognizeResponse)
        try:
            response = await asyncio.wait_for(call(request, timeout=TIMEOUT), leave or None)
            answer.text = "".join(result.alternatives[0].transcript for result in response.results)
        except TimeoutError:
            answer.status = "GONE"
        except grpc.RpcError as error:
            answer.status, answer.text = error.code().name, error.details() or ""
        answer.ended = time.monotonic()
        return answer

    async def stream(
        self, clip: str, adapter: str | None, *, due: float = 0.0, paced: bool = True, leave: float = 0.0
    ) -> Answer:
        answer = Answer(interface="grpc", clip=clip, adapter=adapter, streamed=True, due=due or time.monotonic())
        shape = "StreamingRecognize", "stream_stream"
        call = self.method(*shape, protobuf.StreamingRecognizeRequest, protobuf.StreamingRecognizeResponse)
        sent: list[float] = []
        try:
            async with asyncio.timeout(leave or TIMEOUT + len(self.clips[clip]) / 2 / RATE):
                responses = call(self.said(clip, adapter, sent, paced))
                async for response in responses:
                    note(response, answer, sent)
        except TimeoutError:
            responses.cancel()
            answer.status = "GONE" if leave else "DEADLINE_EXCEEDED"
        except grpc.RpcError as error:
            answer.text = error.details() or ""
            answer.status = "UNTOLD" if answer.text == UNTOLD else error.code().name
        answer.ended = time.monotonic()
        return answer

    async def said(self, clip: str, adapter: str | None, sent: list[float], paced: bool) -> AsyncIterator[Any]:
        """The messages of a stream; `sent` gets the time of each piece of audio."""
        opening = protobuf.StreamingRecognitionConfig(config=config_for(adapter), interim_results=paced)
        yield protobuf.StreamingRecognizeRequest(streaming_config=opening)
        began, data = time.monotonic(), self.clips[clip]
        for begin in range(0, len(data), PIECE):
            piece = data[begin : begin + PIECE]
            if paced:  # a piece can be sent when it has been spoken
                await asyncio.sleep(began + (begin + len(piece)) / 2 / RATE - time.monotonic())
            sent.append(time.monotonic())
            yield protobuf.StreamingRecognizeRequest(audio_content=piece)


def note(response: Any, answer: Answer, sent: Sequence[float]) -> None:
    """What a response of a stream says; `sent`: when each piece of audio was sent."""
    for result in response.results:
        if result.is_final:
            answer.text += result.alternatives[0].transcript
        piece = round(result.audio_processed * RATE) * 2 // PIECE
        if 0 <= piece - 1 < len(sent):
            answer.told.append(time.monotonic())
            answer.chunks.append(answer.told[-1] - sent[piece - 1])


def config_for(adapter: str | None) -> Any:
    config = protobuf.RecognitionConfig(encoding=1, sample_rate_hertz=RATE)
    if adapter is not None:
        config.custom_configuration["adapter"] = adapter
    return config


def choices(names: Sequence[str | None], *, zipf: float | None, generator: random.Random) -> Iterator[str | None]:
    """Names in turn, or by Zipf's law: the k-th as often as 1/k^zipf says."""
    if zipf is None:
        while True:
            yield from names
    weights = [1 / (rank + 1) ** zipf for rank in range(len(names))]
    while True:
        yield from generator.choices(names, weights, k=256)


async def saturate(job: dict[str, Any], riva: Riva) -> list[Answer]:
    """`in_flight` requests at any time, for `seconds`."""
    answers: list[Answer] = []
    wanted = choices(job["names"], zipf=job.get("zipf"), generator=random.Random(job["seed"]))
    clips = choices(sorted(job["clips"]), zipf=None, generator=random.Random(job["seed"]))
    until = time.monotonic() + job["seconds"]

    async def client() -> None:
        while time.monotonic() < until:
            answers.append(await riva.recognize(next(clips) or "", next(wanted)))

    await asyncio.gather(*(client() for _ in range(job["in_flight"])))
    return answers


async def arrive(job: dict[str, Any], riva: Riva) -> list[Answer]:
    """`rate` arrivals a second for `seconds`, a `streams` share of them streams in real time."""
    generator = random.Random(job["seed"])
    wanted = choices(job["names"], zipf=job.get("zipf"), generator=generator)
    clips = choices(sorted(job["clips"]), zipf=None, generator=generator)
    begin = due = time.monotonic()
    tasks = []
    while (due := due + generator.expovariate(job["rate"])) < begin + job["seconds"]:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        call: Callable[..., Any] = riva.stream if generator.random() < job.get("streams", 0.0) else riva.recognize
        tasks.append(asyncio.create_task(call(next(clips) or "", next(wanted), due=due)))
    return list(await asyncio.gather(*tasks))


async def talk(job: dict[str, Any], riva: Riva) -> list[Answer]:
    """`streams` at a time in real time, begun one after the other within some seconds, two clips each in turn."""
    generator = random.Random(job["seed"])
    wanted = choices(job["names"], zipf=job.get("zipf"), generator=generator)
    clips = choices(sorted(job["clips"]), zipf=None, generator=generator)

    async def stream(index: int) -> list[Answer]:
        await asyncio.sleep(job["within"] * index / job["streams"])
        return [await riva.stream(next(clips) or "", next(wanted)) for _ in range(2)]

    spoken = await asyncio.gather(*(stream(index) for index in range(job["streams"])))
    return [answer for answers in spoken for answer in answers]


async def sequence(job: dict[str, Any], riva: Riva) -> list[Answer]:
    """`count` requests, never two at a time."""
    wanted = choices(job["names"], zipf=job.get("zipf"), generator=random.Random(job["seed"]))
    clips = choices(sorted(job["clips"]), zipf=None, generator=random.Random(job["seed"]))
    return [await riva.recognize(next(clips) or "", next(wanted)) for _ in range(job["count"])]


JOBS = {"saturate": saturate, "arrive": arrive, "talk": talk, "sequence": sequence}


async def work(lines: Iterator[str]) -> None:
    clips: dict[str, bytes] = {}
    while line := await asyncio.to_thread(next, lines, ""):
        job = json.loads(line)
        if job["do"] == "clips":
            clips |= {path.stem: path.read_bytes() for path in sorted(Path(job["folder"]).glob("*.raw"))}
            result: Any = sorted(clips)
        else:
            riva = Riva(job["grpc"], clips)
            began = time.monotonic()
            answers = await JOBS[job["do"]](job, riva)
            await riva.close()
            result = {"began": began, "answers": [asdict(answer) for answer in answers]}
        print(json.dumps(result), flush=True)


class Clients:
    """The other end: a process of clients. A context manager."""

    def __init__(self, module: str = "benchmarks.serving_clients") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def tell(self, **job: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def heard(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("The process of the clients has ended.")
        return json.loads(line)

    def do(self, **job: Any) -> tuple[float, list[Answer]]:
        """When it began, and all answers."""
        self.tell(**job)
        result = self.heard()
        return result["began"], [Answer(**answer) for answer in result["answers"]]

    def read_clips(self, folder: Path) -> list[str]:
        self.tell(do="clips", folder=str(folder))
        found: list[str] = self.heard()
        return found


if __name__ == "__main__":
    asyncio.run(work(iter(sys.stdin)))
