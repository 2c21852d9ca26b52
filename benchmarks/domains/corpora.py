"""The speech of the table: target domains, their validation parts, and general speech, as manifests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overtone.data.dataset import unusable_transcripts
from overtone.data.manifest import Utterance, manifest_digest, read_manifest
from overtone.errors import DataError
from overtone.models.asr_model import AsrModel

LONGEST_SECONDS = 8.0
"""Longer utterances are not trained or validated on: one of them would fill a whole batch with padding."""
HELD_OUT = 5
"""Where whole speakers cannot be held out, every so many utterances of the training split choose the best step."""
VALIDATION_MOST = 200
"""Utterances of a validation part, spread evenly over what is held out."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A corpus that a base is adapted to."""

    title: str
    folder: str
    """Below the folder of all speech; it holds `train.jsonl` and `test.jsonl`."""


@dataclass(frozen=True, kw_only=True)
class GeneralSet:
    """Speech that the base knows, on which an adapter should do no harm."""

    title: str
    manifest: str
    utterances: int
    """So many are taken, spread evenly over the manifest."""


DOMAINS = {
    "prompts": Domain(title="Telephone prompts", folder="asterisk_prompts"),
    "digits": Domain(title="Spoken digits", folder="fsdd"),
    "wakewords": Domain(title="Wake words", folder="picovoice_wakewords"),
}
GENERAL = {
    "speechocean762": GeneralSet(
        title="speechocean762 test", manifest="speechocean762/test.jsonl", utterances=250
    ),
    "librispeech": GeneralSet(
        title="LibriSpeech test-other", manifest="librispeech_resemblyzer/test_other.jsonl", utterances=100
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Part:
    """Utterances written as a manifest of their own."""

    manifest: Path
    utterances: int
    words: int
    minutes: float
    speakers: tuple[str, ...]
    """Sorted; empty where the corpus does not tell."""
    digest: str

    def described(self) -> dict[str, Any]:
        return {
            "utterances": self.utterances,
            "words": self.words,
            "minutes": round(self.minutes, 2),
            "speakers": list(self.speakers),
            "digest": self.digest,
        }


@dataclass(frozen=True, kw_only=True)
class DomainParts:
    """What is trained on, what chooses the best step, and what is measured; no utterance is in two of them."""

    name: str
    title: str
    train: Part
    valid: Part
    test: Part
    left_out: int
    """Utterances of the training split that are too long, or shorter than their transcript needs."""
    texts_seen: int
    """Test utterances whose whole transcript is also trained on."""

    @property
    def speakers(self) -> str:
        """How the speakers of the test part relate to those that were trained on."""
        return relation(self.train.speakers, self.test.speakers)

    @property
    def valid_speakers(self) -> str:
        return relation(self.train.speakers, self.valid.speakers)

    def described(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).described() for name in ("train", "valid", "test")}
        return {
            "title": self.title,
            **parts,
            "left_out": self.left_out,
            "texts_seen": self.texts_seen,
            "speakers": self.speakers,
            "valid_speakers": self.valid_speakers,
        }


def relation(trained: Sequence[str], other: Sequence[str]) -> str:
    """In words, checked name by name."""
    if not trained or not other:
        return "speakers not disjoint: the corpus does not name them"
    shared = sorted({*trained} & {*other})
    if not shared:
        return "speakers disjoint"
    return "one speaker, the same" if len({*trained, *other}) == 1 else f"speakers not disjoint: {', '.join(shared)}"


def read_domain(name: str, speech: Path, folder: Path, model: AsrModel) -> DomainParts:
    """The parts of a domain, their manifests written below the folder. Raises DataError for unusable corpora."""
    domain = DOMAINS[name]
    whole = read_manifest(speech / domain.folder / "train.jsonl")
    test = read_manifest(speech / domain.folder / "test.jsonl")
    usable = usable_lines(whole, model)
    training, held_out = split(usable)
    if not training or not held_out:
        raise DataError(f"{speech / domain.folder}: {len(usable)} usable utterances cannot be split; more are needed.")
    texts = {line.text for line in training}
    return DomainParts(
        name=name,
        title=domain.title,
        train=write_part(folder / name / "train.json", training),
        valid=write_part(folder / name / "valid.json", spread(held_out, VALIDATION_MOST)),
        test=write_part(folder / name / "test.json", test),
        left_out=len(whole) - len(usable),
        texts_seen=sum(line.text in texts for line in test),
    )


def read_general(speech: Path, folder: Path) -> dict[str, Part]:
    return {
        name: write_part(
            folder / "general" / f"{name}.json", spread(read_manifest(speech / chosen.manifest), chosen.utterances)
        )
        for name, chosen in GENERAL.items()
    }


def usable_lines(lines: Sequence[Utterance], model: AsrModel) -> list[Utterance]:
    """What every method can train on, so that all of them hear the same."""
    tokens = [model.tokenizer.encode(line.text or "") for line in lines]
    problems = unusable_transcripts(
        lines, tokens, seconds_per_frame=model.seconds_per_frame, frames_needed=model.head.frames_needed
    )
    return [
        line for index, line in enumerate(lines) if index not in problems and line.duration <= LONGEST_SECONDS
    ]  # fmt: skip


def split(lines: Sequence[Utterance]) -> tuple[list[Utterance], list[Utterance]]:
    """Training and validation: whole speakers held out where several are known, else every so many utterances.

    Speakers are held out from the end of the alphabet until they make up the share that utterances would.
    """
    speakers = sorted({line.speaker for line in lines if line.speaker is not None})
    if len(speakers) < 2 or any(line.speaker is None for line in lines):
        held_out = list(lines[::HELD_OUT])
        return [line for number, line in enumerate(lines) if number % HELD_OUT], held_out
    chosen: set[str] = set()
    for speaker in reversed(speakers[1:]):
        if sum(line.speaker in chosen for line in lines) * HELD_OUT >= len(lines):
            break
        chosen.add(speaker)
    return [line for line in lines if line.speaker not in chosen], [line for line in lines if line.speaker in chosen]


def spread(lines: Sequence[Utterance], most: int) -> list[Utterance]:
    """At most so many of them, evenly spread."""
    count = min(most, len(lines))
    return [lines[index * len(lines) // count] for index in range(count)]


def write_part(path: Path, lines: Sequence[Utterance]) -> Part:
    entries = [
        {"audio_filepath": str(line.audio_path.resolve()), "duration": line.duration, "text": line.text}
        for line in lines
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return Part(
        manifest=path,
        utterances=len(lines),
        words=sum(len((line.text or "").split()) for line in lines),
        minutes=sum(line.duration for line in lines) / 60,
        speakers=tuple(sorted({line.speaker for line in lines if line.speaker is not None})),
        digest=manifest_digest(lines),
    )
