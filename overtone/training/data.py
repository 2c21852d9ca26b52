"""The data of a training: utterances chosen, transcripts checked and encoded, batches planned."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from overtone.audio.sources import Held
from overtone.config import DatasetSettings, Source, SourceList, list_sources
from overtone.data.augment import Perturbations
from overtone.data.batching import BatchPlan
from overtone.data.dataset import (
    CACHE_BYTES,
    Kept,
    Perturb,
    SpeechDataset,
    audio_problems,
    keep_durations,
    name_of,
    refuse_unusable,
    unusable_transcripts,
)
from overtone.data.manifest import Utterance, manifest_digest
from overtone.data.plans import plan_batches
from overtone.data.sources import NO_TABLES, read_source
from overtone.data.vocabulary import apply_policy, check_languages, check_vocabulary, read_tasks, reference_text
from overtone.errors import ConfigError, DataError
from overtone.files import open_regular
from overtone.models.asr_model import AsrModel
from overtone.models.vocabulary import tokenizer_of
from overtone.training.console import Reporter
from overtone.training.plan import TrainingPlan

COMPARED_RECORDINGS, COMPARED_BYTES = 2000, 1 << 14
"""Recordings of a set, and bytes of each, that a resumed run compares with those of before."""
READERS = 8
SHOWN_MANIFESTS = 100
"""Most manifests of a set that are all named."""


@dataclass(frozen=True, kw_only=True)
class SpeechSet:
    """One set of utterances, ready to be read."""

    name: str
    """Names of its manifests."""
    dataset: SpeechDataset
    plan: BatchPlan
    digest: str
    """SHA-256 of the manifests' content."""

    @property
    def hours(self) -> float:
        return sum(self.plan.durations) / 3600

    @cached_property
    def recordings(self) -> str:
        """SHA-256 of the sizes and last bytes of recordings, of a large set's so many, evenly spread.

        Of recordings in archives the archives are taken; those in memory are taken whole.
        """
        paths = list(dict.fromkeys(map(held_or_file, self.dataset.utterances)))
        chosen = paths[:: max(1, math.ceil(len(paths) / COMPARED_RECORDINGS))]
        with ThreadPoolExecutor(READERS, thread_name_prefix="overtone-recordings") as threads:
            ends = list(threads.map(read_end, chosen))
        return f"sha256:{hashlib.sha256(b''.join(ends)).hexdigest()}"

    def describe(self) -> dict[str, Any]:
        """Return its part of the card."""
        return {
            "manifest": self.name,
            "digest": self.digest,
            "utterances": len(self.dataset),
            "hours": round(self.hours, 4),
        }


def held_or_file(utterance: Utterance) -> Path | Held:
    """The recording that is in memory, or the file on disk that holds it."""
    return utterance.file if utterance.held is None or utterance.archive is not None else utterance.held


def read_end(path: Path | Held) -> bytes:
    """The size and the last bytes of a recording, or all of one in memory, as a digest; of what is none, nothing."""
    try:
        if not isinstance(path, Path):
            return path.digest()
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - COMPARED_BYTES))
            return hashlib.sha256(b"%d " % size + file.read()).digest()
    except (OSError, TypeError, DataError):
        return b""


def read_training_set(model: AsrModel, plan: TrainingPlan, reporter: Reporter) -> SpeechSet:
    """Read the training utterances that the model can learn from.

    Raises DataError for manifests that cannot be used, and for transcripts that the model cannot write unless the
    plan drops or keeps them.
    """
    chosen = plan.train_data
    check_rate(model, chosen, "train_ds")
    listed = list_sources(chosen, key="model.train_ds")
    utterances = choose_utterances(model, chosen, "train_ds", reporter, sources=listed.sources, tables=plan.tables)
    report = check_vocabulary(tokenizer_of(model), utterances)
    policy = plan.vocabulary_check
    utterances = apply_policy(report, utterances, policy)
    if report is not None:
        reporter.say(f"{report.message}\nvocabulary_check={policy}: {_consequence(policy, report.utterances)}")
    limit = plan.trainer.limit_train_batches
    return training_set(model, chosen, listed, utterances, reporter, seed=plan.seed, limit=limit)


