"""A whole training as a user starts it: `overtone train` beside NeMo's `train_asr_adapter.py`, from process to files.

    python -m benchmarks.whole_job --folder RUNS --nemo-python NEMO/bin/python \\
        --nemo-script CHECKOUT/examples/asr/asr_adapters/train_asr_adapter.py --train train.jsonl --test test.jsonl

Both sides get the same base (`.nemo`), the same manifests and the same words on their command lines, and one validation
at the end. Wall time and memory are those of the whole process and its children. What each leaves as an adapted `.nemo`
is then heard on the test manifest by one scorer, in float32. Every cell is kept in the folder: an interrupted run goes
on where it was, and the page is made of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, SHAPES, machine, make_parser, parse, tiny
from overtone.evaluation.verify import PROMPTS

MODELS = ("fundamental", "conformer")
ADAPTER = "domain"
BATCH = 8
SECONDS_BETWEEN_LOOKS = 0.2
SMOKE_LINES = 12
GOALS = {20: 5.0, 300: 7.0}
"""How much sooner than NeMo, by steps."""
SIDES = ("NeMo", "Overtone")
DATA_SECTION = {
    "manifest_filepath": None,
    "sample_rate": 16_000,
    "batch_size": 16,
    "shuffle": False,
    "num_workers": 0,
    "pin_memory": True,
    "max_duration": None,
    "min_duration": None,
}
"""What a trained checkpoint says of its data: NeMo's script drops every key that does not stand there."""


def main() -> None:
    arguments = parse(make_arguments())
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.smoke:
        arguments.steps, arguments.models = [2], ["conformer"]
        arguments.train, arguments.test = (shortened(path, folder) for path in (arguments.train, arguments.test))
    sides = [side for side in SIDES if side == "Overtone" or nemo_is_there(arguments)]
    for turn in range(arguments.rounds):
        for model in arguments.models:
            base = write_base(model, folder, smoke=arguments.smoke)
            for steps in arguments.steps:
                for side in sides if turn % 2 == 0 else sides[::-1]:
                    place = folder / f"{model}-{steps}-{side.lower()}-{turn}"
                    if not place.with_suffix(".json").exists():
                        measure(side, base, steps, place, arguments)
    print(page(folder))


def make_arguments() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(rounds=3)
    parser.add_argument("--folder", type=Path, required=True, help="where cells and bases are kept")
    parser.add_argument("--nemo-script", type=Path, help="NeMo's train_asr_adapter.py, its configurations beside it")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="the bases to adapt")
    parser.add_argument("--steps", nargs="+", type=int, default=[20, 300], help="lengths of the trainings")
    parser.add_argument("--workers", type=int, default=0, help="processes that read audio, on both sides")
    parser.add_argument("--train", type=Path, default=PROMPTS / "train.jsonl", help="manifest to train on")
    parser.add_argument("--test", type=Path, default=PROMPTS / "test.jsonl", help="manifest to validate and score on")
    return parser


def nemo_is_there(arguments: argparse.Namespace) -> bool:
    given: list[Path | None] = [arguments.nemo_python, arguments.nemo_script]
    if all(path is not None and path.exists() for path in given):
        return True
    print("NOT COMPARED with NeMo: give --nemo-python and --nemo-script, both of NeMo 3.0.0.")
    return False


def shortened(manifest: Path, folder: Path) -> Path:
    """The first few lines of a manifest, its audio named by absolute paths."""
    lines = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()[:SMOKE_LINES]]
    for line in lines:
        line["audio_filepath"] = str((manifest.parent / line["audio_filepath"]).resolve())
    path = folder / f"few-{manifest.name}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def write_base(name: str, folder: Path, *, smoke: bool) -> Path:
    """The base as a `.nemo`: the embedded model, or one of 13 million random weights that writes with its tokens."""
    path = folder / f"{name}.nemo"
    if path.exists():
        return path
    from benchmarks.models import make_base
    from overtone.checkpoints.load import load_model, save_model
    from overtone.checkpoints.nemo.config import describe

    model = load_model("fundamental")
    if name != "fundamental":
        shape = replace(SHAPES[name], classes=model.tokenizer.size)
        model = make_base(tiny(shape) if smoke else shape, model.tokenizer)
    config = model.config or describe(model.settings, model.tokenizer)
    model.config = {**config, "train_ds": DATA_SECTION, "validation_ds": DATA_SECTION}
    save_model(model, path)
    return path


def command(side: str, base: Path, steps: int, place: Path, arguments: argparse.Namespace) -> list[str]:
    """The same words for both, but for what NeMo needs on a processor."""
    words = [
        f"model.nemo_model={base}",
        f"model.adapter.adapter_name={ADAPTER}",
        "model.adapter.linear.in_features=176",
        f"model.train_ds.manifest_filepath={arguments.train}",
        f"model.validation_ds.manifest_filepath={arguments.test}",
        f"model.train_ds.batch_size={BATCH}",
        f"model.validation_ds.batch_size={BATCH}",
        f"model.train_ds.num_workers={arguments.workers}",
        f"model.validation_ds.num_workers={arguments.workers}",
        f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={steps}",
        "trainer.check_val_every_n_epoch=null",
        "trainer.devices=1",
        "trainer.accelerator=cpu",
        "trainer.sync_batchnorm=false",
        f"exp_manager.exp_dir={place}",
        "exp_manager.name=run",
    ]
    if arguments.smoke:
        words[2] = "model.adapter.linear.in_features=32"
    if side == "Overtone":
        return [sys.executable, "-m", "overtone", "train", *words]
    return [str(arguments.nemo_python), str(arguments.nemo_script), *words]


# One cell


