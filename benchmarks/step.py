"""One training step of an adapter in every layer: features, forward, loss, backward, AdamW.

    python -m benchmarks.step --nemo-python NEMO_ENVIRONMENT/bin/python

In one process, whose operations are spread over the threads, and as `overtone train` does it: in as many processes, of
one thread each, which share the rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks.harness import (
    chosen_shapes,
    interleaved,
    make_parser,
    open_peer,
    parse,
    peak_memory_mb,
    print_machine,
    report,
    write_json,
)
from benchmarks.models import DTYPES, make_model, shared_training_step, training_step


def main() -> None:
    parser = make_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="what the base computes in")
    arguments = parse(parser)
    print_machine()
    peer = open_peer(arguments)
    figures: dict[str, Any] = {}
    for shape in chosen_shapes(arguments):
        cases: dict[str, Callable[[], float]] = {}
        if peer is not None:
            counts = peer.ask(do="load", shape=asdict(shape))
            print(f"NeMo's {shape.name}: {counts['parameters']:,} parameters, {counts['trained']:,} trained")
            cases["NeMo, float32, dropout 0.1"] = lambda: float(peer.ask(do="step")["seconds"])
        model = make_model(shape)
        total, trained = (sum(p.numel() for p in module.parameters()) for module in (model, model.adapters))
        print(f"our {shape.name}: {total:,} parameters, {trained:,} trained")
        for dtype in arguments.dtypes:
            for dropout in (True, False):
                name = f"{dtype}, {'dropout 0.1' if dropout else 'no dropout'}"
                cases[name] = training_step(shape, compute_dtype=dtype, dropout=dropout)
            count = max(2, arguments.threads)
            name = f"{dtype}, dropout 0.1, {count} processes"
            cases[name] = shared_training_step(shape, compute_dtype=dtype, dropout=True, count=count)
        seconds = interleaved(cases, arguments.rounds)
        title = f"{shape.name}: a step of {shape.batch} × {shape.seconds:g} s, {shape.tokens} tokens"
        report(title, seconds, unit=1e-3, unit_name="milliseconds")
        figures[shape.name] = seconds
    print(f"\npeak memory of this process: {peak_memory_mb():.0f} MB")
    write_json(arguments.json, figures)
    if peer is not None:
        peer.__exit__()


if __name__ == "__main__":
    main()
