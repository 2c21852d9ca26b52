"""From the start of a process to its first result, and its peak memory.

python -m benchmarks.startup --model fundamental

Each figure is a fresh process: `overtone --help`; importing the package; loading a model and transcribing one
recording of the given seconds, in each dtype. Without --model a small one with random weights stands in.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, SHAPES, interleaved, make_parser, parse, print_machine, report, tiny, write_json

TRANSCRIBE = """
import json, resource, sys
import overtone
model = overtone.load_model(sys.argv[1])
model.set_compute_dtype(sys.argv[3])
overtone.transcribe(model, sys.argv[2])
print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))
"""


def process_seconds(command: list[str], peaks: dict[str, float], name: str) -> float:
    start = time.perf_counter()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command[:3])} … failed:\n{result.stderr}")
    last = result.stdout.strip().splitlines()[-1:] or [""]
    if last[0].startswith('{"peak"'):
        peaks[name] = max(peaks.get(name, 0.0), json.loads(last[0])["peak"])
    return seconds


def write_stand_in(folder: Path, *, smoke: bool) -> Path:
    from benchmarks.models import make_model
    from overtone.checkpoints.load import save_model

    shape = SHAPES["conformer"]
    save_model(make_model(tiny(shape) if smoke else shape), folder / "model")
    return folder / "model"


def write_noise(folder: Path, seconds: float) -> Path:
    import numpy as np
    import soundfile

    noise = 0.05 * np.random.default_rng(0).standard_normal(int(16_000 * seconds))
    soundfile.write(folder / "noise.wav", noise.astype(np.float32), 16_000)
    return folder / "noise.wav"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="a .nemo file, a model folder or an embedded model's name")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the recording")
    arguments = parse(parser)
    print_machine()
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or str(write_stand_in(folder, smoke=arguments.smoke))
        audio = str(write_noise(folder, 1.0 if arguments.smoke else arguments.seconds))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "overtone --help": [sys.executable, "-m", "overtone", "--help"],
            "import overtone": [sys.executable, "-c", "import overtone"],
            "import torch": [sys.executable, "-c", "import torch"],
        }
        for dtype in ("float32", "bfloat16"):
            commands[f"first transcription, {dtype}"] = [sys.executable, "-c", TRANSCRIBE, model, audio, dtype]
        cases: dict[str, Callable[[], float]] = {
            case: partial(process_seconds, command, peaks, case) for case, command in commands.items()
        }
        seconds = interleaved(cases, arguments.rounds, warm_up=not arguments.smoke)
    report("process start to end", seconds)
    for case, peak in peaks.items():
        print(f"  {case}: peak memory {peak:.0f} MB")
    figures: dict[str, Any] = {"seconds": seconds, "peak_mb": peaks}
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
