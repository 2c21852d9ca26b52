"""Clients of the soak test: every interface, every kind of request, clients that vanish. See `serving_clients`."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from benchmarks.serving_clients import JOBS, PIECE, RATE, TIMEOUT, Answer, Riva, config_for, note, work
from overtone.serving.riva import protobuf

Call = Callable[[Riva, str, str, str | None], Awaitable[Answer]]
RIVA: Any = ("realtime", "realtime-token.none")
"""Subprotocols that tell Riva's dialect; a server without tokens asks for no secret."""
THREADS = 256
LEAVE = 0.05, 1.5
"""Seconds after which a vanishing client goes, at least and at most."""


async def recognize(riva: Riva, address: str, clip: str, adapter: str | None) -> Answer:
    return await riva.recognize(clip, adapter)


async def stream(riva: Riva, address: str, clip: str, adapter: str | None) -> Answer:
    return await asyncio.to_thread(heard, riva, clip, adapter, paced=True)


async def file_stream(riva: Riva, address: str, clip: str, adapter: str | None) -> Answer:
    """All audio as fast as it is taken."""
    return await asyncio.to_thread(heard, riva, clip, adapter, paced=False)


async def leave_request(riva: Riva, address: str, clip: str, adapter: str | None) -> Answer:
    return await riva.recognize(clip, adapter, leave=random.uniform(*LEAVE) / 5)


async def leave_stream(riva: Riva, address: str, clip: str, adapter: str | None) -> Answer:
    return await asyncio.to_thread(heard, riva, clip, adapter, paced=True, leave=random.uniform(*LEAVE))


async def transcribe(riva: Riva, address: str, clip: str, adapter: str | None) -> Answer:
    return await asyncio.to_thread(post, address, clip, riva.clips[clip], adapter, whole=True)


async def leave_upload(riva: Riva, address: str, clip: str, adapter: str | None) -> Answer:
    return await asyncio.to_thread(post, address, clip, riva.clips[clip], adapter, whole=False)


async def leave_answer(riva: Riva, address: str, clip: str, adapter: str | None) -> Answer:
    """Everything is sent, and nobody waits for the answer."""
    return await asyncio.to_thread(post, address, clip, riva.clips[clip], adapter, whole=True, wait=False)


async def converse(riva: Riva, address: str, clip: str, adapter: str | None) -> Answer:
    return await session(riva, address, clip, adapter, vanish=False)


async def leave_session(riva: Riva, address: str, clip: str, adapter: str | None) -> Answer:
    return await session(riva, address, clip, adapter, vanish=True)


MIX: dict[Call, float] = {
    recognize: 0.36,
    stream: 0.12,
    file_stream: 0.10,
    transcribe: 0.16,
    converse: 0.08,
    leave_request: 0.04,
    leave_stream: 0.04,
    leave_upload: 0.03,
    leave_answer: 0.03,
    leave_session: 0.04,
}
"""What comes how often."""


