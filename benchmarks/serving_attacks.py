"""Attacks on a live `overtone serve`: what others feel of them meanwhile, and how soon it is over.

    python -m benchmarks.serving_attacks --page benchmarks/SERVING.md

The server has tokens of two tenants. One attacks, or somebody without a token does; the other one asks for health and
for transcriptions all the while. Everything goes to this machine's own loopback, in bounded numbers.
"""

from __future__ import annotations

import argparse
import io
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import soundfile
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from benchmarks.harness import machine, parse, print_machine, write_json
from benchmarks.plots import write_section
from benchmarks.serving_adapters import SMOKE_STRENGTH, STRENGTH, adapter_name, make_adapters, sound, stand_in
from benchmarks.serving_process import ServeProcess
from benchmarks.serving_target import ATTACKER, PATIENCE, SMOKE, VICTIM, Size, Target, UnfinishedCall
from overtone.checkpoints.load import load_model
from overtone.serving.auth.guard import hash_token
from overtone.serving.descriptors import raise_limit
from overtone.serving.riva import protobuf

SECONDS = 3.0
"""Of the victim's recordings."""
NORMAL = 2.0
"""A recording is answered normally again once it takes at most so many times as long as before."""
NO_CALL = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The beginning of a connection of HTTP/2: its settings, which are none."""


Attack = Callable[[Target], Iterator[str]]
"""Yields once it is under way what the attacker got; what follows is done afterwards."""


@contextmanager
def held(clients: list[Any]) -> Iterator[None]:
    """Clients that are closed afterwards."""
    with ExitStack() as stack:
        for client in clients:
            stack.callback(client.close)
        yield


def still_open(clients: list[socket.socket]) -> int:
    """Number of connections that the server has not closed."""
    count = 0
    for client in clients:
        client.setblocking(False)
        try:
            while client.recv(4096):  # what the server said before it closed it, or not
                pass
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


def idle_connections(target: Target) -> Iterator[str]:
    clients = [target.open() for _ in range(target.size.idle)]
    with held(clients):
        yield f"{len(clients)} opened, {still_open(clients)} open"


def half_a_head(target: Target) -> Iterator[str]:
    begin = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
    clients = [target.open(begin) for _ in range(target.size.half_open)]
    with held(clients):
        yield f"{len(clients)} opened, {still_open(clients)} open"


def idle_grpc_connections(target: Target, begin: bytes = b"") -> Iterator[str]:
    host, _, port = target.server.grpc.partition(":")
    clients = []
    for _ in range(target.size.idle):
        clients.append(socket.create_connection((host, int(port)), timeout=PATIENCE))
        with suppress(ConnectionError):  # it may be closed already
            clients[-1].sendall(begin)
    with held(clients):
        yield f"{len(clients)} opened, {still_open(clients)} open"


def grpc_connections_without_a_call(target: Target) -> Iterator[str]:
    return idle_grpc_connections(target, NO_CALL)


def calls_without_a_token(target: Target) -> Iterator[str]:
    """Calls on one connection that never send their message."""
    with grpc.insecure_channel(target.server.grpc) as channel:
        method = channel.stream_stream(f"/{protobuf.ASR_SERVICE}/Recognize")
        ended = threading.Event()

        def silence() -> Iterator[bytes]:
            ended.wait(PATIENCE)
            yield from ()

        calls = [method(silence()) for _ in range(target.size.half_open)]
        until = time.monotonic() + PATIENCE
        while any(call.is_active() for call in calls) and time.monotonic() < until:
            time.sleep(0.01)
        ended.set()
        yield f"{len(calls)} opened, {sum(call.is_active() for call in calls)} open"


def messages_without_a_token(target: Target) -> Iterator[str]:
    """Large messages, each of them short of its end, sent as fast as the server lets them come."""
    size = target.size
    calls = [UnfinishedCall(target.server.grpc, size.message_bytes) for _ in range(size.messages)]
    with held(calls):
        sent = sum(call.send() for call in calls)
        yield f"{sent / 2**20:.1f} MB of {size.messages * size.message_bytes / 2**20:.0f} were taken"


def silent_sessions(target: Target) -> Iterator[str]:
    """WebSockets of one tenant that say nothing."""
    refused = 0
    with ExitStack() as stack:
        for _ in range(target.size.sessions):
            try:
                stack.enter_context(session(target))
            except WebSocketException:
                refused += 1
        yield f"{target.size.sessions - refused} sessions, {refused} refused"


def session(target: Target) -> Any:
    url = f"ws{target.server.http.removeprefix('http')}/v1/realtime"
    headers = {"Authorization": f"Bearer {ATTACKER}"}
    return connect(url, additional_headers=headers, open_timeout=PATIENCE, close_timeout=1.0)


def wide_recordings(target: Target) -> Iterator[str]:
    """Small files of much silence in many channels, whose clients leave."""
    audio = wide_silence(target.size.minutes)
    senders = [
        threading.Thread(target=target.post, args=(audio, ATTACKER), kwargs={"leave_after": 5.0})
        for _ in range(target.size.uploads)
    ]
    for sender in senders:
        sender.start()
    time.sleep(0.3)
    yield f"{len(senders)} files of {len(audio) / 1e6:.1f} MB and {target.size.minutes:g} minutes"
    for sender in senders:
        sender.join()


def wide_silence(minutes: float) -> bytes:
    """FLAC of eight channels at 192 kHz."""
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", 192_000, 8, format="FLAC") as file:
        block = np.zeros((192_000, 8), np.int16)
        for _ in range(max(1, round(60 * minutes))):
            file.write(block)
    return content.getvalue()


def large_changes(target: Target) -> Iterator[str]:
    """Changes of sessions' settings that are as large as a message may be."""
    phrases = [{"phrases": [f"word{index}" for index in range(240_000)]}]
    boosting = {"enable_word_boosting": True, "word_boosting_list": phrases}
    update = json.dumps({"type": "transcription_session.update", "session": {"word_boosting": boosting}})
    answers = []
    with ExitStack() as stack:
        for _ in range(target.size.changes):
            opened = stack.enter_context(session(target))
            with suppress(WebSocketException):
                opened.send(update)
                answers.append(opened)
        yield f"{len(answers)} of {len(update) / 1e6:.1f} MB"


