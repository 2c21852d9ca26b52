"""The gate at the end of a training: the adapter is made as weak as general speech needs it, if the settings ask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from overtone.adapters.adapter import Adapter
from overtone.adapters.storage import read_folder
from overtone.checkpoints.load import save_model
from overtone.checkpoints.nemo.adapters import save_adapters
from overtone.data.dataset import read_utterance
from overtone.data.manifest import Utterance, read_manifest
from overtone.data.vocabulary import reference_text
from overtone.inference.retention import MIXES, EarlierStep, Retention, Strength, choose_strength
from overtone.inference.word_weights import Heard, Recording, hear
from overtone.models.asr_model import AsrModel
from overtone.training.run import Run
from overtone.training.validation import hear as hear_validation
from overtone.training.validation import spread_out
from overtone.training.weights import SavedStep, WeightsStore, copy_folder

MOST_UTTERANCES = 300
MOST_SECONDS = 1800.0
"""Most general speech that the strength is chosen on; of more, an even share."""
MOST_EARLY = 3
"""Most early steps that are heard."""
UNCHANGED_RATES = ("base", "prior")
"""Rates of a card's words that no strength of the adapter changes."""


def read_general_speech(paths: Iterable[str]) -> list[Utterance]:
    """Utterances of general speech that a strength is chosen on. Raises DataError for a manifest that is unusable."""
    every = [own for path in paths for own in read_manifest(Path(path).expanduser(), silence=True)]
    seconds = sum(own.duration for own in every)
    step = max(1, -(-len(every) // MOST_UTTERANCES), int(-(-seconds // MOST_SECONDS)))
    return every[::step]


def general_recordings(model: AsrModel, utterances: Sequence[Utterance]) -> list[Recording]:
    """General speech as recordings to be heard, those of like length together."""
    return [
        (
            partial(read_utterance, own, model.sample_rate),
            reference_text(model.tokenizer, own.text or "", own.language),
        )
        for own in sorted(utterances, key=lambda own: own.duration)
    ]


def keep_general_speech(run: Run, weights: WeightsStore) -> None:
    """Make the best adapter as strong as general speech can bear, in the model, in its files and in its card."""
    plan, name, model = run.plan, run.adapter, run.model
    if plan.retention is None or name is None:
        return
    adapter = model.adapters[name]
    recordings = general_recordings(model, run.retained)
    batches = spread_out(run) if run.validation else []

    def domain(adapter_name: str | None) -> Iterable[Heard]:
        return hear_validation(run, batches, adapter_name)

    with model.evaluating(), model.computing_in(plan.compute_dtype):
        found = choose_strength(
            model,
            adapter,
            adapter.words,
            general=lambda choice: hear(model, recordings, choice),
            domain=domain if batches else None,
            kappa=plan.retention.kappa,
            earlier=read_early(choose_early(weights, adapter.card.get("wer_before")), model),
            mixes=MIXES,
        )
    run.reporter.say(describe_retention(found))
    if found.chosen is not None and found.chosen is not found.whole:
        copy_folder(weights.best_path, weights.whole_path)
        adapter.words = found.chosen.part
        note_words(adapter, found.chosen)
    best = {} if weights.best is None else {"step": weights.best.step}
    adapter.card = {**adapter.card, "retention": {**best, **retention_facts(found)}}
    model.adapters.save(name, weights.best_path, overwrite=True)
    if found.chosen not in (None, found.whole):
        write_nemo_files(run, weights)


def note_words(adapter: Adapter, strength: Strength) -> None:
    """Have the card tell weights and rates of the words that the adapter has by now; nothing of those it has no more.

    The words were chosen on the utterances that the strength was. A rate that was not counted again is left out.
    """
    words = adapter.card.get("words", {})
    card = {key: own for key, own in adapter.card.items() if key != "words"}
    if adapter.words is not None:
        described = {key: own for key, own in words.items() if key != "prior_share"}
        together = None if strength.domain is None else strength.domain.rate
        rates = {key: rate for key, rate in words.get("wer", {}).items() if key in UNCHANGED_RATES}
        card["words"] = {**described, **adapter.words.describe(), "wer": {**rates, "together": together}}
    adapter.card = card


def choose_early(weights: WeightsStore, wer_before: float | None) -> list[SavedStep]:
    """A few early steps before the best one that had learnt something: the first of them, the last, one between."""
    if weights.best is None:
        return []
    limit = inf if wer_before is None else wer_before
    found = [own for own in weights.early if own.step < weights.best.step and own.metrics["val_wer"] < limit]
    if len(found) <= MOST_EARLY:
        return found
    return [found[place * (len(found) - 1) // (MOST_EARLY - 1)] for place in range(MOST_EARLY)]


def read_early(steps: Iterable[SavedStep], model: AsrModel) -> list[EarlierStep]:
    """The parameters of an adapter at steps whose weights were written. Raises AdapterError where one is damaged."""
    identity = model.adapters.identity()
    return [EarlierStep(step=own.step, tensors=read_folder(Path(str(own.path)), identity).tensors) for own in steps]


def write_nemo_files(run: Run, weights: WeightsStore) -> None:
    """Write the files for NeMo again that hold the best adapter."""
    if weights.nemo_path.exists():
        save_model(run.model, weights.nemo_path, overwrite=True)
    if weights.adapters_path is not None and weights.adapters_path.exists():
        save_adapters(run.model, weights.adapters_path)


def retention_facts(found: Retention) -> dict[str, Any]:
    """The part of a card about general speech and the adapter's strength."""
    chosen = found.chosen or found.whole
    step = {} if chosen.step is None else {"step": chosen.step}
    tried = {"tried_steps": list(found.tried_steps)} if found.tried_steps else {}
    return {
        **step,
        **tried,
        "kappa": found.kappa,
        "kept": found.chosen is not None,
        "scale": chosen.scale,
        "words": chosen.share if chosen.part is not None else 0.0,
        **({} if chosen.mix is None else {"general_prior": chosen.mix}),
        "general_words": found.base.reference_length,
        "general_wer": rates(found, "general"),
        "domain_wer": rates(found, "domain"),
    }


def rates(found: Retention, name: str) -> dict[str, float]:
    """Error rates on one of the sets, of the base, the whole adapter and the one that was chosen."""
    own = {"whole": found.whole, "chosen": found.chosen or found.whole}
    base = {"general": found.base, "domain": found.domain_base}[name]
    counted = {"base": base, **{key: getattr(strength, name) for key, strength in own.items()}}
    return {key: round(counts.rate, 6) for key, counts in counted.items() if counts is not None}


def describe_retention(found: Retention) -> str:
    """The lines on the choice."""
    allowed = f"{found.base.rate:.2%} + {found.kappa:g} points allowed"
    if found.chosen is None:
        tried = f" Earlier steps ({', '.join(map(str, found.tried_steps))}) are no better." if found.tried_steps else ""
        return (
            f"Retention: general WER {found.whole.general.rate:.2%} ({allowed}); this kind of adapter has no "
            f"scale, and its words are not the reason.{tried} It stays as it is."
        )
    lines = f"Retention: {describe_strength(found.chosen)} ({allowed})"
    return lines if found.chosen is found.whole else f"{lines}; it was {describe_strength(found.whole)}"


def describe_strength(own: Strength) -> str:
    """One strength and its errors in words."""
    words = f" and {own.share:.0%} of the words" if own.part is not None else " and no words"
    words = words if own.mix is None else f" and the words with {own.mix:.0%} of the general prior"
    domain = "" if own.domain is None else f", validation WER {own.domain.rate:.2%}"
    step = "" if own.step is None else f" of step {own.step}"
    return f"{own.scale:.0%} of the acoustic part{step}{words}: general WER {own.general.rate:.2%}{domain}"
