"""A cluster of several Ray nodes on one machine: what the router costs, what it finds, and what is lost when parts die.

PYTHONPATH=.:tests python -m benchmarks.ray_cluster overhead    # a request here and through a front, one by one
PYTHONPATH=.:tests python -m benchmarks.ray_cluster affinity    # 1000 adapters by Zipf's law over three replicas
PYTHONPATH=.:tests python -m benchmarks.ray_cluster soak        # a replica killed, a node lost, an adapter replaced

The model is the tests' one, which hears tones without training: an answer is right or wrong, never nearly so.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import itertools
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from overtone import load_model
from overtone.serving.ray.cluster import ReplicaPlan
from overtone.serving.ray.front import deployed, front
from overtone.serving.recognition.request import Call, RecognitionRequest
from overtone.serving.server import Server, ServerSettings
from support.ray_service import tones
from support.speaking_model import SpeakingModel, put_adapter, spoken

AUDIO = spoken("abba")
SETTINGS = ServerSettings(compute_dtype="float32", poll_seconds=1.0)


def paper(settings: ServerSettings) -> Any:
    """The embedded model, for times that mean something."""
    return load_model("fundamental")


async def ask(server: Server, samples: Any, adapter: str = "") -> str:
    """Text of one recording."""
    call = Call(method="", adapter=adapter)
    recognition = await server.service.recognise(samples, RecognitionRequest(model=adapter), call)
    return recognition.hypotheses[0].text


def processor_seconds(process: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def plan_of(folder: Path, load: Any, **options: Any) -> ReplicaPlan:
    settings = replace(SETTINGS, adapters=folder, capacity=options.pop("capacity", 64))
    return ReplicaPlan(settings=settings, load=load, stats_seconds=1.0, health_seconds=1.0, **options)


# Overhead


async def measure_overhead(plan: ReplicaPlan, rounds: int = 6, count: int = 60) -> None:
    """Median time of a request here and through a front, in turns; then 16 at a time."""
    samples = spoken("abba cab bad face")  # five seconds
    here, there = Server(plan.settings, plan.load(plan.settings)), await front(plan)
    for server in (here, there):
        for _ in range(10):
            await ask(server, samples)
    known = there.service.elsewhere.known  # type: ignore[union-attr]
    (replica,) = known.running.values()
    process = await known.call(replica, "process")
    used: Counter[str] = Counter()
    alone: dict[str, list[float]] = {"here": [], "through a front": []}
    rates: dict[str, list[float]] = {"here": [], "through a front": []}
    for _ in range(rounds):
        for name, server in (("here", here), ("through a front", there)):
            used[name] -= time.process_time() + processor_seconds(process)
            for _ in range(count):
                began = time.perf_counter()
                await ask(server, samples)
                alone[name].append(time.perf_counter() - began)
            used[name] += time.process_time() + processor_seconds(process)
            began, left = time.perf_counter(), iter(range(16 * 10))

            async def client(server: Server, left: Any) -> None:
                for _ in left:
                    await ask(server, samples)

            await asyncio.gather(*(client(server, left) for _ in range(16)))
            rates[name].append(160 / (time.perf_counter() - began))
    print("| | median | p95 | processor time | 16 at a time |\n|---|--:|--:|--:|--:|")
    for name, found in alone.items():
        found.sort()
        median, late = statistics.median(found), found[int(0.95 * len(found))]
        processor = 1000 * used[name] / (rounds * count)
        print(
            f"| {name} | {1000 * median:.1f} ms | {1000 * late:.1f} ms | {processor:.1f} ms "
            f"| {statistics.median(rates[name]):.0f} requests/s |"
        )
    here.close()
    there.close()


# Affinity


async def measure_affinity(plan: ReplicaPlan, adapters: int, requests: int, clients: int) -> None:
    """Share of requests that find their adapter loaded, and rows of a forward, once each was asked for."""
    server = await front(plan)
    chance = random.Random(0)
    weights = list(itertools.accumulate(1 / (number + 1) for number in range(adapters)))

    async def run(count: int) -> None:
        left = iter(range(count))

        async def client() -> None:
            for _ in left:
                number = bisect.bisect_left(weights, chance.random() * weights[-1])
                await ask(server, AUDIO, f"a{number}")

        await asyncio.gather(*(client() for _ in range(clients)))
        await asyncio.sleep(4.0)  # until every replica has told of it

    def totals() -> dict[str, float]:
        found: Counter[str] = Counter()
        for engine, store in server.service.elsewhere.states().values():  # type: ignore[union-attr]
            found.update(
                {"hits": store["hits"], "misses": store["misses"], "rows": engine.rows, "batches": engine.batches}
            )
            found["mixed"] += engine.mixed_batches
        return dict(found)

    everything = iter(reversed([f"a{number}" for number in range(adapters)]))

    async def warm() -> None:
        for name in everything:
            await ask(server, AUDIO, name)

    await asyncio.gather(*(warm() for _ in range(clients)))
    await run(requests // 4)
    before = totals()
    began = time.perf_counter()
    await run(requests)
    seconds = time.perf_counter() - began - 4.0
    now = {name: value - before[name] for name, value in totals().items()}
    share = now["hits"] / (now["hits"] + now["misses"])
    print(
        f"| {plan.replicas} | {plan.settings.capacity} | {clients} | {100 * share:.1f} % "
        f"| {now['rows'] / now['batches']:.2f} "
        f"| {100 * now['mixed'] / now['batches']:.0f} % | {requests / seconds:.0f} |",
        flush=True,
    )
    server.close()


# Soak


async def soak(plan: ReplicaPlan, cluster: Cluster, node: Any, seconds: float) -> None:
    """Requests all the time, while a replica is killed, a node is lost, and an adapter comes and goes."""
    server = await front(plan)
    known = server.service.elsewhere.known  # type: ignore[union-attr]
    texts = {"": "abba", "swap": "baab", "other": "abba"}
    outcomes: Counter[str] = Counter()
    ends = time.monotonic() + seconds

    async def client(number: int) -> None:
        for adapter in itertools.cycle(texts):
            if time.monotonic() > ends:
                return
            try:
                text = await asyncio.wait_for(ask(server, AUDIO, adapter), 120)
                outcomes["right" if text == texts[adapter] else "wrong"] += 1
            except Exception as error:
                outcomes[f"lost: {type(error).__name__}"] += 1

    async def trouble() -> None:
        await asyncio.sleep(seconds * 0.2)
        replica = next(iter(known.running.values()))
        os.kill(await known.call(replica, "process"), signal.SIGKILL)
        print("a replica was killed", dict(outcomes), flush=True)
        await asyncio.sleep(seconds * 0.25)
        await asyncio.to_thread(cluster.remove_node, node, False)
        print("a node was lost", dict(outcomes), flush=True)
        for round in range(10):  # an adapter comes and goes everywhere
            await asyncio.sleep(seconds * 0.03)
            put_adapter(SpeakingModel(), "swap", plan.settings.adapters / f"late{round}")  # type: ignore[operator]
            place = plan.settings.adapters / f"late{round}"  # type: ignore[operator]
            (place / "swap").rename(plan.settings.adapters / f"fresh{round}")  # type: ignore[operator]
            place.rmdir()
            server.store.scan()
            found = await asyncio.gather(*(ask(server, AUDIO, f"fresh{round}") for _ in range(8)))
            outcomes["replaced right" if set(found) == {"abba"} else "replaced wrong"] += 8
            server.store.remove(f"fresh{round}")

    await asyncio.gather(trouble(), *(client(number) for number in range(8)))
    print(dict(outcomes), "retried:", server.service.elsewhere.retries, "replicas now:", len(known.running))  # type: ignore[union-attr]
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("overhead", "affinity", "soak"))
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--clients", type=int, nargs="*", default=[24, 48])
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="overtone-ray-"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80 * 2**20})
    nodes = [
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        for _ in range(2 if arguments.what == "soak" else 1)
    ]
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        if arguments.what == "overhead":
            for name, load in (("a model of no work", tones), ("the embedded model", paper)):
                print(f"\n{name}\n")
                plan = plan_of(folder, load)
                with deployed(plan):
                    asyncio.run(measure_overhead(plan, arguments.rounds))
        elif arguments.what == "affinity":
            model = SpeakingModel()
            for number in range(1000):
                put_adapter(model, f"a{number}", folder)
            print("| replicas | capacity | clients | adapter found loaded | rows of a forward | mixed | requests/s |")
            print("|--:|--:|--:|--:|--:|--:|--:|")
            loads = [one for clients in arguments.clients for one in ((3, 400, clients), (1, 1000, clients // 3))]
            for replicas, capacity, clients in loads:
                plan = plan_of(folder, tones, replicas=replicas, cpus=0.3, capacity=capacity)
                with deployed(plan):
                    asyncio.run(measure_affinity(plan, 1000, arguments.requests, clients))
        else:
            for name in ("swap", "other"):
                put_adapter(SpeakingModel(), name, folder)
            plan = plan_of(folder, tones, replicas=3, cpus=0.9)
            with deployed(plan):
                asyncio.run(soak(plan, cluster, nodes[0], arguments.seconds))
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
