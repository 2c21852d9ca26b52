"""From recordings to text: files of any length, rate and channel count, each through the adapters of its choice."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from overtone.audio.load import AudioReader, Waveform, audio_duration
from overtone.data.manifest import length_problem
from overtone.decoding.decoder import BeamSettings, Reading, read_best
from overtone.decoding.hypothesis import Hypothesis
from overtone.errors import DataError, OutputError, OvertoneError, UsageError
from overtone.inference.choices import (
    Choice,
    Phrases,
    check_phrases,
    check_weights,
    decoding_options,
    refuse_selection,
    resolve_choice,
)
from overtone.inference.recordings import Recording, find_recordings
from overtone.inference.rows import RowThreads, load_ahead
from overtone.inference.windows import OVERLAP_SECONDS, WINDOW_SECONDS, Window, join_readings, plan_windows
from overtone.models.asr_model import AsrModel, Backend
from overtone.nets.layers import pad_rows
from overtone.progress import Progress

__all__ = ["Recording", "Transcriber", "Transcription", "transcribe"]

BATCH_SECONDS = {"cpu": 120.0}
BATCH_SECONDS_ON_ACCELERATORS = 960.0
POOLED_BATCHES = 4
"""So many batches' worth of windows are sorted by length together; results wait no longer than that."""

LEAST_FRAMES = 2
"""A shorter recording is filled up with silence to so many encoder frames."""


@dataclass(frozen=True, kw_only=True)
class Transcription:
    """The result of one recording: a hypothesis or an error."""

    recording: Recording
    """The recording that was transcribed."""

    adapter: str | None
    """The adapter choice it was decoded with; None is the base."""

    duration: float
    """Seconds of audio; 0 where it could not be read."""

    hypothesis: Hypothesis | None = None
    """The transcript; None where there is an error."""

    alternatives: tuple[Hypothesis, ...] = ()
    """All readings, best first, where alternatives were asked for; the first one is `hypothesis`."""

    error: str | None = None
    """Why there is no transcript, one message."""

    @property
    def path(self) -> Path:
        return self.recording.path


def transcribe(
    model: AsrModel,
    paths: Any,
    *,
    adapter: Choice | Sequence[Choice] = None,
    batch_seconds: float | None = None,
    window: float | None = WINDOW_SECONDS,
    overlap: float = OVERLAP_SECONDS,
    compute_dtype: str | None = None,
    decoder: str | None = None,
    language: str | None = None,
    beam: int | BeamSettings | None = None,
    phrases: Phrases = (),
) -> list[Hypothesis]:
    """The hypotheses of all recordings, in order; the arguments are those of `Transcriber` and its `stream`.

    Raises DataError where a recording cannot be read. `Transcriber.stream` reports it and goes on with the rest.
    """
    transcriber = Transcriber(
        model,
        batch_seconds=batch_seconds,
        window=window,
        overlap=overlap,
        compute_dtype=compute_dtype,
        decoder=decoder,
        language=language,
        beam=beam,
        phrases=phrases,
    )
    return transcriber.transcribe(paths, adapter=adapter)


