"""Manifests made of corpora: rows checked, dealt out to parts, written, and summed up."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from overtone.audio.held import HeldFile, HeldSamples
from overtone.audio.kinds import HEADER_BYTES, kind_of
from overtone.audio.load import audio_duration
from overtone.data.corpus.hugging_face import is_saved, read_saved
from overtone.data.corpus.readers import TABLES, read_folder, read_kaldi, read_table, read_utterances
from overtone.data.corpus.rows import Columns, Found, Row, rows_of_objects
from overtone.data.corpus.split import split
from overtone.data.manifest import length_problem
from overtone.errors import DataError, UsageError
from overtone.files import check_not_input, write_failure
from overtone.text_table import columns as aligned

THREADS = 16
SHOWN = 5
"""Faults in a message."""
WIDTH = 40
"""Characters of the longest bar of a histogram."""
BOUNDS = (0.5, 1, 2, 3, 5, 8, 12, 16, 20, 30, 60)
"""Seconds between the classes of a histogram."""
TABLE_OF_FOLDER = ("metadata.csv", "metadata.tsv")
"""The table of a folder of recordings, as LJSpeech and Hugging Face's `audiofolder` have it."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One utterance that can be used."""

    row: Row
    duration: float
    """Seconds, counted by decoding where no row says them."""
    part: str


@dataclass(frozen=True, kw_only=True)
class Manifests:
    """The manifests that were written, and what they hold."""

    files: Mapping[str, Path]
    """By part."""
    lines: tuple[Line, ...]
    faults: Mapping[str, str] = field(default_factory=dict)
    """Rows that were left out: the origin, and the fault."""

    def __str__(self) -> str:
        return "\n".join(summary(self))


def build_manifest(
    sources: Any,
    output: str | Path,
    *,
    parts: Mapping[str, float] | None = None,
    seed: int = 0,
    columns: Columns | None = None,
    delimiter: str | None = None,
    part: str | None = None,
    speakers: bool = True,
    drop: bool = False,
    overwrite: bool = False,
) -> Manifests:
    """Make manifests of corpora, after every recording was opened and counted.

    sources: one or several folders of recordings with texts beside them, tables (CSV, TSV), Kaldi's folders, saved data
    sets, manifests, and data sets of Hugging Face's in memory (or any rows of that form).
    output: a file ending in .json or .jsonl, or a folder, which gets one file for each part.
    parts: the share of each part by its name; no speaker comes to two parts, unless `speakers` is false.
    columns, delimiter: of tables. part: of a saved data set.
    drop: leave out what cannot be used, else it is an error. overwrite: replace files that exist.
    Raises DataError for what cannot be used, UsageError for a wrong call.
    """
    files = places(Path(output), list(parts or {}), overwrite=overwrite)
    given = [sources] if isinstance(sources, str | os.PathLike) or is_rows(sources) else list(sources)
    found = Found()
    for source in given:
        found.add(read_source(source, columns or Columns(), delimiter, part))
    for file in files.values():
        check_not_input(file, [os.fspath(source) for source in given if isinstance(source, str | os.PathLike)])
    usable, seconds, faults = check_rows(found)
    if faults and not drop:
        refuse(faults, len(found.rows) + len(found.faults))
    if not usable:
        raise DataError("No utterance is left that can be used.\n" + "\n".join(shown(faults)))
    groups = [row.speaker if speakers else None for row in usable]
    names = split(seconds, groups, parts, seed=seed) if parts else [next(iter(files))] * len(usable)
    lines = [Line(row=row, duration=each, part=name) for row, each, name in zip(usable, seconds, names, strict=True)]
    write(files, lines)
    return Manifests(files=files, lines=tuple(lines), faults=faults)


