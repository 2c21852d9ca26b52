"""Time from the start of a process to the word error rate that NeMo's own adapter has in the end, on each domain.

    python -m benchmarks.domains --speech SPEECH --output RUNS --methods nemo --nemo-python NEMO/bin/python
    python -m benchmarks.sooner --folder RUNS

NeMo's rate on the test part, and the wall time of its process, are those of its row in the domain table. The same
recordings go to `overtone words` (their text alone) and to `overtone train` with few steps, then more, each a process
as a user starts it, until one reaches that rate. Every adapter is heard on the test part afterwards, by one scorer.
Finished cells are kept in the folder, and not repeated.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.domains.cells import Cells
from benchmarks.domains.measuring import DOMAIN, counts_of, hear
from benchmarks.domains.plan import ADAPTER, METHODS
from benchmarks.harness import print_machine, print_rows
from overtone.checkpoints.load import load_model
from overtone.data.manifest import read_manifest
from overtone.errors import UsageError
from overtone.evaluation.results import total
from overtone.models.asr_model import AsrModel

DOMAINS = ("prompts", "digits", "wakewords")
KINDS = ("linear", "lora")
STEPS = (2, 4, 8, 16, 32, 64, 128)
NEMO = "linear adapter by NeMo"
PARTS = ("train", "valid", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="the --output of benchmarks.domains")
    parser.add_argument("--model", default="fundamental")
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=DOMAINS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, help="of trainings, one after the other")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print_machine()
    print_rows((row for domain in arguments.domains for row in race(arguments, domain)), table, arguments.json)


def race(arguments: argparse.Namespace, domain: str) -> Iterator[dict[str, Any]]:
    """NeMo's process, then ours with the text alone, then with more and more steps, until NeMo's rate is reached."""
    cells = Cells(arguments.folder / "sooner", resume=True)
    manifests = {part: arguments.folder / "manifests" / domain / f"{part}.json" for part in PARTS}
    place = arguments.folder / "sooner-runs" / domain
    shared = {"domain": domain, "model": arguments.model, "threads": arguments.threads}
    nemo = read_nemo(arguments.folder, domain)
    yield {**shared, "name": NEMO, "reached": True, **nemo}
    text = cells.finished(f"{domain}/text", shared, lambda: measure_words(arguments, manifests, place / "text"))
    yield {
        **shared,
        "name": "words from the text alone",
        "reached": text["wer"] <= nemo["wer"],
        **without_identity(text),
    }
    for kind in arguments.kinds:
        for steps in sorted(arguments.steps):
            own = cells.finished(
                f"{domain}/{kind}-{steps}",
                shared,
                lambda kind=kind, steps=steps: measure_training(  # type: ignore[misc]
                    arguments, manifests, place / f"{kind}-{steps}", kind, steps
                ),
            )
            reached = own["wer"] <= nemo["wer"]
            yield {**shared, "name": f"{METHODS[kind].title} with words", "reached": reached, **without_identity(own)}
            if reached:
                break


def without_identity(cell: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cell.items() if key != "identity"}


def read_nemo(folder: Path, domain: str) -> dict[str, Any]:
    """The row of the domain table. Raises UsageError where there is none.

    Its process hears the test part too; `training` are the seconds without that, and without start and loading.
    """
    cell = Cells(folder / "cells", resume=True).get(f"{domain}/nemo")
    if cell is None:
        raise UsageError(f"{folder} has no row of NeMo's for {domain}: run benchmarks.domains with --nemo-python.")
    facts = cell["facts"]
    rate = total(counts_of(cell["heard"][DOMAIN])).rate
    return {"steps": facts["steps"], "seconds": facts["process_seconds"], "training": facts["seconds"], "wer": rate}


def measure_words(arguments: argparse.Namespace, manifests: dict[str, Path], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text("".join(f"{line.text}\n" for line in read_manifest(manifests["train"])), "utf-8")
    adapter = folder / ADAPTER
    words = ["words", ADAPTER, "--text", str(text), "--model", arguments.model, "--output", str(adapter), "--overwrite"]
    spent = run_overtone(words, folder, arguments.threads)
    return {"steps": 0, **spent, "wer": stored_rate(arguments, adapter, manifests)}


def measure_training(
    arguments: argparse.Namespace, manifests: dict[str, Path], folder: Path, kind: str, steps: int
) -> dict[str, Any]:
    """`overtone train` as a user starts it: the rate is its own choice, words and their weights come at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spent = run_overtone(
        [
            "train",
            f"model.nemo_model={arguments.model}",
            f"model.adapter.adapter_name={ADAPTER}",
            f"model.adapter.adapter_type={kind}",
            "model.adapter.words=auto",
            f"model.train_ds.manifest_filepath={manifests['train'].resolve()}",
            f"model.validation_ds.manifest_filepath={manifests['valid'].resolve()}",
            "model.train_ds.batch_size=16",
            f"trainer.max_steps={steps}",
            f"trainer.val_check_interval={steps}",
            f"exp_manager.explicit_log_dir={(folder / 'run').resolve()}",
        ],
        folder,
        arguments.threads,
    )
    (adapter,) = (folder / "run" / "checkpoints").glob("*-best")
    return {"steps": steps, **spent, "wer": stored_rate(arguments, adapter, manifests)}


def run_overtone(words: list[str], folder: Path, threads: int) -> dict[str, float]:
    """Seconds of a whole command, by the clock and of the processors; its output is kept in the folder.

    Those of the processors are of all its threads and processes: beside other work they are what hardly changes, and
    alone on the machine the command takes no longer than that.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    before, began = processor_seconds(), time.perf_counter()
    with (folder / "overtone.log").open("wb") as log:
        subprocess.run([sys.executable, "-m", "overtone", *words], env=environment, stdout=log, stderr=log, check=True)
    return {"seconds": time.perf_counter() - began, "processor_seconds": processor_seconds() - before}


def processor_seconds() -> float:
    """User and system time of all processes that this one has started, and that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def stored_rate(arguments: argparse.Namespace, adapter: Path, manifests: dict[str, Path]) -> float:
    """The test part's word error rate with an adapter in a folder."""
    model = load_model(arguments.model)
    return test_rate(model, model.adapters.load(adapter, name=ADAPTER).name, manifests)


def test_rate(model: AsrModel, name: str, manifests: dict[str, Path]) -> float:
    """The test part's word error rate with an adapter of the model."""
    return total(counts_of(hear(model, {DOMAIN: manifests["test"]}, [name])[name][DOMAIN])).rate


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a page's table: what each process reached, and how much sooner than NeMo's."""
    lines = [
        "| domain | process | steps | s, start to end | of the processors | test WER % | NeMo's rate |",
        "| --- | --- |" + " ---: |" * 4 + " --- |",
    ]
    nemo = {row["domain"]: row["seconds"] for row in rows if row["name"] == NEMO}
    for row in rows:
        processors = row.get("processor_seconds")
        sooner = (
            f"{nemo[row['domain']] / (processors or row['seconds']):.1f} × sooner" if row["reached"] else "not reached"
        )
        told = "" if row["name"] == NEMO else sooner
        spent = [f"{row['seconds']:.1f}", "" if processors is None else f"{processors:.1f}"]
        figures = [str(row["steps"] or ""), *spent, f"{100 * row['wer']:.1f}"]
        lines.append(f"| {' | '.join([row['domain'], row['name'], *figures, told])} |")
    return "\n".join(["", *lines])


if __name__ == "__main__":
    main()
