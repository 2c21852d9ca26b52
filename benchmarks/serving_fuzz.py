"""Damaged inputs against a live `overtone serve`: no crash, no hang, no fault of ours, and no memory that stays.

    python -m benchmarks.serving_fuzz --inputs 5000 --page benchmarks/SERVING.md

Sound files, protobuf messages, forms, JSON, archives, realtime sessions and raw bytes, at every door. A fault is an
INTERNAL, UNKNOWN, DATA_LOSS or UNAVAILABLE of gRPC, a 5xx of HTTP, a server_error of a session, an answer that takes
longer than the patience, an exception in the server's log, or the server's end. The number of an input is its seed:
`--first N --inputs 1` sends one again.
"""

from __future__ import annotations

import argparse
import errno
import http.client
import json
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from benchmarks.harness import parse, print_machine, write_json
from benchmarks.plots import write_section
from benchmarks.serving_adapters import SMOKE_STRENGTH, STRENGTH, adapter_name, make_adapters, stand_in
from benchmarks.serving_mutations import Mutations
from benchmarks.serving_process import ADMIN_TOKEN, ServeProcess, Weight
from overtone.checkpoints.load import load_model
from overtone.serving.riva import protobuf

PATIENCE = 60.0
"""Seconds for an answer, on a machine that may be busy."""
AT_A_TIME = 8
OUR_FAULTS = ("INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE", "DEADLINE_EXCEEDED")
PARTS = 5
"""Memory is looked at after each."""
MEMORY_GROWTH = 0.10
"""Share of its memory that the last part may add."""
NAMES = [adapter_name(index) for index in range(3)]
VICTIM = "victim"
"""The name of uploads."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    number: int
    kind: str
    status: str
    fault: str = ""
    """Fault of the server's answer; empty where all is well."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server that is running."""

    grpc: str
    http: str
    channel: Any
    adapter: Path

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.http.removeprefix("http://"), timeout=PATIENCE)

    def asked(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> str:
        with closing(self.connection()) as connection:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            response.read()
            return str(response.status)

    def called(self, method: str, parts: list[bytes]) -> str:
        """One of the interface's methods with bytes as they are."""
        call = self.channel.stream_stream(f"/{protobuf.ASR_SERVICE}/{method}")
        try:
            for _ in call(iter(parts), timeout=PATIENCE):
                pass
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"


def recognize(target: Target, mutations: Mutations) -> str:
    return target.called("Recognize", [mutations.recognize()])


def stream(target: Target, mutations: Mutations) -> str:
    return target.called("StreamingRecognize", mutations.stream())


def configuration(target: Target, mutations: Mutations) -> str:
    return target.called("GetRivaSpeechRecognitionConfig", [mutations.damaged(mutations.recognize()[:60])])


def form(target: Target, mutations: Mutations) -> str:
    content_type, body = mutations.form()
    return target.asked("POST", "/v1/audio/transcriptions", body, {"Content-Type": content_type})


def minted(target: Target, mutations: Mutations) -> str:
    body = mutations.odd_json(template(target)).encode("utf-8", "replace")
    return target.asked("POST", "/v1/realtime/transcription_sessions", body, {"Content-Type": "application/json"})


def upload(target: Target, mutations: Mutations) -> str:
    path = f"/v1/admin/adapters/{VICTIM}"
    return target.asked("PUT", path, mutations.archive(), {"Authorization": f"Bearer {ADMIN_TOKEN}"})


def raw(target: Target, mutations: Mutations) -> str:
    """Bytes on the socket; whatever comes back first is the status. A damaged length leaves the server waiting."""
    host, port = target.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        try:
            connection.sendall(mutations.raw_request())
            connection.shutdown(socket.SHUT_WR)
            head = connection.recv(65_536)
        except OSError as error:
            if isinstance(error, ConnectionError) or error.errno == errno.ENOTCONN:
                return "closed"
            raise
    return head.split(b" ", 2)[1].decode("latin-1") if head.startswith(b"HTTP/1.1 ") else "closed"


def session(target: Target, mutations: Mutations) -> str:
    try:
        with connect(f"ws{target.http.removeprefix('http')}/v1/realtime", open_timeout=PATIENCE) as websocket:
            for message in mutations.session_messages(template(target)):
                websocket.send(message)
            while True:
                event = json.loads(websocket.recv(timeout=PATIENCE))
                if event["type"] == "error":
                    return str(event["error"]["type"])
                if event.get("is_last_result"):
                    return "OK"
    except ConnectionClosed as error:
        return f"closed {error.rcvd.code if error.rcvd else ''}"
    except InvalidStatus as error:
        return str(error.response.status_code)


def template(target: Target) -> Any:
    return {
        "input_audio_format": "none",
        "input_audio_transcription": {"language": "en-US", "model": NAMES[0], "prompt": ""},
        "input_audio_params": {"sample_rate_hz": 16_000, "num_channels": 1},
        "recognition_config": {"max_alternatives": 1, "enable_word_time_offsets": True, "custom_configuration": ""},
        "speaker_diarization": {"enable_speaker_diarization": False, "max_speaker_count": 0},
        "word_boosting": {"enable_word_boosting": True, "word_boosting_list": [{"phrases": ["a"], "boost": 5.0}]},
        "endpointing_config": {"start_history": 0, "stop_history": 500, "stop_threshold": 0.9},
        "custom_configuration": {},
    }


KINDS: tuple[Callable[[Target, Mutations], str], ...] = (
    recognize, recognize, stream, form, form, session, minted, upload, raw, configuration,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fundamental", help="a .nemo file, a model folder, or a name")
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    parser.add_argument("--page", type=Path, help="write the section of this page")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a hundred inputs")
    arguments = parse(parser)
    if arguments.smoke:
        arguments.inputs = min(arguments.inputs, 100)
    print_machine()
    with tempfile.TemporaryDirectory() as directory:
        figures = fuzz(Path(directory), arguments)
    content = section(figures)
    print(content)
    for fault in [*figures["faults"], *figures["log_faults"]]:
        print(fault)
    if not figures["alive"]:
        print(f"exit status {figures['status']}", *figures["last_words"], sep="\n")
    if arguments.page is not None:
        write_section(arguments.page, "fuzzing", content)
    write_json(arguments.json, figures)
    sys.exit(int(bool(figures["faults"] or figures["log_faults"]) or not figures["alive"]))


def fuzz(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    source = stand_in(folder / "model") if arguments.smoke else arguments.model
    (folder / "shelf").mkdir()
    small, strength = (4, SMOKE_STRENGTH) if arguments.smoke else (32, STRENGTH)
    make_adapters(load_model(source), folder / "shelf", NAMES, dim=small, strength=strength)
    shutil.copytree(folder / "shelf" / NAMES[0], folder / "good")
    log = folder / "log"
    with ServeProcess(source, folder / "shelf", log=log, threads=arguments.threads) as server:
        target = Target(
            grpc=server.grpc, http=server.http, channel=grpc.insecure_channel(server.grpc), adapter=folder / "good"
        )
        numbers = range(arguments.first, arguments.first + arguments.inputs)
        outcomes: list[Outcome] = []
        weights: list[Weight] = []
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            for part in range(PARTS):
                begin, end = (len(numbers) * share // PARTS for share in (part, part + 1))
                outcomes += pool.map(lambda number: attempt(target, number), numbers[begin:end])
                weights += [server.weight()] if server.alive else []
        alive = server.alive
        well = alive and target.asked("GET", "/v1/health/ready", b"", {}) == "200"
        target.channel.close()
        status = server.stop()
    return {
        "inputs": len(outcomes),
        "outcomes": {kind: dict(found) for kind, found in by_kind(outcomes).items()},
        "faults": [vars(outcome) for outcome in outcomes if outcome.fault],
        "slowest": max(outcome.seconds for outcome in outcomes),
        "log_faults": server.complaints(),
        "memory_mb": [weight.memory_mb for weight in weights],
        "files": [weight.files for weight in weights],
        "alive": bool(well and status == 0),
        "status": status,
        "last_words": log.read_text("utf-8", "replace").splitlines()[-20:],
    }


def attempt(target: Target, number: int) -> Outcome:
    mutations = Mutations(seed=number, names=NAMES, adapter=target.adapter)
    send = KINDS[number % len(KINDS)]
    began, fault = time.monotonic(), ""
    try:
        status = send(target, mutations)
    except (OSError, http.client.HTTPException, WebSocketException) as error:
        status = type(error).__name__
        fault = f"no answer: {type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    if status in OUR_FAULTS or (status.isdecimal() and status >= "500") or status in ("server_error", "closed 1011"):
        fault = status
    return Outcome(number=number, kind=send.__name__, status=status, fault=fault, seconds=seconds)


def by_kind(outcomes: list[Outcome]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.kind, Counter())[outcome.status] += 1
    return found


def section(figures: dict[str, Any]) -> str:
    faults = len(figures["faults"]) + len(figures["log_faults"])
    memory, files = figures["memory_mb"], figures["files"]
    bounded = len(memory) == PARTS and memory[-1] <= memory[-2] * (1 + MEMORY_GROWTH)
    lines = [
        "## Damaged inputs\n",
        f"`python -m benchmarks.serving_fuzz --inputs {figures['inputs']}`: "
        f"{'no fault' if not faults else f'**{faults} faults**'} of the server, which "
        f"{'was well afterwards' if figures['alive'] else '**did not live through it**'}; "
        f"the slowest answer took {figures['slowest']:.1f} s. After each fifth of the inputs: memory "
        f"{' → '.join(f'{value:.0f}' for value in memory)} MB ({'bounded' if bounded else '**not bounded**'}), "
        f"open files {' → '.join(map(str, files))}.\n",
        "| input | answers |",
        "|---|---|",
    ]
    for kind, found in sorted(figures["outcomes"].items()):
        told = ", ".join(f"{status} {count}" for status, count in sorted(found.items(), key=lambda item: -item[1]))
        lines.append(f"| {kind} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