class Transcriber:
    """A model with settings for transcription; memory is bounded by the batch, however long the recordings are.

    for result in Transcriber(model).stream(["calls/", "memo.flac"], adapter="medical"):
        print(result.path, result.hypothesis.text if result.hypothesis else result.error)
    """

    def __init__(
        self,
        model: AsrModel,
        *,
        batch_seconds: float | None = None,
        window: float | None = WINDOW_SECONDS,
        overlap: float = OVERLAP_SECONDS,
        compute_dtype: str | None = None,
        decoder: str | None = None,
        language: str | None = None,
        beam: int | BeamSettings | None = None,
        phrases: Phrases = (),
        alternatives: int = 1,
    ) -> None:
        """
        batch_seconds: audio in one forward, padding included; None is 120 on a CPU and 960 on an accelerator.
        window: seconds heard at once; longer recordings are cut into overlapping windows. None never cuts.
        overlap: seconds that neighbouring windows share.
        compute_dtype: as `AsrModel.set_compute_dtype`, for these runs only; None takes the model as it is.
        decoder: `rnnt` or `ctc`, the head of a hybrid model that recognises; None takes the model as it is.
        language: told to a model that is told languages; None takes a manifest's `lang`, else the model's `auto`.
        beam: prefixes that a beam search keeps, or its settings; None is greedy decoding for the base and adapters
        without words, and a beam of 8 with words; 1 is greedy decoding with words.
        phrases: words and phrases that are likelier than the model thinks, or a mapping to the boost of each.
        alternatives: the most readings of a recording that its result holds.
        Raises UsageError for numbers that make no sense, phrases that cannot be written, and for a head or a language
        that the model does not have.
        """
        if window is not None and not 0 <= overlap < window:
            raise UsageError(f"overlap is {overlap:g} s and window {window:g} s; 0 <= overlap < window is needed.")
        if batch_seconds is None:
            batch_seconds = BATCH_SECONDS.get(model.device.type, BATCH_SECONDS_ON_ACCELERATORS)
        if not batch_seconds > 0:
            raise UsageError(f"batch_seconds is {batch_seconds:g}; a positive number of seconds is needed.")
        self.model = model
        self.batch_seconds = batch_seconds
        self.compute_dtype = compute_dtype
        self.decoder = model.head_in_use if decoder is None else decoder
        if decoder is not None:
            model.check_head(decoder)
        self.language = None if language is None else model.check_language(language)
        self.options = decoding_options(model, beam=beam, phrases=phrases, alternatives=alternatives)
        self.sample_rate = model.sample_rate
        self.seconds_per_frame = model.seconds_per_frame
        self.window_frames = None if window is None else max(2, int(window / self.seconds_per_frame))
        self.overlap_frames = int(overlap / self.seconds_per_frame)

    def transcribe(self, paths: Any, *, adapter: Choice | Sequence[Choice] = None) -> list[Hypothesis]:
        """All hypotheses in order; raises DataError at the first recording that cannot be read."""
        hypotheses = []
        for result in self.stream(paths, adapter=adapter):
            if result.hypothesis is None:
                raise DataError(result.error)
            hypotheses.append(result.hypothesis)
        return hypotheses

    def stream(
        self,
        paths: Any,
        *,
        adapter: Choice | Sequence[Choice] = None,
        progress: Progress | None = None,
    ) -> Iterator[Transcription]:
        """Results in order, each as soon as it is known.

        paths: files, folders (searched for audio at any depth), manifests (.json, .jsonl, .manifest), and recordings
        in memory: samples [S] or [S, C] as arrays or tensors (at the model's rate, or with theirs as (samples, rate)),
        bytes of files, open files, Hugging Face's dictionaries, lines of a manifest as dictionaries; one or several.
        adapter: one choice for all, or a list with one for each of `paths`: a name, a chain, a saved adapter's folder.
        progress: called with the seconds of audio that are done, and of all.
        Raises AdapterError for an unknown adapter, UsageError for a list that does not fit and where a `use` block
        says another thing than `adapter`, before reading audio.
        """
        if adapter is None:
            refuse_selection(self.model)
        found = find_recordings(paths, sample_rate=self.sample_rate)
        if adapter is None or isinstance(adapter, str | Path):
            adapters: list[Choice] = [adapter] * len(found)
        else:
            adapters = list(adapter)
        if len(adapters) != len(found):
            raise UsageError(f"{len(adapters)} adapters for {len(found)} paths; give one for all, or one for each.")
        recordings = [recording for group in found for recording in group]
        choices = [choice for group, choice in zip(found, adapters, strict=True) for _ in group]
        return self.run(recordings, choices, progress=progress)

    def run(
        self,
        recordings: Sequence[Recording],
        choices: Sequence[Choice],
        *,
        progress: Progress | None = None,
    ) -> Iterator[Transcription]:
        """The same for a list of recordings with one adapter choice for each."""
        texts = [None if choice is None else str(choice) for choice in choices]
        chains = {text: resolve_choice(self.model, text) for text in dict.fromkeys(texts)}
        check_phrases(self.model, self.options, chains.values())
        jobs = [self._open(recording, text, chains[text]) for recording, text in zip(recordings, texts, strict=True)]
        model = self.model
        backend = model.backend_in_use if self.compute_dtype is None else model.make_backend(self.compute_dtype)
        return self._run(jobs, backend, progress or (lambda done, total: None))

    def _run(self, jobs: list[_Job], backend: Backend | None, progress: Progress) -> Iterator[Transcription]:
        """Between two results nothing of the run acts: neither its dtype nor its adapters."""
        total = sum(job.duration for job in jobs)
        total_windows = sum(len(job.windows) for job in jobs)
        done = 0.0
        waiting = deque(jobs)
        try:
            with (
                ThreadPoolExecutor(max_workers=1, thread_name_prefix="audio") as reader,
                RowThreads(self.model) if total_windows > 1 else nullcontext() as threads,
            ):
                for loaded in load_ahead(reader, self._load, self._batches(jobs)):
                    batch = [(task, waveform) for task, waveform in loaded if waveform is not None]
                    self._decode(batch, backend, threads)
                    done += sum(task.job.duration / len(task.job.windows) for task, _ in loaded)
                    progress(min(done, total), total)
                    while waiting and waiting[0].is_done:
                        yield self._result(waiting.popleft())
        finally:
            for job in jobs:
                if job.reader is not None:
                    job.reader.close()
        for job in waiting:
            yield self._result(job)

    def _open(self, recording: Recording, adapter: str | None, chain: str | None) -> _Job:
        """Count the seconds and lay out the windows."""
        job = _Job(recording=recording, adapter=adapter, chain=chain, error=recording.problem)
        if job.error is None:
            try:
                if self.model.languages:
                    told = recording.language if self.model.head.prompts is None else recording.told
                    job.language = self.model.check_language(self.language or told)
                rest = audio_duration(recording.source) - recording.offset
                job.duration = rest
                if recording.duration is not None:
                    job.duration = recording.duration
                    job.error = length_problem(recording.path, recording.duration, rest)
            except OvertoneError as error:
                job.error = str(error)
        if job.error is None:
            # A frame begun is a frame; a hair less is a rounding of the header's seconds.
            frames = max(1, math.ceil(job.duration / self.seconds_per_frame - 1e-6))
            if self.window_frames is None or frames <= self.window_frames:
                job.windows = [Window(0, frames)]
            else:
                overlap = min(self.overlap_frames, self.window_frames - 1)
                job.windows = plan_windows(frames, window=self.window_frames, overlap=overlap)
            job.readings = [None] * len(job.windows)
        return job

    def _batches(self, jobs: Iterable[_Job]) -> Iterator[list[_Task]]:
        """Windows of like length together, each batch at most `batch_seconds` with its padding."""
        pool: list[_Task] = []
        pooled = 0.0
        for job in jobs:
            # One length for all windows of a recording: they stay in order, and are read in order.
            frames = max((window.stop - window.start for window in job.windows), default=0)
            for index in range(len(job.windows)):
                pool.append(_Task(job, index, frames * self.seconds_per_frame))
                pooled += pool[-1].seconds
                if pooled >= POOLED_BATCHES * self.batch_seconds:
                    yield from self._cut(pool)
                    pool, pooled = [], 0.0
        yield from self._cut(pool)

    def _cut(self, pool: list[_Task]) -> Iterator[list[_Task]]:
        batch: list[_Task] = []
        for task in sorted(pool, key=lambda task: -task.seconds):
            if batch and batch[0].seconds * (len(batch) + 1) > self.batch_seconds:
                yield batch
                batch = []
            batch.append(task)
        if batch:
            yield batch

    def _load(self, batch: list[_Task]) -> list[tuple[_Task, Waveform | None]]:
        """Read the audio of each window; None, and a word in the job, where it cannot be read."""
        return [(task, self._waveform(task)) for task in batch]

    def _waveform(self, task: _Task) -> Waveform | None:
        """[S] float32 at the model's sample rate."""
        job, window = task.job, task.job.windows[task.index]
        if job.error is not None:
            return None
        is_last = task.index + 1 == len(job.windows)
        stop = None if is_last else window.stop * self.seconds_per_frame
        try:
            if job.reader is None:
                part = job.recording
                job.reader = AudioReader(
                    part.source,
                    offset=part.offset,
                    duration=part.duration,
                    sample_rate=self.sample_rate,
                    channel=part.channel,
                )
            return job.reader.read(window.start * self.seconds_per_frame, stop)
        except OvertoneError as error:
            job.error = str(error)
            return None
        finally:
            if job.reader is not None and (is_last or job.error is not None):
                job.reader.close()

    def _decode(self, batch: list[tuple[_Task, Waveform]], backend: Backend | None, threads: RowThreads | None) -> None:
        """Align every row with the adapters of its recording."""
        if not batch:
            return
        with self.model.evaluating(), self.model.computing_with(backend):
            align = partial(self._align, backend)
            lengths = [waveform.size for _, waveform in batch]
            found = align(batch) if threads is None else threads(align, batch, lengths)
        for (task, _), readings in zip(batch, found, strict=True):
            task.job.readings[task.index] = readings

    def _align(self, backend: Backend | None, batch: list[tuple[_Task, Waveform]]) -> list[list[Reading]]:
        """One forward, in any thread."""
        least = round(LEAST_FRAMES * self.seconds_per_frame * self.sample_rate)
        waveforms, lengths = pad_rows([waveform for _, waveform in batch], least=least)
        chains = [task.job.chain for task, _ in batch]
        choice = chains[0] if len(set(chains)) == 1 else chains
        model = self.model
        with (
            model.computing_with(backend),
            model.decoding_with(self.decoder),
            model.speaking([task.job.language for task, _ in batch]),
            model.adapters.use(choice),
        ):
            return model.find_readings(waveforms, lengths, self.options)

    def _result(self, job: _Job) -> Transcription:
        if job.error is not None:
            return Transcription(recording=job.recording, adapter=job.adapter, duration=0.0, error=job.error)
        count = self.options.alternatives
        found = join_readings(job.windows, [readings for readings in job.readings if readings is not None], count)
        job.readings = []
        try:
            with self.model.decoding_with(self.decoder):
                hypotheses = read_best(self.model.head_of(job.chain), found, count)
        except OutputError as error:
            check_weights(self.model, job.chain)
            message = f"{job.recording.path}: {error}"
            return Transcription(recording=job.recording, adapter=job.adapter, duration=0.0, error=message)
        return Transcription(
            recording=job.recording,
            adapter=job.adapter,
            duration=job.duration,
            hypothesis=hypotheses[0],
            alternatives=tuple(hypotheses) if count > 1 else (),
        )


@dataclass(kw_only=True, eq=False)
class _Job:
    """A recording on its way to a transcript."""

    recording: Recording
    adapter: str | None
    chain: str | None
    error: str | None
    language: str | None = None
    duration: float = 0.0
    windows: list[Window] = field(default_factory=list)
    readings: list[list[Reading] | None] = field(default_factory=list)
    reader: AudioReader | None = None
    """Open from the first window to the last."""

    @property
    def is_done(self) -> bool:
        return self.error is not None or all(each is not None for each in self.readings)


@dataclass(frozen=True)
class _Task:
    """One window of a job."""

    job: _Job
    index: int
    seconds: float
