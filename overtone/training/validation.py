"""Errors and loss of a validation set, counted batch by batch; and the weights of an adapter's words, chosen by them.

Legend: B batch, T' encoder frames, C channels of an emission.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overtone.adapters.prior import find_prior
from overtone.adapters.word_text import prior_words
from overtone.adapters.words import WordPart
from overtone.checkpoints.load import save_model
from overtone.data.dataset import Batch, collate
from overtone.decoding.decoder import Head
from overtone.errors import DataError
from overtone.inference.word_weights import Heard, WordsChoice, choose_weights, count_errors
from overtone.training.data import validation_batches
from overtone.training.forward import TrainingForward
from overtone.training.prefix_cache.loader import PrefixBatch
from overtone.training.run import Run
from overtone.wer import ErrorCounts, character_errors, word_errors

WORDS_UTTERANCES = 300
WORDS_SECONDS = 1200.0
"""Most validation audio that the weights of words are chosen with."""


@dataclass(kw_only=True)
class ValidationCounts:
    """Errors and loss of one validation set."""

    words: ErrorCounts = field(default_factory=ErrorCounts)
    characters: ErrorCounts = field(default_factory=ErrorCounts)
    loss: float = 0.0
    """Sum of the losses of the utterances."""
    utterances: int = 0

    def add(
        self, head: Head, batch: Batch | PrefixBatch, emissions: Tensor, lengths: Tensor, *, same_tokens: bool = True
    ) -> None:
        """Count the errors of greedy decoding of a batch's emissions [B, T', C], lengths [B].

        same_tokens: the targets are tokens of this head; without that there is no loss.
        """
        if same_tokens:
            self.loss += float(head.loss(emissions, lengths, batch.targets, batch.target_lengths, reduction="sum"))
        self.utterances += len(batch.texts)
        for text, alignment in zip(batch.texts, head.align(emissions, lengths), strict=True):
            hypothesis = head.read(alignment).text
            self.words += word_errors(text, hypothesis)
            self.characters += character_errors(text, hypothesis)

    def metrics(self) -> dict[str, float]:
        """Return `wer` and `cer`, 0..1, and `loss`, the mean over the utterances."""
        mean = self.loss / self.utterances if self.utterances else math.nan
        return {"wer": self.words.rate, "cer": self.characters.rate, "loss": mean}

    def tensor(self) -> Tensor:
        """Return all counts [10] float64, to be summed over processes."""
        counts = [
            count
            for errors in (self.words, self.characters)
            for count in (errors.substitutions, errors.deletions, errors.insertions, errors.hits)
        ]
        return torch.tensor([*counts, self.loss, self.utterances], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: Tensor) -> ValidationCounts:
        """Make counts of values [N], the ten counts of `tensor`."""
        *counts, loss, utterances = values.tolist()
        names = ("substitutions", "deletions", "insertions", "hits")
        words, characters = (
            ErrorCounts(**{name: int(count) for name, count in zip(names, part, strict=True)})
            for part in (counts[:4], counts[4:])
        )
        return cls(words=words, characters=characters, loss=loss, utterances=int(utterances))


def plan_base_scoring(run: Run, forward: TrainingForward) -> Callable[[], ValidationCounts] | None:
    """Make a function that counts the errors of the base on the first validation set, without Lightning.

    None where a training does not begin with that, or where another training has counted them.
    """
    if run.checkpoint is not None or not run.validation or run.plan.starts_fresh:
        return None
    if run.shares_base and run.base_errors.known(run.base_identity()) is not None:
        return None
    first = run.validation[0]
    batches = validation_batches(first, run.plan, rank=0, processes=1)

    same_tokens = run.adapter is None or run.model.adapters[run.adapter].vocabulary is None

    def score() -> ValidationCounts:
        model, counts = run.model.eval(), ValidationCounts()
        first.dataset.stop_caching()  # nothing is read twice here, nor needed as long as the process lives
        with torch.no_grad():
            for indices in batches:
                batch = collate([first.dataset[index] for index in indices])
                if isinstance(batch, DataError):
                    raise batch
                (emissions,), lengths, _ = forward.forward_batch(batch, base_alone=True)
                with model.speaking(batch.languages or None):
                    counts.add(model.head, batch, emissions, lengths, same_tokens=same_tokens)
        return counts

    return score


# Words


def add_words(run: Run, folder: Path, nemo: Path) -> None:
    """Give the trained adapter its word part, in the model, in its folder and in its card, where that helps.

    The model holds the adapter that the folder does. nemo: the adapted model, which is written again where it is there.
    """
    part, name, model = run.words, run.adapter, run.model
    if part is None or name is None:
        return
    if not run.validation:
        keep_words(run, folder, nemo, part, {"wer": {"together": None}})
        return
    with model.evaluating(), model.computing_in(run.plan.compute_dtype):
        indices = spread_out(run)
        heard = list(hear(run, indices, name))
        chosen = choose_weights(model, heard, part, scope=lambda: model.adapters.use(name))
        rates = {"adapter": chosen.without.rate, "together": chosen.best.rate}
        if chosen.part is not None and model.adapters[name].vocabulary is None:
            base = list(hear(run, indices, None))
            alone = [
                count_errors(model, base, each, scope=lambda: model.adapters.use(None)) for each in (None, chosen.part)
            ]
            rates = {"base": alone[0].rate, "words": alone[1].rate, **rates}
            prior = find_prior(model.tokenizer.digest())
            if prior is not None:
                general = count_errors(model, base, prior_words(prior), scope=lambda: model.adapters.use(None))
                rates["prior"] = general.rate
    run.reporter.say(describe_choice(chosen, rates, sum(map(len, indices))))
    if chosen.part is not None:
        facts: dict[str, Any] = {"utterances": sum(map(len, indices)), "wer": rates}
        part = chosen.part
        if run.refitted_words is not None:  # the rates stay those of the part before it
            part, facts["counted_on"] = run.refitted_words.weighted_like(part), "training and validation data"
        keep_words(run, folder, nemo, part, facts)


def keep_words(run: Run, folder: Path, nemo: Path, part: WordPart, facts: dict[str, Any]) -> None:
    """Put the part into the adapter, its card and its files."""
    assert run.adapter is not None
    adapter = run.model.adapters[run.adapter]
    adapter.words, adapter.card = part, {**adapter.card, "words": {**part.describe(), **facts}}
    run.model.adapters.save(run.adapter, folder, overwrite=True)
    if nemo.exists():
        save_model(run.model, nemo, overwrite=True)
        run.reporter.say(f"NeMo passes over the words in {nemo.name}; its other files hold the acoustic part alone.")


def spread_out(run: Run) -> list[list[int]]:
    """Batches of utterances of the first validation set, spread evenly over it, not too many."""
    first = run.validation[0]
    batches = validation_batches(first, run.plan, rank=0, processes=1)
    order = [index for batch in batches for index in batch]
    seconds = sum(first.dataset.utterances[index].duration for index in order)
    step = max(1, -(-len(order) // WORDS_UTTERANCES), int(-(-seconds // WORDS_SECONDS)))
    kept = set(order[::step])
    return [own for batch in batches if (own := [index for index in batch if index in kept])]


def hear(run: Run, batches: Sequence[Sequence[int]], adapter: str | None) -> Iterator[Heard]:
    """The emissions of validation utterances with an adapter, or of the base. Raises DataError for bad audio."""
    model, dataset = run.model, run.validation[0].dataset
    for indices in batches:
        batch = collate([dataset[index] for index in indices])
        if isinstance(batch, DataError):
            raise batch
        with torch.no_grad(), model.adapters.use(adapter):
            emissions, lengths = model(batch.waveforms.to(model.device), batch.lengths.to(model.device))
        yield Heard(emissions, lengths, batch.texts)


def describe_choice(chosen: WordsChoice, rates: dict[str, float], utterances: int) -> str:
    """The line on the choice of weights."""
    if chosen.part is None:
        return (
            f"Words: no weights make fewer errors than the adapter alone, {chosen.without.rate:.2%} on {utterances} "
            "validation utterances; the adapter has no word part."
        )
    parts = {
        "base": "base",
        "prior": "base with the general prior",
        "words": "words alone",
        "adapter": "adapter alone",
        "together": "together",
    }
    told = ", ".join(f"{shown} {rates[name]:.2%}" for name, shown in parts.items() if name in rates)
    share = f", general prior {chosen.part.prior_share:.0%}" if chosen.part.prior_share else ""
    return (
        f"Words: weight {chosen.part.weight:g}, token bonus {chosen.part.token_bonus:g}{share}. "
        f"WER on {utterances} validation utterances: {told}"
    )
