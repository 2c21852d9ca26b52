"""What every benchmark shares: shapes, interleaved timing, the peer process, tables, and a word on the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One model and one batch."""

    name: str
    width: int = 176
    layers: int = 16
    heads: int = 4
    kernel_size: int = 31
    subsampling: str = "striding"
    subsampling_factor: int = 4
    subsampling_channels: int = 176
    scale_input: bool = True
    classes: int = 128
    adapter_dim: int = 32
    batch: int = 8
    seconds: float = 8.0
    tokens: int = 412
    """Target tokens of the whole batch."""

    @property
    def samples(self) -> int:
        return int(self.seconds * 16_000)


SHAPES = {
    "conformer": Shape(name="conformer"),
    "fastconformer": Shape(
        name="fastconformer",
        kernel_size=9,
        subsampling="dw_striding",
        subsampling_factor=8,
        subsampling_channels=256,
        scale_input=False,
    ),
}


def tiny(shape: Shape) -> Shape:
    return replace(shape, width=32, layers=2, subsampling_channels=32, adapter_dim=4, batch=2, seconds=1.0, tokens=6)


def chosen_shapes(arguments: argparse.Namespace) -> list[Shape]:
    shapes = [SHAPES[name] for name in arguments.shapes]
    return [tiny(shape) for shape in shapes] if arguments.smoke else shapes


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="the models to time")
    parser.add_argument("--threads", type=int, default=2, help="threads of every process that is timed")
    parser.add_argument("--rounds", type=int, default=9, help="how often each case is timed, in turn with the others")
    parser.add_argument("--nemo-python", type=Path, help="the Python of an environment with NeMo 3.0.0, to time beside")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes and one round: only to see that it runs")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, the threads already set for this process and its children."""
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rounds = 1
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    return arguments


def interleaved(
    cases: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of every case, one after the other in every round; a run of each before that does not count."""
    if warm_up:
        for case in cases.values():
            case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds):
        for name in sorted(cases, key=list(cases).index, reverse=turn % 2 == 1):
            seconds[name].append(cases[name]())
    return seconds


def report(title: str, seconds: Mapping[str, Sequence[float]], *, unit: float = 1.0, unit_name: str = "s") -> None:
    """A table of medians, spreads and the ratio to the first case, taken round by round."""
    print(f"\n{title}")
    print(f"  {'':34s} {'median':>10s} {'least':>10s} {'most':>10s} {'first ÷ this':>13s}")
    first = next(iter(seconds.values()))
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
        low, middle, high = min(values) / unit, statistics.median(values) / unit, max(values) / unit
        print(f"  {name:34s} {middle:10.4g} {low:10.4g} {high:10.4g} {ratio:12.2f}×")
    print(f"  ({unit_name})")


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1) + "\n", "utf-8")


def print_rows(rows: Iterable[dict[str, Any]], table: Callable[[list[dict[str, Any]]], str], path: Path | None) -> None:
    """Print each row as it comes, then the table of all; write them to the path, if there is one."""
    found = []
    for row in rows:
        found.append(row)
        print(json.dumps(row), flush=True)
    print(table(found))
    write_json(path, {"rows": found})


def machine() -> dict[str, Any]:
    """The processor and the versions; nothing that names the machine."""
    import torch

    information: dict[str, str] = {}
    processors = Path("/proc/cpuinfo")
    if processors.exists():
        for line in processors.read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            information.setdefault(key.strip(), value.strip())
    flags = information.get("flags", "").split()
    return {
        "processor": information.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "flags": [flag for flag in TELLING_FLAGS if flag in flags],
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def print_machine() -> None:
    print(
        ", ".join(f"{key}: {' '.join(value) if isinstance(value, list) else value}" for key, value in machine().items())
    )


class Peer:
    """NeMo in a process of its own, asked over its standard input: see `nemo_peer.py`."""

    def __init__(self, python: Path, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        self.process = subprocess.Popen(
            [str(python), str(ROOT / "benchmarks" / "nemo_peer.py"), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError("The peer ended; run benchmarks/nemo_peer.py by hand to see why.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def open_peer(arguments: argparse.Namespace) -> Peer | None:
    """The peer, or nothing with a loud word where it is absent."""
    if arguments.nemo_python is None or not arguments.nemo_python.exists():
        print("NOT COMPARED with NeMo: --nemo-python names no Python of an environment with nemo_toolkit[asr]==3.0.0.")
        return None
    peer = Peer(arguments.nemo_python, arguments.threads)
    versions = peer.ask(do="versions")
    print(f"beside: NeMo {versions['nemo']}, torch {versions['torch']}, in a process of its own")
    return peer


def peak_memory_mb() -> float:
    """The most memory that this process has had so far, in megabytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
