"""Demonstration on embedded data: adapt a frozen base to telephone prompts, measure it, prove the base intact."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from overtone.adapters.prior import PRIOR
from overtone.checkpoints.adapters import load_prior
from overtone.checkpoints.load import load_model
from overtone.config import load_settings, quoted
from overtone.data.manifest import Utterance, read_manifest
from overtone.errors import UsageError
from overtone.evaluation.evaluate import evaluate
from overtone.evaluation.report.writer import write_html, write_json
from overtone.evaluation.results import Evaluation, Result, UtteranceResult
from overtone.evaluation.verify import PROMPTS, Check, Stage, check_off, check_rows, hear, tensors_digest
from overtone.models.asr_model import AsrModel
from overtone.training.console import Reporter
from overtone.training.run import TrainingResult
from overtone.training.train import run_training

BASE = "fundamental"
ADAPTER = "prompts"
STEPS = 300
RECIPE = (
    "model.adapter.linear.dim=96",
    "model.optim.lr=0.003",
    "model.adapter.words=auto",
    "model.spec_augment.freq_masks=1",
    "model.spec_augment.time_masks=2",
)
"""Settings chosen on the held-out training prompts: a small base has much to learn, from few minutes."""
HELD_OUT = 8
"""One in so many prompts of the training split is kept out of training, to choose the best step by."""
SENTENCES = 5
"""Sentences that are shown before and after."""
FEWEST_WORDS = 4
"""Words of the shortest sentence that is shown."""

Say = Callable[[str], None]
Show = Callable[[Evaluation], None]


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """Results of the demonstration, and the folder that holds them."""

    folder: Path
    training: TrainingResult
    evaluation: Evaluation
    """Base, base with the general prior where it has one, and adapter on the test split."""
    checks: tuple[Check, ...]
    """Proofs that the base is intact."""
    report: Path
    seconds: float

    @property
    def base(self) -> Result:
        return self.evaluation.results[0]

    @property
    def adapted(self) -> Result:
        return self.evaluation.results[-1]

    @property
    def with_prior(self) -> Result | None:
        """The base with its general prior; None for a base that has none."""
        return self.evaluation.results[1] if len(self.evaluation.results) > 2 else None

    @property
    def intact(self) -> bool:
        return all(check.passed for check in self.checks)


def demo(
    output: str | Path,
    *,
    base: str | Path = BASE,
    prompts: str | Path = PROMPTS,
    steps: int | None = None,
    say: Say = print,
    show: Show | None = None,
    reporter: Reporter | None = None,
) -> Demonstration:
    """Train an adapter on the prompts, measure base and adapter on held-out ones, and prove the base intact.

    output: a folder that does not hold anything yet. steps: of training; STEPS unless given.
    say: prints a line of progress. show: prints the evaluation.
    """
    begun = time.perf_counter()
    steps = steps or STEPS
    folder, prompts = check_output(Path(output)), Path(prompts)
    model = load_model(str(base))
    test = prompts / "test.jsonl"
    training_lines, held_out_lines = split(read_manifest(prompts / "train.jsonl"))
    introduce(model, training_lines, held_out_lines, read_manifest(test), say)
    stage = remember(model)
    folder.mkdir(parents=True, exist_ok=True)

    overrides = [
        f"model.pretrained_model={base}",
        f"model.adapter.adapter_name={ADAPTER}",
        f"model.train_ds.manifest_filepath={quoted(write_manifest(folder / 'train.json', training_lines))}",
        f"model.validation_ds.manifest_filepath={quoted(write_manifest(folder / 'valid.json', held_out_lines))}",
        f"exp_manager.explicit_log_dir={quoted(folder / 'run')}",
        "exp_manager.name=prompts",
        "exp_manager.checkpoint_callback_params.save_top_k=0",
        *RECIPE,
        f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={max(1, steps // 5)}",
        f"trainer.log_every_n_steps={max(1, steps // 10)}",
        "model.train_ds.unusable=drop",
        "model.train_ds.num_workers=0",
        "model.validation_ds.num_workers=0",
    ]
    say("\nTraining an adapter; the base is frozen")
    training = run_training(load_settings(overrides), model=model, reporter=reporter)

    prior = (PRIOR,) if load_prior(model) else ()
    evaluation = evaluate(model, test, adapters=[None, *prior, ADAPTER], compute_dtype="auto")
    found = Demonstration(
        folder=folder,
        training=training,
        evaluation=evaluation,
        checks=prove_intact(stage),
        report=write_html(evaluation, folder / "report.html"),
        seconds=time.perf_counter() - begun,
    )
    write_json(evaluation, folder / "evaluation.json")
    conclude(found, str(base), say, show)
    return found


# Parts


def check_output(folder: Path) -> Path:
    """The folder, if it is empty or does not exist. Raises UsageError otherwise: nothing is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds something already. Choose another folder with --output, or remove it.")
    return folder


def split(lines: Sequence[Utterance]) -> tuple[list[Utterance], list[Utterance]]:
    """The prompts to train on, and those to choose the best step by; the test split plays no part in either."""
    held_out = list(lines[::HELD_OUT])
    return [line for number, line in enumerate(lines) if number % HELD_OUT], held_out


