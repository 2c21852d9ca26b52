"""Choices made on the validation parts alone: learning rates by method (`--tune`), and the defaults (`--sweep`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from benchmarks.domains.cells import Cell, Cells
from benchmarks.domains.measuring import DOMAIN, counts_of, difference, hear, rate
from benchmarks.domains.page import changed, markdown, rated
from benchmarks.domains.plan import METHODS
from benchmarks.domains.table import Job, Scene, identity_of, read_scene
from benchmarks.domains.training import train
from overtone.backends.fused import encoder as prepared
from overtone.checkpoints.load import load_model


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A training that differs from the centre of the sweep in one thing."""

    name: str
    factor: str
    method: str = "linear"
    overrides: tuple[str, ...] = ()
    rate_factor: float = 1.0
    """Times the method's learning rate."""
    stream: str | None = None
    """What the stream between the parts of the frozen base is kept in; None is the base's own dtype."""


CENTRE = Variant(name="centre", factor="")
CHANCE = "chance"


def variants(layers: int) -> tuple[Variant, ...]:
    """The centre, and each factor's other values; two more seeds tell how far chance alone reaches."""
    last_half = f"model.adapter.layers=last:{max(1, layers // 2)}"
    masks = ("model.spec_augment.freq_masks=1", "model.spec_augment.time_masks=2")
    return (
        CENTRE,
        Variant(name="seed 1", factor=CHANCE, overrides=("seed=1",)),
        Variant(name="seed 2", factor=CHANCE, overrides=("seed=2",)),
        Variant(name="dim 8", factor="dim", overrides=("model.adapter.linear.dim=8",)),
        Variant(name="dim 96", factor="dim", overrides=("model.adapter.linear.dim=96",)),
        Variant(name="tiny_attn", factor="kind", method="tiny_attn"),
        Variant(name="lora", factor="kind", method="lora"),
        Variant(name="last half of the layers", factor="layers", overrides=(last_half,)),
        Variant(name="base dropout off", factor="base dropout", overrides=("model.base_dropout=false",)),
        Variant(name="rate / 3", factor="learning rate", rate_factor=1 / 3),
        Variant(name="rate × 3", factor="learning rate", rate_factor=3.0),
        Variant(name="stream float32", factor="stream dtype", stream="float32"),
        Variant(name="stream bfloat16", factor="stream dtype", stream="bfloat16"),
        Variant(name="base float32", factor="base dtype", overrides=("compute_dtype=float32",)),
        Variant(name="masks on the features", factor="augmentation", overrides=masks),
    )


@contextmanager
def stream_kept_in(dtype: str | None) -> Iterator[None]:
    """Copies of a frozen base that are made inside keep their stream in the dtype."""
    before = prepared.STREAM_DTYPE
    prepared.STREAM_DTYPE = before if dtype is None else getattr(torch, dtype)
    try:
        yield
    finally:
        prepared.STREAM_DTYPE = before


def trial(job: Job, scene: Scene, cells: Cells, domain: str, name: str, variant: Variant, learning_rate: float) -> Cell:
    """A training, and what its best step makes of the validation part."""
    parts = scene.domains[domain]

    def make() -> Cell:
        with stream_kept_in(variant.stream):
            trained = train(
                load_model(job.base),
                variant.method,
                parts,
                job.plan,
                rate=learning_rate,
                folder=job.output / "runs" / name,
                nemo_python=job.nemo_python,
                overrides=variant.overrides,
            )
            heard = hear(trained.model, {DOMAIN: parts.valid.manifest}, [trained.adapter])
        return {"facts": trained.facts, "heard": heard[trained.adapter][DOMAIN]}

    identity = {
        **identity_of(job, scene, domain),
        **job.plan.described(),
        "method": variant.method,
        "learning_rate": learning_rate,
        "settings": [*METHODS[variant.method].overrides, *variant.overrides],
        "stream": variant.stream,
    }
    cell = cells.finished(name, identity, make)
    job.say(f"{name}: validation WER {rate(counts_of(cell['heard']))['wer']:.2%}, {cell['facts']['seconds']:.0f} s")
    return cell


# Learning rates


