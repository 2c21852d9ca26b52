"""Corrections that an adapter learns from: a journal of texts beside the adapter, and copies of their recordings.

The journal is JSON lines that are only ever added; a line that a killed process left unfinished does not count. Of one
recording the latest text counts. `FOLDER.learning/` holds, beside the adapter's FOLDER:

corrections.jsonl   the journal
audio/ID.flac       recordings, as the model hears them
versions/           what the adapter was after each step
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from overtone.audio.load import load_audio
from overtone.errors import DataError
from overtone.files import lock, replace_path

SUFFIX = ".learning"
"""The end of the name of the folder beside an adapter's."""
JOURNAL = "corrections.jsonl"
AUDIO = "audio"
LARGEST_JOURNAL = 64 * 2**20
"""Bytes of the journal: some 300,000 corrections."""
HELD_OUT_SHARE = 5
"""One correction in so many is held out, by the digest of its text, whatever its case: the same ones for ever."""
ID_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A text that was put right, with its recording if there is one."""

    text: str
    language: str | None = None
    samples: NDArray[np.int16] | None = None
    """[S] at the model's rate; None where there is no recording."""


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """A correction in the journal."""

    id: str
    key: str
    """The recording's digest, or the text's where there is none: a later text for it takes this one's place."""
    text: str
    language: str | None
    audio: Path | None
    seconds: float

    @property
    def is_held_out(self) -> bool:
        """It is learnt from last: what is chosen meanwhile is judged by it.

        The same texts are always on one side, also those that become the same in the letters of an adapter.
        """
        digest = hashlib.sha256(f"held out\0{self.text.upper().casefold()}".encode()).digest()
        return self.audio is not None and int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


