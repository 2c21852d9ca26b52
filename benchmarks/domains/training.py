"""One training of one method on one domain, from a fresh base."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.domains.corpora import DomainParts
from benchmarks.domains.plan import ADAPTER, METHODS, PRIOR, TEXT, Plan
from benchmarks.harness import ROOT
from overtone.adapters.prior import FILE, find_prior
from overtone.adapters.word_text import TOKEN_BONUS, WEIGHT, make_words, prior_words
from overtone.checkpoints.load import save_model
from overtone.checkpoints.nemo.adapters import load_adapters
from overtone.config import load_settings, quoted
from overtone.data.manifest import read_manifest
from overtone.errors import OvertoneError
from overtone.evaluation.results import total
from overtone.models.asr_model import AsrModel
from overtone.training.console import Reporter
from overtone.training.train import run_training
from overtone.wer import word_errors

NEMO_TRAINING = ROOT / "benchmarks" / "domains" / "nemo_training.py"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A base with what was trained for a domain."""

    model: AsrModel
    adapter: str | None
    """None where the base itself was trained."""
    facts: dict[str, Any]
    """What is written down."""


def load_libraries() -> None:
    """What the first training would load: no row's time should hold it."""
    import_module("lightning.pytorch")
    import_module("overtone.training.loop")


def train(
    model: AsrModel,
    method: str,
    parts: DomainParts,
    plan: Plan,
    *,
    rate: float,
    folder: Path,
    nemo_python: Path | None = None,
    nemo_hears_test: bool = False,
    overrides: Sequence[str] = (),
) -> Trained:
    """The model with the best step's weights, or with counted words. The folder is the run's own.

    nemo_hears_test: whether NeMo's own word error rate on the test part is told too.
    Raises OvertoneError for settings and data, and where NeMo's process fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if method == "nemo":
        assert nemo_python is not None, "the caller leaves NeMo out where it is absent"
        return train_nemo(
            model, parts, plan, rate=rate, folder=folder, python=nemo_python, hears_test=nemo_hears_test
        )  # fmt: skip
    if method in (TEXT, PRIOR):
        return count_words(model, parts, general=method == PRIOR)
    return train_ours(model, METHODS[method].overrides, parts, plan, rate=rate, folder=folder, overrides=overrides)


def count_words(model: AsrModel, parts: DomainParts, *, general: bool) -> Trained:
    """The words of the training transcripts with the usual weights, as `overtone words`; general: the prior's alone."""
    began = time.perf_counter()
    tokenizer = model.tokenizer
    prior = find_prior(tokenizer.digest())
    if general:
        assert prior is not None, "the caller leaves the prior out where there is none"
        part = prior_words(prior)
    else:
        said = [tokenizer.encode(line.text or "") for line in read_manifest(parts.train.manifest)]
        weight, bonus = (WEIGHT, TOKEN_BONUS) if prior is None else (prior.weight, prior.token_bonus)
        part = make_words(tokenizer, sequences=said, prior=prior, weight=weight, token_bonus=bonus)
    model.adapters.add_words(ADAPTER, part)
    return Trained(
        model=model,
        adapter=ADAPTER,
        facts={
            "steps": 0,
            "best_step": 0,
            "trained_parameters": 0,
            "seconds": time.perf_counter() - began,
            "bytes": FILE.stat().st_size if general else len(part.to_bytes()),
            "words": {"weight": part.weight, "token_bonus": part.token_bonus},
        },
    )