def tune(job: Job, grid: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
    """Every rate of the grid on every domain; by method, the one is chosen that leaves the fewest of the base's errors.

    That share is the mean over the domains, each counting the same.
    """
    scene = read_scene(job)
    cells = Cells(job.output / "tuning", resume=job.resume)
    runs: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for method in job.methods:
        for value in grid[method]:
            found = {}
            for domain in job.domains:
                variant = Variant(name=f"{value:g}", factor="learning rate", method=method)
                cell = trial(job, scene, cells, domain, f"{method}-{value:g}/{domain}", variant, value)
                wer = rate(counts_of(cell["heard"]))["wer"]
                found[domain] = {"wer": wer, "left": wer / max(cell["facts"]["valid_wer_before"], 1e-9)}
            runs.setdefault(method, {})[f"{value:g}"] = found
    chosen = {
        method: float(min(tried, key=lambda value: (errors_left(tried[value]), float(value))))
        for method, tried in runs.items()
    }
    return {"rates": chosen, "runs": runs, "plan": job.plan.described(), "base": scene.fingerprint}


def errors_left(found: Mapping[str, Mapping[str, float]]) -> float:
    """The share of the base's errors that is left, mean over the domains."""
    return mean(one["left"] for one in found.values())


def tuning_section(tuning: Mapping[str, Any]) -> str:
    domains = list(dict.fromkeys(name for tried in tuning["runs"].values() for one in tried.values() for name in one))
    rows = [["method", "learning rate", *(f"{name} %" for name in domains), "errors left"]]
    rows.append(["---"] * len(rows[0]))
    for method, tried in tuning["runs"].items():
        for value, found in tried.items():
            is_chosen = float(value) == tuning["rates"][method]
            shown = [f"{100 * found[name]['wer']:.1f}" for name in domains]
            left = f"{errors_left(found):.3f}"
            rows.append([METHODS[method].title, value, *shown, f"**{left}**" if is_chosen else left])
    words = (
        f"Word error rates on the validation parts, the best of {tuning['plan']['steps']} steps, and the share of the\n"
        "base's errors that is left, mean over the domains; what is chosen is bold."
    )
    return f"## Learning rates\n\n{words} Base `{tuning['base'][:23]}…`.\n\n{markdown(rows)}"


# Defaults


def sweep(job: Job) -> dict[str, Any]:
    """One factor at a time around the centre; each variant beside the centre on the same validation utterances."""
    scene = read_scene(job)
    cells = Cells(job.output / "sweep", resume=job.resume)
    centre: dict[str, Cell] = {}
    rows = []
    for variant in variants(scene.layers):
        learning_rate = job.rates[variant.method] * variant.rate_factor
        name = variant.name.replace("/", "by")
        found = {
            domain: trial(job, scene, cells, domain, f"{name}/{domain}", variant, learning_rate)
            for domain in job.domains
        }
        centre = centre or found
        rows.append(
            {
                "name": variant.name,
                "factor": variant.factor,
                "learning_rate": learning_rate,
                "together": beside(found.values(), centre.values()),
                "domains": {
                    domain: {
                        **rate(counts_of(cell["heard"])),
                        "change": beside([cell], [centre[domain]]),
                        **cell["facts"],
                    }
                    for domain, cell in found.items()
                },
            }
        )
    return {"rows": rows, "plan": job.plan.described(), "base": scene.fingerprint}


def beside(cells: Iterable[Cell], centre: Iterable[Cell]) -> dict[str, Any]:
    """The change of the word error rate over all of their utterances."""
    after, before = (counts_of([cell["heard"] for cell in side]) for side in (cells, centre))
    return difference(after, before)


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """What each factor's best value is: it has to beat the centre clearly, and by more than other seeds do."""
    rows = found["rows"][1:]
    chance = max((abs(row["together"]["wer"]) for row in rows if row["factor"] == CHANCE), default=0.0)
    told = []
    for factor in dict.fromkeys(row["factor"] for row in rows if row["factor"] != CHANCE):
        best = min((row for row in rows if row["factor"] == factor), key=lambda row: float(row["together"]["wer"]))
        wins = best["together"]["interval"][1] < 0 and best["together"]["wer"] < -chance
        verdict = "better than the centre" if wins else "no clear gain, the centre stays"
        told.append(f"{factor}: {best['name']}, {changed(best['together'])}: {verdict}")
    return told


def sweep_section(found: Mapping[str, Any]) -> str:
    domains = list(found["rows"][0]["domains"])
    columns = [column for name in domains for column in (f"{name} %", "to the centre")]
    rows = [["variant", "rate", *columns, "together", "trained parameters", "training"]]
    rows.append(["---"] * len(rows[0]))
    for row in found["rows"]:
        cells = row["domains"]
        is_centre = row["name"] == CENTRE.name
        shown = [
            text
            for name in domains
            for text in (rated(cells[name]), "" if is_centre else changed(cells[name]["change"]))
        ]  # fmt: skip
        together = "" if is_centre else changed(row["together"])
        seconds = sum(cell["seconds"] for cell in cells.values())
        parameters = cells[domains[0]]["trained_parameters"]
        rows.append(
            [row["name"], f"{row['learning_rate']:.3g}", *shown, together, f"{parameters:,}", f"{seconds:.0f} s"]
        )  # fmt: skip
    plan = found["plan"]
    words = (
        f"The centre: a linear adapter of {plan['dim']} in every layer, the base's dropout on, the base and its\n"
        f"stream as they are by default, {plan['steps']} steps. Each row changes one thing; other kinds have their\n"
        "own learning rate. Word error rates on the validation parts, with 95 % intervals; the rows of other seeds\n"
        "show how far chance alone reaches. A value wins where its interval lies below 0, further off than chance."
    )
    told = "\n".join(f"- {verdict}" for verdict in verdicts(found))
    return f"## Which defaults\n\n{words} Base `{found['base'][:23]}…`.\n\n{markdown(rows)}\n{told}\n"
