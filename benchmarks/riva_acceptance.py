"""NVIDIA's unmodified Riva client scripts and integration tests against a running server.

    git clone https://github.com/nvidia-riva/python-clients
    python -m venv riva && riva/bin/pip install nvidia-riva-client requests
    overtone serve --demo &
    python -m benchmarks.riva_acceptance --clients python-clients --python riva/bin/python --adapter NAME

Exit code 1 if anything fails that is not excluded. The checkout is copied; nothing is written into it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

SAMPLE = "data/examples/en-US_sample.wav"
LONG_SAMPLE = "data/examples/en-US_AntiBERTa_for_word_boosting_testing.wav"
RUSSIAN = "Error: Unavailable model requested. Lang: ru-RU, Type: {}"
SECONDS = 300.0

EXCLUDED = {
    "integration: test_transcript_affecting_params": "asserts the transcripts of one model, punctuated and normalised",
    "integration: test_word_time_offsets": "asserts one model's time stamps to the millisecond",
    "integration: test_list_devices, test_transcribe_mic.sh": "needs a sound card and PyAudio; no server is asked",
    "tests/unit": "asks no server",
}

Look = Callable[[Path, str], str]
"""Folder and output -> what is wrong with them, or an empty string."""


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    command: list[str]
    expected: tuple[str, ...] = ()
    """Each must be in the output."""
    exit_codes: tuple[int, ...] = (0,)
    look: Look | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    name: str
    verdict: str
    """PASS, FAIL or EXCLUDED."""
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Options:
    python: str
    server: str
    model: str
    adapter: str
    http: str
    tls_server: str
    tls_root: str
    metadata: list[str] = field(default_factory=list)

    def script(self, name: str, *arguments: str, server: str = "") -> list[str]:
        command = [self.python, f"scripts/asr/{name}.py", "--server", server or self.server, *arguments]
        return [*command, "--metadata", *self.metadata] if self.metadata else command


def checks(options: Options) -> Iterator[Check]:
    yield from offline_checks(options)
    yield from stream_checks(options)
    if options.tls_server:
        tls = ["--use-ssl", "--ssl-root-cert", options.tls_root, "--metadata", "authorization", "Bearer token"]
        command = options.script("transcribe_file", *tls, "--input-file", SAMPLE, server=options.tls_server)
        yield Check(name="transcribe_file over TLS", command=command, expected=("##",))
    if options.http:
        arguments = ["--input-file", SAMPLE, "--word-time-offsets", "--output-text", "realtime.txt"]
        command = options.script("realtime_asr_client", *arguments, server=options.http)
        yield Check(name="realtime_asr_client", command=command, look=has_text("realtime.txt"))
    yield from integration_checks(options)


def offline_checks(options: Options) -> Iterator[Check]:
    script = "transcribe_file_offline"
    command = options.script(script, "--list-models")
    yield Check(name=f"{script} --list-models", command=command, expected=("Available ASR models", "en-US"))
    models = ["", options.model, *([options.adapter, f"{options.model}+{options.adapter}"] if options.adapter else [])]
    for model in models:
        command = options.script(script, "--input-file", SAMPLE, *(["--model-name", model] if model else []))
        yield Check(name=f"{script} --model-name '{model}'", command=command, expected=("Final transcript: ",))
    rich = ["--word-time-offsets", "--max-alternatives", "3", "--profanity-filter", "--automatic-punctuation"]
    command = options.script(script, "--input-file", LONG_SAMPLE, *rich)
    yield Check(
        name=f"{script} with options", command=command, expected=("Final transcript: ", '"startTime"', '"confidence"')
    )
    command = options.script(script, "--input-file", SAMPLE, "--language-code", "ru-RU")
    yield Check(name=f"{script} --language-code ru-RU", command=command, expected=(RUSSIAN.format("offline"),))
    command = options.script(script, "--input-file", SAMPLE, "--model-name", "no-such-model")
    yield Check(name=f"{script} of an unknown model", command=command, expected=("model=no-such-model; available: ",))


def stream_checks(options: Options) -> Iterator[Check]:
    script = "transcribe_file"
    command = options.script(script, "--list-models")
    yield Check(name=f"{script} --list-models", command=command, expected=("Available ASR models", "en-US"))
    command = options.script(script, "--input-file", SAMPLE, "--show-intermediate", "--simulate-realtime")
    yield Check(name=f"{script} --show-intermediate --simulate-realtime", command=command, expected=(">>", "##"))
    boosting = ["--boosted-lm-words", "AntiBERTa", "--boosted-lm-score", "20"]
    custom = ["--custom-configuration", f"adapter:{options.adapter}"] if options.adapter else []
    arguments = ["--input-file", LONG_SAMPLE, "--word-time-offsets", *boosting, *custom, "--stop-history", "800"]
    command = options.script(script, *arguments, "--metadata", "authorization", "Bearer x")
    yield Check(
        name=f"{script} with boosting, adapter, endpointing", command=command, expected=("Transcript 0:", "Start (ms)")
    )
    arguments = ["--input-file", SAMPLE, "--num-clients", "8", "--num-iterations", "2", "--word-time-offsets"]
    command = options.script("riva_streaming_asr_client", *arguments)
    yield Check(name="riva_streaming_asr_client, 8 clients", command=command, look=agree(clients=8, iterations=2))
    command = options.script(script, "--input-file", SAMPLE, "--speaker-diarization")
    yield Check(
        name=f"{script} --speaker-diarization is refused by name",
        command=command, exit_codes=(1,), expected=("UNIMPLEMENTED", "enable_speaker_diarization"),
    )  # fmt: skip


# What scripts leave behind


def has_text(name: str) -> Look:
    def look(folder: Path, output: str) -> str:
        path = folder / name
        return "" if path.is_file() and path.read_text("utf-8").strip() else f"{name} is missing or empty"

    return look


def agree(*, clients: int, iterations: int) -> Look:
    """Every client of a run heard the same, as often as it asked."""

    def look(folder: Path, output: str) -> str:
        heard = set()
        for client in range(clients):
            path = folder / f"output_{client}.txt"
            if not path.is_file():
                return f"{path.name} is missing"
            finals = re.findall(r"Transcript 0: (.*)", path.read_text("utf-8"))
            if not finals or len(finals) % iterations:
                return f"{path.name} holds {len(finals)} final transcripts of {iterations} iterations"
            per_run = len(finals) // iterations
            heard |= {tuple(finals[first : first + per_run]) for first in range(0, len(finals), per_run)}
        return "" if len(heard) == 1 else f"{len(heard)} different transcripts of one recording"

    return look


# NVIDIA's integration tests, function by function

PRELUDE = """
set -e
here=tests/integration
source $here/export_server_vars.sh
source $here/init_server_cli_params.sh
source $here/test_functions.sh
source $here/asr/test_functions.sh
source $here/prepare_test_output_dir.sh $here/asr {script}.py
{definition}
{call}
"""


def integration_checks(options: Options) -> Iterator[Check]:
    """The functions of their shell scripts that ask nothing of a particular model."""
    for script, kind in (("transcribe_file_offline", "offline"), ("transcribe_file", "online")):
        yield string_presence(options, script, kind)
    yield string_presence(options, "riva_streaming_asr_client", "online")
    for script, name in (
        ("transcribe_file", "test_verbose_format"),
        ("transcribe_file", "test_show_intermediate"),
        ("transcribe_file", "test_simulate_realtime"),
        ("riva_streaming_asr_client", "test_simulate_realtime"),
        ("riva_streaming_asr_client", "test_num_clients"),
        ("riva_streaming_asr_client", "test_num_iterations"),
    ):
        yield integration(options, script, name, f"{name} {script}.py")


def string_presence(options: Options, script: str, kind: str) -> Check:
    text = RUSSIAN.format(kind)
    wanted = text if kind == "offline" else f'details = "{text}"'
    arguments = [f"--input-file {SAMPLE} --language-code ru-RU", wanted, "language_code_ru_RU", str(kind == "online")]
    arguments[-1] = "1" if kind == "online" else "0"
    call = " ".join(["test_string_presence", f"{script}.py", *(f"'{argument}'" for argument in arguments)])
    return integration(options, script, "test_string_presence", call)


def integration(options: Options, script: str, name: str, call: str) -> Check:
    # The function's own text where it stands in the executable script and not in a file to be sourced.
    definition = f"eval \"$(sed -n '/^function {name}()/,/^}}/p' tests/integration/asr/test_{script}.sh)\""
    text = PRELUDE.format(script=script, definition=definition, call=call)
    # "FAILED" also where the function forgets to exit with an error.
    return Check(
        name=f"integration: {name} of {script}",
        command=["bash", "-c", text, f"tests/integration/asr/test_{script}.sh"],
        look=lambda folder, output: output[-300:] if "FAILED" in output else "",
    )


# Running


def run(check: Check, folder: Path, options: Options) -> Verdict:
    for path in folder.glob("output_*.txt"):
        path.unlink()
    environment = {
        **os.environ,
        "PATH": f"{Path(options.python).parent}{os.pathsep}{os.environ['PATH']}",
        "SERVER": options.server,
        "PYTHONWARNINGS": "ignore",
    }
    began = time.monotonic()
    try:
        finished = subprocess.run(
            check.command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Verdict(name=check.name, verdict="FAIL", seconds=SECONDS, detail="no end in sight")
    output = finished.stdout + finished.stderr
    faults = [f"'{text}' is not in the output" for text in check.expected if text not in output]
    if finished.returncode not in check.exit_codes:
        faults.append(f"exit code {finished.returncode}: {output.strip()[-300:]}")
    if check.look is not None and (fault := check.look(folder, output)):
        faults.append(fault)
    seconds = time.monotonic() - began
    return Verdict(name=check.name, verdict="FAIL" if faults else "PASS", seconds=seconds, detail="; ".join(faults))


def arguments_of(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=Path, required=True, help="checkout of nvidia-riva/python-clients")
    parser.add_argument("--python", required=True, help="a Python that has nvidia-riva-client")
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--model", default="base", help="name of the base")
    parser.add_argument("--adapter", default="", help="name of an adapter of the server")
    parser.add_argument("--http", default="", help="address of the realtime WebSocket, such as localhost:9000")
    parser.add_argument("--tls-server", default="", help="address of a server with TLS")
    parser.add_argument("--tls-root", default="", help="certificate of its authority")
    parser.add_argument("--metadata", nargs=2, default=[], metavar=("KEY", "VALUE"), help="sent with every call")
    parser.add_argument("--only", default="", help="run the checks whose name contains this")
    parser.add_argument("--json", type=Path, help="write the verdicts here too")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    given = arguments_of(words)
    options = Options(
        python=str(Path(given.python).absolute()),  # not resolved: a virtual environment's Python is a link
        server=given.server,
        model=given.model,
        adapter=given.adapter,
        http=given.http,
        tls_server=given.tls_server,
        tls_root=str(Path(given.tls_root).absolute()),
        metadata=given.metadata,
    )
    verdicts = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("scripts", "tests", "data/examples"):
            shutil.copytree(given.clients / part, folder / part)
        for check in checks(options):
            if given.only in check.name:
                verdicts.append(run(check, folder, options))
                show(verdicts[-1])
    verdicts += [Verdict(name=name, verdict="EXCLUDED", detail=reason) for name, reason in EXCLUDED.items()]
    for verdict in verdicts[-len(EXCLUDED) :]:
        show(verdict)
    failed = sum(verdict.verdict == "FAIL" for verdict in verdicts)
    passed = sum(verdict.verdict == "PASS" for verdict in verdicts)
    print(f"\n{passed} passed, {failed} failed, {len(EXCLUDED)} excluded")
    if given.json:
        given.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1) + "\n", "utf-8")
    return int(failed > 0)


def show(verdict: Verdict) -> None:
    detail = f"  {verdict.detail}" if verdict.detail else ""
    print(f"{verdict.verdict:8}  {verdict.seconds:6.1f} s  {verdict.name}{detail}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
