"""How much audio a server answers, and the processor time that it takes for it, beside a server without adapters."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.serving_adapters import adapter_name
from benchmarks.serving_bench import Bench
from benchmarks.serving_process import ServeProcess

BURST = 0.02
"""Seconds in which the answers of one batch arrive."""
THREADS = 1
"""Of the servers here: no processor time goes into waiting for another thread."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """One measurement."""

    speed: float
    """Seconds of audio answered in a second."""
    processor: float
    """Seconds of processor time of the server's process for a second of audio, its clients' left out."""


def throughputs(bench: Bench) -> list[dict[str, Any]]:
    plan = bench.plan
    with ExitStack() as stack:
        base = stack.enter_context(bench.server(0, threads=THREADS))
        base.pause()
        rows = [beside_base(bench, base, registered) for registered in plan.registered]
        most = plan.registered[-1]
        if most > 64:
            rows.append(beside_base(bench, base, most, capacity=64))
    return rows


def beside_base(bench: Bench, base: ServeProcess, registered: int, capacity: int | None = None) -> dict[str, Any]:
    """Rounds of: base alone, this server with requests for its adapters, this server with requests for the base."""
    plan = bench.plan
    names = [adapter_name(index) for index in range(registered)]
    random.Random(registered).shuffle(names)
    in_turn = registered == 16 or registered == max(plan.registered)
    say(f"throughput with {registered} registered" + (f", {capacity} resident" if capacity else ""))
    with bench.server(registered, capacity=capacity, threads=THREADS) as server:
        if capacity is None:
            warm(server, registered)
        idle = idle_share(server, plan.idle)
        cases: dict[str, Callable[[int], Window]] = {
            "base": lambda seed: saturated(bench, base, [None], zipf=None, seed=seed),
            "zipf": lambda seed: saturated(bench, server, names, zipf=plan.zipf, seed=seed),
            "base only": lambda seed: saturated(bench, server, [None], zipf=None, seed=seed),
        }
        if in_turn:
            cases["16 in turn"] = lambda seed: saturated(bench, server, names[:16], zipf=None, seed=seed)
        found: dict[str, list[Window]] = {name: [] for name in cases}
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
        "speed": {name: [window.speed for window in windows] for name, windows in found.items()},
        "processor": {name: [window.processor for window in windows] for name, windows in found.items()},
        "idle_share": idle,
        "memory_mb": weight.memory_mb,
        "resident": metrics["overtone_adapters_resident"],
        "rows_of_a_batch": metrics["overtone_engine_rows_total"] / max(1.0, metrics["overtone_engine_batches_total"]),
    }


def saturated(
    bench: Bench, server: ServeProcess, names: Sequence[str | None], *, zipf: float | None, seed: int
) -> Window:
    """As many requests in flight as the plan says; processor time counts from the first request to the last answer."""
    plan = bench.plan
    server.resume()
    used = server.processor_seconds()
    began, answers = bench.do(
        server, do="saturate", names=names, zipf=zipf, clips=bench.clips, seed=seed,
        in_flight=plan.in_flight, seconds=plan.window,
    )  # fmt: skip
    used = server.processor_seconds() - used
    server.pause()
    ended = [answer.ended for answer in answers if answer.status == "OK"]
    first, last = began + plan.lead, began + plan.window
    return Window(
        speed=plan.clip * pace([each for each in ended if first <= each < last]),
        processor=used / max(plan.clip * len(ended), plan.clip),
    )


def pace(times: Sequence[float]) -> float:
    """Events a second; those that come together with the first one begin the clock and are not counted."""
    ordered = sorted(times)
    counted = [time for time in ordered if time > ordered[0] + BURST]
    return len(counted) / (counted[-1] - ordered[0]) if counted else 0.0


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


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
