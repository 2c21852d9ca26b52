"""The load test of `overtone serve`: throughput, latency, concurrent streams, loading and switching of adapters.

    python -m benchmarks.serving_load --page benchmarks/SERVING.md --json load.json

A real server and a real client, each in a process of its own, over gRPC on this machine; both share its cores. Adapters
have random weights of a trained one's size. Every answer is compared with the one computed directly, row by row.
About twelve minutes; `--smoke` runs a tiny stand-in model for some seconds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, parse, print_machine, write_json
from benchmarks.serving_adapters import (
    SMOKE_STRENGTH,
    STRENGTH,
    Asked,
    adapter_name,
    make_adapters,
    make_clips,
    stand_in,
    truth,
)
from benchmarks.serving_clients import Answer, Clients
from benchmarks.serving_process import ServeProcess
from benchmarks.serving_report import write_report
from overtone.checkpoints.load import load_model
from overtone.serving.engine import Samples

VERDICTS = ("right", "rounded", "wrong", "refused", "unanswered")
MOST_FAULTS = 20
BURST = 0.02
"""Seconds in which the answers of one batch arrive."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured. Seconds unless said otherwise."""

    registered: tuple[int, ...] = (1, 16, 64, 256, 1000)
    """Adapters in the folder."""
    rounds: int = 4
    window: float = 4.0
    """Of one measurement of throughput."""
    lead: float = 0.5
    """Of a window that does not count."""
    in_flight: int = 48
    """Requests at any time while throughput is measured."""
    zipf: float = 1.1
    clip: float = 4.0
    clips: int = 16
    talk: float = 12.0
    """Of a stream."""
    loads: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
    """Arrivals as shares of the throughput that was measured, a tenth of them streams."""
    arrivals: float = 10.0
    stream_share: float = 0.1
    streams: tuple[int, ...] = (4, 8, 16, 24, 32, 48, 64, 96)
    """At a time; no more is tried once the goal is missed twice."""
    goal: float = 0.3
    """Latency of chunks that 95 % must keep."""
    switches: int = 60
    """Requests of each kind, one after the other."""
    idle: float = 4.0
    dim: int = 32
    """Of the adapters."""
    strength: float = STRENGTH


SMOKE = Plan(
    registered=(4,),
    rounds=1,
    window=1.0,
    lead=0.1,
    in_flight=4,
    clip=1.0,
    clips=3,
    talk=1.5,
    loads=(0.2,),
    arrivals=1.0,
    streams=(2,),
    switches=4,
    idle=0.2,
    dim=4,
    strength=SMOKE_STRENGTH,
)


@dataclass(kw_only=True)
class Bench:
    """What all measurements share."""

    plan: Plan
    model: str
    dtype: str
    threads: int
    folder: Path
    clients: Clients
    clips: list[str]
    talks: list[str]
    answers: list[Answer] = field(default_factory=list)
    """All there were, to be compared in the end."""

    @contextmanager
    def server(self, registered: int, *options: str, capacity: int | None = None) -> Iterator[ServeProcess]:
        """A server with so many adapters in its folder, by default with room for all of them."""
        with tempfile.TemporaryDirectory(dir=self.folder) as directory:
            shelf = Path(directory) / "adapters"
            shelf.mkdir()
            for index in range(registered):
                (shelf / adapter_name(index)).symlink_to(self.folder / "versions" / adapter_name(index))
            room = str(capacity or max(registered, 1))
            words = ("--dtype", self.dtype, "--capacity", room, *options)
            with ServeProcess(
                self.model, shelf, *words, log=Path(directory) / "log", threads=self.threads
            ) as process:  # fmt: skip
                yield process

    def do(self, server: ServeProcess, **job: Any) -> tuple[float, list[Answer]]:
        began, answers = self.clients.do(grpc=server.grpc, **job)
        self.answers += answers
        return began, answers

    def throughput(
        self, server: ServeProcess, names: Sequence[str | None], *, zipf: float | None, seed: int
    ) -> float:  # fmt: skip
        """Seconds of audio answered in a second, with as many requests in flight as the plan says."""
        plan = self.plan
        server.resume()
        began, answers = self.do(
            server, do="saturate", names=names, zipf=zipf, clips=self.clips, seed=seed,
            in_flight=plan.in_flight, seconds=plan.window,
        )  # fmt: skip
        server.pause()
        first, last = began + plan.lead, began + plan.window
        return plan.clip * pace([each.ended for each in answers if each.status == "OK" and first <= each.ended < last])