def heard(riva: Riva, clip: str, adapter: str | None, *, paced: bool, leave: float = 0.0) -> Answer:
    """A stream over a connection of its own, by grpc's threads, which tell the server's status in every case.

    leave: seconds after which the client goes away.
    """
    answer = Answer(interface="grpc", clip=clip, adapter=adapter, streamed=True, due=time.monotonic())
    with grpc.insecure_channel(riva.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        method = channel.stream_stream(
            f"/{protobuf.ASR_SERVICE}/StreamingRecognize",
            protobuf.StreamingRecognizeRequest.SerializeToString,
            protobuf.StreamingRecognizeResponse.FromString,
        )
        responses = method(said(riva.clips[clip], adapter, paced), timeout=TIMEOUT)
        leaving = threading.Timer(leave, responses.cancel) if leave else None
        if leaving is not None:
            leaving.start()
        try:
            for response in responses:
                note(response, answer, ())
        except grpc.RpcError as error:
            answer.status, answer.text = error.code().name, error.details() or ""
            answer.status = "GONE" if leave and answer.status == "CANCELLED" else answer.status
        finally:
            if leaving is not None:
                leaving.cancel()
    answer.ended = time.monotonic()
    return answer


def said(data: bytes, adapter: str | None, paced: bool) -> Iterator[Any]:
    opening = protobuf.StreamingRecognitionConfig(config=config_for(adapter), interim_results=paced)
    yield protobuf.StreamingRecognizeRequest(streaming_config=opening)
    for begin in range(0, len(data), PIECE):
        if paced:
            time.sleep(PIECE / 2 / RATE)
        yield protobuf.StreamingRecognizeRequest(audio_content=data[begin : begin + PIECE])


def post(
    address: str, clip: str, data: bytes, adapter: str | None, *, whole: bool, wait: bool = True
) -> Answer:  # fmt: skip
    """A transcription by HTTP; where the body is not sent whole, or nobody waits, the client vanishes."""
    answer = Answer(interface="http", clip=clip, adapter=adapter, due=time.monotonic())
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=TIMEOUT)
    content_type, body = form(wav(data), adapter)
    try:
        connection.putrequest("POST", "/v1/audio/transcriptions")
        connection.putheader("Content-Type", content_type)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        connection.send(body if whole else body[: len(body) // 2])
        if not whole or not wait:
            time.sleep(random.uniform(0.0, 0.1))
            answer.status = "GONE"
        else:
            response = connection.getresponse()
            content = json.loads(response.read())
            answer.status = "OK" if response.status == 200 else str(response.status)
            answer.text = content["text"] if response.status == 200 else json.dumps(content)
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer.status = type(error).__name__
    finally:
        connection.close()
    answer.ended = time.monotonic()
    return answer


def form(audio: bytes, adapter: str | None) -> tuple[str, bytes]:
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{adapter or "base"}\r\n'
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return f"multipart/form-data; boundary={boundary}", head.encode() + audio + f"\r\n--{boundary}--\r\n".encode()


def wav(data: bytes) -> bytes:
    """16-bit samples with a header."""
    sizes = (36 + len(data)).to_bytes(4, "little"), len(data).to_bytes(4, "little")
    format = b"fmt \x10\0\0\0\x01\0\x01\0" + RATE.to_bytes(4, "little") + (2 * RATE).to_bytes(4, "little")
    return b"RIFF" + sizes[0] + b"WAVE" + format + b"\x02\0\x10\0data" + sizes[1] + data


async def session(riva: Riva, address: str, clip: str, adapter: str | None, *, vanish: bool) -> Answer:
    """A realtime session; where the client vanishes, its connection breaks off in the middle."""
    answer = Answer(interface="websocket", clip=clip, adapter=adapter, streamed=True, due=time.monotonic())
    try:
        url = f"ws{address.removeprefix('http')}/v1/realtime"
        async with asyncio.timeout(TIMEOUT), connect(url, subprotocols=RIVA) as websocket:
            await talk(websocket, riva.clips[clip], adapter, answer, vanish)
    except TimeoutError:
        answer.status = "DEADLINE_EXCEEDED"
    except (OSError, WebSocketException, ValueError) as error:
        answer.status = "GONE" if vanish else f"{type(error).__name__}: {error}"
    answer.ended = time.monotonic()
    return answer


async def talk(websocket: ClientConnection, data: bytes, adapter: str | None, answer: Answer, vanish: bool) -> None:
    await websocket.recv()
    wishes = {"input_audio_transcription": {"model": adapter or "base"}}
    await websocket.send(json.dumps({"type": "transcription_session.update", "session": wishes}))
    heard = json.loads(await websocket.recv())
    if heard["type"] == "error":
        answer.status, answer.text = str(heard["error"].get("code") or heard["error"]["type"]), json.dumps(heard)
        return
    for begin in range(0, len(data) // (2 if vanish else 1), PIECE):
        await websocket.send(data[begin : begin + PIECE])
    if vanish:
        answer.status = "GONE"
        raw = websocket.transport.get_extra_info("socket")
        raw.shutdown(socket.SHUT_RDWR)
        return
    await websocket.send(json.dumps({"type": "input_audio_buffer.done"}))
    async for message in websocket:
        event = json.loads(message)
        if event["type"] == "error":
            answer.status, answer.text = str(event["error"].get("code") or event["error"]["type"]), str(message)
            return
        if event.get("is_last_result"):
            answer.text = event["transcript"]
            return
    answer.status = "closed without a last result"


async def soak(job: dict[str, Any], riva: Riva) -> list[Answer]:
    """`rate` arrivals a second for `seconds`, of every kind, for any of the names, evenly."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    generator = random.Random(job["seed"])
    calls, weights = list(MIX), list(MIX.values())
    begin = due = time.monotonic()
    tasks = []
    while (due := due + generator.expovariate(job["rate"])) < begin + job["seconds"]:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        (call,) = generator.choices(calls, weights)
        clip, name = generator.choice(job["clips"]), generator.choice(job["names"])
        tasks.append(asyncio.create_task(call(riva, job["http"], clip, name)))
    return list(await asyncio.gather(*tasks))


JOBS["soak"] = soak

if __name__ == "__main__":
    asyncio.run(work(iter(sys.stdin)))
