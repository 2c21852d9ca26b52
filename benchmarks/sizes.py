"""Checkpoints of full size, with random weights: loading, the first text, more text, and steps of an adapter.

python -m benchmarks.sizes --folder FOLDER --speech SPEECH.wav --nemo-python NEMO/bin/python

SPEECH.wav: a minute of speech, 16 kHz, 16 bits. Every process does all of it, in turn with the others; times are by
the clock and (in brackets) of the processor, memory is that of the process. Checkpoints are made in FOLDER where
missing: up to 2.6 GB each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, parse, print_machine, write_json
from benchmarks.size_models import CONFIGS, make_checkpoint

RUN = Path(__file__).parent / "size_run.py"
DTYPES = ("float32", "float32 prepared", "bfloat16")
Figures = dict[str, Any]


def run_once(python: str, peer: str, model: Path, speech: Path, dtype: str, lengths: list[str]) -> Figures:
    """The figures of one process, and the seconds from its start to its end. Ends the benchmark where it fails."""
    begun = time.perf_counter()
    command = [python, str(RUN), peer, str(time.time()), str(model), str(speech), dtype, *lengths]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-4000:]}")
    figures: Figures = json.loads(result.stdout.strip().splitlines()[-1])
    return {**figures, "wall": time.perf_counter() - begun}


def least(rounds: list[Figures]) -> Figures:
    """The least of each figure over the rounds: what disturbs a process only adds."""
    return {key: min(figures[key] for figures in rounds) for key in rounds[0]}


def describe(name: str, model: Path, cases: dict[str, Figures], lengths: list[str]) -> None:
    """Print a table of one checkpoint."""
    size = model.stat().st_size / 1e6
    print(f"\n{name}, a file of {size:,.0f} MB")
    heads = [
        "loaded (s)",
        "MB",
        "÷ file",
        "first text (s)",
        "MB",
        *(f"RTF {each} s" for each in lengths),
        "step (s)",
        "MB",
    ]
    print(f"| | {' | '.join(heads)} |\n|---|{'--:|' * len(heads)}")
    for case, found in cases.items():
        values = [
            *(seconds(found, "loaded", 1), f"{found['loaded peak']:,.0f}", f"{found['loaded peak'] / size:.2f}"),
            *(seconds(found, "text", 1), f"{found['text peak']:,.0f}"),
            *(seconds(found, f"{each} s", 3) for each in lengths),
            *(seconds(found, "step", 2), f"{found['step peak']:,.0f}"),
        ]
        print(f"| {case} | {' | '.join(values)} |", flush=True)


def seconds(found: Figures, name: str, digits: int) -> str:
    """The seconds by the clock, and in brackets those of the processor."""
    return f"{found[name]:.{digits}f} ({found[f'{name} processor']:.{digits}f})"


def make_noise(path: Path, seconds: int) -> Path:
    """A recording for a look that everything runs."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(range(256)) * (seconds * 125))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--folder", type=Path, help="where the checkpoints are, or are made")
    parser.add_argument("--speech", type=Path, help="a minute of speech")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--nemo-python", type=Path, help="the Python of an environment with NeMo 3.0.0, to time beside")
    parser.add_argument("--threads", type=int, default=2, help="threads of every process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--discard", action="store_true", help="remove each checkpoint when it has been timed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--smoke", action="store_true", help="tiny models and one round: only to see that it runs")
    arguments = parse(parser)
    if not arguments.smoke and not (arguments.folder and arguments.speech):
        parser.error("--folder and --speech have to be given")
    print_machine()
    if arguments.nemo_python is None:
        print("NOT COMPARED with NeMo: --nemo-python names no environment of it.")
    lengths = ["32"] if arguments.smoke else ["20", "60"]
    every: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        speech = arguments.speech or make_noise(Path(scratch) / "noise.wav", 32)
        for name in arguments.models:
            model = make_checkpoint(name, folder, smoke=arguments.smoke)
            cases = {f"Overtone {dtype}": (sys.executable, "overtone", dtype) for dtype in arguments.dtypes}
            if arguments.nemo_python is not None:
                cases["NeMo float32"] = (str(arguments.nemo_python), "nemo", "float32")
            found: dict[str, list[Figures]] = {case: [] for case in cases}
            for _ in range(arguments.rounds):
                for case, (python, peer, dtype) in cases.items():
                    found[case].append(run_once(python, peer, model, speech, dtype, lengths))
            every[name] = {case: least(rounds) for case, rounds in found.items()}
            describe(name, model, every[name], lengths)
            if arguments.discard:
                model.unlink()
    write_json(arguments.json, every)


if __name__ == "__main__":
    main()
