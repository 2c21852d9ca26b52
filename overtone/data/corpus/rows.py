"""Rows of a corpus: a recording and what is said in it, as folders, tables, Kaldi and data sets have them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from overtone.audio.held import Decoder, hold
from overtone.audio.load import Channels
from overtone.audio.sources import Held
from overtone.errors import OvertoneError

AUDIO_COLUMNS = (
    "audio_filepath", "audio_filename", "audio_file", "file_name", "filename", "wav_filename", "audio_path", "path",
    "file", "wav", "audio",
)  # fmt: skip
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription", "normalized_text", "raw_transcription")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id", "spk", "spk_id", "speaker_name")
LANGUAGE_COLUMNS = ("lang", "language", "locale")
"""Usual names of columns, the likeliest first; capitals do not matter."""
SUFFIXES = ("", ".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
FOLDERS = (".", "clips", "wavs", "wav", "audio", "flac")
"""Places of a table's recordings, below its folder."""
SAMPLE_RATE = 16_000
"""Hz of samples without a rate; data sets name theirs."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One utterance, not yet checked."""

    origin: str
    """The place that it comes from, such as `train.tsv:7`."""
    audio: Path | Held
    text: str
    speaker: str | None = None
    offset: float = 0.0
    """Seconds into the recording."""
    duration: float | None = None
    """Seconds; None is the rest of the recording."""
    language: str | None = None
    channel: Channels | None = None


@dataclass(kw_only=True)
class Found:
    """Rows of a source, and what of it is none."""

    rows: list[Row] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    """Origin -> the fault."""

    def add(self, other: Found) -> None:
        """Add what was found elsewhere."""
        self.rows += other.rows
        self.faults |= other.faults


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of a table or data set; None is the usual ones."""

    audio: str | None = None
    text: str | None = None
    speaker: str | None = None
    language: str | None = None

    def choose(self, names: Iterable[str]) -> dict[str, str]:
        """The column of each part that is there. Raises KeyError for a named one that is not."""
        names = list(names)
        lowered = {name.lower().strip(): name for name in reversed(names)}
        chosen = {}
        for part, given, usual in (
            ("audio", self.audio, AUDIO_COLUMNS),
            ("text", self.text, TEXT_COLUMNS),
            ("speaker", self.speaker, SPEAKER_COLUMNS),
            ("language", self.language, LANGUAGE_COLUMNS),
        ):
            if given is not None and given not in names:
                raise KeyError(given)
            found = given if given is not None else next((lowered[name] for name in usual if name in lowered), None)
            if found is not None:
                chosen[part] = found
        return chosen


def find_audio(name: str, folder: Path) -> Path | None:
    """The recording that a table names, with a suffix or without; None where there is none."""
    for place in FOLDERS:
        for suffix in SUFFIXES:
            path = folder / place / f"{name}{suffix}"
            if path.is_file():
                return path
    return None


def rows_of_objects(entries: Iterable[Mapping[str, Any]], columns: Columns, name: str) -> Found:
    """The rows of a data set of Hugging Face's, or of any rows of its form, whose audio is in memory or on disk."""
    found = Found()
    for number, entry in zip(count(1), entries, strict=False):
        origin = f"{name}:{number}"
        try:
            chosen = columns.choose(entry)
            found.rows.append(row_of_object(entry, chosen, origin))
        except KeyError as error:
            found.faults[origin] = f"it has no column {error}; there are {', '.join(map(repr, entry))}"
        except OvertoneError as error:
            found.faults[origin] = str(error)
    return found


def row_of_object(entry: Mapping[str, Any], chosen: Mapping[str, str], origin: str) -> Row:
    """One row. Raises KeyError for a missing column, OvertoneError for audio that is none."""
    if "audio" not in chosen or "text" not in chosen:
        raise KeyError("for the recording" if "audio" not in chosen else "for the transcript")
    is_whole = isinstance(entry.get("audio"), Mapping | Decoder)  # beside it a path that may lead nowhere
    held = hold(entry["audio"] if is_whole else entry[chosen["audio"]], SAMPLE_RATE, name=origin)
    speaker, language = (entry.get(chosen.get(part, "")) for part in ("speaker", "language"))
    return Row(
        origin=origin,
        audio=held,
        text=str(entry[chosen["text"]] if entry[chosen["text"]] is not None else ""),
        speaker=None if speaker is None else str(speaker),
        language=None if language is None else str(language),
    )


def numbered(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def one_line(text: str) -> str:
    """A transcript without line breaks and double spaces."""
    return re.sub(r"\s+", " ", text).strip()
