"""Evaluation of a model and its adapters on manifests: error rates with intervals, and differences to the base."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from overtone.data.manifest import Utterance, read_manifest
from overtone.data.sources import read_named
from overtone.data.tables import Manifests, name_tables
from overtone.data.vocabulary import VocabularyReport, check_vocabulary, read_tasks, reference_text
from overtone.decoding.decoder import BeamSettings
from overtone.errors import DataError, UsageError
from overtone.evaluation.results import Difference, Evaluation, Result, UtteranceResult
from overtone.inference.choices import Choice, NamedChoice, Phrases, name_choices, refuse_selection
from overtone.inference.recordings import Recording, recordings_of
from overtone.inference.transcribe import Transcriber, Transcription
from overtone.inference.windows import OVERLAP_SECONDS, WINDOW_SECONDS
from overtone.models.asr_model import AsrModel
from overtone.models.attention import attention_text
from overtone.progress import Progress
from overtone.tokenizers import Tokenizer
from overtone.wer import (
    TextProcessing,
    bootstrap_interval,
    character_errors,
    paired_difference_interval,
    word_errors,
)

__all__ = ["Evaluation", "evaluate"]

BASE_ALONE: tuple[Choice, ...] = (None,)
"""The default of `adapters`: no adapter, nothing else."""


class Transcribes(Protocol):
    """A `Transcriber`, or what stands for it."""

    def run(
        self, recordings: Sequence[Recording], choices: Sequence[Choice], *, progress: Progress | None = None
    ) -> Iterator[Transcription]: ...


Elsewhere = Callable[[Mapping[str, str]], Transcribes]
"""Function of the sources of adapters, by the chain that acts."""


def evaluate(
    model: AsrModel,
    manifests: Manifests,
    *,
    adapters: Sequence[Choice] = BASE_ALONE,
    general: Manifests = (),
    batch_seconds: float | None = None,
    window: float | None = WINDOW_SECONDS,
    overlap: float = OVERLAP_SECONDS,
    compute_dtype: str | None = None,
    decoder: str | None = None,
    language: str | None = None,
    beam: int | BeamSettings | None = None,
    phrases: Phrases = (),
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    text_processing: TextProcessing | None = None,
    progress: Progress | None = None,
    elsewhere: Elsewhere | None = None,
) -> Evaluation:
    """Measure word and character error rates of each adapter choice on each manifest.

    manifests, general: paths, data sets of Hugging Face's, frames of pandas, lists of rows; one or several.
    adapters: None (the base), "a", "a+b", "@file", or the folder of a saved adapter, which is loaded. With None among
    them the others are compared to the base. general is general speech. text_processing: of all texts.
    batch_seconds to phrases: as for `Transcriber`. elsewhere: gives one that has workers.
    level, resamples, seed: of the bootstrap. progress: called with the seconds of audio that are done, and of all.
    Raises DataError for a manifest or recording that cannot be used, AdapterError for an unknown adapter, UsageError
    where there is nothing to evaluate, and where a `use` block says another thing than `adapters`.
    """
    if adapters is BASE_ALONE:
        refuse_selection(model)
    sets, general = read_sets(model, manifests, general, adapters)
    choices = name_choices(model, adapters)
    counted = CountedTexts(model.tokenizer, text_processing or TextProcessing())
    seconds = sum(utterance.duration for lines in sets.values() for utterance in lines)
    meter = _Meter(seconds * len({choice.chain for choice in choices}), progress)
    bootstrap, results = _Bootstrap(level, resamples, seed), list[Result]()
    with model.computing_in(compute_dtype):
        options: dict[str, Any] = {"window": window, "overlap": overlap, "decoder": decoder, "language": language}
        own = Transcriber(model, batch_seconds=batch_seconds, beam=beam, phrases=phrases, **options)
        transcriber = own if elsewhere is None else elsewhere(sources_of(choices))
        for path, lines in sets.items():
            results += bootstrap.results(path, choices, hear_each(transcriber, model, lines, choices, counted, meter))
        used = model.compute_dtype
    return Evaluation(
        model=model.name,
        fingerprint=model.fingerprint(),
        compute_dtype=used,
        device=str(model.device),
        **vars(bootstrap),
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        results=tuple(results),
        adapters=adapter_facts(model, choices),
        attention=attention_text(model),
        counted=counted.processing.description,
        general=tuple(general),
        unwritable=find_unwritable(model, sets, choices, counted),
    )


def sources_of(choices: Sequence[NamedChoice]) -> dict[str, str]:
    """Folders of the adapters that lie in one, by the chain that acts."""
    return {str(one.chain): one.source for one in choices if one.source is not None}


def read_sets(
    model: AsrModel, manifests: Manifests, general: Manifests, adapters: Sequence[Choice]
) -> tuple[dict[Path, list[Utterance]], list[Path]]:
    """Read all manifests, and tell those of general speech.

    Raises UsageError where there is nothing to evaluate, and for one that is given both ways.
    """
    named, general_named = name_tables(manifests, "data"), name_tables(general, "general")
    paths, elsewhere, tables = as_paths(named[0]), as_paths(general_named[0]), named[1] | general_named[1]
    if twice := set(paths) & set(elsewhere):
        raise UsageError(f"{twice.pop()} is given as the domain and as general speech; give it once.")
    if not paths or not adapters:
        raise UsageError("Nothing to evaluate: give at least one manifest, and one adapter or None for the base.")
    return {path: read_told(model, path, tables.get(str(path))) for path in [*paths, *elsewhere]}, elsewhere


def as_paths(names: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path or several as a list."""
    return [Path(name) for name in ([names] if isinstance(names, str | Path) else names)]


