"""`overtone serve`: what it starts, how it ends, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overtone import cli
from overtone.checkpoints.load import save_model
from overtone.cli import serve as command
from overtone.cli.arguments import CommandParser
from overtone.errors import UsageError
from support.small_models import add_trained, small_model

pytest.importorskip("starlette", reason="the serving extra is not installed")

import grpc
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from overtone.serving.riva import protobuf
from overtone.serving.streaming.stream import StreamSettings
from support.riva_service import file_of
from support.speaking_model import spoken
from support.web_service import eventually, form, web_service


def settings(*words: str) -> object:
    parser = CommandParser(prog="overtone serve")
    command.add_arguments(parser)
    return command.settings_of(parser.parse(list(words)))


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["serve", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_stream_that_the_model_cannot_hear_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = failure(capsys, "--stream", "0/1.6/1.6")
    assert "chunk is 0.0 s" in message
    assert "one frame" in message
    assert "right is 99.0 s" in failure(capsys, "--stream", "0.8/1.6/99")


def test_options_become_settings(tmp_path: Path) -> None:
    found = settings(
        "base.nemo", "--adapters", str(tmp_path), "--host", "0.0.0.0", "--grpc-port", "1", "--http-port", "2",
        "--tokens", "t", "--admin-token-file", "a", "--tls-cert", "c", "--tls-key", "k", "--client-ca", "ca",
        "--max-batch", "4", "--max-queue", "32", "--max-seconds", "60", "--max-megabytes", "3", "--grace", "5",
        "--capacity", "8", "--dtype", "float32", "--language", "de-DE", "--origin", "https://example.org/",
        "--stream", "0.16/1.92/1.92", "--finals", "chunks", "--stream-mode", "buffered", "--health-port", "3",
        "--alias", "whisper-1=medical", "--alias", "b=base+legal", "--prompt-boost", "4",
    )  # fmt: skip
    assert (found.model, found.adapters, found.host) == ("base.nemo", tmp_path, "0.0.0.0")
    assert (found.grpc_port, found.http_port, found.language) == (1, 2, "de-DE")
    assert (found.tokens, found.admin_token_file) == (Path("t"), Path("a"))
    assert (found.tls_certificate, found.tls_key, found.client_authority) == (Path("c"), Path("k"), Path("ca"))
    assert (found.engine.max_batch, found.engine.max_queue) == (4, 32)
    assert (found.limits.max_seconds, found.limits.max_bytes) == (60.0, 3 * 2**20)
    assert (found.grace_seconds, found.capacity, found.compute_dtype) == (5.0, 8, "float32")
    assert (found.stream.chunk, found.stream.left, found.stream.right) == (0.16, 1.92, 1.92)
    assert (found.stream.finals, found.stream.mode) == ("chunks", "buffered")
    assert found.origins == {"https://example.org"}
    assert (found.aliases, found.prompt_boost) == ({"whisper-1": "medical", "b": "base+legal"}, 4.0)
    assert found.health_port == 3
    plain = settings()
    assert plain.stream == StreamSettings()
    assert (plain.model, plain.host, plain.grpc_port, plain.http_port) == ("fundamental", "127.0.0.1", 50051, 9000)


def test_several_models_have_names_adapters_and_languages(tmp_path: Path) -> None:
    folder = tmp_path / "german"
    found = settings(
        "models/english.nemo", "de=other.nemo", "--adapters", f"de={folder}", "--adapters", "english=s3://bucket/a",
        "--language", "en-GB", "--language", "de=de-DE",
    )  # fmt: skip
    assert [(own.base, own.model, own.adapters, own.adapters_from, own.language) for own in found.of_each_base()] == [
        ("english", "models/english.nemo", None, "s3://bucket/a", "en-GB"), ("de", "other.nemo", folder, "", "de-DE"),
    ]  # fmt: skip
    alone = settings("en=base.nemo", "--adapters", "en=b", "--adapters", "en=c")
    assert (alone.base, alone.model, alone.adapters, alone.more) == ("en", "base.nemo", Path("c"), ())
    assert settings("--adapters", "a=b").adapters == Path("a=b")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a.nemo", "b/a.nemo"], "Two bases are called 'a'"),
        (["a.nemo", "base=b.nemo"], "cannot be called 'base'"),
        (["a.nemo", "b.nemo", "--adapters", "folder"], "--adapters a=folder"),
        (["a.nemo", "b.nemo", "--adapters", "c=folder"], "no base is called 'c'"),
        (["a=a.nemo", "--adapters", "one", "--adapters", "a=two"], "given twice for a: one and two"),
        (["a=a.nemo", "--adapters", "a=one", "--adapters", "two"], "given twice for a: one and two"),
        (["a.nemo", "--language", "a=de-DE"], "--language a=de-DE: no base is called 'a'. Known: none"),
        (["base=a.nemo", "b.nemo"], "that means any of them. Give each a name of its own: NAME=MODEL."),
        (["org/a@main", "b.nemo"], "Give each a name of its own: NAME=MODEL."),
        (["a.nemo", "b.nemo", "--adapters", "a=one", "--adapters", "a=two"], "given twice for a: one and two"),
        (["a.nemo", "b.nemo", "--adapters", "a=one", "--adapters", "b=one"], "one folder is given to two bases"),
        (["a.nemo", "b.nemo", "--demo"], "--demo goes with one base"),
        (["a.nemo", "b.nemo", "--learn", "--adapters", "a=one"], "--learn goes with one base"),
    ],
)
def test_several_models_that_cannot_be_told_apart(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert told in failure(capsys, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["--grpc-port", "x"],
        ["--http-port", "70000"],
        ["--capacity", "0"],
        ["--tokne", "f"],
        ["--stream", "0.8/1.6"],
        ["--alias", "medical"],
        ["--alias", "=medical"],
        ["--prompt-boost", "-1"],
    ],
)
def test_mistaken_options(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert "overtone serve --help" in failure(capsys, *words)


def test_the_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "is_installed", lambda module: module not in ("grpc", "uvicorn"))
    message = failure(capsys)
    assert "needs grpcio, uvicorn, which are not installed" in message
    assert "pip install 'overtone[serve]'" in message


def test_packages_are_those_of_the_extra() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    extra = re.search(r"^serve = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert extra is not None
    assert set(re.findall(r'"([a-z-]+)', extra[1])) == {*command.PACKAGES.values(), *command.OPTIONAL}
    assert all(map(command.is_installed, command.PACKAGES))
    assert not command.is_installed("no_such_package.inside")


def test_the_demo_says_what_to_do_without_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "overtone_demo").mkdir()
    message = failure(capsys, "--demo")
    assert "overtone_demo*/" in message
    assert "`overtone demo`" in message
    assert "elsewhere holds no adapter" in failure(capsys, "--demo", "elsewhere")


def test_the_newest_demo_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("overtone_demo-2", "overtone_demo", "overtone_demo-3")):
        for kept in ("prompts-best", "prompts-last", "prompts-step1"):
            folder = tmp_path / name / "run/checkpoints" / kept
            folder.mkdir(parents=True)
            if name != "overtone_demo-3":
                (folder / "adapter.yaml").write_text("")
        os.utime(tmp_path / name, (1000.0 + index, 1000.0 + index))
    assert command.demo_adapter("") == Path("overtone_demo/run/checkpoints/prompts-best")
    assert command.demo_adapter("overtone_demo-2") == Path("overtone_demo-2/run/checkpoints/prompts-best")


def test_files_and_ports_are_checked_before_anything_is_open(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    ports = ("--grpc-port", "0", "--http-port", "0")
    assert "no folder" in failure(capsys, str(model), "--adapters", str(tmp_path / "nothing"), *ports)
    assert "cannot be read" in failure(capsys, str(model), "--tokens", str(tmp_path / "nothing"), *ports)
    with web_service(None) as other:
        taken = str(other.addresses.http_port)
        assert f"Port {taken}" in failure(capsys, str(model), "--http-port", taken, "--grpc-port", "0")
        assert f"Port {taken}" in failure(capsys, str(model), "--http-port", "0", "--grpc-port", taken)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; `adapters/medical` beside it, and the adapter of a demo."""
    folder = tmp_path_factory.mktemp("models")
    adapted = small_model(name="small")
    for name, path in (("medical", "adapters/medical"), ("prompts", "overtone_demo/run/checkpoints/prompts-best")):
        add_trained(adapted, name)
        adapted.adapters.save(name, folder / path)
        adapted.adapters.remove(name)
    return save_model(adapted, folder / "model")


