"""How time grows: with batch, length, width, resident adapters, and different adapters in one batch.

    python -m benchmarks.growth --threads 2 --plots benchmarks/plots

Batch, length (of a single row) and width are training steps of the Conformer in bfloat16 with dropout, as in
`benchmarks.step`; the others are inference from mel features on. The slope is that of a straight line through the
logarithms: 1 is twice the time for twice the size. The limit is the time that the products alone would take (of the
subsampling, the layers, and the gradients of the layers' inputs) at the best rate of one large bfloat16 product in the
same run; the share is how much of that rate is reached.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import (
    SHAPES,
    Shape,
    interleaved,
    make_parser,
    parse,
    peak_memory_mb,
    print_machine,
    tiny,
    write_json,
)
from benchmarks.models import ADAPTER, make_model, training_step
from benchmarks.plots import line_plot
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.models.asr_model import AsrModel

SIZES: dict[str, tuple[float, ...]] = {
    "batch": (1, 2, 4, 8, 16),
    "length": (1, 2, 4, 8, 15, 30, 60),
    "width": (176, 256, 512),
    "residents": (1, 10, 100, 1000),
    "distinct": (1, 2, 4, 8, 16),
}
TINY: dict[str, tuple[float, ...]] = {
    "batch": (1, 2),
    "length": (0.5, 1),
    "width": (32, 48),
    "residents": (1, 3),
    "distinct": (1, 2),
}
TITLES = {
    "batch": "A training step by rows of the batch (8 s each)",
    "length": "A training step of one row by its seconds",
    "width": "A training step of 8 × 8 s by the model's width",
    "residents": "Inference of 8 × 8 s by adapters in memory",
    "distinct": "Inference of 16 × 8 s by different adapters in the batch",
}
TOKENS_PER_SECOND = 6.4
HEAD_WIDTH_LIMIT = 64
DISTINCT_GOAL = 0.97
ADDED = 10
"""Additions at either end whose medians are compared."""
PEAK = (2048, 512, 2048)


@dataclass(kw_only=True)
class Sweep:
    """The times of one kind of growth."""

    name: str
    cases: dict[str, dict[float, list[float]]]
    """Case -> size -> seconds."""
    flops: dict[float, float]
    """Of the products, by size."""
    notes: list[str] = field(default_factory=list)

    def medians(self, case: str) -> list[tuple[float, float]]:
        return [(size, statistics.median(seconds)) for size, seconds in self.cases[case].items()]


def main() -> None:
    arguments = parse(make_arguments())
    print_machine()
    sizes = TINY if arguments.smoke else SIZES
    shape = tiny(SHAPES["conformer"]) if arguments.smoke else SHAPES["conformer"]
    peak = peak_flops(1 if arguments.smoke else 20)
    print(f"\nThe best bfloat16 product here: {peak / 1e12:.3f} TFLOP/s")
    sweeps = []
    for name in arguments.sweeps:
        sweep = measured(name, shape, sizes[name], arguments.rounds)
        sweeps.append(sweep)
        print(section(sweep, peak, arguments.plots), flush=True)
    print(f"\nPeak memory of this process: {peak_memory_mb():.0f} MB")
    write_json(arguments.json, {"peak_flops": peak, "seconds": {sweep.name: sweep.cases for sweep in sweeps}})


def make_arguments() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(rounds=5)
    parser.add_argument("--sweeps", nargs="+", choices=list(SIZES), default=list(SIZES), help="what grows")
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    return parser


def measured(name: str, shape: Shape, sizes: Sequence[float], rounds: int) -> Sweep:
    if name == "residents":
        return residents(shape, [int(size) for size in sizes], rounds)
    if name == "distinct":
        return distinct(shape, [int(size) for size in sizes], rounds)
    shapes = {size: grown(shape, name, size) for size in sizes}
    steps = {size: training_step(item, compute_dtype="bfloat16", dropout=True) for size, item in shapes.items()}
    flops = {size: step_flops(item) for size, item in shapes.items()}
    return Sweep(name=name, cases={"step": timed(steps, rounds)}, flops=flops)


def grown(shape: Shape, name: str, size: float) -> Shape:
    """The shape with another batch, length or width; as many tokens a second as always."""
    if name == "batch":
        shape = replace(shape, batch=int(size))
    elif name == "length":
        shape = replace(shape, batch=1, seconds=size)
    else:
        heads = max(shape.heads, int(size) // HEAD_WIDTH_LIMIT)
        shape = replace(shape, width=int(size), subsampling_channels=int(size), heads=heads)
    return replace(shape, tokens=max(shape.batch, int(TOKENS_PER_SECOND * shape.batch * shape.seconds)))


def timed(cases: Mapping[float, Callable[[], float]], rounds: int) -> dict[float, list[float]]:
    seconds = interleaved({str(size): case for size, case in cases.items()}, rounds)
    return {size: seconds[str(size)] for size in cases}


# Adapters


def residents(shape: Shape, counts: Sequence[int], rounds: int) -> Sweep:
    """One adapter, and the base, while more and more others lie in memory."""
    model, mel, lengths = ready(shape)
    sweep = Sweep(
        name="residents",
        cases={"one adapter": {}, "base rows alone": {}},
        flops=dict.fromkeys(map(float, counts), forward_flops(shape)),
    )
    took: list[float] = []
    for count in counts:
        while len(model.adapters) < count:
            start = time.perf_counter()
            model.adapters.add(f"resident-{len(model.adapters)}", LinearAdapter(dim=shape.adapter_dim))
            took.append(time.perf_counter() - start)
        cases = {"one adapter": partial(recognise, model, mel, lengths, ADAPTER)}
        cases["base rows alone"] = partial(recognise, model, mel, lengths, None)
        for case, seconds in interleaved(cases, rounds).items():
            sweep.cases[case][float(count)] = seconds
    first, last = statistics.median(took[:ADDED]), statistics.median(took[-ADDED:])
    sweep.notes.append(
        f"Adding an adapter: {first * 1e3:.2f} ms among the first {ADDED}, {last * 1e3:.2f} ms among the last "
        f"of {counts[-1]} (medians)."
    )
    return sweep


def distinct(shape: Shape, counts: Sequence[int], rounds: int) -> Sweep:
    """Every row with an adapter, so many different ones in the batch."""
    shape = replace(shape, batch=max(counts))
    model, mel, lengths = ready(shape)
    for number in range(max(counts)):
        model.adapters.add(f"row-{number}", LinearAdapter(dim=shape.adapter_dim))
    cases: dict[float, Callable[[], float]] = {}
    for count in counts:
        rows = [f"row-{row % count}" for row in range(shape.batch)]
        cases[count] = partial(recognise, model, mel, lengths, rows)
    sweep = Sweep(
        name="distinct",
        cases={"all rows with adapters": timed(cases, rounds)},
        flops=dict.fromkeys(map(float, counts), forward_flops(shape)),
    )
    seconds = list(sweep.cases["all rows with adapters"].values())
    share = statistics.median(one / many for one, many in zip(seconds[0], seconds[-1], strict=True))
    verdict = "reached" if share >= DISTINCT_GOAL else "missed"
    sweep.notes.append(
        f"{counts[-1]} different adapters have {share:.1%} of the throughput of one "
        f"(goal {DISTINCT_GOAL:.0%}: {verdict})."
    )
    return sweep


def ready(shape: Shape) -> tuple[AsrModel, torch.Tensor, torch.Tensor]:
    """The model in bfloat16, and features of noise [B, F, T] with their lengths."""
    model = make_model(shape, "bfloat16").eval()
    waveforms = 0.1 * torch.randn(shape.batch, shape.samples, generator=torch.Generator().manual_seed(1))
    mel, lengths = model.preprocessor(waveforms, torch.full((shape.batch,), shape.samples))
    return model, mel, lengths


def recognise(
    model: AsrModel, mel: torch.Tensor, lengths: torch.Tensor, choice: str | list[str | None] | list[str] | None
) -> float:
    start = time.perf_counter()
    with torch.inference_mode(), model.adapters.use(choice):
        model.recognise(mel, lengths)
    return time.perf_counter() - start


# The limit


def peak_flops(rounds: int) -> float:
    """The best rate of a large bfloat16 product."""
    rows, inner, columns = PEAK
    a, b = torch.randn(rows, inner).bfloat16(), torch.randn(inner, columns).bfloat16()
    best = math.inf
    for _ in range(rounds + 1):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2.0 * rows * inner * columns / best


def subsampling_flops(shape: Shape) -> float:
    """Two convolutions of stride 2 and a linear map, for the batch; for subsampling of kind `striding`."""
    frames, bins, channels = 100 * shape.seconds, 80, shape.subsampling_channels
    first = frames / 2 * bins / 2 * channels * 9
    second = frames / 4 * bins / 4 * channels**2 * 9
    return 2.0 * shape.batch * (first + second + frames / 4 * bins / 4 * channels * shape.width)


def layers_flops(shape: Shape) -> float:
    """The products of all layers and their adapters, for the batch."""
    frames, width = 100 * shape.seconds / shape.subsampling_factor, shape.width
    linear = 23 * width**2  # 16 of the feed-forwards, 4 of the attention, 3 of the convolution module
    depthwise = shape.kernel_size * width
    attention = 4 * frames * width  # by key, by value, and by twice as many distances
    adapter = 2 * width * shape.adapter_dim
    return 2.0 * shape.batch * shape.layers * frames * (linear + depthwise + attention + adapter)


def forward_flops(shape: Shape) -> float:
    return subsampling_flops(shape) + layers_flops(shape)


def step_flops(shape: Shape) -> float:
    """Forward, and the gradients of the layers' inputs; those of the adapters' own weights are not counted."""
    return forward_flops(shape) + layers_flops(shape)


# The page


def section(sweep: Sweep, peak: float, plots: Path | None) -> str:
    """Markdown: a table for each case, the slope, and the plot."""
    written = [f"\n### {TITLES[sweep.name]}\n"]
    for case, sizes in sweep.cases.items():
        written.append(f"| {sweep.name} | {case}, ms | least – most | limit, ms | share of the peak |")
        written.append("|--:|--:|--:|--:|--:|")
        for size, seconds in sizes.items():
            middle, limit = statistics.median(seconds), sweep.flops[size] / peak
            written.append(
                f"| {size:g} | {middle * 1e3:.1f} | {min(seconds) * 1e3:.1f} – {max(seconds) * 1e3:.1f} "
                f"| {limit * 1e3:.1f} | {limit / middle:.0%} |"
            )
        written.append(f"\nSlope: {slope(sweep.medians(case)):.2f}.\n")
    written += sweep.notes
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        path = plots / f"growth-{sweep.name}.svg"
        path.write_text(plot(sweep, peak), "utf-8")
        written.append(f"\n![{TITLES[sweep.name]}]({plots.name}/{path.name})")
    return "\n".join(written)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line through the logarithms."""
    x, y = ([math.log(point[axis]) for point in points] for axis in (0, 1))
    return statistics.linear_regression(x, y).slope


def plot(sweep: Sweep, peak: float) -> str:
    """The medians of every case over the size, and the limit."""
    drawn = {case: [(size, 1e3 * seconds) for size, seconds in sweep.medians(case)] for case in sweep.cases}
    drawn["products at the peak"] = [(size, 1e3 * flops / peak) for size, flops in sweep.flops.items()]
    return line_plot(TITLES[sweep.name], drawn, x=sweep.name, y="milliseconds")


if __name__ == "__main__":
    main()