def training_set(
    model: AsrModel,
    chosen: DatasetSettings,
    listed: SourceList,
    utterances: Sequence[Utterance],
    reporter: Reporter,
    *,
    seed: int,
    limit: int | float = 1.0,
) -> SpeechSet:
    """Make a set of the utterances that the model can learn from. Raises DataError for others, or where none is left.

    limit: share or number of an epoch's batches.
    """
    tokens = [tokenizer_of(model).encode(utterance.text or "", utterance.language) for utterance in utterances]
    head = model.head
    problems = unusable_transcripts(
        utterances,
        tokens,
        seconds_per_frame=model.seconds_per_frame,
        frames_needed=head.frames_needed,
        most_tokens=None if head.prompts is None else head.prompts.most_tokens,
    )
    if problems and chosen.unusable == "drop":
        reporter.say(f"Left out {len(problems)} utterances that are empty or longer than their frames allow.")
        usable = [index for index in range(len(utterances)) if index not in problems]
        utterances, tokens = [utterances[index] for index in usable], [tokens[index] for index in usable]
    else:
        refuse_unusable(utterances, problems, key="model.train_ds.unusable")
    if not utterances:
        raise DataError("No utterance is left to train on; see what was left out above.")
    perturb = None
    if chosen.augmentor is not None:
        perturb = Perturbations.from_settings(chosen.augmentor, sample_rate=model.sample_rate)
    batches = plan_batches(chosen, listed, utterances, seed=seed, limit=limit)
    if batches.order is not None and batches.order.counts is not None:
        counts = ", ".join(map(str, batches.order.counts))
        reporter.say(f"model.train_ds: an epoch has {counts} utterances of the sets, in their order.")
    return make_set(model, utterances, tokens, batches, perturb=perturb)


def read_speech(
    model: AsrModel, chosen: DatasetSettings, key: str, reporter: Reporter, *, seed: int = 0
) -> list[SpeechSet]:
    """Read sets outside of a run: one for training (key `train_ds`), one for each manifest of another key.

    Raises DataError for manifests that cannot be used, and for training transcripts that the model cannot write.
    """
    check_rate(model, chosen, key)
    if key == "train_ds":
        listed = list_sources(chosen, key=f"model.{key}")
        utterances = choose_utterances(model, chosen, key, reporter, sources=listed.sources)
        utterances = apply_policy(check_vocabulary(tokenizer_of(model), utterances), utterances, "refuse")
        return [training_set(model, chosen, listed, utterances, reporter, seed=seed)]
    sets = []
    for source in sources_of(chosen, key):
        utterances = choose_utterances(model, chosen, key, reporter, sources=(source,))
        tokens = [tokenizer_of(model).encode(utterance.text or "", utterance.language) for utterance in utterances]
        batches = plan_batches(chosen, SourceList(), utterances, seed=seed, shuffle=False)
        sets.append(make_set(model, utterances, tokens, batches))
    return sets


def read_validation_sets(model: AsrModel, plan: TrainingPlan, reporter: Reporter) -> list[SpeechSet]:
    """Read one set for each validation manifest; transcripts that the model cannot write are reported and kept.

    None where trainer.limit_val_batches leaves none of their batches.
    """
    chosen = plan.validation_data
    sets = []
    for source in sources_of(chosen, "validation_ds") if plan.trainer.limit_val_batches else ():
        check_rate(model, chosen, "validation_ds")
        utterances = choose_utterances(model, chosen, "validation_ds", reporter, sources=(source,), tables=plan.tables)
        report = check_vocabulary(tokenizer_of(model), utterances)
        if report is not None:
            reporter.say(f"Validation set: {report.message}")
        tokens = [tokenizer_of(model).encode(utterance.text or "", utterance.language) for utterance in utterances]
        batches = plan_batches(chosen, SourceList(), utterances, seed=plan.seed, shuffle=False)
        speech = make_set(model, utterances, tokens, batches)
        speech.dataset.references = [
            reference_text(tokenizer_of(model), utterance.text or "", utterance.language) for utterance in utterances
        ]
        sets.append(speech)
    return sets