def adapter_facts(model: AsrModel, choices: Sequence[NamedChoice]) -> dict[str, dict[str, Any]]:
    """Kind, number of parameters and card of the adapters that act, by name."""
    names = dict.fromkeys(name for choice in choices for name in (choice.chain or "").split("+") if name)
    found = {}
    for name in names:
        adapter = model.adapters[name]
        parameters = sum(parameter.numel() for parameter in adapter.parameters())
        share = parameters / max(1, sum(parameter.numel() for parameter in model.base_parameters()))
        found[name] = {"kind": adapter.kind.name, "parameters": parameters, "share": share, "card": adapter.card}
    return found


def read_references(path: Path) -> list[Utterance]:
    """Read a manifest whose blank transcripts mean silence. Raises DataError for a missing transcript."""
    return read_manifest(path, silence=True)


def read_told(model: AsrModel, path: Path, table: Any = None) -> list[Utterance]:
    """Read a manifest, or the table that has its name; lines for a multitask model have its tasks.

    Raises DataError as `read_references`, and for tasks that the model does not have.
    """
    lines = read_references(path) if table is None else read_named(table, str(path))
    return lines if model.head.prompts is None else read_tasks(model.check_language, model.tokenizer, lines)


class CountedTexts:
    """References and hypotheses as they are counted."""

    def __init__(self, tokenizer: Tokenizer, processing: TextProcessing) -> None:
        self.tokenizer = tokenizer
        self.processing = processing
        self.is_plain = not processing.description

    def over(self, tokenizer: Tokenizer) -> CountedTexts:
        """The same for an adapter that writes with a tokenizer of its own."""
        return self if tokenizer is self.tokenizer else CountedTexts(tokenizer, self.processing)

    def reference(self, utterance: Utterance) -> str:
        """The transcript as the model would write it, so that errors are the model's."""
        text = utterance.text or ""
        text = text if self.is_plain else self.processing(text)
        text = reference_text(self.tokenizer, text, utterance.language)
        return text if self.is_plain else self.processing(text)

    def hypothesis(self, text: str) -> str:
        """The model's text."""
        return text if self.is_plain else self.processing(text)

    def unwritable(self, lines: Sequence[Utterance]) -> VocabularyReport | None:
        """The parts of the transcripts that the model cannot write, each of them an error; None if there are none."""
        texts = lines if self.is_plain else [replace(line, text=self.processing(line.text or "")) for line in lines]
        return check_vocabulary(self.tokenizer, texts)


def find_unwritable(
    model: AsrModel, sets: Mapping[Path, Sequence[Utterance]], choices: Sequence[NamedChoice], counted: CountedTexts
) -> dict[Path, VocabularyReport]:
    """By manifest, the report of the first of the choices' vocabularies that cannot write every transcript."""
    own = {id(head.tokenizer): head.tokenizer for head in (model.head_of(choice.chain) for choice in choices)}
    found = {}
    for path, lines in sets.items():
        reports = (counted.over(tokenizer).unwritable(lines) for tokenizer in own.values())
        if (first := next((report for report in reports if report is not None), None)) is not None:
            found[path] = first
    return found