ATTACKS: dict[str, Attack] = {
    "idle connections": idle_connections,
    "connections with half a head": half_a_head,
    "idle connections to gRPC": idle_grpc_connections,
    "connections to gRPC without a call": grpc_connections_without_a_call,
    "calls without a token": calls_without_a_token,
    "messages without a token": messages_without_a_token,
    "silent sessions of one tenant": silent_sessions,
    "silence in eight channels at 192 kHz": wide_recordings,
    "changes of 4 MB": large_changes,
}
"""By what they are made of."""


def attacked(target: Target, name: str, attack: Attack, usual: float) -> dict[str, Any]:
    """Figures of one attack. usual: seconds of the victim's recordings before."""
    server = target.server
    before, log = server.weight(), server.log.stat().st_size
    running = attack(target)
    got = next(running)
    health, checks, texts, memory = [], [], [], [before.memory_mb]
    for _ in range(target.size.asked):
        health.append(target.health())
        checks.append(target.grpc_health())
        texts.append(target.transcribe())
        memory.append(server.weight().memory_mb)
    for _ in running:
        pass
    ended = recovered = time.monotonic()
    while target.transcribe() > max(0.5, NORMAL * usual) and time.monotonic() - ended < PATIENCE:
        recovered = time.monotonic()
    return {
        "attack": name,
        "got": got,
        "health": max(health),
        "grpc_health": max(checks),
        "text": statistics.median(texts),
        "slowest_text": max(texts),
        "memory_mb": [before.memory_mb, max(memory), server.weight().memory_mb],
        "log_bytes": server.log.stat().st_size - log,
        "recovery": max(0.0, recovered - ended),
    }


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of all attacks, the first ones once more with few descriptors."""
    size = SMOKE if arguments.smoke else Size()
    source = stand_in(folder / "model") if arguments.smoke else arguments.model
    (folder / "store").mkdir()
    strength = SMOKE_STRENGTH if arguments.smoke else STRENGTH
    make_adapters(load_model(source), folder / "store", [adapter_name(0)], dim=4, strength=strength)
    tenants = {
        name: {"tokens": [hash_token(token)], "adapters": "all"}
        for name, token in (("victim", VICTIM), ("attacker", ATTACKER))
    }
    (folder / "tokens.yaml").write_text(json.dumps({"tenants": tenants}), "utf-8")
    content = io.BytesIO()
    soundfile.write(content, sound(SECONDS)[: round(SECONDS * 16_000)], 16_000, format="WAV")
    figures: dict[str, Any] = {"attacks": [], "alive": True}
    for descriptors, names in ((0, list(ATTACKS)), (size.descriptors, list(ATTACKS)[:4])):
        options = ("--tokens", str(folder / "tokens.yaml"))
        log = folder / f"log{descriptors}"
        with ServeProcess(
            source, folder / "store", *options, log=log, threads=arguments.threads, descriptors=descriptors
        ) as server:
            target = Target(server=server, size=size, recording=content.getvalue())
            usual = statistics.median(target.transcribe() for _ in range(5))
            for name in names:
                shown = f"{name}, {descriptors} file descriptors" if descriptors else name
                figures["attacks"].append(attacked(target, shown, ATTACKS[name], usual))
                print(json.dumps(figures["attacks"][-1]), flush=True)
            figures["alive"] = figures["alive"] and server.alive
            figures.setdefault("usual", usual)
        figures["alive"] = figures["alive"] and server.stop() == 0
    return figures


def section(figures: dict[str, Any]) -> str:
    """Section of the page."""
    told = machine()
    lines = [
        "## Attacks\n",
        f"`python -m benchmarks.serving_attacks` ({told['processor']}, {told['cores']} cores that the server and its "
        f"clients share, load {told['load']:.1f}): tokens of two tenants. One of them attacks, or somebody "
        "without a token; the other one asks for health and for the text of "
        f"{SECONDS:g} s all the while, which takes {figures['usual']:.2f} s by itself. *Over*: time from the end of "
        f"the attack to answers that are at most {NORMAL:g} times as slow as before, or take half a second. The server "
        f"{'was well afterwards' if figures['alive'] else '**did not live through it**'}.\n",
        "| attack | the attacker got | health, at most | over gRPC | a text | at most | memory, MB | log, kB | over |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for found in figures["attacks"]:
        memory = " → ".join(f"{value:.0f}" for value in found["memory_mb"])
        lines.append(
            f"| {found['attack']} | {found['got']} | {found['health']:.2f} s | {found['grpc_health']:.2f} s | "
            f"{found['text']:.2f} s | {found['slowest_text']:.2f} s | {memory} | {found['log_bytes'] / 1000:.0f} | "
            f"{found['recovery']:.1f} s |"
        )
    lines.append(
        "\nMemory: before, at most, and after the attack. Connections that the attacker finds open may still wait to "
        "be accepted. Where every connection of gRPC is taken, new ones are closed until those without a call have "
        "ended: after 5 s where file descriptors are few. Health is answered over HTTP meanwhile."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fundamental", help="a .nemo file, a model folder, or a name")
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    parser.add_argument("--page", type=Path, help="write the section of this page")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and small attacks: only to see that it runs")
    arguments = parse(parser)
    print_machine()
    raise_limit()
    with tempfile.TemporaryDirectory() as directory:
        figures = measure(Path(directory), arguments)
    content = section(figures)
    print(content)
    if arguments.page is not None:
        write_section(arguments.page, "attacks", content)
    write_json(arguments.json, figures)
    sys.exit(int(not figures["alive"]))


if __name__ == "__main__":
    main()