class Running:
    """`overtone serve` as a process."""

    def __init__(self, *words: str, folder: Path) -> None:
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "overtone", "serve", *words, "--http-port", "0", "--grpc-port", "0"],
            cwd=folder, env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        self.lines: list[str] = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()
        eventually(lambda: bool(self.started()) or self.process.poll() is not None, 90)
        assert self.started(), self.lines
        self.url = self.started()[0]["http"]

    def logged(self) -> list[dict[str, Any]]:
        """Its log: every line of standard error is JSON."""
        return [json.loads(line) for line in self.lines]

    def started(self) -> list[dict[str, Any]]:
        return [line for line in self.logged() if line.get("event") == "started"]

    def get(self, path: str) -> object:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.load(response)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.reader.join(10)
        return code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_from_its_start_to_a_signal(model: Path, number: signal.Signals) -> None:
    running = Running(str(model), "--adapters", "adapters", "--demo", "--dtype", "float32", folder=model.parent)
    try:
        names = [entry["id"] for entry in running.get("/v1/models")["data"]]
        assert names == ["small", "small+medical", "small+prompts"]
        assert running.get("/v1/health/ready")["status"] == "ready"
        content_type, body = form(file_of(spoken("abc")), model="prompts")
        request = urllib.request.Request(
            f"{running.url}/v1/audio/transcriptions", data=body, headers={"Content-Type": content_type}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert "text" in json.load(response)
        assert running.end(number) == 0
    finally:
        running.process.kill()
        running.process.wait()
    text = "".join(running.lines)
    assert "small · adapters: medical, prompts" in text
    logged = running.logged()
    call = next(line for line in logged if line.get("method") == "POST /v1/audio/transcriptions")
    assert (call["adapter"], call["code"], call["door"]) == ("prompts", "200", "http")
    assert logged[-1]["message"] == "stopped"
    assert "Traceback" not in text


def test_interrupts_without_patience_end_the_server_without_a_traceback(model: Path) -> None:
    """The first one lets an open session go on; the second one ends the process at once."""
    running = Running(str(model), "--dtype", "float32", folder=model.parent)
    try:
        with connect(f"ws{running.url.removeprefix('http')}/v1/realtime") as websocket:
            websocket.recv(timeout=60)
            running.process.send_signal(signal.SIGINT)
            eventually(lambda: any('"stopping' in line for line in running.lines))
            for _ in range(4):
                running.process.send_signal(signal.SIGINT)
            assert running.process.wait(60) == -signal.SIGINT
    finally:
        running.process.kill()
        running.process.wait()
    running.reader.join(10)
    assert "Traceback" not in "".join(running.lines)


def test_what_runs_is_finished_when_the_server_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with web_service(tmp_path, adapters=("swap",)) as service:
        engine = service.server.engine
        forward: Callable[..., object] = engine._forward
        begun, told = threading.Event(), threading.Event()

        def late(rows: object) -> object:
            begun.set()
            assert told.wait(20)
            return forward(rows)

        monkeypatch.setattr(engine, "_forward", late)  # not done before the server was told to stop
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(service.text(file_of(spoken("abc")), model="swap")))
        thread.start()
        assert begun.wait(20)
        stopping = asyncio.run_coroutine_threadsafe(service.server.stop(20.0), service.loop)
        eventually(lambda: service.server.requests.closing)
        time.sleep(0.2)
        told.set()
        assert stopping.result(30) is True
        thread.join(30)
        assert answers == ["bac"]
        with pytest.raises(ConnectionRefusedError):
            service.get("/v1/health/live")


