"""Manifests: JSON lines with NeMo's keys, one utterance a line.

{"audio_filepath": "a.wav", "duration": 3.2, "text": "hello there", "offset": 0.0, "speaker": "anna", "channel": 0}

Relative paths start at the manifest's folder. Without `duration` the rest of the recording is meant, without `channel`
the mean of all channels. Blank lines are skipped. NeMo's other names are read too: `audio_filename` and `audio_file`;
`text_filepath`, `normalized_text` and `command` where there is no `text`; `channel_selector`. A file may also be a
JSON array of such objects. Lines with `_skipme`, NeMo's mark for what is not to be used, are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from overtone.audio.load import Channels, audio_duration
from overtone.audio.sources import Held
from overtone.data.manifest_file import Entry, numbered_lines, parse_line, read_content, split_lines
from overtone.errors import DataError, did_you_mean
from overtone.files import read_regular

SHORTER_SECONDS, SHORTER_SHARE = 0.1, 0.02
"""By so much, or by this share, a recording may be shorter than its manifest says: what codecs and rounding cut off."""
LONGEST_SECONDS = 1e9
"""The largest `duration` and `offset`, in seconds (thirty years)."""
LARGEST_TEXT = 1 << 20
"""Bytes of a transcript in a file of its own."""
SHOWN = 5
"""Faulty lines in a message."""
AUDIO_KEYS = ("audio_filepath", "audio_filename", "audio_file")
TEXT_KEYS = ("text", "text_filepath", "normalized_text", "command")
"""Keys of the transcript; the first one that is there counts. `command` is a spoken command, the label in NeMo's lists
of such; nothing is executed."""
CHANNEL_KEYS = ("channel", "channel_selector")

TASK_SLOTS = (
    *("source_lang", "target_lang", "task", "taskname", "pnc", "itn", "timestamp", "diarize", "emotion"),
    "decodercontext",
)
"""Keys of a line that say what a multitask model is to do; a context comes last, as it may hold anything."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One line of a manifest: a stretch of a recording and what is said in it."""

    audio_path: Path
    """Path of the recording; the file exists, unless `held` is given."""

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

    task: str | None = None
    """The task of a multitask model, where the manifest names `source_lang` or `target_lang` and further slots."""

    channel: Channels | None = None
    """Numbers from 0 of the channels whose mean is meant; None is all of them."""

    line: int
    """The line of the manifest, from 1."""

    manifest: Path
    """The manifest it came from."""

    held: Held | None = None
    """The recording itself, where it is no file of its own; `audio_path` is then its name alone."""

    archive: Path | None = None
    """The archive that the recording lies in."""

    part: int = 0
    """The part of a mixed set that the utterance belongs to."""

    @property
    def recording(self) -> Path | Held:
        """The recording, to be read."""
        return self.audio_path if self.held is None else self.held

    @property
    def file(self) -> Path:
        """The file on disk that holds the recording."""
        return self.archive or self.audio_path


class Place(NamedTuple):
    """The place of a line's recording; the names are those of `Utterance`."""

    audio_path: Path
    held: Held | None = None
    archive: Path | None = None


Find = Callable[[Entry, Path], Place]
"""(a line, the folder of its manifest) -> the place of its recording. Raises DataError."""


@dataclass(frozen=True, kw_only=True)
class LineForm:
    """The form of a manifest's lines."""

    need_text: bool = True
    """Every line must hold a transcript that is not blank."""
    silence: bool = False
    """A blank one will do, which means that nothing is said."""
    convert: Callable[[Entry], Entry] | None = None
    """Turns a line into one with NeMo's keys; None: they are."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of keys that a line does not have."""
    find: Find | None = None
    """None: recordings are files of their own."""


def read_manifest(
    path: str | Path, *, need_text: bool = True, silence: bool = False, form: LineForm | None = None
) -> list[Utterance]:
    """Read the utterances of one manifest, in order.

    need_text: whether every line must hold a transcript that is not blank.
    silence: whether a blank one will do, which means that nothing is said. form: all of that, and more.
    Raises DataError with the lines that cannot be used, each as `path:line: fault`.
    """
    path = Path(path)
    lines = numbered_lines(path)
    return _read_lines(lines, path, form or LineForm(need_text=need_text, silence=silence))


