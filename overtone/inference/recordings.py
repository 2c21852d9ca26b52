"""Recordings to be transcribed: those that files, folders and manifests name, as one list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from overtone.audio.load import Channels
from overtone.data.manifest import Utterance, read_manifest
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

    channel: Channels | None = None
    """Numbers from 0 of the channels whose mean is meant; None is all of them."""

    text: str | None = None
    """The reference transcript, where a manifest gives one."""

    language: str | None = None
    """The language, where a manifest names one under `lang`."""

    problem: str | None = None
    """The reason why there is nothing to read here, known before trying (a folder without audio)."""


def find_recordings(paths: str | Path | Sequence[str | Path]) -> list[list[Recording]]:
    """The recordings of each path: one for a file, all below a folder sorted by path, all lines of a manifest.

    A missing file is a recording that fails when it is read, so that the others go on.
    Raises UsageError for no path at all, DataError for a manifest that cannot be used.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise UsageError("Nothing to transcribe: give audio files, folders or a manifest.")
    return [_recordings_at(Path(path)) for path in given]


def recordings_of(utterances: Iterable[Utterance]) -> list[Recording]:
    """The recordings that lines of a manifest name."""
    return [
        Recording(
            path=utterance.audio_path,
            name=_below(utterance.audio_path, utterance.manifest.parent),
            offset=utterance.offset,
            duration=utterance.duration,
            channel=utterance.channel,
            text=utterance.text,
            language=utterance.language,
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
