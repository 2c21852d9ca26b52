"""The soak test of `overtone serve`: everything goes wrong around it, and no answer may be lost or of a wrong adapter.

    python -m benchmarks.serving_soak --minutes 30 --page benchmarks/SERVING.md --json soak.json

While clients of every interface send requests and streams, and some of them vanish in the middle, adapters are
replaced on disk and by upload, one is removed and comes back, one is overwritten with damage, adapters are unloaded,
and the engine's worker thread is killed in the midst of a forward. Every answer is compared with the one computed
directly for the version that was in place; while a version is being replaced, the old and the new one are right.
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import parse, print_machine, write_json
from benchmarks.serving_adapters import (
    FAVOURED,
    STRENGTH,
    Asked,
    Truth,
    adapter_name,
    make_clips,
    truth,
    write_adapter,
)
from benchmarks.serving_clients import Answer, Clients
from benchmarks.serving_process import ServeProcess, Weight
from benchmarks.serving_soak_report import report
from overtone.adapters.storage import DESCRIPTION, PARAMETERS
from overtone.checkpoints.load import load_model
from overtone.models.asr_model import AsrModel

ADAPTERS, CAPACITY = 12, 8
"""Twice as many as have room, so that they are evicted and read again all the time."""
PASSING, DAMAGED = "passing", "damaged"
"""Removed and put back; overwritten with damage and mended."""
TRIES = 20
"""Versions in turn that may be too like others."""
LENGTHS = (0.7, 1.5, 2.5, 4.0, 6.0, 9.0)
SLICE = 20.0
"""Seconds of one job of the clients."""
SETTLE = 4.0
"""Seconds after which a change of the folder is certainly seen."""
REFUSALS = ("INVALID_ARGUMENT", "404", "400", "model_not_found", "not_found")
OVERLOADS = ("RESOURCE_EXHAUSTED", "429", "rate_limit_exceeded")


@dataclass(kw_only=True)
class Placed:
    """A version of an adapter, and when it was in the server's folder."""

    version: str | None
    """Its folder among all versions; None while the name was absent or damaged."""
    begin: float
    end: float = float("inf")


@dataclass(kw_only=True)
class Shop:
    """Changes the server's folder and remembers when. Every version is kept apart for the comparison."""

    model: AsrModel
    folder: Path
    versions: Path
    dim: int
    strength: float
    favoured: int = 0
    """See `write_adapter`."""
    is_distinct: Callable[[str], bool] = lambda version: True
    """Whether nobody can take a version's answers for another's; only such versions are placed."""
    history: dict[str, list[Placed]] = field(default_factory=dict)
    count: int = 0
    done: Counter[str] = field(default_factory=Counter)

    def new_version(self, name: str) -> str:
        for _ in range(TRIES):
            self.count += 1
            version = f"{name}.v{self.count}"
            write_adapter(
                self.model, self.versions / version,
                seed=self.count, dim=self.dim, strength=self.strength, favoured=self.favoured,
            )  # fmt: skip
            if self.is_distinct(version):
                return version
            self.done["thrown away, for being too like another"] += 1
        raise RuntimeError(f"{TRIES} versions were too like others; the clips are too short to tell so many apart.")

    def change(self, name: str, version: str | None, act: Callable[[], None], kind: str) -> None:
        """The old version counts until the change has certainly been seen, the new one from before it."""
        begin = time.monotonic()
        act()
        past = self.history.setdefault(name, [])
        if past:
            past[-1].end = time.monotonic() + SETTLE
        past.append(Placed(version=version, begin=begin))
        self.done[kind] += 1

    def put_on_disk(self, name: str, kind: str = "replaced on disk") -> None:
        """Both files beside their places, then renamed, as training writes them."""
        version = self.new_version(name)

        def act() -> None:
            (self.folder / name).mkdir(exist_ok=True)
            for file in (PARAMETERS, DESCRIPTION):
                beside = self.folder / name / f".{file}.new"
                shutil.copyfile(self.versions / version / file, beside)
                beside.replace(self.folder / name / file)

        self.change(name, version, act, kind)

    def upload(self, name: str, server: ServeProcess) -> None:
        version = self.new_version(name)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(self.versions / version, arcname=name)
        path = f"/v1/admin/adapters/{name}"
        self.change(name, version, lambda: void(server.ask("PUT", path, packed.getvalue())), "replaced by upload")

    def remove(self, name: str, server: ServeProcess) -> None:
        path = f"/v1/admin/adapters/{name}"
        self.change(name, None, lambda: void(server.ask("DELETE", path)), "removed")

    def damage(self, name: str) -> None:
        """The parameters cut short; what is resident stays in service, so that its version goes on counting."""
        path = self.folder / name / PARAMETERS
        beside = path.with_name(".damage")

        def act() -> None:
            beside.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            beside.replace(path)

        version = next(placed.version for placed in reversed(self.history[name]) if placed.version)
        self.change(name, version, act, "damaged")

    def allowed(self, name: str, sent: float, ended: float) -> tuple[list[str], bool]:
        """The versions that may answer a request of that time, and whether it may be refused."""
        during = [placed for placed in self.history[name] if placed.begin <= ended and placed.end >= sent]
        versions = list(dict.fromkeys(placed.version for placed in during if placed.version))
        return versions, name == DAMAGED or any(placed.version is None for placed in during)


