"""A real `overtone serve` in a process of its own, what it weighs, and how it is disturbed.

Run as a module it is that process: the command itself, whose worker can be killed in the midst of a forward by SIGUSR1.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.harness import ROOT

START_SECONDS = 120.0
STOP_SECONDS = 60.0
KILL_SECONDS = 2.0
MOST_WORDS = 1500
"""Characters of a line of the log that are kept."""
WORKERS = ("overtone-worker", "overtone-rows")
"""What the names of the threads begin with that compute for the engine: the worker, and those that share its rows."""
ADMIN_TOKEN = "benchmark-administrator-0123456789"
ADDRESS = re.compile(r"(Riva gRPC|HTTP) +(\S+)")


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Of a process."""

    memory_mb: float
    """Resident."""
    files: int
    """Open file descriptors."""
    threads: int


class ServeProcess:
    """A context manager; leaving it asks the server to end."""

    def __init__(
        self, model: str, folder: Path, *options: str, log: Path, threads: int = 2, descriptors: int = 0
    ) -> None:
        """folder: of the adapters. log: where its standard error goes. descriptors: that it may open; 0: any.

        Returns when both ports are open.
        """
        token = log.with_suffix(".token")
        token.write_text(ADMIN_TOKEN, "utf-8")
        self.log = log
        command = [sys.executable, "-m", "benchmarks.serving_process", model, "--adapters", str(folder)]
        command += ["--grpc-port", "0", "--http-port", "0", "--admin-token-file", str(token), "--log", "text", *options]
        if descriptors:
            command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        try:
            addresses = self.addresses()
        except BaseException:
            self.process.kill()
            raise
        self.grpc, self.http = addresses["Riva gRPC"], addresses["HTTP"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def addresses(self) -> dict[str, str]:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            found = dict(ADDRESS.findall(self.log.read_text("utf-8", "replace")))
            if len(found) == 2 and self.log.read_text("utf-8", "replace").count("curl"):
                return found
            time.sleep(0.05)
        raise RuntimeError(f"The server did not start:\n{self.log.read_text('utf-8', 'replace')[-3000:]}")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> int:
        """Its exit status; 0 where everything was finished."""
        if self.alive:
            self.resume()
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def pause(self) -> None:
        """Stand still, so that what is measured beside has the machine for itself."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def complaints(self) -> list[str]:
        """Lines of its log that tell of an exception, their last words."""
        return [
            line if len(line) < MOST_WORDS else f"… {line[-MOST_WORDS:]}"
            for line in self.log.read_text("utf-8", "replace").splitlines()
            if '"level": "error"' in line or '"level": "critical"' in line or "Traceback" in line
        ]

    def kill_worker(self) -> None:
        self.process.send_signal(signal.SIGUSR1)

    def weight(self) -> Weight:
        process = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text("utf-8").splitlines())
        return Weight(
            memory_mb=int(status["VmRSS"].split()[0]) / 1024,
            files=len(list((process / "fd").iterdir())),
            threads=int(status["Threads"]),
        )

    def processor_seconds(self) -> float:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """An administrator's request. Raises HTTPError."""
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        request = urllib.request.Request(self.http + path, data=body, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            content: bytes = response.read()
        return content

    def adapters(self) -> list[dict[str, Any]]:
        content = json.loads(self.ask("GET", "/v1/admin/adapters"))
        found: list[dict[str, Any]] = content["data"]
        return found

    def metrics(self) -> dict[str, float]:
        """By name; those with labels are added up."""
        found: dict[str, float] = {}
        for line in self.ask("GET", "/v1/metrics").decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found


def kill_computing_worker() -> None:
    """End the worker, or a thread that shares its rows, while it computes: as a fault below Python would."""
    until = time.monotonic() + KILL_SECONDS
    while time.monotonic() < until:
        for thread in threading.enumerate():
            if thread.name.startswith(WORKERS) and thread.ident is not None and computes(thread.ident):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
                return
        time.sleep(0.002)


def computes(thread: int) -> bool:
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "compute":
            return True
        frame = frame.f_back
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    from overtone.cli import main as overtone

    signal.signal(
        signal.SIGUSR1, lambda number, frame: threading.Thread(target=kill_computing_worker, daemon=True).start()
    )
    return overtone(["serve", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