def places(output: Path, parts: Sequence[str], *, overwrite: bool) -> dict[str, Path]:
    """The file of each part. Raises UsageError for one file of several parts, and for files that exist."""
    is_file = output.suffix in (".json", ".jsonl")
    if is_file and len(parts) > 1:
        raise UsageError(f"{output} is one file, and the parts {', '.join(parts)} need one each. Name a folder.")
    files = {output.stem: output} if is_file else {part: output / f"{part}.json" for part in parts or ["manifest"]}
    there = [str(file) for file in files.values() if file.exists()]
    if there and not overwrite:
        raise UsageError(f"{', '.join(there)} exists already. Choose another place, or replace it with --overwrite.")
    return files


def is_rows(source: Any) -> bool:
    """True for rows in memory: a data set, or a list of dictionaries."""
    if isinstance(source, list | tuple):
        return bool(source) and all(isinstance(row, Mapping) for row in source)
    return not isinstance(source, str | os.PathLike)


def read_source(source: Any, columns: Columns, delimiter: str | None, part: str | None) -> Found:
    """The rows of one source. Raises DataError and UsageError."""
    if not isinstance(source, str | os.PathLike):
        return rows_of_objects(source, columns, "row")
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Check the path.")
    if path.is_file():
        return read_table(path, columns, delimiter) if path.suffix.lower() in TABLES else read_utterances(path)
    if (path / "wav.scp").is_file():
        return read_kaldi(path)
    table = next((path / name for name in TABLE_OF_FOLDER if (path / name).is_file()), None)
    if table is not None:
        return read_table(table, columns, delimiter)
    return read_saved(path, columns, part) if is_saved(path) else read_folder(path)


def check_rows(found: Found) -> tuple[list[Row], list[float], dict[str, str]]:
    """The rows that can be used, their seconds, and the faults of all others by their origin."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="overtone-manifest") as threads:
        counted = list(threads.map(count_seconds, found.rows))
    faults, usable, seconds = dict(found.faults), [], []
    contents = same_contents([row for row, each in zip(found.rows, counted, strict=True) if isinstance(each, float)])
    seen: dict[object, str] = {}
    for row, each in zip(found.rows, counted, strict=True):
        if isinstance(each, str):
            faults[row.origin] = each
            continue
        stretch = (contents[row.audio], row.offset, row.duration, row.channel)
        if not row.text.strip():
            faults[row.origin] = "the transcript is empty"
        elif stretch in seen:
            faults[row.origin] = f"it is the same recording as {seen[stretch]}"
        else:
            seen[stretch] = row.origin
            usable.append(row)
            seconds.append(each)
    return usable, seconds, faults


def count_seconds(row: Row) -> float | str:
    """Seconds of an utterance, or its fault."""
    try:
        there = audio_duration(row.audio) - row.offset
    except DataError as error:
        return str(error)
    if row.duration is not None:
        path = row.audio if isinstance(row.audio, Path) else Path(str(row.audio))
        return length_problem(path, row.duration, there) or row.duration
    return there if there > 0 else f"it begins at {row.offset:g} s, after the recording has ended"


def same_contents(rows: Iterable[Row]) -> dict[object, object]:
    """A key for the content of each recording, equal for equal ones: files of one size are compared."""
    audio = list(dict.fromkeys(row.audio for row in rows))
    sizes = Counter(size_of(each) for each in audio)
    return {each: digest_of(each) if sizes[size_of(each)] > 1 else each for each in audio}


def size_of(audio: Any) -> int:
    """Bytes of a recording."""
    if isinstance(audio, HeldFile):
        return len(audio.content)
    return audio.samples.nbytes if isinstance(audio, HeldSamples) else Path(audio).stat().st_size


def digest_of(audio: Any) -> str:
    """SHA-256 of a recording's bytes."""
    if isinstance(audio, Path):
        with audio.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    content = audio.content if isinstance(audio, HeldFile) else audio.samples.tobytes()
    return hashlib.sha256(content).hexdigest()


def refuse(faults: Mapping[str, str], total: int) -> None:
    """Raises DataError with the first faults."""
    raise DataError(
        f"{len(faults)} of {total} utterances cannot be used:\n"
        + "\n".join(shown(faults))
        + "\nCorrect them, or leave them out with --drop."
    )