class Corrections:
    """The corrections of one adapter on disk."""

    def __init__(self, adapter: Path, *, sample_rate: int) -> None:
        """adapter: its folder, which need not exist yet."""
        self.folder = adapter.with_name(adapter.name + SUFFIX)
        self.sample_rate = sample_rate

    @property
    def journal(self) -> Path:
        return self.folder / JOURNAL

    def lines(self) -> list[dict[str, Any]]:
        """Every whole line of the journal. Raises DataError where it is damaged."""
        try:
            content = self.journal.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"{self.journal} cannot be read: {error.strerror or error}.") from error
        found = []
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                raise DataError(f"{self.journal}:{number}: no line of a journal. Remove the line, or restore the file.")
            found.append(entry)
        return found

    def read(self, lines: int | None = None) -> list[Learnt]:
        """The corrections that count after so many lines of the journal; None: after all. Raises DataError."""
        found: dict[str, Learnt] = {}
        for number, entry in enumerate(self.lines()[:lines], start=1):
            try:
                for id_ in entry.get("set_aside", ()):
                    found = {key: own for key, own in found.items() if own.id != id_}
                if "text" in entry:
                    own = self.entry(entry)
                    found.pop(own.key, None)
                    found[own.key] = own
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{self.journal}:{number}: damaged ({error!r}). Remove the line.") from error
        return list(found.values())

    def entry(self, entry: Mapping[str, Any]) -> Learnt:
        """A correction of a line. Its recording is one of the folder's own: a name that is a path leads nowhere."""
        id_, text, seconds = str(entry["id"]), str(entry["text"]), float(entry.get("seconds", 0.0))
        path = self.folder / AUDIO / f"{Path(id_).name}.flac"
        audio = path if seconds > 0 and path.is_file() else None
        language = entry.get("lang")
        return Learnt(
            id=id_,
            key=str(entry["key"]),
            text=text,
            language=None if language is None else str(language),
            audio=audio,
            seconds=seconds if audio is not None else 0.0,
        )

    def add(self, corrections: Sequence[Correction], *, hours: float = inf) -> int:
        """Add corrections that are new; their number. Recordings are written before the lines that name them.

        One that is known, and whose recording is gone, has it again, and is as good as new; not so where `trim` to
        these hours would only remove it once more. Raises DataError where nothing more can be held or written.
        """
        with self.locked() as file:
            known = {own.id: own for own in self.read()}
            stay = self.draw_with(known.values(), corrections, hours)
            lines, seen, restored = [], set[str](), 0
            for correction in corrections:
                key, id_ = digests(correction)
                if id_ in seen:
                    continue
                seen.add(id_)
                if id_ in known:
                    if correction.samples is not None and known[id_].audio is None and id_ in stay:
                        self.write_audio(id_, correction.samples)
                        restored += 1
                    continue
                seconds = 0.0
                if correction.samples is not None:
                    seconds = len(correction.samples) / self.sample_rate
                    self.write_audio(id_, correction.samples)
                entry = {"id": id_, "key": key, "text": correction.text, "lang": correction.language}
                lines.append({**entry, "seconds": round(seconds, 4), "added": now()})
            self.append(file, lines)
        return len(lines) + restored

    def draw_with(self, known: Iterable[Learnt], given: Sequence[Correction], hours: float) -> set[str]:
        """Ids of the corrections whose recordings stay within so many hours, once all that are given have theirs."""
        seconds = {own.id: own.seconds for own in known if own.audio is not None}
        heard = [(digests(own)[1], own.samples) for own in given]
        lasting = {id_: len(samples) / self.sample_rate for id_, samples in heard if samples is not None}
        every = sorted((seconds | lasting).items())
        return draw([(id_, round(own, 4)) for id_, own in every], hours)

    def set_aside(self, ids: Sequence[str], *, again: Sequence[str] = ()) -> None:
        """Leave corrections out from now on; they stay in the journal. again: those that count once more."""
        with self.locked() as file:
            entries = {entry["id"]: entry for entry in self.lines() if "text" in entry}
            restored = [{**entries[id_], "added": now()} for id_ in again]
            self.append(file, [{"set_aside": list(ids), "added": now()}, *restored])

    def append(self, file: IO[bytes], lines: Sequence[Mapping[str, Any]]) -> None:
        """Write lines behind the last whole one, at once. Raises DataError for too many."""
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        end = whole_end(file)
        if end + len(content) > LARGEST_JOURNAL:
            raise DataError(
                f"{self.journal} would have more than {LARGEST_JOURNAL >> 20} MB. Train an adapter from all of its "
                "texts with `overtone train`, and begin with that."
            )
        file.truncate(end)
        file.seek(end)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

    def write_audio(self, id_: str, samples: NDArray[np.int16]) -> None:
        """Write a recording, samples [S], as FLAC."""
        import soundfile

        folder = self.folder / AUDIO
        folder.mkdir(exist_ok=True)
        path = folder / f"{id_}.flac"
        with replace_path(path) as temporary:
            soundfile.write(temporary, samples, self.sample_rate, format="FLAC", subtype="PCM_16")

    def load(self, own: Learnt) -> NDArray[np.float32]:
        """The samples [S] of a correction with a recording. Raises DataError."""
        assert own.audio is not None
        return load_audio(own.audio, sample_rate=self.sample_rate)

    def trim(self, hours: float) -> int:
        """Remove recordings until the rest are not longer than that, and those that no line names; their number.

        Those that stay are an even draw of all, by their digests; those that do not count now go first. Texts stay.
        """
        with self.locked():
            active = {own.id for own in self.read()}
            named = {own.id: own for own in (self.entry(entry) for entry in self.lines() if "text" in entry)}
            every = sorted(named.values(), key=lambda own: (own.id not in active, own.id))
            stay = draw([(own.id, own.seconds) for own in every if own.audio is not None], hours)
            names = {own.audio.name for own in every if own.audio is not None and own.id in stay}
            gone = [path for path in (self.folder / AUDIO).glob("*.flac") if path.name not in names]
            for path in gone:
                path.unlink(missing_ok=True)
        return len(gone)

    @contextmanager
    def locked(self) -> Iterator[IO[bytes]]:
        """The journal, open and locked: writers wait for one another. Raises DataError where it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.journal.open("a+b") as opened:
                lock(opened.fileno(), wait=True)
                with self.journal.open("r+b") as file:
                    yield file
        except OSError as error:
            raise DataError(f"Cannot write {error.filename or self.folder}: {error.strerror or error}.") from error


def draw(lengths: Iterable[tuple[str, float]], hours: float) -> set[str]:
    """Ids that fit into so many hours, each with its seconds, taken in their order."""
    seconds, stay = 0.0, set[str]()
    for id_, own in lengths:
        if seconds + own <= hours * 3600:
            seconds += own
            stay.add(id_)
    return stay


def whole_end(file: IO[bytes]) -> int:
    """The place behind the last whole line of a file."""
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def digests(correction: Correction) -> tuple[str, str]:
    """The key and the id of a correction: of its recording (of its text without one), and of both."""
    text = f"{correction.language or ''}\0{correction.text}".encode()
    heard = b"" if correction.samples is None else correction.samples.astype("<i2").tobytes()
    key = hashlib.sha256(heard or text).hexdigest()[:ID_DIGITS]
    return key, hashlib.sha256(text + b"\0" + heard).hexdigest()[:ID_DIGITS]


def digest_of(corrections: Iterable[Learnt]) -> str:
    """The digest of what is learnt, in any order."""
    ids = sorted(own.id for own in corrections)
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()[:ID_DIGITS]


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
