"""Learning from corrections in simulated order: WER on the next sentences after 5, 20 and 100 of them, on each domain.

python -m benchmarks.learning --speech SPEECH --kind linear

SPEECH holds a folder for each corpus with `train.jsonl` and `test.jsonl`. The training part in a drawn order is the
stream: after so many corrections the next ones are recognised by the base, by it with its prior, by words alone,
and by words and acoustic part; the test part too. General speech is recognised with the adapter on and off.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import print_machine, write_json
from overtone.adapters.prior import PRIOR
from overtone.checkpoints.load import load_model
from overtone.data.manifest import Utterance, read_manifest
from overtone.evaluation.evaluate import evaluate
from overtone.learning.learn import Learner
from overtone.learning.reading import read_corrections
from overtone.learning.state import LearnSettings
from overtone.learning.training import learn
from overtone.models.asr_model import AsrModel

DOMAINS = {
    "prompts": "asterisk_prompts",
    "non-fiction": "ljtext_matthes",
    "learners of English": "speechocean762",
    "digits": "fsdd",
    "wake words": "picovoice_wakewords",
}
GENERAL = "librispeech_resemblyzer/test_other.jsonl"
LONGEST_SECONDS = 12.0
STREAM, NEXT, TEST = 220, 60, 100
"""Sentences of a stream, those that follow the corrections, and those of the test part, evenly spread."""


def stream_of(path: Path) -> list[Utterance]:
    """The training part in a drawn order, without sentences that are very long."""
    usable = [own for own in read_manifest(path) if own.duration <= LONGEST_SECONDS]
    random.Random(0).shuffle(usable)
    return usable[:STREAM]


def spread(path: Path, count: int) -> list[Utterance]:
    """So many lines of a manifest, evenly spread."""
    every = [own for own in read_manifest(path) if own.duration <= LONGEST_SECONDS]
    return every[:: max(1, len(every) // count)][:count]


def write(path: Path, lines: Sequence[Utterance]) -> Path:
    entries = [
        {
            "audio_filepath": str(own.audio_path.resolve()),
            "duration": own.duration,
            "offset": own.offset,
            "text": own.text,
        }
        for own in lines
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
    return path


def rates(model: AsrModel, manifest: Path, adapters: Sequence[str | None]) -> list[float]:
    """WER in percent with each choice."""
    found = evaluate(model, manifest, adapters=list(adapters), compute_dtype="auto", resamples=2)
    return [100 * result.wer for result in found.results]


def measure(speech: Path, name: str, arguments: argparse.Namespace, place: Path) -> Iterator[dict[str, Any]]:
    """The rates of a domain after each number of corrections."""
    folder = speech / DOMAINS[name]
    stream = stream_of(folder / "train.jsonl")
    test = write(place / f"{folder.name}-test.jsonl", spread(folder / "test.jsonl", TEST))
    general = write(place / f"{folder.name}-general.jsonl", spread(speech / GENERAL, TEST))
    settings = LearnSettings(kind=arguments.kind, general=(str(general),) if arguments.kappa is not None else ())
    settings = settings if arguments.kappa is None else replace(settings, kappa=arguments.kappa)
    learner = Learner(model=load_model("fundamental"), folder=place / f"{folder.name}-adapter", say=print)
    before = 0
    for count in arguments.after:
        new = write(place / f"{folder.name}-{count}.jsonl", stream[before:count])
        following = write(place / f"{folder.name}-next.jsonl", stream[count : count + NEXT])
        corrections = read_corrections(new, learner.model, policy="keep")
        before = count
        with learner.model.evaluating():
            versions = learn(learner, corrections, settings)
        every = [own for own in learner.versions.all() if own.learning]
        words = next((own for own in reversed(every) if own.learning["part"] == "words"), None)
        latest = learner.versions.current()
        model = load_model("fundamental")
        choices = [None, PRIOR, *(None if own is None else str(own.folder) for own in (words, latest))]
        row: dict[str, Any] = {"domain": name, "corrections": count, "versions": len(versions)}
        for title, manifest in (("next", following), ("test", test), ("general", general)):
            asked = list(dict.fromkeys(choices))
            found = dict(zip(asked, rates(model, manifest, asked), strict=True))
            row[title] = [found[choice] for choice in choices]
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--domains", nargs="+", choices=list(DOMAINS), default=list(DOMAINS)[:3])
    parser.add_argument("--after", nargs="+", type=int, default=[5, 20, 100], help="numbers of corrections")
    parser.add_argument("--kind", default="linear", help="of the acoustic part")
    parser.add_argument("--kappa", type=float, help="points that general speech may lose; as trained without it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    print_machine()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in arguments.domains:
            for row in measure(arguments.speech, name, arguments, Path(place)):
                rows.append(row)
                print(json.dumps(row), flush=True)
    each = "base | prior | words | both"
    print(f"\n| domain | corrections | next: {each} | test: {each} | general: base | both |")
    print("| --- |" + " ---: |" * 11)
    for row in rows:
        cells = [*row["next"], *row["test"], row["general"][0], row["general"][-1]]
        print(f"| {row['domain']} | {row['corrections']} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    write_json(arguments.json, {"rows": rows})


if __name__ == "__main__":
    main()
