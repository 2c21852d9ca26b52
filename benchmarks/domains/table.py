"""The table itself: each method on each domain, beside the base, on the domain and on general speech."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.domains.cells import Cell, Cells
from benchmarks.domains.corpora import GENERAL, DomainParts, Part, read_domain, read_general
from benchmarks.domains.measuring import DOMAIN, Heard, beside_base, counts_of, hear, rate
from benchmarks.domains.plan import METHODS, PRIOR, Plan
from benchmarks.domains.training import load_libraries, train
from benchmarks.harness import machine
from overtone.adapters.prior import find_prior
from overtone.backends.fused.encoder import fast_dtype
from overtone.checkpoints.load import load_model
from overtone.evaluation import verify

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked for, and where it goes."""

    base: str
    """What `load_model` takes."""
    speech: Path
    output: Path
    domains: tuple[str, ...]
    methods: tuple[str, ...]
    plan: Plan
    rates: Mapping[str, float]
    nemo_python: Path | None
    resume: bool
    say: Say = print


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The base and the speech of a job, read."""

    fingerprint: str
    parameters: int
    name: str
    layers: int
    has_prior: bool
    """Whether there is a general prior over the base's tokens."""
    domains: dict[str, DomainParts]
    general: dict[str, Part]

    def sets(self, domain: str) -> dict[str, Path]:
        """Manifests by name: the domain's test part, and general speech."""
        general = {name: part.manifest for name, part in self.general.items()}
        return {DOMAIN: self.domains[domain].test.manifest, **general}


def read_scene(job: Job) -> Scene:
    """Writes the manifests and says what is disjoint."""
    load_libraries()
    model = load_model(job.base)
    manifests = job.output / "manifests"
    domains = {name: read_domain(name, job.speech, manifests, model) for name in job.domains}
    for parts in domains.values():
        job.say(
            f"{parts.title}: train {parts.train.utterances}, valid {parts.valid.utterances} ({parts.valid_speakers}), "
            f"test {parts.test.utterances} ({parts.speakers}); {parts.texts_seen} test transcripts are trained on, "
            f"{parts.left_out} training utterances left out"
        )
    return Scene(
        fingerprint=model.fingerprint(),
        parameters=sum(parameter.numel() for parameter in model.base_parameters()),
        name=model.name,
        layers=len(model.encoder.layers),
        has_prior=find_prior(model.tokenizer.digest()) is not None,
        domains=domains,
        general=read_general(job.speech, manifests),
    )


def run_table(job: Job) -> dict[str, Any]:
    """All cells, those that lie there already as they are; the results as plain data."""
    scene = read_scene(job)
    cells = Cells(job.output / "cells", resume=job.resume)
    methods = [method for method in job.methods if method != PRIOR or scene.has_prior]
    bases, adapted = {}, {}
    for domain in job.domains:
        bases[domain] = base_cell(job, scene, cells, domain)
        job.say(f"{domain} base: WER {rate(counts_of(bases[domain]['heard'][DOMAIN]))['wer']:.2%}")
        for method in methods:
            cell = method_cell(job, scene, cells, domain, method, bases[domain])
            adapted[domain, method] = cell
            compared = beside_base(cell["heard"], bases[domain]["heard"])
            off = "" if cell["off"] is None else f", off {'equals the base' if is_intact(cell) else 'DIFFERS'}"
            job.say(
                f"{domain} {method}: WER {compared['rates'][DOMAIN]['wer']:.2%}, general speech "
                f"{100 * compared['general_change']['wer']:+.2f} points, {cell['facts']['seconds']:.0f} s{off}"
            )
    return results_of(job, scene, bases, adapted)


def base_cell(job: Job, scene: Scene, cells: Cells, domain: str) -> Cell:
    def make() -> Cell:
        return {"heard": hear(load_model(job.base), scene.sets(domain), [None])[None]}

    return cells.finished(f"{domain}/base", identity_of(job, scene, domain), make)