def test_a_session_that_goes_on_is_ended_with_the_grace(tmp_path: Path) -> None:
    with web_service(tmp_path, adapters=()) as service:
        address = f"ws://localhost:{service.addresses.http_port}/v1/realtime"
        with connect(address) as websocket:
            websocket.recv(timeout=10)
            assert service.run(service.server.stop(0.3)) is False
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert service.server.requests.active == 0


def test_a_call_that_is_cut_off_is_told(tmp_path: Path) -> None:
    stopped = threading.Event()

    def endless() -> Iterator[protobuf.StreamingRecognizeRequest]:
        yield protobuf.StreamingRecognizeRequest(streaming_config=protobuf.StreamingRecognitionConfig())
        stopped.wait(20)

    with (
        web_service(tmp_path, adapters=()) as service,
        grpc.insecure_channel(service.addresses.grpc) as channel,
    ):
        method = channel.stream_stream(
            f"/{protobuf.ASR_SERVICE}/StreamingRecognize",
            protobuf.StreamingRecognizeRequest.SerializeToString,
            protobuf.StreamingRecognizeResponse.FromString,
        )
        responses = method(endless(), timeout=30.0)
        assert service.server.riva is not None
        eventually(lambda: service.server.riva.servicer.open == 1)
        assert service.run(service.server.stop(0.3)) is False
        stopped.set()
        assert responses.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


def test_the_command_does_not_load_the_extra_before_it_runs() -> None:
    code = "import sys, overtone.cli.serve; print({'grpc', 'starlette', 'uvicorn', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    with pytest.raises(UsageError):
        command.demo_adapter(str(Path("nothing")))


def test_a_hangup_reloads_tokens_and_ends_nothing(model: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"

    def write(token: str) -> None:
        digest = hashlib.sha256(token.encode()).hexdigest()
        tokens.write_text(f"tenants: {{anna: {{tokens: ['sha256:{digest}'], adapters: all}}}}")

    def status(token: str) -> int:
        request = urllib.request.Request(f"{running.url}/v1/models", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    def told(words: str) -> bool:
        return any(words in line["message"] for line in running.logged())

    write("first")
    running = Running(str(model), "--tokens", str(tokens), "--dtype", "float32", folder=model.parent)
    try:
        assert (status("first"), status("second")) == (200, 401)
        tokens.write_text("tenants: [")
        running.process.send_signal(signal.SIGHUP)
        eventually(lambda: told("not reloaded, all stays as it was"))
        assert status("first") == 200
        write("second")
        running.process.send_signal(signal.SIGHUP)
        eventually(lambda: told("reloaded tokens"))
        assert (status("first"), status("second")) == (401, 200)
        assert running.end(signal.SIGTERM) == 0
    finally:
        running.process.kill()
        running.process.wait()