def train_ours(
    model: AsrModel,
    kind: Sequence[str],
    parts: DomainParts,
    plan: Plan,
    *,
    rate: float,
    folder: Path,
    overrides: Sequence[str] = (),
) -> Trained:
    settings = load_settings(
        [
            "model.nemo_model=given",
            f"model.adapter.adapter_name={ADAPTER}",
            "model.adapter.adapter_state_dict_name=null",
            "model.adapter.words=off",
            f"model.adapter.linear.dim={plan.dim}",
            f"model.train_ds.manifest_filepath={quoted(parts.train.manifest)}",
            f"model.validation_ds.manifest_filepath={quoted(parts.valid.manifest)}",
            *(f"model.{part}.batch_size={plan.batch_size}" for part in ("train_ds", "validation_ds")),
            *(f"model.{part}.num_workers=0" for part in ("train_ds", "validation_ds")),
            *(f"model.{part}.min_duration=0" for part in ("train_ds", "validation_ds")),
            *(f"model.{part}.max_duration=1000" for part in ("train_ds", "validation_ds")),
            f"model.optim.lr={rate}",
            f"trainer.max_steps={plan.steps}",
            f"trainer.val_check_interval={plan.validate_every}",
            "trainer.accelerator=cpu",
            "exp_manager.create_tensorboard_logger=false",
            "exp_manager.create_checkpoint_callback=false",
            f"exp_manager.explicit_log_dir={quoted(folder / 'run')}",
            f"seed={plan.seed}",
            *kind,
            *overrides,
        ]
    )
    began = time.perf_counter()
    result = run_training(settings, model=model, reporter=Reporter(quiet=True))
    seconds = time.perf_counter() - began
    trained = model.base_parameters() if result.adapter is None else model.adapters.parameters_of(result.adapter)
    return Trained(
        model=model,
        adapter=result.adapter,
        facts={
            "learning_rate": rate,
            "steps": result.steps,
            "best_step": result.best_step,
            "valid_wer_before": result.wer_before,
            "valid_wer": result.wer_after,
            "trained_parameters": sum(parameter.numel() for parameter in trained),
            "seconds": seconds,
            "bytes": sum(path.stat().st_size for path in result.best.iterdir()),
            "saved_as": "model folder, float32" if result.adapter is None else "adapter folder",
            "base_dtype": result.card["dtypes"]["base"],
            "words": result.card.get("words"),
        },
    )


def train_nemo(
    model: AsrModel, parts: DomainParts, plan: Plan, *, rate: float, folder: Path, python: Path, hears_test: bool
) -> Trained:
    """NeMo's adapter, trained by NeMo in its own process and read from NeMo's own file."""
    base, adapters_file = folder / "base.nemo", folder / "adapters.pt"
    save_model(model, base)
    request = {
        "base": str(base.resolve()),
        "train": str(parts.train.manifest.resolve()),
        "valid": str(parts.valid.manifest.resolve()),
        "test": str(parts.test.manifest.resolve()) if hears_test else None,
        "adapters_file": str(adapters_file.resolve()),
        "adapter": ADAPTER,
        "dim": plan.dim,
        "batch_size": plan.batch_size,
        "steps": plan.steps,
        "validate_every": plan.validate_every,
        "learning_rate": rate,
        "seed": plan.seed,
        "threads": plan.threads,
    }
    began = time.perf_counter()
    answer = run_nemo(python, request, folder)
    whole = time.perf_counter() - began
    (adapter,) = load_adapters(model, adapters_file)
    base.unlink()
    validated = answer["history"]
    return Trained(
        model=model,
        adapter=adapter.name,
        facts={
            "learning_rate": rate,
            "steps": answer["steps"],
            "best_step": answer["best_step"],
            "valid_wer_before": validated[0]["wer"],
            "valid_wer": next(one["wer"] for one in validated if one["step"] == answer["best_step"]),
            "trained_parameters": answer["trained_parameters"],
            "seconds": answer["seconds"],
            "process_seconds": whole,
            "utterances_seen": answer["utterances"],
            "bytes": adapters_file.stat().st_size,
            "saved_as": "adapters.pt",
            "base_dtype": "float32",
            "own_test_wer": own_rate(parts, answer["heard"]) if hears_test else None,
            "versions": {name: answer[name] for name in ("nemo", "torch")},
        },
    )


def own_rate(parts: DomainParts, heard: Sequence[str]) -> float:
    """Word error rate of what NeMo itself heard in the test part."""
    references = [line.text or "" for line in read_manifest(parts.test.manifest)]
    return total(word_errors(said, found) for said, found in zip(references, heard, strict=True)).rate


def run_nemo(python: Path, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The answer of NeMo's process, what it says kept in a file. Raises OvertoneError where it fails."""
    asked, answered = folder / "request.json", folder / "answer.json"
    asked.write_text(json.dumps(request, indent=1) + "\n", "utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(request["threads"]), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        [str(python), str(NEMO_TRAINING), str(asked), str(answered)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    (folder / "nemo.log").write_text(result.stdout + result.stderr, "utf-8")
    if result.returncode != 0:
        raise OvertoneError(f"NeMo's process ended with {result.returncode}; see {folder / 'nemo.log'}.")
    answer: dict[str, Any] = json.loads(answered.read_text("utf-8"))
    return answer