def identity_of(job: Job, scene: Scene, domain: str) -> dict[str, Any]:
    """What every cell of a domain depends on."""
    parts = {name: getattr(scene.domains[domain], name).digest for name in ("train", "valid", "test")}
    return {"base": scene.fingerprint, **parts, **{name: part.digest for name, part in scene.general.items()}}


def method_cell(job: Job, scene: Scene, cells: Cells, domain: str, method: str, base: Cell) -> Cell:
    def make() -> Cell:
        return measure_method(job, scene, domain, method, base)

    identity = {
        **identity_of(job, scene, domain),
        **job.plan.described(),
        "method": method,
        "learning_rate": job.rates[method],
        "settings": list(METHODS[method].overrides),
    }
    return cells.finished(f"{domain}/{method}", identity, make)


def measure_method(job: Job, scene: Scene, domain: str, method: str, base: Cell) -> Cell:
    """Train on a fresh base, then hear everything with the adapter on and off."""
    model = load_model(job.base)
    with model.computing_in("float32"), model.evaluating(), torch.no_grad():
        before = verify.Stage(model, *verify.hear(model, None))
    trained = train(
        model,
        method,
        scene.domains[domain],
        job.plan,
        rate=job.rates[method],
        folder=job.output / "runs" / domain / method,
        nemo_python=job.nemo_python,
        nemo_hears_test=True,
    )
    choices = [None] if trained.adapter is None else [None, trained.adapter]
    heard = hear(trained.model, scene.sets(domain), choices)
    off = None if trained.adapter is None else compare_off(before, heard[None], base["heard"])
    return {"facts": trained.facts, "heard": heard[trained.adapter], "off": off}


def compare_off(before: verify.Stage, heard: Mapping[str, Heard], base: Mapping[str, Heard]) -> dict[str, Any]:
    """The model with its adapter off, beside the base as it was loaded."""
    model = before.model
    with model.computing_in("float32"), model.evaluating(), torch.no_grad():
        log_probs = verify.check_off(before, "adapter off").passed
        weights = verify.tensors_digest(model) == before.digest
    pairs = [pair for name in base for pair in zip(heard[name]["texts"], base[name]["texts"], strict=True)]
    return {
        "transcripts": len(pairs),
        "transcripts_equal": sum(now == then for now, then in pairs),
        "log_probs_equal": log_probs,
        "weights_equal": weights,
    }


def is_intact(cell: Mapping[str, Any]) -> bool:
    """Whether the adapter off is the base, bit for bit. Full fine-tuning has no off, and is not asked."""
    off = cell["off"]
    return bool(
        off is None
        or (off["transcripts_equal"] == off["transcripts"] and off["log_probs_equal"] and off["weights_equal"])
    )


def results_of(
    job: Job, scene: Scene, bases: Mapping[str, Cell], adapted: Mapping[tuple[str, str], Cell]
) -> dict[str, Any]:  # fmt: skip
    domains = {}
    for domain in job.domains:
        base = bases[domain]["heard"]
        domains[domain] = {
            **scene.domains[domain].described(),
            "base": {"rates": {name: rate(counts_of(one)) for name, one in base.items()}},
            "methods": {
                method: {**cell["facts"], **beside_base(cell["heard"], base), "off": cell["off"]}
                for (of, method), cell in adapted.items()
                if of == domain
            },
        }
    return {
        "machine": {key: value for key, value in machine().items() if key != "load"},
        "base": {
            "name": scene.name,
            "fingerprint": scene.fingerprint,
            "parameters": scene.parameters,
            "dtype": str(fast_dtype(torch.device("cpu"))).removeprefix("torch."),
        },
        "plan": job.plan.described(),
        "rates": {method: job.rates[method] for method in job.methods},
        "general": {name: {"title": GENERAL[name].title, **part.described()} for name, part in scene.general.items()},
        "domains": domains,
    }


def all_intact(results: Mapping[str, Any]) -> bool:
    return all(is_intact(row) for domain in results["domains"].values() for row in domain["methods"].values())