def write_manifest(path: Path, lines: Sequence[Utterance]) -> Path:
    """Write a manifest with absolute paths; its path."""
    entries = [
        {"audio_filepath": str(line.audio_path.resolve()), "duration": line.duration, "text": line.text}
        for line in lines
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def remember(model: AsrModel) -> Stage:
    """Note the base's tensors and outputs before anything is added to it."""
    with model.computing_in("float32"), model.evaluating(), torch.no_grad():
        return Stage(model, *hear(model, None))


def prove_intact(stage: Stage) -> tuple[Check, ...]:
    """Compare the base after training and use of the adapter with what it was before."""
    model = stage.model
    with model.computing_in("float32"), model.evaluating(), torch.no_grad():
        adapted = stage.scores(ADAPTER)
        same = tensors_digest(model) == stage.digest
        count = len(model.base_state_dict())
        return (
            Check(
                name="base weights after training",
                passed=same,
                detail=f"all {count} tensors as before, bit for bit" if same else f"some of {count} tensors changed",
            ),
            check_off(stage, "base outputs, adapter off"),
            Check(
                name="outputs, adapter on",
                passed=not torch.equal(adapted, stage.base),
                detail=f"log-probabilities change by up to {float((adapted - stage.base).abs().max()):.3g}",
            ),
            check_rows(stage, ADAPTER),
        )


# Words


def introduce(
    model: AsrModel, training: Sequence[Utterance], held_out: Sequence[Utterance], test: Sequence[Utterance], say: Say
) -> None:
    """Say which model meets which prompts."""
    parameters = sum(parameter.numel() for parameter in model.base_parameters())
    say(f"Base       {model.name}, {parameters:,} parameters, {model.fingerprint()[:23]}…")
    say("Domain     telephone prompts, one speaker reading what a telephone system says")
    for name, lines in (("train", training), ("choose", held_out), ("test", test)):
        minutes = sum(line.duration for line in lines) / 60
        say(f"  {name:<8} {len(lines):>3} prompts, {minutes:.1f} min")


def conclude(found: Demonstration, base: str, say: Say, show: Show | None) -> None:
    """Say what changed, what did not, and what to do next."""
    say("\nWord error rate on the test prompts")
    if show is not None:
        show(found.evaluation)
    say(f"  {summary(found)}")
    if found.with_prior is not None:
        say(f"  base decodes greedily; {PRIOR}: with its general prior, {rate_text(found.with_prior)}. Neither adapted")
    say("\nBefore and after: the sentences that gained the most, and the one that lost the most if there is one")
    for utterance, adapted in changed_most(found):
        say(f"  said     {utterance.reference}")
        say(f"  base     {utterance.hypothesis or '(nothing)'}")
        say(f"  adapter  {adapted.hypothesis or '(nothing)'}\n")
    say("The base is untouched" if found.intact else "The base is NOT as it was")
    for check in found.checks:
        say(f"  {'PASS' if check.passed else 'FAIL'}  {check.name}: {check.detail}")
    size = sum(path.stat().st_size for path in found.training.best.iterdir())
    say("\nWritten")
    say(f"  {found.report}  every sentence, with plots and sound")
    say(f"  {found.training.best}  the adapter, {size / 1000:.0f} kB")
    if found.training.nemo is not None:
        say(f"  {found.training.nemo}  the adapted model, for NeMo")
    say(f"\nDone in {found.seconds:.0f} s. Next, with your own data (JSON lines: audio_filepath, duration, text):")
    say(f"  overtone train model.pretrained_model={base} model.adapter.adapter_name=mine \\")
    say("      model.train_ds.manifest_filepath=train.json model.validation_ds.manifest_filepath=valid.json")
    say(f"  overtone transcribe recording.wav --model {base} --adapter {found.training.best}")
    say(f"  overtone verify {base} --adapter {found.training.best}")


def summary(found: Demonstration) -> str:
    """One sentence: both rates with their intervals, and whether the difference is clear."""
    base, adapted = found.base, found.adapted
    assert adapted.difference is not None, "the base is evaluated first"
    words = {"better": "fewer errors", "worse": "MORE errors"}.get(adapted.difference.verdict, "no clear difference")
    return (
        f"{rate_text(base)} → {rate_text(adapted)}: {words}; "
        f"{adapted.difference.better} of {len(adapted.utterances)} prompts better, {adapted.difference.worse} worse"
    )


def rate_text(result: Result) -> str:
    """`12.3 % (11.0 – 13.7)`."""
    low, high = result.wer_interval
    return f"{100 * result.wer:.1f} % ({100 * low:.1f} – {100 * high:.1f})"


def changed_most(found: Demonstration) -> list[tuple[UtteranceResult, UtteranceResult]]:
    """Sentences as the base and the adapter read them: the most improved ones, and the worst of those that lost."""
    pairs = [
        (before, after)
        for before, after in zip(found.base.utterances, found.adapted.utterances, strict=True)
        if before.words.reference_length >= FEWEST_WORDS
    ]
    gain = {id(before): before.words.errors - after.words.errors for before, after in pairs}
    ranked = sorted(pairs, key=lambda pair: -gain[id(pair[0])])
    better = [pair for pair in ranked if gain[id(pair[0])] > 0]
    worse = [pair for pair in ranked if gain[id(pair[0])] < 0]
    return [*better[: SENTENCES - len(worse[-1:])], *worse[-1:]]
