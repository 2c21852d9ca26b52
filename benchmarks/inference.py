"""From waveforms to token ids with an adapter in every layer: the real-time factor, seconds by second of audio.

python -m benchmarks.inference --nemo-python NEMO_ENVIRONMENT/bin/python
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any

from benchmarks.harness import (
    Peer,
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
from benchmarks.models import DTYPES, inference


def peer_seconds(peer: Peer, batch: int) -> float:
    return float(peer.ask(do="infer", batch=batch)["seconds"])


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 1], help="rows of a batch")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="what the base computes in")
    arguments = parse(parser)
    print_machine()
    peer = open_peer(arguments)
    with_openvino = find_spec("openvino") is not None
    if not with_openvino:
        print("NOT COMPARED with OpenVINO: it is not installed (the extra `openvino`).")
    figures: dict[str, Any] = {}
    for shape in chosen_shapes(arguments):
        if peer is not None:
            peer.ask(do="load", shape=asdict(shape))
        for batch in arguments.batches:
            cases: dict[str, Callable[[], float]] = {}
            if peer is not None:
                cases["NeMo, float32, adapter"] = partial(peer_seconds, peer, batch)
            for dtype in arguments.dtypes:
                cases[f"{dtype}, adapter"] = inference(shape, batch=batch, compute_dtype=dtype)
            last = arguments.dtypes[-1]
            cases[f"{last}, base"] = inference(shape, batch=batch, compute_dtype=last, choice="base")
            if with_openvino:
                cases["openvino, adapter"] = inference(shape, batch=batch, compute_dtype="openvino")
            if batch > 1:
                cases[f"{last}, mixed rows"] = inference(shape, batch=batch, compute_dtype=last, choice="mixed")
            seconds = interleaved(cases, arguments.rounds)
            title = f"{shape.name}: a batch of {batch} × {shape.seconds:g} s"
            report(title, seconds, unit=batch * shape.seconds, unit_name="real-time factor")
            figures[f"{shape.name}, batch {batch}"] = seconds
    print(f"\npeak memory of this process: {peak_memory_mb():.0f} MB")
    write_json(arguments.json, figures)
    if peer is not None:
        peer.__exit__()


if __name__ == "__main__":
    main()
