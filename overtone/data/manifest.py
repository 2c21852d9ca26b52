"""Manifests: JSON lines with NeMo's keys, one utterance a line.

{"audio_filepath": "a.wav", "duration": 3.2, "text": "hello there", "offset": 0.0, "speaker": "anna"}

Relative audio paths start at the manifest's folder. Without `duration` the rest of the recording is meant.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overtone.audio.load import audio_duration
from overtone.errors import DataError, did_you_mean

SHORTER_SECONDS, SHORTER_SHARE = 0.1, 0.02
"""By so much, or by this share, a recording may be shorter than its manifest says: what codecs and rounding cut off."""
LONGEST_SECONDS = 1e9
"""The largest `duration` and `offset`, in seconds (thirty years)."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One line of a manifest: a stretch of a recording and what is said in it."""

    audio_path: Path
    """Path of the recording; the file exists."""

    duration: float
    """Seconds, more than 0."""

    text: str | None
    """The transcript as written; None where there is none and none was needed."""

    offset: float = 0.0
    """Seconds into the recording where the utterance begins."""

    speaker: str | None = None
    """The speaker, where the manifest names one."""

    language: str | None = None
    """The language of the transcript, where the manifest names one under `lang`."""

    line: int
    """The line of the manifest, from 1."""

    manifest: Path
    """The manifest it came from."""


def read_manifest(path: str | Path, *, need_text: bool = True) -> list[Utterance]:
    """Read the utterances of one manifest, in order.

    need_text: whether every line must hold a transcript that is not blank.
    Raises DataError, as `path:line: what is wrong`, at the first line that cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such manifest. Check the path.")
    if not path.is_file():
        raise DataError(f"{path}: not a file. Name a manifest, a file of JSON lines.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the manifest cannot be read ({error.strerror}).") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n")
    if lines == [b""]:
        raise DataError(f"{path}: the manifest is empty. One JSON object a line is needed, such as {_EXAMPLE}")
    return [_utterance(line, number, path, need_text) for number, line in enumerate(lines, start=1)]


def read_manifests(paths: str | Path | Sequence[str | Path], *, need_text: bool = True) -> list[Utterance]:
    """The utterances of one or several manifests, in order; a string may name several, parted by commas."""
    if isinstance(paths, str) and "," in paths and not Path(paths).exists():
        paths = [name.strip() for name in paths.split(",") if name.strip()]
    if isinstance(paths, str | Path):
        paths = [paths]
    return [utterance for path in paths for utterance in read_manifest(path, need_text=need_text)]


def manifest_digest(utterances: Iterable[Utterance], *, languages: bool = False) -> str:
    """`sha256:` of what decides batches: each utterance's recording, stretch and transcript, in order.

    languages: count those of the transcripts too.

    Recordings are named relative to their manifest's folder, so that a moved corpus keeps its digest.
    """
    digest = hashlib.sha256()
    for utterance in utterances:
        folder = utterance.manifest.parent
        below = utterance.audio_path.is_relative_to(folder)
        name = utterance.audio_path.relative_to(folder) if below else utterance.audio_path
        row = [name.as_posix(), utterance.offset, utterance.duration, utterance.text]
        row += [utterance.language] if languages else []
        digest.update(json.dumps(row, ensure_ascii=True).encode("ascii") + b"\n")
    return "sha256:" + digest.hexdigest()


def length_problem(path: Path, duration: float, seconds: float) -> str | None:
    """The message for a recording that is shorter than its line of the manifest says.

    seconds: sound in the file from the line's offset on.
    """
    if seconds >= duration - max(SHORTER_SECONDS, SHORTER_SHARE * duration):
        return None
    return (
        f"the manifest says {duration:g} s, but {path} holds {max(seconds, 0.0):g} s from there. "
        "Correct 'duration' (or 'offset')."
    )


_EXAMPLE = '{"audio_filepath": "a.wav", "duration": 3.2, "text": "hello there"}'


def _utterance(line: bytes, number: int, manifest: Path, need_text: bool) -> Utterance:
    """One line, checked; every error begins with `manifest:line`."""
    try:
        entry = _entry(line)
        audio_path = _audio_path(entry, manifest.parent)
        offset = _seconds(entry, "offset", 0.0)
        duration = _seconds(entry, "duration", None)
        if duration is None:
            duration = audio_duration(audio_path) - (offset or 0.0)
        if not duration > 0.0:
            raise DataError(f"'duration' is {duration} s; more than 0 is needed.")
        return Utterance(
            audio_path=audio_path,
            duration=duration,
            text=_text(entry, need_text),
            offset=offset or 0.0,
            speaker=_speaker(entry),
            language=entry["lang"] if isinstance(entry.get("lang"), str) else None,
            line=number,
            manifest=manifest,
        )
    except DataError as error:
        raise DataError(f"{manifest}:{number}: {error}") from error


def _entry(line: bytes) -> dict[str, Any]:
    if not line.strip():
        raise DataError("the line is empty. Remove it.")
    try:
        entry = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start + 1} of the line). Save the manifest as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"not JSON ({reason}). One object a line is needed, such as {_EXAMPLE}") from error
    if not isinstance(entry, dict):
        raise DataError(f"a JSON {type(entry).__name__} instead of an object such as {_EXAMPLE}")
    return entry


def _audio_path(entry: dict[str, Any], folder: Path) -> Path:
    name = entry.get("audio_filepath")
    if name is None:
        near = [key for key in entry if did_you_mean(key, ["audio_filepath"])]
        found = f" (found '{near[0]}')" if near else ""
        raise DataError(f"the key 'audio_filepath' is missing{found}. Name the recording there.")
    if not isinstance(name, str) or not name:
        raise DataError(f"'audio_filepath' is {name!r}; the path of a recording is needed.")
    expanded = os.path.expanduser(name)  # noqa: PTH111 (Path.expanduser raises for an unknown user)
    # As in NeMo, a path that does not lead anywhere from the manifest may be meant from the working folder.
    candidates = (folder / expanded, Path(expanded))
    for candidate in candidates:
        if os.path.isfile(candidate):  # noqa: PTH113 (Path.is_file raises for names that cannot exist)
            return candidate
    raise DataError(f"the recording {candidates[0]} does not exist. Correct 'audio_filepath' or remove the line.")


def _seconds(entry: dict[str, Any], key: str, default: float | None) -> float | None:
    """A number of seconds; missing and null are the default."""
    value = entry.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= LONGEST_SECONDS:
        raise DataError(f"'{key}' is {value!r}; a number of seconds is needed.")
    return float(value)


def _text(entry: dict[str, Any], need_text: bool) -> str | None:
    text = entry.get("text")
    if text is None and not need_text:
        return None
    if text is None:
        other = [key for key in ("text_filepath", "normalized_text", "transcript") if key in entry]
        found = f" ('{other[0]}' is not read)" if other else ""
        raise DataError(f"the key 'text' is missing{found}. Write the transcript there.")
    if not isinstance(text, str):
        raise DataError(f"'text' is {text!r}; a string is needed.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError("'text' holds half a surrogate pair. Write the character in full.")
    if need_text and not text.strip():
        raise DataError("'text' is empty. Write the transcript there or remove the line.")
    return text


def _speaker(entry: dict[str, Any]) -> str | None:
    speaker = entry.get("speaker")
    if speaker is None:
        return None
    if isinstance(speaker, bool) or not isinstance(speaker, str | int):
        raise DataError(f"'speaker' is {speaker!r}; a name is needed.")
    return str(speaker)
