"""Corpora on disk as rows: recordings with texts beside them, CSV and TSV tables, Kaldi's folders, manifests."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from overtone.data.corpus.rows import Columns, Found, Row, find_audio, numbered, one_line
from overtone.data.manifest import Utterance, read_manifest
from overtone.errors import DataError, UsageError, did_you_mean

TABLES = (".csv", ".tsv", ".psv")
TEXTS = (".txt", ".lab", ".TXT")
AUDIO = (
    ".wav",
    ".flac",
    ".mp3",
    ".ogg",
    ".opus",
    ".oga",
    ".m4a",
    ".mp4",
    ".webm",
    ".aac",
    ".wma",
    ".sph",
    ".aiff",
    ".au",
)
TRANSCRIPTS = "*.trans.txt"
"""LibriSpeech's lists of a chapter: an identity and its text on every line."""
DELIMITERS = {".tsv": "\t", ".psv": "|"}


def read_folder(folder: Path) -> Found:
    """Recordings below a folder, each with its text beside it, or in LibriSpeech's lists.

    The speaker is the folder right below, where there are several such. Raises DataError for none at all.
    """
    listed = dict(read_transcripts(folder))
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO and path.is_file())
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not paths:
        raise DataError(
            f"{folder} holds no recordings. Known are folders of recordings with a .txt beside each, tables (CSV, "
            "TSV), Kaldi's folders (wav.scp), and data sets that Hugging Face has saved."
        )
    tops = {path.relative_to(folder).parts[0] for path in paths if len(path.relative_to(folder).parts) > 1}
    found = Found()
    for path in paths:
        parts = path.relative_to(folder).parts
        text = listed.get(path.stem)
        if text is None:
            beside = next((path.with_suffix(suffix) for suffix in TEXTS if path.with_suffix(suffix).is_file()), None)
            if beside is None:
                found.faults[str(path)] = f"no text is beside it; {path.with_suffix('.txt').name} is looked for"
                continue
            text = read_text(beside)
        speaker = parts[0] if len(parts) > 1 and len(tops) > 1 else None
        found.rows.append(Row(origin=str(path), audio=path, text=one_line(text), speaker=speaker))
    return found


def read_transcripts(folder: Path) -> list[tuple[str, str]]:
    """Identities and texts of LibriSpeech's lists below a folder."""
    return [
        (line.split(maxsplit=1)[0], (line.split(maxsplit=1) + [""])[1])
        for path in sorted(folder.rglob(TRANSCRIPTS))
        for _, line in numbered(read_text(path).splitlines())
    ]


def read_table(path: Path, columns: Columns, delimiter: str | None = None) -> Found:
    """A table with names of columns in its first line, or LJSpeech's without (`name|text|text as it is read`).

    Raises DataError where no column holds recordings or texts, UsageError for a column that is not there.
    """
    content = read_text(path)
    delimiter = delimiter or DELIMITERS.get(path.suffix.lower()) or guess_delimiter(content)
    plain = delimiter in "|\t"  # quotes are part of the text there
    lines = list(
        csv.reader(io.StringIO(content), delimiter=delimiter, quoting=3 if plain else 0, skipinitialspace=True)
    )
    if not lines:
        raise DataError(f"{path} is empty.")
    names = [name.strip() for name in lines[0]]
    try:
        chosen = columns.choose(names)
    except KeyError as error:
        near = did_you_mean(str(error.args[0]), names)
        raise UsageError(f"{path} has no column {error}.{near} It has {', '.join(names)}.") from None
    first = 2
    if "audio" not in chosen and "text" not in chosen and delimiter == "|" and 2 <= len(names) <= 3:
        first, chosen, lines = 1, {"audio": "0", "text": str(len(names) - 1)}, [[], *lines]
        names = [str(index) for index in range(len(names))]
    missing = [part for part in ("audio", "text") if part not in chosen]
    if missing:
        raise DataError(
            f"{path}: no column is known to hold the {'recordings' if missing[0] == 'audio' else 'transcripts'}. "
            f"There are {', '.join(names)}. Name it with --{missing[0]}-column."
        )
    found = Found()
    for number, line in enumerate(lines[1:], start=first):
        if any(cell.strip() for cell in line[len(names) :]):
            found.faults[f"{path}:{number}"] = (
                f"it has {len(line)} cells, and the first line {len(names)}; quote the text"
            )
        elif any(cell.strip() for cell in line):
            add_line(found, dict(zip(names, line, strict=False)), chosen, path, number)
    return found