def shown(faults: Mapping[str, str]) -> list[str]:
    """The first faults, and the number of the others."""
    lines = [f"  {origin}: {fault}" for origin, fault in list(faults.items())[:SHOWN]]
    return lines + ([f"  … and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else [])


def write(files: Mapping[str, Path], lines: Sequence[Line]) -> None:
    """Write the manifests, and recordings that were in memory beside them. Raises UsageError where that fails."""
    for part, file in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            own = [line for line in lines if line.part == part]
            entries = [entry_of(line, file.parent, f"{part}-{number:06d}") for number, line in enumerate(own, start=1)]
            partial = file.with_name(f".{file.name}.partial")
            partial.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), "utf-8")
            partial.replace(file)
        except OSError as error:
            raise UsageError(write_failure(file, error)) from error


def entry_of(line: Line, folder: Path, name: str) -> dict[str, Any]:
    """One line of a manifest; the recording's path is relative where it lies below the manifest's folder."""
    row = line.row
    path = row.audio if isinstance(row.audio, Path) else store(row.audio, folder / "audio" / name)
    place, home = path.resolve(), folder.resolve()
    entry: dict[str, Any] = {
        "audio_filepath": place.relative_to(home).as_posix() if place.is_relative_to(home) else str(place),
        "duration": round(line.duration, 6),
        "text": row.text,
    }
    if row.offset:
        entry["offset"] = row.offset
    if row.channel is not None:
        entry["channel"] = list(row.channel)
    entry |= {"speaker": row.speaker} if row.speaker is not None else {}
    return entry | ({"lang": row.language} if row.language is not None else {})


def store(audio: Any, place: Path) -> Path:
    """Write a recording that was in memory: a file's bytes as they are, samples as FLAC (or WAV for floats)."""
    import soundfile

    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(audio, HeldFile):
        kind = kind_of(audio.content[:HEADER_BYTES])
        path = place.with_suffix(f".{kind.name.split('/')[0].lower()}" if kind is not None else ".mp3")
        path.write_bytes(audio.content)
        return path
    path = place.with_suffix(".wav")
    subtype = "FLOAT" if audio.samples.dtype.kind == "f" else "PCM_16"
    soundfile.write(path, audio.samples, audio.rate, subtype=subtype)
    return path


def summary(made: Manifests) -> list[str]:
    """Lines for a terminal: a table of the parts, a histogram of durations, what was left out."""
    rows = [("part", "utterances", "hours", "speakers", "words", "characters")]
    for part in made.files:
        own = [line for line in made.lines if line.part == part]
        people = {line.row.speaker for line in own} - {None}
        words = sum(len(line.row.text.split()) for line in own)
        signs = len(set("".join(line.row.text for line in own)) - {" "})
        hours = sum(line.duration for line in own) / 3600
        rows.append((part, str(len(own)), f"{hours:.2f}", str(len(people) or "–"), str(words), str(signs)))
    lines = aligned(rows, right=(1, 2, 3, 4, 5))
    lines += ["", "Durations:", *histogram([line.duration for line in made.lines])]
    if made.faults:
        lines += ["", f"Left out, {len(made.faults)} in all:", *shown(made.faults)]
    return lines


def histogram(durations: Sequence[float]) -> list[str]:
    """Utterances by their seconds, as bars of text."""
    longest = max(durations)
    last = next((bound for bound in BOUNDS if bound >= longest), float("inf"))
    edges = [0.0, *(bound for bound in BOUNDS if bound < longest), last]
    counts = [sum(low < each <= high for each in durations) for low, high in pairwise(edges)]
    tallest = max(counts)
    rows = [
        (
            f"{low:g} – {high:g} s" if high < float("inf") else f"over {low:g} s",
            str(number),
            "█" * max(1, round(WIDTH * number / tallest)) if number else "",
        )
        for (low, high), number in zip(pairwise(edges), counts, strict=True)
    ]
    return aligned(rows, right=(0, 1))
