"""The load test of `overtone serve`: throughput, latency, concurrent streams, loading and switching of adapters.

    python -m benchmarks.serving_load --page benchmarks/SERVING.md --json load.json
    python -m benchmarks.serving_load --throughput --json throughput.json

A real server and a real client, each in a process of its own, over gRPC on this machine; both share its cores. Adapters
have random weights of a trained one's size. Every answer is compared with the one computed directly, row by row.
About a quarter of an hour; `--throughput` measures that alone, in half of the time, with 16 and 1000 adapters;
`--smoke` runs a tiny stand-in model for some seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import urllib.error
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, parse, print_machine, write_json
from benchmarks.serving_adapters import Asked, adapter_name, make_adapters, make_clips, stand_in, truth
from benchmarks.serving_bench import JUDGED, SMOKE, Bench, Plan
from benchmarks.serving_clients import Clients
from benchmarks.serving_process import ServeProcess
from benchmarks.serving_report import write_report
from benchmarks.serving_throughput import THREADS, saturated, say, sizes, throughputs, warm
from overtone.checkpoints.load import load_model
from overtone.serving.engine.engine import Samples

VERDICTS = ("right", "rounded", "wrong", "refused", "unanswered")
MOST_FAULTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fundamental", help="a .nemo file, a model folder, or a name")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    parser.add_argument("--throughput", action="store_true", help="throughput alone, where the goals are judged")
    parser.add_argument("--throughput-of", type=Path, metavar="JSON", help="of an earlier run, not measured again")
    parser.add_argument("--page", type=Path, help="write the section of this page, and its plots beside it")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few requests: only to see that it runs")
    arguments = parse(parser)
    print_machine()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        plan = SMOKE if arguments.smoke else JUDGED if arguments.throughput else Plan()
        figures = measure(Path(directory), arguments, plan)
    figures["seconds"] = time.monotonic() - began
    print(write_report(figures, machine(), arguments.page))
    write_json(arguments.json, figures)
    sys.exit(int(figures["answers"]["wrong"] + figures["answers"]["unanswered"] > 0))


def measure(folder: Path, arguments: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    model = stand_in(folder / "model") if arguments.smoke else arguments.model
    versions = folder / "versions"
    versions.mkdir()
    names = [adapter_name(index) for index in range(max(plan.registered))]
    say(f"making {len(names)} adapters")
    make_adapters(load_model(model), versions, names, dim=plan.dim, strength=plan.strength)
    lengths = [plan.clip] * plan.clips + [plan.talk] * plan.clips
    sound = make_clips(folder / "clips", lengths)
    with Clients() as clients:
        known = clients.read_clips(folder / "clips")
        bench = Bench(
            plan=plan, model=model, dtype=arguments.dtype, threads=arguments.threads, folder=folder,
            clients=clients, clips=known[: plan.clips], talks=known[plan.clips :],
        )  # fmt: skip
        figures = measured(bench, arguments)
    say(f"comparing {len(bench.answers)} answers")
    figures["answers"] = compared(bench, sound)
    return figures


def measured(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    plan, earlier = bench.plan, arguments.throughput_of
    rows = throughputs(bench) if earlier is None else json.loads(earlier.read_text("utf-8"))["figures"]["throughput"]
    figures: dict[str, Any] = {"plan": vars(plan), "model": Path(bench.model).name, "threads": THREADS}
    figures |= {"throughput": rows, "throughput_is_earlier": earlier is not None, "memory": sizes(rows)}
    if arguments.throughput:
        return figures
    registered = plan.registered[len(plan.registered) // 2]
    with bench.server(registered) as server:
        warm(server, registered)
        say("speed with all threads")
        speeds = [saturated(bench, server, [None], zipf=None, seed=seed).speed for seed in range(plan.rounds + 1)]
        figures["speed"] = max(1.0, statistics.median(speeds[1:]))  # a window on a busy machine may hold no answer
        server.resume()
        figures["latency"] = latencies(bench, server, registered, figures["speed"] / plan.clip)
        figures["streams"] = streams(bench, server, registered)
        figures["switch"] = switches(bench, server)
    with bench.server(registered, capacity=max(1, registered // 4)) as server:
        figures["cold"] = cold(bench, server, registered)
    return figures


def latencies(bench: Bench, server: ServeProcess, registered: int, requests: float) -> list[dict[str, Any]]:
    """Open loop, requests and streams mixed; requests: a second, at most, as measured."""
    names = [None, *map(adapter_name, range(registered))]
    rows = []
    for share in bench.plan.loads:
        say(f"latency at {share:.0%} of the throughput")
        _, answers = bench.do(
            server, do="arrive", names=names, zipf=bench.plan.zipf, clips=bench.clips, seed=round(100 * share),
            rate=share * requests, streams=bench.plan.stream_share, seconds=bench.plan.arrivals,
        )  # fmt: skip
        done = [answer for answer in answers if answer.status == "OK"]
        waited = [answer.ended - answer.due for answer in done if not answer.streamed]
        chunks = [chunk for answer in done for chunk in answer.chunks]
        rows.append(
            {
                "share": share,
                "arrivals": share * requests,
                "refused": len(answers) - len(done),
                "requests": percentiles(waited),
                "chunks": percentiles(chunks),
            }
        )
    return rows


def streams(bench: Bench, server: ServeProcess, registered: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for count in bench.plan.streams:
        say(f"{count} streams")
        talk = bench.plan.talk
        began, answers = bench.do(
            server, do="talk", names=[None, *map(adapter_name, range(registered))], zipf=bench.plan.zipf,
            clips=bench.talks, seed=count, streams=count, within=talk,
        )  # fmt: skip
        all_talk = began + talk, began + 2 * talk
        chunks = [
            chunk
            for answer in answers
            for told, chunk in zip(answer.told, answer.chunks, strict=True)
            if all_talk[0] <= told < all_talk[1]
        ]
        refused = sum(answer.status != "OK" for answer in answers)
        kept = percentiles(chunks)["p95"] <= bench.plan.goal and not refused
        rows.append({"streams": count, "chunks": percentiles(chunks), "refused": refused, "kept": kept})
        if len(rows) > 1 and not (kept or rows[-2]["kept"]):
            break
    return rows


def switches(bench: Bench, server: ServeProcess) -> dict[str, Any]:
    """One request after the other: always the same adapter, or always another than before; all are resident."""
    say("hot switch")
    names = [adapter_name(index) for index in range(min(4, bench.plan.registered[len(bench.plan.registered) // 2]))]
    found: dict[str, list[float]] = {"same": [], "other": []}
    for turn in range(6):
        for kind in sorted(found, reverse=turn % 2 == 1):
            asked = [names[0]] if kind == "same" else names
            found[kind] += alone(bench, server, asked, bench.plan.switches // 6 + 1)
    return {kind: percentiles(values) for kind, values in found.items()}


def cold(bench: Bench, server: ServeProcess, registered: int) -> dict[str, Any]:
    """One request after the other, each for an adapter that has to be read from disk first."""
    say("cold load")
    before = server.metrics()
    names = [adapter_name(index) for index in range(registered)]
    waited = alone(bench, server, names, bench.plan.switches)
    after = server.metrics()
    loads = after["overtone_adapters_loads_total"] - before["overtone_adapters_loads_total"]
    seconds = after["overtone_adapters_load_seconds_total"] - before["overtone_adapters_load_seconds_total"]
    return {"loads": loads, "mean_seconds": seconds / max(loads, 1.0), "requests": percentiles(waited)}


def alone(bench: Bench, server: ServeProcess, names: Sequence[str], count: int) -> list[float]:
    """Seconds of requests of one clip, never two at a time."""
    _, answers = bench.do(
        server, do="sequence", names=names, zipf=None, clips=bench.clips[:1], seed=0, count=count
    )  # fmt: skip
    return [answer.ended - answer.due for answer in answers]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values) or [float("nan")]
    return {f"p{share}": ordered[min(len(ordered) - 1, int(share / 100 * len(ordered)))] for share in (50, 95, 99)} | {
        "count": len(values)
    }


def compared(bench: Bench, sound: dict[str, Samples]) -> dict[str, Any]:
    """Every answer with the one computed directly."""
    verdicts: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    with truth(bench.model, bench.dtype, bench.folder / "versions", sound) as right:
        for answer in sorted(bench.answers, key=lambda answer: answer.adapter or ""):
            if answer.status != "OK":
                verdict = "refused" if answer.status in ("RESOURCE_EXHAUSTED", "UNTOLD") else "unanswered"
            else:
                asked = Asked(clip=answer.clip, adapter=answer.adapter, streamed=answer.streamed)
                verdict = right.verdict(answer.text, [asked])
                if verdict == "wrong" and len(faults) < MOST_FAULTS:
                    faults.append({**vars(answer), "expected": right.text(asked)})
            verdicts[verdict] += 1
    return {name: verdicts[name] for name in VERDICTS} | {"faults": faults}


if __name__ == "__main__":
    try:
        main()
    except urllib.error.HTTPError as error:
        sys.exit(f"{error}: {error.read().decode(errors='replace')[:500]}")
