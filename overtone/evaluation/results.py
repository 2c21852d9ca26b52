"""Results of an evaluation as plain data: error counts, rates with intervals, differences to the base, confusions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from overtone.audio.load import Channels
from overtone.audio.sources import Held
from overtone.data.vocabulary import VocabularyReport
from overtone.evaluation.listening import player_beside, sound_uri
from overtone.text_table import columns
from overtone.wer import ErrorCounts, align_words

SCHEMA = "overtone.evaluation/1"
"""Name and version of `Evaluation.to_json`'s schema; the version changes when a key changes its meaning."""

CONFUSIONS = 20
"""Most frequent substitutions, deletions and insertions that are listed."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class UtteranceResult:
    """One line of a manifest with its transcript."""

    audio_path: Path
    offset: float
    """Seconds into the file."""
    duration: float
    """Seconds."""
    line: int
    """Its line in the manifest."""
    reference: str
    hypothesis: str
    words: ErrorCounts
    characters: ErrorCounts
    channel: Channels | None = None
    """Numbers from 0 of the channels that were heard; None is all of them."""
    speaker: str | None = None
    """The speaker, where the manifest names one."""
    written: str | None = None
    """The transcript as its manifest has it, where `reference` is the form that is counted."""
    held: Held | None = field(default=None, repr=False, compare=False)
    """The recording itself, where it is no file of its own; `audio_path` is then its name alone."""
    wer: float = field(init=False)
    """Word errors by reference words."""
    cer: float = field(init=False)
    """Character errors by reference characters."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "wer", self.words.rate)
        object.__setattr__(self, "cer", self.characters.rate)

    def _repr_html_(self) -> str:
        """For notebooks: a player, what was said, and what was heard with its errors marked."""
        sound = sound_uri(self.held or self.audio_path, self.offset, self.duration, self.channel)
        return player_beside(sound, self.reference, self.hypothesis)

    def to_json(self) -> dict[str, Any]:
        return {
            "audio_filepath": str(self.audio_path),
            "offset": self.offset,
            "duration": self.duration,
            **({} if self.channel is None else {"channel": list(self.channel)}),
            "line": self.line,
            **({} if self.speaker is None else {"speaker": self.speaker}),
            "text": self.reference,
            **({} if self.written in (None, self.reference) else {"written": self.written}),
            "pred_text": self.hypothesis,
            "wer": self.words.rate,
            "cer": self.characters.rate,
            "word_errors": counts_to_json(self.words),
            "character_errors": counts_to_json(self.characters),
        }


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A word heard as another; as nothing (a deletion); or heard where nothing was said (an insertion)."""

    reference: str | None
    hypothesis: str | None
    count: int

    def to_json(self) -> dict[str, Any]:
        return {"reference": self.reference, "hypothesis": self.hypothesis, "count": self.count}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An adapter beside the base on the same utterances."""

    wer: float
    """The adapter's word error rate minus the base's: below zero is better."""
    interval: Interval
    """The interval of that difference, utterances resampled in pairs."""
    better: int
    """Utterances with fewer word errors than the base makes."""
    worse: int
    same: int

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `no clear difference` where the interval holds zero."""
        if self.interval[1] < 0:
            return "better"
        return "worse" if self.interval[0] > 0 else "no clear difference"

    def to_json(self) -> dict[str, Any]:
        return {
            "wer": self.wer,
            "interval": list(self.interval),
            "better": self.better,
            "worse": self.worse,
            "same": self.same,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """One adapter choice on one manifest."""

    adapter: str | None
    """The adapter choice as the caller gave it; None is the base."""
    chain: str | None
    """The adapters that acted, joined by `+`; it differs from `adapter` for `@file` only."""
    manifest: Path
    name: str
    """The manifest's name in tables: its folder and its name without suffix."""
    wer_interval: Interval
    cer_interval: Interval
    difference: Difference | None
    """The difference to the base; None for the base itself, and where the base was not evaluated."""
    wall_seconds: float
    """Seconds of work, reading the audio included."""
    utterances: tuple[UtteranceResult, ...]
    source: str | None = None
    """The path that the adapter was loaded from."""

    @property
    def label(self) -> str:
        """`base`, or the adapters' names; `@file` with what it stands for."""
        if self.adapter is None:
            return "base"
        if self.source is not None:
            return self.adapter
        return self.adapter if self.adapter == self.chain else f"{self.adapter} ({self.chain or 'base'})"

    @cached_property
    def words(self) -> ErrorCounts:
        """The sum over all utterances."""
        return total(utterance.words for utterance in self.utterances)

    @cached_property
    def characters(self) -> ErrorCounts:
        return total(utterance.characters for utterance in self.utterances)

    @property
    def wer(self) -> float:
        """Word errors by reference words, over the whole manifest."""
        return self.words.rate

    @property
    def cer(self) -> float:
        return self.characters.rate

    @property
    def audio_seconds(self) -> float:
        return sum(utterance.duration for utterance in self.utterances)

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of audio."""
        return self.wall_seconds / self.audio_seconds if self.audio_seconds else 0.0

    @cached_property
    def confusion_counts(self) -> dict[str, Counter[tuple[str | None, str | None]]]:
        """Counts of (reference, hypothesis) pairs by kind: `substitute`, `delete`, `insert`."""
        kinds: dict[str, Counter[tuple[str | None, str | None]]] = {
            kind: Counter() for kind in ("substitute", "delete", "insert")
        }
        for utterance in self.utterances:
            for aligned in align_words(utterance.reference, utterance.hypothesis):
                if aligned.kind != "equal":
                    kinds[aligned.kind][aligned.reference, aligned.hypothesis] += 1
        return kinds

    @property
    def confusions(self) -> dict[str, list[Confusion]]:
        """The most frequent confusions of each kind; equally frequent ones by the alphabet."""
        return {
            kind: [
                Confusion(reference=reference, hypothesis=hypothesis, count=count)
                for (reference, hypothesis), count in sorted(
                    counter.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or "")
                )[:CONFUSIONS]
            ]
            for kind, counter in self.confusion_counts.items()
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter,
            "chain": self.chain,
            **({} if self.source is None else {"source": self.source}),
            "manifest": str(self.manifest),
            "name": self.name,
            "wer": self.wer,
            "wer_interval": list(self.wer_interval),
            "cer": self.cer,
            "cer_interval": list(self.cer_interval),
            "word_errors": counts_to_json(self.words),
            "character_errors": counts_to_json(self.characters),
            "difference": None if self.difference is None else self.difference.to_json(),
            "audio_seconds": self.audio_seconds,
            "wall_seconds": self.wall_seconds,
            "real_time_factor": self.real_time_factor,
            "confusions": {
                kind: [confusion.to_json() for confusion in found] for kind, found in self.confusions.items()
            },
            "utterances": [utterance.to_json() for utterance in self.utterances],
        }


@dataclass(frozen=True, kw_only=True)
class Balance:
    """An adapter on its domain and on general speech."""

    adapter: str
    domain: tuple[float, float]
    """Word error rates of the base and with the adapter, 0..1."""
    general: tuple[float, float]

    @property
    def gain(self) -> float:
        """Word errors fewer on the domain, as a rate."""
        return self.domain[0] - self.domain[1]

    @property
    def damage(self) -> float:
        """Word errors more on general speech, as a rate."""
        return self.general[1] - self.general[0]

    def to_json(self) -> dict[str, Any]:
        rates = {
            name: {"wer_before": pair[0], "wer_after": pair[1]}
            for name, pair in (("domain", self.domain), ("general", self.general))
        }
        return {"adapter": self.adapter, **rates, "gain": self.gain, "damage": self.damage}


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """All results of a run: manifest by manifest, and within each the adapters in the order asked for."""

    model: str
    """The model's name."""
    fingerprint: str
    """The base's fingerprint, the same before and after."""
    compute_dtype: str
    """The dtype of the base; adapters and sums are float32."""
    device: str
    level: float
    """The level of the intervals, between 0 and 1."""
    resamples: int
    seed: int
    created: str
    """The time of the evaluation in ISO 8601 with the zone."""
    results: tuple[Result, ...]
    adapters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name, kind, number of parameters and card of the adapters that acted."""
    attention: str = ""
    """The choice among several attention contexts of the model."""
    counted: str = ""
    """Changes of the texts before errors were counted, such as `in lower case`."""
    general: tuple[Path, ...] = ()
    """The manifests among them that hold general speech; the others are the domain's."""
    unwritable: Mapping[Path, VocabularyReport] = field(default_factory=dict)
    """By manifest, the parts of its transcripts that the model cannot write, each of them an error."""

    @property
    def numbers(self) -> str:
        """One line on dtypes and device, and on the attention where there is a choice."""
        line = f"base {self.compute_dtype}, adapters float32, on {self.device}"
        return f"{line}, {self.attention}" if self.attention else line

    def __str__(self) -> str:
        """A table of all results; `rows` has the utterances."""
        table = columns([HEAD, *map(summary_of, self.results)], right=(2, 3, 4, 5), indent="")
        notes = [report.message.partition("\n")[0] for report in self.unwritable.values()]
        return "\n".join([f"{self.model or 'model'}: {self.numbers}", *table, *notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same table, for notebooks."""
        head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
        cells = (map(escape, summary_of(result)) for result in self.results)
        lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
        caption = escape(f"{self.model or 'model'}: {self.numbers}")
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{''.join(lines)}</table>"

    def balances(self) -> list[Balance]:
        """Gain on the domain and damage to general speech of each adapter; none without the base, or one of the two."""
        labels = dict.fromkeys(result.label for result in self.results if result.adapter is not None)
        sets = [[own for own in self.results if (own.manifest in self.general) is kind] for kind in (False, True)]
        if not all(any(own.adapter is None for own in part) for part in sets):
            return []
        base = [total(own.words for own in part if own.adapter is None) for part in sets]
        found = []
        for label in labels:
            own = [total(own.words for own in part if own.label == label) for part in sets]
            rates = [(before.rate, after.rate) for before, after in zip(base, own, strict=True)]
            found.append(Balance(adapter=label, domain=rates[0], general=rates[1]))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each utterance and adapter, with its rates, as `pandas.DataFrame` takes them."""
        return [
            {
                "manifest": result.name,
                "adapter": result.label,
                "audio_filepath": str(utterance.audio_path),
                "offset": utterance.offset,
                "duration": utterance.duration,
                "text": utterance.reference,
                "pred_text": utterance.hypothesis,
                "wer": utterance.wer,
                "cer": utterance.cer,
                "word_errors": utterance.words.errors,
                "words": utterance.words.reference_length,
            }
            for result in self.results
            for utterance in result.utterances
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data under stable keys; rates are fractions, times seconds."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "model": {"name": self.model, "fingerprint": self.fingerprint},
            "numbers": {
                "base": self.compute_dtype,
                "adapters": "float32",
                "device": self.device,
                **({"attention": self.attention} if self.attention else {}),
            },
            "intervals": {"level": self.level, "resamples": self.resamples, "seed": self.seed},
            **({"balance": [own.to_json() for own in self.balances()]} if self.general else {}),
            **({"counted": self.counted} if self.counted else {}),
            **({"unwritable": [self._unwritable_json(path) for path in self.unwritable]} if self.unwritable else {}),
            **({"adapters": {name: dict(facts) for name, facts in self.adapters.items()}} if self.adapters else {}),
            "results": [result.to_json() for result in self.results],
        }

    def _unwritable_json(self, manifest: Path) -> dict[str, Any]:
        report = self.unwritable[manifest]
        return {
            "manifest": str(manifest),
            "utterances": len(report.utterances),
            "total": report.total,
            "characters": report.characters,
            "writable_in_lower_case": report.writable_in_lower_case,
        }


HEAD = ("Manifest", "Adapter", "WER %", "From base", "CER %", "Lines")
"""Names of the columns of `summary_of`."""


def summary_of(result: Result) -> tuple[str, ...]:
    """The cells of one result in a table of all."""
    change = "" if result.difference is None else f"{100 * result.difference.wer:+.2f}"
    rates = f"{100 * result.wer:.2f}", change, f"{100 * result.cer:.2f}"
    return result.name, result.label, *rates, str(len(result.utterances))


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """The sum of the counts: corpora add up as counts, never as means of rates."""
    return sum(counts, ErrorCounts(substitutions=0, deletions=0, insertions=0, hits=0))


def counts_to_json(counts: ErrorCounts) -> dict[str, int]:
    return {
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "hits": counts.hits,
        "reference_length": counts.reference_length,
    }
