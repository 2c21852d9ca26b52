"""Evaluation of a model and its adapters on manifests: error rates with intervals, and differences to the base."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from overtone.data.manifest import Utterance, read_manifest
from overtone.decoding.decoder import BeamSettings
from overtone.errors import DataError, UsageError
from overtone.evaluation.results import Difference, Evaluation, Result, UtteranceResult
from overtone.inference.choices import Choice, Phrases, refuse_selection, resolve_choice
from overtone.inference.recordings import recordings_of
from overtone.inference.transcribe import Transcriber
from overtone.inference.windows import OVERLAP_SECONDS, WINDOW_SECONDS
from overtone.models.asr_model import AsrModel
from overtone.models.attention import attention_text
from overtone.wer import bootstrap_interval, character_errors, paired_difference_interval, word_errors

__all__ = ["Evaluation", "evaluate"]

Progress = Callable[[float, float], None]
BASE_ALONE: tuple[Choice, ...] = (None,)
"""The default of `adapters`: no adapter, nothing else."""


def evaluate(
    model: AsrModel,
    manifests: str | Path | Sequence[str | Path],
    *,
    adapters: Sequence[Choice] = BASE_ALONE,
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
    progress: Progress | None = None,
) -> Evaluation:
    """Measure word and character error rates of each adapter choice on each manifest.

    adapters: None (the base), "a", "a+b", "@file". With None among them the others are compared to the base.
    batch_seconds, window, overlap, compute_dtype, decoder, language, beam, phrases: as for `Transcriber`.
    level, resamples, seed: of the bootstrap. progress: called with the seconds of audio that are done, and of all.
    Raises DataError for a manifest or recording that cannot be used, AdapterError for an unknown adapter, UsageError
    where there is nothing to evaluate, and where a `use` block says another thing than `adapters`.
    """
    if adapters is BASE_ALONE:
        refuse_selection(model)
    chains = {choice: resolve_choice(model, choice) for choice in dict.fromkeys(adapters)}
    sets = {Path(path): read_references(Path(path)) for path in listed(manifests)}
    if not sets or not chains:
        raise UsageError("Nothing to evaluate: give at least one manifest, and one adapter or None for the base.")
    whole = len(chains) * sum(utterance.duration for lines in sets.values() for utterance in lines)
    meter = _Meter(whole, progress)
    bootstrap, results = _Bootstrap(level, resamples, seed), list[Result]()
    with model.computing_in(compute_dtype):
        transcriber = Transcriber(
            model,
            batch_seconds=batch_seconds,
            window=window,
            overlap=overlap,
            decoder=decoder,
            language=language,
            beam=beam,
            phrases=phrases,
        )
        for path, lines in sets.items():
            found = [meter.result(bootstrap, transcriber, path, lines, *choice) for choice in chains.items()]
            results += bootstrap.beside_base(found)
        used = model.compute_dtype
    return Evaluation(
        model=model.name,
        fingerprint=model.fingerprint(),
        compute_dtype=used,
        device=str(model.device),
        level=level,
        resamples=resamples,
        seed=seed,
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        results=tuple(results),
        attention=attention_text(model),
    )


def listed(manifests: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    """One manifest or several as several."""
    return [manifests] if isinstance(manifests, str | Path) else manifests


def read_references(path: Path) -> list[Utterance]:
    """Read a manifest whose blank transcripts mean silence. Raises DataError for a missing transcript."""
    return read_manifest(path, silence=True)


def hear(
    transcriber: Transcriber, lines: Sequence[Utterance], choice: Choice, *, progress: Progress | None = None
) -> tuple[UtteranceResult, ...]:
    """Transcribe the lines of a manifest and count errors. Raises DataError for audio that cannot be read."""
    heard = []
    stream = transcriber.run(recordings_of(lines), [choice] * len(lines), progress=progress)
    for utterance, result in zip(lines, stream, strict=True):
        if result.hypothesis is None:
            raise DataError(f"{utterance.manifest}:{utterance.line}: {result.error}")
        reference, hypothesis = utterance.text or "", result.hypothesis.text
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
            )
        )
    return tuple(heard)


class _Meter:
    """Progress of the parts of a run as progress of the whole."""

    def __init__(self, whole: float, progress: Progress | None) -> None:
        self.whole = whole
        self.progress = progress
        self.done = 0.0

    def result(
        self,
        bootstrap: _Bootstrap,
        transcriber: Transcriber,
        path: Path,
        lines: Sequence[Utterance],
        choice: Choice,
        chain: Choice,
    ) -> Result:
        """Hear the lines of one manifest with one choice of adapters."""
        begun = time.perf_counter()
        heard = hear(transcriber, lines, choice, progress=self.part())
        return bootstrap.result(path, choice, chain, heard, time.perf_counter() - begun)

    def part(self) -> Progress:
        before = self.done

        def report(seconds: float, _: float) -> None:
            self.done = before + seconds
            if self.progress is not None:
                self.progress(self.done, self.whole)

        return report


class _Bootstrap:
    """Intervals by resampling utterances."""

    def __init__(self, level: float, resamples: int, seed: int) -> None:
        self.level, self.resamples, self.seed = level, resamples, seed

    def result(
        self, path: Path, choice: Choice, chain: Choice, heard: tuple[UtteranceResult, ...], seconds: float
    ) -> Result:
        words = [utterance.words for utterance in heard]
        characters = [utterance.characters for utterance in heard]
        return Result(
            adapter=choice,
            chain=chain,
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