def pace(times: Sequence[float]) -> float:
    """Events a second; those that come together with the first one begin the clock and are not counted."""
    ordered = sorted(times)
    counted = [time for time in ordered if time > ordered[0] + BURST]
    return len(counted) / (counted[-1] - ordered[0]) if counted else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fundamental", help="a .nemo file, a model folder, or a name")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    parser.add_argument("--page", type=Path, help="write the section of this page, and its plots beside it")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few requests: only to see that it runs")
    arguments = parse(parser)
    print_machine()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        figures = measure(Path(directory), arguments, SMOKE if arguments.smoke else Plan())
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
        figures = measured(bench)
    say(f"comparing {len(bench.answers)} answers")
    figures["answers"] = compared(bench, sound)
    return figures


def measured(bench: Bench) -> dict[str, Any]:
    plan = bench.plan
    figures: dict[str, Any] = {"plan": vars(plan), "model": Path(bench.model).name, "throughput": []}
    with ExitStack() as stack:
        base = stack.enter_context(bench.server(0))
        base.pause()
        for registered in plan.registered:
            figures["throughput"].append(beside_base(bench, base, registered))
        most = plan.registered[-1]
        if most > 64:
            figures["throughput"].append(beside_base(bench, base, most, capacity=64))
    figures["memory"] = sizes(figures["throughput"])
    speed = statistics.median(figures["throughput"][0]["base"])
    registered = plan.registered[len(plan.registered) // 2]
    with bench.server(registered) as server:
        warm(server, registered)
        figures["latency"] = latencies(bench, server, registered, speed / plan.clip)
        figures["streams"] = streams(bench, server, registered)
        figures["switch"] = switches(bench, server)
    with bench.server(registered, capacity=max(1, registered // 4)) as server:
        figures["cold"] = cold(bench, server, registered)
    return figures


def beside_base(bench: Bench, base: ServeProcess, registered: int, capacity: int | None = None) -> dict[str, Any]:
    """Rounds of: base alone, this server with requests for its adapters, this server with requests for the base."""
    plan = bench.plan
    names = [adapter_name(index) for index in range(registered)]
    random.Random(registered).shuffle(names)
    in_turn = registered == 16 or registered == max(plan.registered)
    say(f"throughput with {registered} registered" + (f", {capacity} resident" if capacity else ""))
    with bench.server(registered, capacity=capacity) as server:
        if capacity is None:
            warm(server, registered)
        idle = idle_share(server, plan.idle)
        cases: dict[str, Callable[[int], float]] = {
            "base": lambda seed: bench.throughput(base, [None], zipf=None, seed=seed),
            "zipf": lambda seed: bench.throughput(server, names, zipf=plan.zipf, seed=seed),
            "base only": lambda seed: bench.throughput(server, [None], zipf=None, seed=seed),
        }
        if in_turn:
            cases["16 in turn"] = lambda seed: bench.throughput(server, names[:16], zipf=None, seed=seed)
        found: dict[str, list[float]] = {name: [] for name in cases}
        for name in ("base", "zipf"):  # what is done for the first time does not count
            cases[name](plan.rounds)
        for turn in range(plan.rounds):
            for name in sorted(cases, key=list(cases).index, reverse=turn % 2 == 1):
                found[name].append(cases[name](turn))
        server.resume()
        metrics, weight = server.metrics(), server.weight()
    return {
        "registered": registered,
        "capacity": capacity or registered,
        **found,
        "idle_share": idle,
        "memory_mb": weight.memory_mb,
        "resident": metrics["overtone_adapters_resident"],
        "rows_of_a_batch": metrics["overtone_engine_rows_total"] / max(1.0, metrics["overtone_engine_batches_total"]),
    }


def warm(server: ServeProcess, registered: int) -> None:
    for index in range(registered):
        server.ask("POST", f"/v1/admin/adapters/{adapter_name(index)}/load")


def idle_share(server: ServeProcess, seconds: float) -> float:
    """The share of one core that the server takes while nobody asks it anything."""
    time.sleep(0.2)
    begin, used = time.monotonic(), server.processor_seconds()
    time.sleep(seconds)
    share = (server.processor_seconds() - used) / (time.monotonic() - begin)
    server.pause()
    return share


def sizes(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Megabytes of a server under load without adapters, and of each that is in the model."""
    fewest, most = (choose(rows, key=lambda row: float(row["resident"])) for choose in (min, max))
    more = most["resident"] - fewest["resident"]
    adapter = (most["memory_mb"] - fewest["memory_mb"]) / more if more else 0.0
    return {"base_mb": fewest["memory_mb"] - adapter * fewest["resident"], "adapter_mb": adapter}


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
        _, answers = bench.do(
            server, do="talk", names=[None, *map(adapter_name, range(registered))], zipf=bench.plan.zipf,
            clips=bench.talks, seed=count, streams=count, within=0.8,
        )  # fmt: skip
        chunks = [chunk for answer in answers for chunk in answer.chunks]
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


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except urllib.error.HTTPError as error:
        sys.exit(f"{error}: {error.read().decode(errors='replace')[:500]}")
