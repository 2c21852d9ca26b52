"""Gain on a domain that general speech can bear: by weaker adapters, by earlier steps, by both, and with words.

    python -m benchmarks.domains --speech SPEECH --output RUNS       # its manifests, and what the base hears in them
    python -m benchmarks.gate --folder RUNS --choose librispeech_walleclipse/train.jsonl

One training, whose early steps are kept; one that lies there is not repeated. The gate then hears the validation part
and general speech of `--choose` with every strength, once; what each way would take is drawn from that, put into the
adapter, and heard on the test part of the domain and on the general speech of the table. Neither chose anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.domains.cells import Cells
from benchmarks.domains.corpora import spread, write_part
from benchmarks.domains.measuring import DOMAIN, beside_base, hear
from benchmarks.domains.plan import ADAPTER, METHODS, WORDS, Plan
from benchmarks.harness import print_machine, print_rows
from overtone.adapters.adapter import Adapter
from overtone.adapters.prior import find_prior
from overtone.adapters.storage import read_folder
from overtone.checkpoints.load import load_model
from overtone.config import load_settings, quoted
from overtone.data.manifest import read_manifest
from overtone.inference.retention import EARLY_SCALES, MIXES, SCALES, EarlierStep, Search, Strength, domain_errors
from overtone.inference.word_weights import hear as hear_recordings
from overtone.models.asr_model import AsrModel
from overtone.training.console import Reporter
from overtone.training.retention import general_recordings
from overtone.training.train import run_training

DOMAINS = ("prompts", "digits", "wakewords")
GENERAL = ("speechocean762", "librispeech")
LONGEST_SECONDS = 12.0
VALIDATE_EVERY = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="the --output of benchmarks.domains")
    parser.add_argument("--choose", type=Path, required=True, help="manifest of general speech that chooses")
    parser.add_argument("--utterances", type=int, default=60, help="of it, evenly spread")
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=DOMAINS)
    parser.add_argument("--kind", default="linear")
    parser.add_argument("--kappa", type=float, default=0.5)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the training besides")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print_machine()
    print_rows((row for domain in arguments.domains for row in measure(arguments, domain)), table, arguments.json)


def measure(arguments: argparse.Namespace, domain: str) -> Iterator[dict[str, Any]]:
    """The base, the whole adapter, and what each way leaves of it."""
    manifests = {part: arguments.folder / "manifests" / domain / f"{part}.json" for part in ("train", "valid", "test")}
    usable = [own for own in read_manifest(arguments.choose) if own.duration <= LONGEST_SECONDS]
    place = arguments.folder / "gate" / domain
    chosen = write_part(place / "general.json", spread(usable, arguments.utterances)).manifest
    model = load_model("fundamental")
    best = place / "run" / "checkpoints" / f"{ADAPTER}-best"
    if best.is_dir():
        model.adapters.load(best, name=ADAPTER)
    else:
        train(arguments, model, manifests, place, chosen)
    adapter = model.adapters[ADAPTER]
    base, found, allowed = strengths(arguments, model, adapter, manifests["valid"], chosen, best)
    whole = {name: own.clone() for name, own in adapter.tensors().items()}
    words = adapter.words
    sets = {DOMAIN: manifests["test"]}
    sets |= {name: arguments.folder / "manifests" / "general" / f"{name}.json" for name in GENERAL}
    table_cell = Cells(arguments.folder / "cells", resume=True).get(f"{domain}/base")
    plain = hear(model, sets, [None])[None] if table_cell is None else table_cell["heard"]
    yield {"domain": domain, "way": "base", "general_choosing": base, **figures(plain, plain)}
    for way, own in ways(found, allowed).items():
        tensors = whole if own.step is None else early(best, own.step, model)
        adapter.load_tensors(tensors)
        if own.scale != 1.0:
            adapter.load_tensors(adapter.scaled_tensors(own.scale) or {})
        adapter.words = own.part
        heard = hear(model, sets, [ADAPTER])[ADAPTER]
        adapter.words = words
        yield {
            "domain": domain,
            "way": way,
            "step": own.step,
            "scale": own.scale,
            "words": own.share if own.part is not None else 0.0,
            "prior": own.mix,
            "general_choosing": 100 * own.general.rate,
            "valid": None if own.domain is None else 100 * own.domain.rate,
            **figures(heard, plain),
        }


def train(
    arguments: argparse.Namespace, model: AsrModel, manifests: dict[str, Path], place: Path, chosen: Path
) -> None:
    """The training of the domain table, validated more often, its early steps kept."""
    plan = Plan(threads=arguments.threads)
    settings = load_settings(
        [
            "model.nemo_model=given",
            f"model.adapter.adapter_name={ADAPTER}",
            "model.adapter.adapter_state_dict_name=null",
            f"model.adapter.adapter_type={arguments.kind}",
            f"model.adapter.linear.dim={plan.dim}",
            WORDS,
            f"model.adapter.retention={{manifest: {quoted(chosen)}, kappa: 1000}}",
            f"model.train_ds.manifest_filepath={quoted(manifests['train'])}",
            f"model.validation_ds.manifest_filepath={quoted(manifests['valid'])}",
            *(f"model.{part}.batch_size={plan.batch_size}" for part in ("train_ds", "validation_ds")),
            *(f"model.{part}.num_workers=0" for part in ("train_ds", "validation_ds")),
            f"model.optim.lr={METHODS[arguments.kind].learning_rate}",
            f"trainer.max_steps={plan.steps}",
            f"trainer.val_check_interval={VALIDATE_EVERY}",
            "trainer.accelerator=cpu",
            "exp_manager.create_tensorboard_logger=false",
            "exp_manager.create_checkpoint_callback=false",
            f"exp_manager.explicit_log_dir={quoted(place / 'run')}",
            f"seed={plan.seed}",
            *arguments.set,
        ]
    )
    run_training(settings, model=model, reporter=Reporter(quiet=True))


def early(best: Path, step: int, model: AsrModel) -> dict[str, torch.Tensor]:
    folder = best.with_name(best.name.removesuffix("-best") + "-early") / f"step={step}"
    return read_folder(folder, model.adapters.identity()).tensors


def strengths(
    arguments: argparse.Namespace, model: AsrModel, adapter: Adapter, valid: Path, chosen: Path, best: Path
) -> tuple[float, list[Strength], float]:
    """General WER % of the base, every strength that was heard, and the errors on general speech that are allowed."""
    steps = sorted(int(path.name.partition("=")[2]) for path in best.parent.glob("*-early/step=*"))
    earlier = [EarlierStep(step=step, tensors=early(best, step, model)) for step in steps]
    part = adapter.words
    if part is not None and part.prior is None:  # a file without a share of it does not name it
        part = replace(part, prior=find_prior(model.tokenizer.digest()))
    whole = {name: own.clone() for name, own in adapter.tensors().items()}
    found: list[Strength] = []
    adapter.words = None
    recordings = {
        name: general_recordings(model, read_manifest(path)) for name, path in (("general", chosen), ("valid", valid))
    }

    def listen(name: str, choice: str | None) -> Any:
        return hear_recordings(model, recordings[name], choice)

    with model.evaluating(), model.computing_in("auto"):
        search = Search(model, adapter, part, partial(listen, "general"), partial(listen, "valid"), earlier, MIXES)
        base = search.count_base("general")
        assert base is not None
        allowed = base.errors + arguments.kappa / 100 * base.reference_length
        found.append(search.measure(1.0, 1.0))
        for step in (None, *steps):
            for scale in SCALES if step is None else EARLY_SCALES:
                print(domain_line(step, scale), end=" ", flush=True)
                found.append(search.measure(scale, 0.0, step))
                found += [own for own in search.within_words(allowed, scale, step) if own.part is not None]
        search.act(0.0)
        found.append(search.measure(0.0, 0.0))
        found += [own for own in search.within_words(allowed, 0.0) if own.part is not None]
    adapter.load_tensors(whole)
    adapter.words = part
    return 100 * base.rate, found, allowed


def domain_line(step: int | None, scale: float) -> str:
    return f"[{'best' if step is None else step} × {scale:g}]"


def ways(found: Sequence[Strength], allowed: float) -> dict[str, Strength]:
    """The whole adapter with words, and the best of each kind that general speech bears."""
    bearable = [own for own in found if own.general.errors <= allowed]
    kinds = {
        "weaker": [own for own in bearable if own.step is None and own.part is None],
        "earlier steps": [own for own in bearable if own.scale == 1.0 and own.part is None],
        "both": [own for own in bearable if own.part is None],
        "words alone": [own for own in bearable if own.scale == 0.0 and own.mix is None],
        "both with words": [own for own in bearable if own.mix is None],
        "both with words and the prior": bearable,
    }
    chosen = {way: min(own, key=domain_errors) for way, own in kinds.items() if own}
    whole = {"whole adapter": found[1], "whole adapter with words": found[0]}
    return {**whole, **chosen}


def figures(heard: dict[str, Any], base: dict[str, Any]) -> dict[str, float]:
    beside = beside_base(heard, base)
    return {"wer": 100 * beside["rates"][DOMAIN]["wer"], "damage": 100 * beside["general_change"]["wer"]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "",
        "| domain | what is kept | step | acoustic | words | choosing: validation | general | test WER % | general |",
        "| --- | --- |" + " ---: |" * 7,
    ]
    for row in rows:
        if row["way"] == "base":
            cells = ["", "", "", "", f"{row['general_choosing']:.1f}", f"{row['wer']:.1f}", ""]
        else:
            step = "best" if row["step"] is None else str(row["step"])
            mixed = "" if row["prior"] is None else f", {row['prior']:.0%} prior"
            strength = [step, f"{row['scale']:.0%}", f"{row['words']:.0%}{mixed}"]
            rates = [f"{row[key]:.1f}" for key in ("valid", "general_choosing", "wer")]
            cells = [*strength, *rates, f"{row['damage']:+.1f}".replace("-", "\u2212")]
        lines.append(f"| {' | '.join([row['domain'], row['way'], *cells])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