def void(content: object) -> None:
    """For calls whose result is not wanted."""


@dataclass(kw_only=True)
class Findings:
    verdicts: Counter[str] = field(default_factory=Counter)
    interfaces: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, Weight]] = field(default_factory=list)
    """Minutes since the beginning, and what the server weighs."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    """The first lost or wrong answers, for whoever has to find out why."""

    def judge(self, answer: Answer, shop: Shop, right: Truth) -> None:
        verdict = judged(answer, shop, right)
        self.verdicts[verdict] += 1
        self.interfaces[f"{answer.interface}{', stream' if answer.streamed else ''}"] += 1
        if verdict in ("wrong", "lost") and len(self.faults) < 20:
            self.faults.append({"verdict": verdict, **vars(answer), "expected": expected(answer, shop, right)})


def judged(answer: Answer, shop: Shop, right: Truth) -> str:
    if answer.status == "GONE":
        return "vanished"
    if answer.status in OVERLOADS:
        return "overload"
    asked, may_refuse = allowed_answers(answer, shop)
    if answer.status != "OK":
        return "refused" if may_refuse and answer.status in REFUSALS else "lost"
    return right.verdict(answer.text, asked) if asked else "wrong"


def allowed_answers(answer: Answer, shop: Shop) -> tuple[list[Asked], bool]:
    names = answer.adapter.split("+") if answer.adapter else []
    found = [shop.allowed(name, answer.due, answer.ended) for name in names]
    chains = itertools.product(*(versions for versions, _ in found))
    asked = [
        Asked(clip=answer.clip, adapter="+".join(chain) or None, streamed=answer.streamed) for chain in chains
    ]  # fmt: skip
    return asked, any(may_refuse for _, may_refuse in found)


def expected(answer: Answer, shop: Shop, right: Truth) -> dict[str, str]:
    asked, _ = allowed_answers(answer, shop)
    return {str(each.adapter): right.text(each) for each in asked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fundamental", help="a .nemo file, a model folder, or a name")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=4.0, help="arrivals a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    parser.add_argument("--page", type=Path, help="write the section of this page")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--smoke", action="store_true", help="some seconds: only to see that it runs")
    arguments = parse(parser)
    if arguments.smoke:
        arguments.minutes, arguments.rate, arguments.dtype = 0.08, 6.0, "float32"
    print_machine()
    with tempfile.TemporaryDirectory() as directory:
        figures = run(Path(directory), arguments)
    print(report(figures, arguments.page))
    write_json(arguments.json, figures)
    sys.exit(int(figures["verdicts"].get("lost", 0) + figures["verdicts"].get("wrong", 0) > 0 or not figures["clean"]))


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    sound = make_clips(folder / "clips", LENGTHS[:3] if arguments.smoke else LENGTHS)
    for name in ("store", "versions"):
        (folder / name).mkdir()
    with truth(arguments.model, arguments.dtype, folder / "versions", sound) as right:
        shop = Shop(
            model=load_model(arguments.model), folder=folder / "store", versions=folder / "versions",
            dim=32, strength=STRENGTH, favoured=FAVOURED, is_distinct=right.is_distinct,
        )  # fmt: skip
        return endure(folder, arguments, shop, right)


def endure(folder: Path, arguments: argparse.Namespace, shop: Shop, right: Truth) -> dict[str, Any]:
    """A server and its clients, for so long, while everything goes wrong."""
    names = [*map(adapter_name, range(ADAPTERS)), PASSING, DAMAGED]
    for name in names:
        shop.put_on_disk(name, "placed")
    wanted = [None, None, *names, f"{names[0]}+{names[1]}", f"{names[2]}+{names[0]}"]
    findings = Findings()
    options = ("--dtype", arguments.dtype, "--capacity", str(CAPACITY), "--grace", "20")
    with (
        Clients("benchmarks.serving_soak_clients") as clients,
        ServeProcess(arguments.model, shop.folder, *options, log=folder / "log", threads=arguments.threads) as server,
    ):
        clips = clients.read_clips(folder / "clips")
        clock = time.monotonic()
        seconds = 60 * arguments.minutes
        turn = 0
        while (left := clock + seconds - time.monotonic()) > 0 and server.alive:
            turn += 1
            clients.tell(
                do="soak", grpc=server.grpc, http=server.http, names=wanted, clips=clips,
                rate=arguments.rate, seconds=min(SLICE, left), seed=1000 * arguments.seed + turn,
            )  # fmt: skip
            disturb(server, shop, min(SLICE, left), random.Random(turn))
            for answer in heard(clients):
                findings.judge(answer, shop, right)
            findings.samples.append(((time.monotonic() - clock) / 60, server.weight()))
            print(f"{findings.samples[-1][0]:.1f} min: {dict(findings.verdicts)}", file=sys.stderr, flush=True)
        metrics = at_rest(server)
        alive = server.alive
        status = server.stop()
        complaints = server.complaints()
    clean = alive and status == 0 and not complaints
    return {**figures_of(findings, shop, metrics, arguments, clean=clean), "log_faults": complaints}


def heard(clients: Clients) -> list[Answer]:
    return [Answer(**answer) for answer in clients.heard()["answers"]]


def disturb(server: ServeProcess, shop: Shop, seconds: float, generator: random.Random) -> None:
    """About one disturbance a second, of every kind."""
    until = time.monotonic() + seconds
    ordinary = [name for name in shop.history if name not in (PASSING, DAMAGED)]
    absent = False
    acts = ["disk", "disk", "upload", "unload", "kill", "passing", "damaged", "look"]
    while time.monotonic() < until:
        for act in generator.sample(acts, len(acts)):
            time.sleep(max(0.0, min(generator.uniform(0.3, 1.5), until - time.monotonic())))
            name = generator.choice(ordinary)
            match act:
                case "disk":
                    shop.put_on_disk(name)
                case "upload":
                    shop.upload(name, server)
                case "unload":
                    server.ask("POST", f"/v1/admin/adapters/{name}/unload")
                    shop.done["unloaded"] += 1
                case "kill":
                    server.kill_worker()
                    shop.done["worker killed"] += 1
                case "passing":
                    shop.put_on_disk(PASSING, "put back") if absent else shop.remove(PASSING, server)
                    absent = not absent
                case "damaged":
                    shop.damage(DAMAGED)
                    time.sleep(0.5)
                    shop.put_on_disk(DAMAGED, "mended")
                case "look":
                    server.adapters()
            if time.monotonic() >= until:
                break
    if absent:
        shop.put_on_disk(PASSING, "put back")


def at_rest(server: ServeProcess) -> dict[str, float]:
    """The metrics once nothing is going on any more; leases and calls that stay are leaks."""
    until = time.monotonic() + 15.0
    while True:
        metrics = server.metrics()
        if metrics["overtone_adapters_leased"] == 0 or time.monotonic() > until:
            return metrics
        time.sleep(0.5)


def figures_of(
    findings: Findings, shop: Shop, metrics: Mapping[str, float], arguments: argparse.Namespace, *, clean: bool
) -> dict[str, Any]:
    return {
        "minutes": arguments.minutes,
        "rate": arguments.rate,
        "verdicts": dict(findings.verdicts),
        "interfaces": dict(findings.interfaces),
        "disturbances": dict(shop.done),
        "samples": [(minute, vars(weight)) for minute, weight in findings.samples],
        "faults": findings.faults,
        "metrics": {name: value for name, value in metrics.items() if name.startswith("overtone_")},
        "clean": clean and metrics["overtone_adapters_leased"] == 0 and metrics["overtone_engine_waiting"] == 0,
        "adapters": ADAPTERS,
        "capacity": CAPACITY,
    }


if __name__ == "__main__":
    main()