def measure(side: str, base: Path, steps: int, place: Path, arguments: argparse.Namespace) -> None:
    """Run one training, score what it leaves, and keep the figures; its files are removed."""
    shutil.rmtree(place, ignore_errors=True)
    print(f"{place.name} …", flush=True)
    watched = run_watched(command(side, base, steps, place, arguments), place.with_suffix(".log"), arguments.threads)
    adapted = sorted(place.rglob("*.nemo"), key=lambda path: path.stat().st_mtime)
    if not adapted:
        raise SystemExit(f"{side} left no .nemo under {place}; see {place.with_suffix('.log')}.")
    cell = {
        "model": base.stem,
        "steps": steps,
        "side": side,
        **watched,
        **score(adapted[-1], arguments.test),
        "machine": machine(),
    }
    place.with_suffix(".json").write_text(json.dumps(cell, indent=1) + "\n", "utf-8")
    shutil.rmtree(place)


def run_watched(words: Sequence[str], log: Path, threads: int) -> dict[str, float]:
    """Wall seconds, processor seconds and peak memory of a process with all its children."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
    }
    with log.open("w", encoding="utf-8") as output:
        start = time.perf_counter()
        process = subprocess.Popen(list(words), cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        memory = TreeMemory(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        sampled = memory.stop()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-15:])
        raise SystemExit(f"{' '.join(words[:4])} … ended with {process.returncode}:\n{tail}")
    return {
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": max(sampled, usage.ru_maxrss / 1e3),
    }


class TreeMemory:
    """Follows the memory of a process and its children; what they share counts once."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.peak = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def follow(self) -> None:
        while not self.ended.wait(SECONDS_BETWEEN_LOOKS):
            self.peak = max(self.peak, sum(map(proportional_mb, tree(self.root))))

    def stop(self) -> float:
        """The peak in megabytes, as often as it was looked at."""
        self.ended.set()
        self.thread.join()
        return self.peak


def tree(root: int) -> list[int]:
    """The process and all below it."""
    found, waiting = [], [root]
    while waiting:
        process = waiting.pop()
        found.append(process)
        for listed in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                waiting += map(int, listed.read_text("utf-8").split())
            except OSError:  # it has just ended
                continue
    return found


def proportional_mb(process: int) -> float:
    """Memory of a process, shared pages in parts; 0 where it has ended or the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text("utf-8").splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) / 1e3 for line in lines if line.startswith("Pss:")), 0.0)


def score(model: Path, test: Path) -> dict[str, Any]:
    """Word error rates of an adapted model on the test manifest, by the same scorer for both sides."""
    from overtone.checkpoints.load import load_model
    from overtone.evaluation.evaluate import evaluate

    result = evaluate(load_model(model), test, adapters=["@file"], compute_dtype="float32").results[0]
    return {"wer": result.wer, "interval": list(result.wer_interval)}


# The page


def page(folder: Path) -> str:
    """The section of the results page, from all cells of the folder."""
    cells = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*-*-*-*.json"))]
    lines = [
        "",
        "| base, steps | side | seconds | least – most | NeMo ÷ this | peak memory, MB | test WER, 95 % interval |",
    ]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    verdicts = []
    for model, steps in dict.fromkeys((cell["model"], cell["steps"]) for cell in cells):
        sides = {
            side: [cell for cell in cells if (cell["model"], cell["steps"], cell["side"]) == (model, steps, side)]
            for side in SIDES
        }
        lines += [row(f"{model}, {steps}", side, found, sides["NeMo"]) for side, found in sides.items() if found]
        if all(sides.values()):
            verdicts.append(verdict(f"{model}, {steps} steps", sides["NeMo"], sides["Overtone"], GOALS.get(steps)))
    about = cells[-1]["machine"] if cells else machine()
    lines += ["", f"{about['processor']}, {about['threads']} threads, torch {about['torch']}, batch {BATCH}."]
    return "\n".join([*lines, *verdicts])


def row(name: str, side: str, found: list[dict[str, Any]], nemo: list[dict[str, Any]]) -> str:
    seconds = [cell["seconds"] for cell in found]
    ratio = f"{sooner(nemo, found):.2f}" if nemo else ""
    low, high = found[-1]["interval"]
    return (
        f"| {name} | {side} | {statistics.median(seconds):.1f} | {min(seconds):.1f} – {max(seconds):.1f} | {ratio} "
        f"| {max(cell['peak_mb'] for cell in found):.0f} | {found[-1]['wer']:.2%}, {low:.1%} – {high:.1%} |"
    )


def sooner(nemo: list[dict[str, Any]], ours: list[dict[str, Any]]) -> float:
    """The median over rounds of NeMo's seconds by ours."""
    return statistics.median(float(a["seconds"] / b["seconds"]) for a, b in zip(nemo, ours, strict=False))


def verdict(name: str, nemo: list[dict[str, Any]], ours: list[dict[str, Any]], goal: float | None) -> str:
    """What is reached of: sooner, half the memory, intervals that overlap."""
    ratio = sooner(nemo, ours)
    memory = max(cell["peak_mb"] for cell in ours) / max(cell["peak_mb"] for cell in nemo)
    (low, high), (their_low, their_high) = ours[-1]["interval"], nemo[-1]["interval"]
    overlap = low <= their_high and their_low <= high
    aim = "" if goal is None else f" (goal {goal:g}: {'reached' if ratio >= goal else 'missed'})"
    return (
        f"\n{name}: {ratio:.1f} times sooner{aim}, {memory:.2f} of the memory "
        f"(goal 0.5: {'reached' if memory <= 0.5 else 'missed'}), "
        f"intervals of the error rates {'overlap' if overlap else 'do NOT overlap'}."
    )


if __name__ == "__main__":
    main()
