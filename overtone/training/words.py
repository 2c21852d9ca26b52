"""The word part of a trained adapter: counted from its transcripts, and weighted on the validation set at the end.

Test sets play no part. Where the part does not make fewer errors, the adapter gets none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from overtone.adapters.word_text import BOOST, Phrases, check_phrases, make_words, read_sentences, write_tokens
from overtone.adapters.words import WordPart
from overtone.checkpoints.load import save_model
from overtone.data.dataset import collate
from overtone.decoding.phrase_boost import read_phrases
from overtone.errors import DataError
from overtone.inference.word_weights import Heard, WordsChoice, choose_weights, count_errors
from overtone.models.asr_model import AsrModel
from overtone.training.console import Reporter
from overtone.training.data import SpeechSet, validation_batches
from overtone.training.plan import TrainingPlan
from overtone.training.run import Run

OPTION = "model.vocabulary_check="
LARGEST_TOKENS = 4_000_000
"""Tokens of transcripts and text that are counted; of more, an even share."""
UTTERANCES = 300
SECONDS = 1200.0
"""Most validation audio that weights are chosen with."""


def make_word_part(plan: TrainingPlan, model: AsrModel, training: SpeechSet, reporter: Reporter) -> WordPart | None:
    """The word part with the weights that are taken where nothing chooses them; None where the plan has none.

    Raises DataError for text and phrases that cannot be read, or written by the model unless the plan allows for that.
    """
    chosen = plan.words
    if chosen is None or (not training.plan.durations):
        return None
    names = [] if chosen.text is None else [chosen.text] if isinstance(chosen.text, str) else list(chosen.text)
    sequences: list[list[int]] = [list(tokens) for tokens in training.dataset.tokens]
    if names:
        lines = [line for name in names for line in read_sentences(Path(name).expanduser())]
        text = write_tokens(
            model.tokenizer, ((line, None) for line in lines), policy=plan.vocabulary_check, option=OPTION
        )
        if text.unwritable:
            reporter.say(f"model.adapter.words.text: {text.describe()}\n{OPTION}{plan.vocabulary_check}")
        sequences += text.sequences
    phrases: Phrases = ()
    if chosen.phrases is not None:
        given = list(read_phrases(Path(chosen.phrases).expanduser(), BOOST).items())
        phrases, unwritten = check_phrases(model.tokenizer, given, policy=plan.vocabulary_check, option=OPTION)
        if unwritten.unwritable:
            reporter.say(f"model.adapter.words.phrases: {unwritten.describe('phrases')}")
    step = -(-sum(map(len, sequences)) // LARGEST_TOKENS)
    return make_words(model.tokenizer, sequences=sequences[:: max(1, step)], phrases=phrases, order=chosen.order)


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
        if chosen.part is not None:
            base = list(hear(run, indices, None))
            alone = [
                count_errors(model, base, each, scope=lambda: model.adapters.use(None)) for each in (None, chosen.part)
            ]
            rates = {"base": alone[0].rate, "words": alone[1].rate, **rates}
    run.reporter.say(describe_choice(chosen, rates, sum(map(len, indices))))
    if chosen.part is not None:
        keep_words(run, folder, nemo, chosen.part, {"utterances": sum(map(len, indices)), "wer": rates})


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
    """Batches of utterances of the first validation set, spread evenly over it, within UTTERANCES and SECONDS."""
    first = run.validation[0]
    batches = validation_batches(first, run.plan, rank=0, processes=1)
    order = [index for batch in batches for index in batch]
    seconds = sum(first.dataset.utterances[index].duration for index in order)
    step = max(1, -(-len(order) // UTTERANCES), int(-(-seconds // SECONDS)))
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
    parts = {"base": "base", "words": "words alone", "adapter": "adapter alone", "together": "together"}
    told = ", ".join(f"{shown} {rates[name]:.2%}" for name, shown in parts.items())
    return (
        f"Words: weight {chosen.part.weight:g}, token bonus {chosen.part.token_bonus:g}. "
        f"WER on {utterances} validation utterances: {told}"
    )