def _read_lines(lines: Sequence[tuple[int, Any]], path: Path, form: LineForm) -> list[Utterance]:
    """The utterances of numbered lines. Raises DataError with all that cannot be used."""
    utterances, faults = [], []
    for number, line in lines:
        try:
            entry = parse_line(line) if form.convert is None else form.convert(parse_line(line))
            if form.defaults:
                entry = {**form.defaults, **{key: value for key, value in entry.items() if value is not None}}
            if not entry.get("_skipme"):
                utterances.append(_utterance(entry, number, path, form))
            elif form.find is not None:
                form.find(entry, path.parent)  # its recording is listed, though not used
        except DataError as error:
            faults.append(f"{path}:{number}: {error}")
    if len(faults) == 1:
        raise DataError(faults[0])
    if faults:
        more = f"\n  … and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        listed = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
        raise DataError(f"{len(faults)} of {len(lines)} lines of {path} cannot be used:{listed}{more}")
    return utterances


def read_entries(
    entries: Iterable[Mapping[str, Any]], manifest: Path, *, need_text: bool = True, silence: bool = False
) -> list[Utterance]:
    """Lines of a manifest that are in memory. The manifest, which need not exist, tells where paths start.

    Raises DataError, as `read_manifest`.
    """
    return read_rows(entries, manifest, LineForm(need_text=need_text, silence=silence))


def read_rows(entries: Iterable[Mapping[str, Any]], manifest: Path, form: LineForm) -> list[Utterance]:
    """Lines of a manifest that are in memory, in a form of their own. Raises DataError, as `read_manifest`."""
    return _read_lines([(number, dict(entry)) for number, entry in enumerate(entries, start=1)], manifest, form)


def read_texts(path: str | Path) -> list[tuple[str, str | None, Utterance | None]]:
    """Read transcripts whose recordings may be missing: the text, its language, and the utterance or None.

    Raises DataError with the lines that cannot be used, each as `path:line: fault`.
    """
    path, found, faults = Path(path), list[tuple[str, str | None, Utterance | None]](), list[str]()
    lines = split_lines(read_content(path))
    for number, line in lines:
        try:
            entry = parse_line(line)
            if any(entry.get(key) is not None for key in AUDIO_KEYS):
                own = _utterance(entry, number, path, LineForm())
                found.append((own.text or "", own.language, own))
            else:
                language = entry["lang"] if isinstance(entry.get("lang"), str) else None
                found.append((_text(entry, path.parent, LineForm()) or "", language, None))
        except DataError as error:
            faults.append(f"{path}:{number}: {error}")
    if faults:
        more = f"\n  … and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        listed = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
        raise DataError(f"{len(faults)} of {len(lines)} lines of {path} cannot be used:{listed}{more}")
    if not found:
        raise DataError(f'{path}: there is nothing in it. One JSON object a line is needed, such as {{"text": "…"}}.')
    return found


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
        row: list[Any] = [name.as_posix(), utterance.offset, utterance.duration, utterance.text]
        row += [utterance.language] if languages else []
        row += [] if utterance.channel is None else [list(utterance.channel)]
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


def _utterance(entry: Entry, number: int, manifest: Path, form: LineForm) -> Utterance:
    """One line, checked."""
    place = (form.find or find_file)(entry, manifest.parent)
    offset = _seconds(entry, "offset", 0.0) or 0.0
    duration = _seconds(entry, "duration", None)
    if duration is None:
        whole = audio_duration(place.audio_path if place.held is None else place.held)
        duration = whole - offset
        if duration <= 0.0:
            raise DataError(
                f"'offset' is {offset:g} s, but {place.audio_path} ends after {whole:g} s. Correct 'offset'."
            )
    if not duration > 0.0:
        raise DataError(f"'duration' is {duration} s; more than 0 is needed.")
    return Utterance(
        **place._asdict(),
        duration=duration,
        text=_text(entry, manifest.parent, form),
        offset=offset,
        speaker=_speaker(entry),
        language=entry["lang"] if isinstance(entry.get("lang"), str) else None,
        task=_task(entry),
        channel=_channel(entry),
        line=number,
        manifest=manifest,
    )


def _task(entry: dict[str, Any]) -> str | None:
    """The task of a line for a multitask model, as text; None where it names no language of the speech or the text."""
    named = {slot: str(entry[slot]) for slot in TASK_SLOTS if isinstance(entry.get(slot), str | bool | int)}
    if not named.keys() & {"source_lang", "target_lang"}:
        return None
    return ",".join(f"{slot}={value}" for slot, value in named.items())