def add_line(found: Found, cells: Mapping[str, str], chosen: Mapping[str, str], path: Path, number: int) -> None:
    """One line of a table, as a row or a fault."""
    origin = f"{path}:{number}"
    name = cells.get(chosen["audio"], "").strip()
    audio = find_audio(name, path.parent) if name else None
    if audio is None:
        found.faults[origin] = f"the recording {path.parent / name} does not exist" if name else "no recording is named"
        return
    try:
        offset, duration = (seconds(cells.get(key)) for key in ("offset", "duration"))
    except ValueError as error:
        found.faults[origin] = f"offset or duration is no number of seconds ({error})"
        return
    speaker, language = (cells.get(chosen.get(part, ""), "").strip() or None for part in ("speaker", "language"))
    text = one_line(cells.get(chosen["text"]) or "")
    found.rows.append(
        Row(
            origin=origin,
            audio=audio,
            text=text,
            speaker=speaker,
            language=language,
            offset=offset or 0.0,
            duration=duration,
        )
    )


def read_kaldi(folder: Path) -> Found:
    """Kaldi's folder: wav.scp and text, and where they are there segments and utt2spk. No command is executed."""
    recordings, faults = {}, {}
    for number, line in numbered(read_text(folder / "wav.scp").splitlines()):
        key, _, value = line.strip().partition(" ")
        value = value.strip()
        if value.endswith("|"):
            faults[key] = (f"{folder / 'wav.scp'}:{number}", "it is a command, and nothing is executed; write files")
            continue
        audio = next((path for path in (folder / value, Path(value)) if path.is_file()), None)
        if audio is None:
            faults[key] = (f"{folder / 'wav.scp'}:{number}", f"the recording {value} does not exist")
        else:
            recordings[key] = audio
    texts, speakers = pairs(folder / "text"), pairs(folder / "utt2spk")
    segments = pairs(folder / "segments") or {key: key for key in [*recordings, *faults]}
    found = Found(faults=dict(faults.values()))
    for key, value in segments.items():
        origin, (recording, *times) = f"{folder}: {key}", value.split() or [""]
        if recording in faults:
            continue
        if recording not in recordings:
            found.faults[origin] = f"wav.scp has no recording '{recording}'"
        elif key not in texts:
            found.faults[origin] = "'text' has no transcript of it"
        else:
            begin, end = (float(times[0]), float(times[1])) if len(times) >= 2 else (0.0, -1.0)
            row = Row(
                origin=origin,
                audio=recordings[recording],
                text=one_line(texts[key]),
                speaker=speakers.get(key),
                offset=begin,
                duration=end - begin if end > 0 else None,
            )
            found.rows.append(row)
    return found


def read_utterances(path: Path) -> Found:
    """The lines of a manifest."""
    return Found(rows=[row_of(utterance) for utterance in read_manifest(path, silence=True)])


def row_of(utterance: Utterance) -> Row:
    """One line of a manifest."""
    return Row(
        origin=f"{utterance.manifest}:{utterance.line}",
        audio=utterance.audio_path,
        text=utterance.text or "",
        speaker=utterance.speaker,
        offset=utterance.offset,
        duration=utterance.duration,
        language=utterance.language,
        channel=utterance.channel,
    )


def pairs(path: Path) -> dict[str, str]:
    """The lines of one of Kaldi's files, by their first word; none where the file is not there."""
    if not path.is_file():
        return {}
    lines = (line.strip().partition(" ") for _, line in numbered(read_text(path).replace("\t", " ").splitlines()))
    return {key: value.strip() for key, _, value in lines}


def read_text(path: Path) -> str:
    """The text of a file. Raises DataError for one that is no UTF-8, or cannot be read."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def guess_delimiter(content: str) -> str:
    """The delimiter of a table: the most frequent one in its first line, a comma where there is none."""
    first = content.partition("\n")[0]
    return max(",;\t|", key=first.count) if any(sign in first for sign in ",;\t|") else ","


def seconds(cell: str | None) -> float | None:
    """A number of seconds; None where the cell is empty. Raises ValueError."""
    return float(cell) if cell is not None and cell.strip() else None
