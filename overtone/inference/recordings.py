"""Recordings to be transcribed: those that files, folders and manifests name, as one list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overtone.audio.held import TAKEN, hold, is_sound
from overtone.audio.load import SAMPLE_RATE, Channels
from overtone.audio.sources import Held
from overtone.data.manifest import AUDIO_KEYS, Utterance, read_entries, read_manifest
from overtone.data.tables import is_frame, read_table
from overtone.errors import UsageError

AUDIO_SUFFIXES = frozenset(
    (
        *(".wav", ".wave", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".ogv", ".opus", ".mp3", ".mpga"),
        *(".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".aac", ".adts", ".webm", ".weba", ".mkv"),
        *(".mka", ".wma", ".asf", ".wmv", ".amr", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist"),
        ".voc",
    )
)
"""Suffixes of audio inside a folder, the sound of films included; a file that is named by itself is tried whatever its
suffix."""

OTHER_MEDIA_SUFFIXES = frozenset(
    (
        *(".avi", ".flv", ".f4v", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".mxf", ".mp2", ".ac3", ".eac3"),
        *(".dts", ".ape", ".wv", ".tta", ".mpc", ".spx", ".ra", ".rm", ".dss", ".ds2", ".mid", ".vox", ".gsm", ".tak"),
    )
)
"""Recordings inside a folder that cannot be read; each is named in an error."""

MANIFEST_SUFFIXES = frozenset((".json", ".jsonl", ".manifest"))


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One stretch of audio that becomes one transcript."""

    path: Path
    """The audio file."""

    name: str
    """Its name in outputs: the path below the folder or manifest it was found by, else the file's name."""

    offset: float = 0.0
    """Seconds into the file where it begins."""

    duration: float | None = None
    """Seconds; None is everything after `offset`."""

    held: Held | None = None
    """The recording itself, where it is in memory; `path` is then its name alone."""

    channel: Channels | None = None
    """Numbers from 0 of the channels whose mean is meant; None is all of them."""

    text: str | None = None
    """The reference transcript, where a manifest gives one."""

    language: str | None = None
    """The language, where a manifest names one under `lang`."""

    task: str | None = None
    """The task of a multitask model, where a manifest names one."""

    problem: str | None = None
    """The reason why there is nothing to read here, known before trying (a folder without audio)."""

    @property
    def source(self) -> Path | Held:
        """The recording in memory, or its file."""
        return self.path if self.held is None else self.held

    @property
    def told(self) -> str | None:
        """The task that a multitask model is told, or the language alone."""
        return self.task or self.language


def find_recordings(sources: Any, *, sample_rate: int = SAMPLE_RATE) -> list[list[Recording]]:
    """The recordings of each source: one for a file, all below a folder sorted by path, all lines of a manifest.

    sources: one or several of `overtone.audio.held.TAKEN`. sample_rate: Hz of samples that come without a rate.
    A missing file is a recording that fails when it is read, so that the others go on.
    Raises UsageError for no source at all and for what is none, DataError for a manifest that cannot be used.
    """
    if is_sound(sources) or is_frame(sources):
        given = [sources]
    elif isinstance(sources, Iterable):
        given = list(sources)
    else:
        raise UsageError(f"A {type(sources).__name__} is no recording; allowed is {TAKEN}.")
    if not given:
        raise UsageError("Nothing to transcribe: give audio files, folders or a manifest.")
    return tell_apart([_recordings_of(source, number, sample_rate) for number, source in enumerate(given, start=1)])


def tell_apart(found: Sequence[Sequence[Recording]]) -> list[list[Recording]]:
    """The same recordings; files that share a name are named with as many of their folders as tell them apart."""
    files: dict[str, set[Path]] = {}
    for recording in (recording for group in found for recording in group):
        files.setdefault(recording.name, set()).add(recording.path)
    names: dict[tuple[str, Path], str] = {}
    for name, paths in files.items():
        if len(paths) > 1:
            places = {path: path.resolve().parts for path in paths}
            parts, whole = 1, set(places.values())
            while len({place[-parts:] for place in whole}) < len(whole):
                parts += 1
            if len(whole) > 1:
                names |= {(name, path): "/".join(place[-parts:]).lstrip("/") for path, place in places.items()}
    if not names:
        return [list(group) for group in found]
    return [[replace(each, name=names.get((each.name, each.path), each.name)) for each in group] for group in found]


def _recordings_of(source: Any, number: int, sample_rate: int) -> list[Recording]:
    """The recordings of one source; number: its place among all, from 1."""
    if isinstance(source, Mapping) and any(isinstance(source.get(key), str) for key in AUDIO_KEYS):
        return recordings_of(read_entries([source], Path(), need_text=False))
    if is_frame(source):
        name = f"{type(source).__name__} {number}"
        return recordings_of(read_table(source, name, need_text=False))
    held = hold(source, sample_rate, name=f"recording {number}")
    if isinstance(held, Path):
        return _recordings_at(held)
    return [Recording(path=Path(str(held)), name=str(held), held=held)]


def recordings_of(utterances: Iterable[Utterance]) -> list[Recording]:
    """The recordings that lines of a manifest name."""
    return [
        Recording(
            path=utterance.audio_path,
            name=_below(utterance.audio_path, utterance.manifest.parent),
            offset=utterance.offset,
            duration=utterance.duration,
            held=utterance.held,
            channel=utterance.channel,
            text=utterance.text,
            language=utterance.language,
            task=utterance.task,
        )
        for utterance in utterances
    ]


def _recordings_at(path: Path) -> list[Recording]:
    if path.is_dir():
        return _recordings_in(path)
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return recordings_of(read_manifest(path, need_text=False))
    return [Recording(path=path, name=path.name)]


def _recordings_in(folder: Path) -> list[Recording]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES | OTHER_MEDIA_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not files:
        suffixes = ", ".join(sorted(AUDIO_SUFFIXES))
        problem = f"The folder {folder} holds no audio; files ending in {suffixes} are looked for."
        return [Recording(path=folder, name=folder.name, problem=problem)]
    return [Recording(path=path, name=_below(path, folder), problem=_unreadable(path)) for path in files]


def _unreadable(path: Path) -> str | None:
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return None
    return f"{path}: {path.suffix} files are not read. Convert it to WAV, FLAC, MP3 or MP4, or move it elsewhere."


def _below(path: Path, folder: Path) -> str:
    """The path relative to the folder where it lies below it, else the file's name."""
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return path.name