def find_file(entry: Entry, folder: Path) -> Place:
    """The recording of a line as a file. Raises DataError where it is not named, or not there."""
    key, name = audio_name(entry)
    found_path = _find(name, folder)
    if found_path is not None:
        return Place(found_path)
    if name.rstrip().endswith("|"):
        raise DataError(f"'{key}' is a command, and nothing is executed. Write its output to a file and name that.")
    if "://" in name:
        raise DataError(f"'{key}' is the address {name}; recordings are read from disk. Fetch it and name the file.")
    raise DataError(f"the recording {folder / name} does not exist. Correct '{key}' or remove the line.")


def audio_name(entry: Entry) -> tuple[str, str]:
    """The key and the name of the recording of a line. Raises DataError where it is not named."""
    key = next((key for key in AUDIO_KEYS if entry.get(key) is not None), None)
    if key is None:
        near = [key for key in entry if did_you_mean(key, ["audio_filepath"])]
        found = f" (found '{near[0]}')" if near else ""
        raise DataError(f"the key 'audio_filepath' is missing{found}. Name the recording there.")
    name = entry[key]
    if not isinstance(name, str) or not name:
        raise DataError(f"'{key}' is {name!r}; the path of a recording is needed.")
    return key, name


def _find(name: str, folder: Path) -> Path | None:
    """The file that a line names, None where there is none.

    As in NeMo, a path that does not lead anywhere from the manifest may be meant from the working folder.
    """
    expanded = os.path.expanduser(name)  # noqa: PTH111 (Path.expanduser raises for an unknown user)
    for candidate in (folder / expanded, Path(expanded)):
        if os.path.isfile(candidate):  # noqa: PTH113 (Path.is_file raises for names that cannot exist)
            return candidate
    return None


def _seconds(entry: Entry, key: str, default: float | None) -> float | None:
    """A number of seconds; missing and null are the default."""
    value = entry.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= LONGEST_SECONDS:
        raise DataError(f"'{key}' is {value!r}; a number of seconds is needed.")
    return float(value)


def _channel(entry: Entry) -> Channels | None:
    """The numbers of the chosen channels, as NeMo and lhotse count them; null and "average" are all."""
    key = next((key for key in CHANNEL_KEYS if entry.get(key) is not None), None)
    if key is None or entry[key] == "average":
        return None
    value = entry[key]
    numbers = value if isinstance(value, list) else [value]
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise DataError(
            f"'{key}' is {value!r}; the number of a channel from 0, a list of them, or \"average\" is needed."
        )
    return tuple(numbers)


def _text(entry: Entry, folder: Path, form: LineForm) -> str | None:
    """The transcript, None where there is none and none is needed."""
    key = next((key for key in TEXT_KEYS if entry.get(key) is not None), None)
    if key is None and not form.need_text:
        return None
    if key is None:
        near = [key for key in entry if key in ("transcript", "sentence", "transcription", "label")]
        found = f" ('{near[0]}' is not read)" if near else ""
        raise DataError(f"the key 'text' is missing{found}. Write the transcript there.")
    text = entry[key]
    if not isinstance(text, str):
        raise DataError(f"'{key}' is {text!r}; a string is needed.")
    if key == "text_filepath":
        text = _read_text(text, folder)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"'{key}' holds half a surrogate pair. Write the character in full.")
    if form.need_text and not form.silence and not text.strip():
        raise DataError(f"'{key}' is empty. Write the transcript there or remove the line.")
    return text


def _read_text(name: str, folder: Path) -> str:
    """The transcript in a file, its lines joined by spaces."""
    path = _find(name, folder)
    if path is None:
        raise DataError(f"the transcript {folder / name} does not exist. Correct 'text_filepath'.")
    try:
        return " ".join(read_regular(path, at_most=LARGEST_TEXT).decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"the transcript {path} is not UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"the transcript {path} cannot be read ({error.strerror}).") from error


def _speaker(entry: Entry) -> str | None:
    speaker = entry.get("speaker")
    if speaker is None:
        return None
    if isinstance(speaker, bool) or not isinstance(speaker, str | int):
        raise DataError(f"'speaker' is {speaker!r}; a name is needed.")
    return str(speaker)
