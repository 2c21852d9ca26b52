"""NeMo JSON-lines manifests: one utterance a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording and its transcript."""

    audio_filepath: str
    """Path of the audio file; relative to the manifest in published manifests."""
    duration: float
    """Seconds."""
    text: str
    """Lower-case letters, apostrophes and spaces."""
    speaker: str
    """Speaker or voice, unique over all corpora."""


def read_rows(path: Path) -> list[Utterance]:
    """The utterances of a manifest that `write_manifest` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [Utterance(**json.loads(line)) for line in lines]


def read_manifest(path: Path) -> list[Utterance]:
    """The utterances of a manifest, with absolute audio paths and speakers prefixed by the name of the corpus."""
    if not path.is_file():
        raise SystemExit(f"manifest {path} not found: check --speech and --synthetic")
    with path.open(encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines]
    corpus = path.parent.name
    return [
        Utterance(
            audio_filepath=str((path.parent / entry["audio_filepath"]).resolve()),
            duration=float(entry["duration"]),
            text=str(entry["text"]),
            speaker=f"{corpus}/{entry.get('speaker', 'unknown')}",
        )
        for entry in entries
    ]


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write the utterances; a reader sees either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(asdict(utterance)) + "\n" for utterance in utterances), encoding="utf-8")
    partial.replace(path)


def hours(utterances: Iterable[Utterance]) -> float:
    """Total duration in hours."""
    return sum(utterance.duration for utterance in utterances) / 3600


def frames_of(manifest: Path) -> Path:
    """The file of what the teacher's layers make of the utterances."""
    return manifest.with_suffix(".teacher.npy")


def bounds_of(manifest: Path) -> Path:
    """The file of where each utterance begins and ends in it."""
    return manifest.with_suffix(".teacher.bounds.npy")