def choose_utterances(
    model: AsrModel,
    chosen: DatasetSettings,
    key: str,
    reporter: Reporter,
    *,
    sources: Sequence[Source],
    tables: Mapping[str, Any] = NO_TABLES,
) -> list[Utterance]:
    """Choose the utterances of a set that are neither too short nor too long, and whose recordings can be used.

    tables: manifests in memory by their names.
    Raises DataError where a transcript is missing, where none is left, and as `leave_out_bad_audio`.
    """
    utterances: list[Utterance] = []
    for source in sources:
        utterances += read_source(source, reporter.say, tables)
    utterances = utterances[: chosen.max_utts or None]
    if model.head.prompts is None:
        check_languages(tokenizer_of(model).languages or model.languages, utterances)
    else:
        utterances = read_tasks(model.check_language, tokenizer_of(model), utterances)
    kept = keep_durations(
        utterances,
        minimum=_limit(model, chosen.min_duration, key, "min_duration"),
        maximum=_limit(model, chosen.max_duration, key, "max_duration"),
    )
    _report_left_out(kept, key, reporter)
    if not kept.utterances:
        raise DataError(
            f"model.{key}: no utterance is between min_duration and max_duration "
            f"({kept.too_short} are shorter, {kept.too_long} longer). Change these limits."
        )
    return leave_out_bad_audio(model, chosen, key, reporter, kept.utterances)


def leave_out_bad_audio(
    model: AsrModel, chosen: DatasetSettings, key: str, reporter: Reporter, utterances: Sequence[Utterance]
) -> list[Utterance]:
    """Choose the utterances whose recordings can be used. Raises DataError for others, unless they are left out."""
    problems = audio_problems(utterances, how=chosen.check_audio, sample_rate=model.sample_rate)
    if chosen.unusable == "refuse" or len(problems) == len(utterances):
        refuse_unusable(utterances, problems, key=f"model.{key}.unusable")
    if problems:
        first = next(iter(problems))
        reporter.say(
            f"model.{key}: left out {len(problems)} utterances whose recordings cannot be used, such as "
            f"{name_of(utterances[first])}: {problems[first]}"
        )
    return [utterance for index, utterance in enumerate(utterances) if index not in problems]


def make_set(
    model: AsrModel,
    utterances: Sequence[Utterance],
    tokens: Sequence[Sequence[int]],
    batches: BatchPlan,
    *,
    perturb: Perturb | None = None,
) -> SpeechSet:
    """Make a set of utterances with their token ids. perturb: a random change of each waveform."""
    manifests = dict.fromkeys(str(utterance.manifest) for utterance in utterances)
    return SpeechSet(
        name=shorten(list(manifests)),
        dataset=SpeechDataset(
            utterances, tokens, sample_rate=model.sample_rate, cache_bytes=CACHE_BYTES, perturb=perturb
        ),
        plan=batches,
        digest=manifest_digest(utterances, languages=bool(tokenizer_of(model).languages or model.head.prompts)),
    )


def shorten(names: Sequence[str]) -> str:
    """The names of manifests: all of them, or the first and the last of very many."""
    if len(names) <= SHOWN_MANIFESTS:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)} manifests)"


def sources_of(chosen: DatasetSettings, key: str) -> tuple[Source, ...]:
    """Return what a set is read from."""
    return list_sources(chosen, key=f"model.{key}").sources


def validation_batches(speech: SpeechSet, plan: TrainingPlan, *, rank: int, processes: int) -> list[list[int]]:
    """Return this process's share of a set, long utterances first: memory runs out at once or never.

    These are as many as trainer.limit_val_batches says, and at least one. All processes have equally many batches.
    Raises ConfigError for fewer utterances than processes.
    """
    own = validation_batches_of(speech, plan.validation_data, rank=rank, processes=processes)
    limit = plan.trainer.limit_val_batches
    return own[: limit if isinstance(limit, int) else max(1, int(len(own) * limit))]


