"""Transducers: the loss with its gradient in time and memory, and decoding of a batch beside its rows.

python -m benchmarks.transducers --threads 1 --nemo-python NEMO_ENVIRONMENT/bin/python \
    --transformers-python HF_ENVIRONMENT/bin/python

The loss is that of a TDT model, joint included, forward and backward to frames and predictions, beside transformers'
and NeMo's over their whole joint; NeMo's is the one that runs on a processor, `TDTLossPytorch`. Each is measured in a
process of its own, once, whose peak memory counts from before the joint is computed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.harness import ROOT, interleaved, make_parser, parse, peak_memory_mb, print_machine, report
from overtone.decoding.decoder import BeamSettings
from overtone.decoding.fusion import NO_WORDS
from overtone.decoding.transducer import TransducerSearch
from overtone.decoding.transducer_beam import TransducerBeamSearch
from overtone.nets.transducer import Joint, RecurrentPrediction
from overtone.nets.transducer_loss import transducer_losses

DURATIONS = (0, 1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class LossShape:
    """A batch of a transducer's loss."""

    rows: int = 8
    frames: int = 200
    tokens: int = 60
    classes: int = 1024
    width: int = 640


def loss_of(shape: LossShape) -> dict[str, float]:
    """Seconds and megabytes of our loss and its gradient."""
    torch.manual_seed(0)
    joint = Joint(
        encoder_width=shape.width,
        prediction_width=shape.width,
        width=shape.width,
        classes=shape.classes,
        durations=DURATIONS,
    ).requires_grad_(False)
    frames = torch.randn(shape.rows, shape.frames, shape.width, requires_grad=True)
    predictions = torch.randn(shape.rows, shape.tokens + 1, shape.width, requires_grad=True)
    targets = torch.randint(0, shape.classes, (shape.rows, shape.tokens))
    lengths, sizes = torch.full((shape.rows,), shape.frames), torch.full((shape.rows,), shape.tokens)
    transducer_losses(
        joint, frames[:1, :4], predictions[:1, :3], lengths[:1] * 0 + 4, targets[:1, :2], sizes[:1] * 0 + 2
    )
    before, begun = peak_memory_mb(), time.perf_counter()
    transducer_losses(joint, frames, predictions, lengths, targets, sizes).mean().backward()
    return {"seconds": time.perf_counter() - begun, "megabytes": peak_memory_mb() - before}


def in_own_process(python: str, arguments: list[str], threads: int) -> dict[str, Any]:
    """The figures that another process prints as its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [python, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {finished.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return figures


def compare_losses(arguments: argparse.Namespace, shape: LossShape) -> None:
    """Print seconds and megabytes of both losses."""
    sizes = [str(value) for value in vars(shape).values()]
    ours = in_own_process(sys.executable, ["-m", "benchmarks.transducers", "--loss", *sizes], arguments.threads)
    print(f"\nTDT loss and gradient, {shape}\n  ours {ours['seconds']:.2f} s, {ours['megabytes']:.0f} MB")
    script = str(ROOT / "benchmarks" / "peer_tdt_loss.py")
    for name, option, python in (
        ("transformers", "--transformers-python", arguments.transformers_python),
        ("NeMo", "--nemo-python", arguments.nemo_python),
    ):
        if python is None:
            print(f"NOT COMPARED with {name}: {option} names no Python of an environment with it.")
            continue
        theirs = in_own_process(str(python), [script, name.lower(), *sizes], arguments.threads)
        print(f"  {name} {theirs['seconds']:.2f} s, {theirs['megabytes']:.0f} MB")
        sooner, share = theirs["seconds"] / ours["seconds"], ours["megabytes"] / theirs["megabytes"]
        print(f"  {sooner:.1f}× sooner, {share:.2f} of the memory", flush=True)


def compare_decoding(arguments: argparse.Namespace, durations: tuple[int, ...], rows: int, frames: int) -> None:
    """Print seconds of a batch at once and row by row; weights are random, at most one token is in a frame."""
    torch.manual_seed(0)
    width = 32 if arguments.smoke else 640
    joint = Joint(encoder_width=width, prediction_width=width, width=width, classes=1024, durations=durations).eval()
    search = TransducerSearch(joint, RecurrentPrediction(classes=1024, width=width).eval(), max_symbols=1)
    with torch.no_grad():
        encoded = joint.enc(torch.randn(rows, frames, width))
    lengths = torch.full((rows,), frames)

    def decode(size: int) -> float:
        begun = time.perf_counter()
        for first in range(0, rows, size):
            search.paths(encoded[first : first + size], lengths[first : first + size])
        return time.perf_counter() - begun

    def beam(width: int) -> float:
        begun = time.perf_counter()
        with torch.no_grad():
            found = TransducerBeamSearch(
                joint, search.prediction, [NO_WORDS] * rows, BeamSettings(width=width), max_symbols=1
            )
            found.push(encoded, lengths)
        found.best(1, lengths.tolist())
        return time.perf_counter() - begun

    cases = {"row by row": partial(decode, 1), "at once": partial(decode, rows)}
    cases |= {f"beam {width}": partial(beam, width) for width in (1, 4, 8)}
    seconds = interleaved(cases, arguments.rounds)
    report(f"decoding of {rows} × {frames} frames, durations {durations or 'none'}", seconds)


def main() -> None:
    parser = make_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--transformers-python", help="Python of an environment with transformers==5.24.0")
    parser.add_argument("--loss", nargs=5, type=int, metavar="N", help="our loss alone, in this process")
    arguments = parse(parser)
    if arguments.loss:
        names = ("rows", "frames", "tokens", "classes", "width")
        print(json.dumps(loss_of(LossShape(**dict(zip(names, arguments.loss, strict=True))))))
        return
    print_machine()
    shape = LossShape(rows=2, frames=8, tokens=3, classes=16, width=8) if arguments.smoke else LossShape()
    compare_losses(arguments, shape)
    for durations in ((), DURATIONS):
        compare_decoding(arguments, durations, 4 if arguments.smoke else 16, 10 if arguments.smoke else 125)


if __name__ == "__main__":
    main()