def hear_each(
    transcriber: Transcribes,
    model: AsrModel,
    lines: Sequence[Utterance],
    choices: Sequence[NamedChoice],
    counted: CountedTexts,
    meter: _Meter,
) -> Heard:
    """The results of a manifest's lines through each chain of adapters, and the seconds that it took."""
    heard = {}
    for chain in dict.fromkeys(choice.chain for choice in choices):
        begun = time.perf_counter()
        head = model.head_of(chain)
        own = counted if head is model.head else counted.over(head.tokenizer)
        utterances = hear(transcriber, lines, chain, own, progress=meter.part())
        heard[chain] = utterances, time.perf_counter() - begun
    return heard


def hear(
    transcriber: Transcribes,
    lines: Sequence[Utterance],
    choice: Choice,
    counted: CountedTexts,
    *,
    progress: Progress | None = None,
) -> tuple[UtteranceResult, ...]:
    """Transcribe the lines of a manifest and count errors. Raises DataError for audio that cannot be read."""
    heard = []
    stream = transcriber.run(recordings_of(lines), [choice] * len(lines), progress=progress)
    for utterance, result in zip(lines, stream, strict=True):
        if result.hypothesis is None:
            raise DataError(f"{utterance.manifest}:{utterance.line}: {result.error}")
        reference, hypothesis = counted.reference(utterance), counted.hypothesis(result.hypothesis.text)
        heard.append(
            UtteranceResult(
                audio_path=utterance.audio_path,
                offset=utterance.offset,
                duration=utterance.duration,
                line=utterance.line,
                reference=reference,
                hypothesis=hypothesis,
                words=word_errors(reference, hypothesis),
                characters=character_errors(reference, hypothesis),
                channel=utterance.channel,
                speaker=utterance.speaker,
                written=utterance.text or "",
                held=utterance.held,
            )
        )
    return tuple(heard)


class _Meter:
    """Progress of the parts of a run as progress of the whole."""

    def __init__(self, whole: float, progress: Progress | None) -> None:
        self.whole = whole
        self.progress = progress
        self.done = 0.0

    def part(self) -> Progress:
        before = self.done

        def report(seconds: float, _: float) -> None:
            self.done = before + seconds
            if self.progress is not None:
                self.progress(self.done, self.whole)

        return report


Heard = Mapping[str | None, tuple[tuple[UtteranceResult, ...], float]]
"""By chain of adapters, the results of a manifest's lines and the seconds that they took."""


class _Bootstrap:
    """Intervals by resampling utterances."""

    def __init__(self, level: float, resamples: int, seed: int) -> None:
        self.level, self.resamples, self.seed = level, resamples, seed

    def results(self, path: Path, choices: Sequence[NamedChoice], heard: Heard) -> list[Result]:
        """The results of one manifest, with differences to the base where it is among them."""
        return self.beside_base([self.result(path, choice, *heard[choice.chain]) for choice in choices])

    def result(self, path: Path, choice: NamedChoice, heard: tuple[UtteranceResult, ...], seconds: float) -> Result:
        words = [utterance.words for utterance in heard]
        characters = [utterance.characters for utterance in heard]
        return Result(
            adapter=choice.label,
            chain=choice.chain,
            source=choice.source,
            manifest=path,
            name=f"{path.resolve().parent.name}/{path.stem}".lstrip("/"),
            wer_interval=bootstrap_interval(words, level=self.level, resamples=self.resamples, seed=self.seed),
            cer_interval=bootstrap_interval(characters, level=self.level, resamples=self.resamples, seed=self.seed),
            difference=None,
            wall_seconds=seconds,
            utterances=heard,
        )

    def beside_base(self, results: list[Result]) -> list[Result]:
        """The results of one manifest, with differences to the base where it is among them."""
        base = next((result for result in results if result.adapter is None), None)
        if base is None:
            return results
        return [
            result if result is base else replace(result, difference=self._difference(base, result))
            for result in results
        ]

    def _difference(self, base: Result, result: Result) -> Difference:
        before = [utterance.words for utterance in base.utterances]
        after = [utterance.words for utterance in result.utterances]
        changes = [now.errors - then.errors for then, now in zip(before, after, strict=True)]
        return Difference(
            wer=result.wer - base.wer,
            interval=paired_difference_interval(
                after, before, level=self.level, resamples=self.resamples, seed=self.seed
            ),
            better=sum(change < 0 for change in changes),
            worse=sum(change > 0 for change in changes),
            same=sum(change == 0 for change in changes),
        )