def validation_batches_of(speech: SpeechSet, chosen: DatasetSettings, *, rank: int, processes: int) -> list[list[int]]:
    """Return this process's share of a set, long utterances first. Raises ConfigError as `validation_batches`."""
    durations, size = speech.plan.durations, chosen.batch_size or 16
    if len(durations) < processes:
        raise ConfigError(f"{speech.name}: {len(durations)} utterances cannot be dealt out to {processes} processes.")
    order = sorted(range(len(durations)), key=lambda index: -durations[index])
    seconds = [durations[index] for index in order]
    bounds = batch_bounds(seconds, speech.plan, size, processes)
    batches = [order[first:end] for first, end in pairwise(bounds)]
    return batches[rank::processes]


def batch_bounds(seconds: Sequence[float], plan: BatchPlan, size: int, processes: int) -> list[int]:
    """Return where the batches of utterances begin and end, the longest utterance first.

    Their number is a multiple of the processes'. A batch holds equally many utterances, `size` at most; or with a
    batch_duration, as many as it holds with their padding. Where there are too few utterances for that, the last
    batches hold more.
    """
    total = len(seconds)
    most = total // processes * processes
    if plan.batch_duration is None:
        count = min(math.ceil(math.ceil(total / size) / processes) * processes, most)
        return [number * total // count for number in range(count + 1)]
    bounds = [0]
    for end in range(1, total):
        held = end + 1 - bounds[-1]
        if held > (plan.batch_size or total) or held * seconds[bounds[-1]] > plan.batch_duration:
            bounds.append(end)
    bounds.append(total)
    count = min(math.ceil((len(bounds) - 1) / processes) * processes, most)
    while len(bounds) - 1 < count:
        width, first = max((end - first, first) for first, end in pairwise(bounds))
        insort(bounds, first + width // 2)
    while len(bounds) - 1 > count:
        del bounds[-2]
    return bounds


def worker_count(chosen: DatasetSettings) -> int:
    """Return how many processes read audio: as many as asked for, and at most one for each processor."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(chosen.num_workers, processors)


@contextmanager
def read_ahead(utterances: Iterable[tuple[SpeechDataset, int]]) -> Iterator[None]:
    """Read utterances of data sets, by index, into memory in a thread, as far as there is room."""
    stop = threading.Event()

    def read() -> None:
        for dataset, index in utterances:
            if stop.is_set() or not dataset.read_ahead(index):
                return

    thread = threading.Thread(target=read, name="reading ahead", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def check_rate(model: AsrModel, chosen: DatasetSettings, key: str) -> None:
    """Raises ConfigError where the settings name another sample rate than the model's."""
    if chosen.sample_rate is not None and chosen.sample_rate != model.sample_rate:
        raise ConfigError(
            f"model.{key}.sample_rate: {chosen.sample_rate} Hz is not the model's, {model.sample_rate} Hz. "
            "Leave it out; files of any rate are resampled."
        )


def _limit(model: AsrModel, given: float | None, key: str, name: str) -> float | None:
    """Return the limit given, else the one that the checkpoint was trained with."""
    if given is not None:
        return given
    own = model.config.get(key)
    value = own.get(name) if isinstance(own, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _report_left_out(kept: Kept, key: str, reporter: Reporter) -> None:
    if kept.too_short or kept.too_long:
        reporter.say(
            f"model.{key}: left out {kept.too_short} utterances shorter than min_duration and {kept.too_long} longer "
            f"than max_duration, {kept.left_out_hours:.2f} h in all."
        )


def _consequence(policy: str, utterances: Sequence[int]) -> str:
    if policy == "drop":
        return f"these {len(utterances)} utterances are left out."
    return "they are trained on as far as the model can write them."
