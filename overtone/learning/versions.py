"""Versions of an adapter that learns: each a whole adapter's folder, and one of them in the adapter's place.

`FOLDER.learning/versions/3` is written whole before FOLDER becomes the same, by one rename. What an adapter was before
it first learnt, or was made into by something else than learning, is a version too: an origin.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from overtone.adapters.storage import (
    DESCRIPTION,
    PARAMETERS,
    WORDS,
    BaseIdentity,
    check_base,
    described_digest,
    read_description,
    replace_contents,
)
from overtone.adapters.tokenizer_files import TOKENIZER_FILES, read_vocabulary
from overtone.errors import AdapterError, UsageError
from overtone.files import clean_leftovers, lock, replace_file, write_failure
from overtone.learning.corrections import SUFFIX, Corrections, digest_of
from overtone.tokenizers import Tokenizer

VERSIONS = "versions"
LOCK, TRAINING_LOCK = "change.lock", "training.lock"
"""Files that are locked while the adapter changes, for seconds, and while it is trained."""
TRIES, FEW_TRIES, PAUSE = 300, 10, 0.1
"""Tries to get a lock, and seconds between them: whoever only looks has it for a moment."""
WAITS = "OVERTONE_LEARNING_WAITS"
"""The environment variable of workers that wait for another process's change, however long that takes."""
TRIES_OF_WORDS = 3
"""Adapters that something else puts in the place, one after the other, of which words are made."""
CARD = "learning"
"""The key of a card under which a version says what it is."""
FILES = (*TOKENIZER_FILES, WORDS, PARAMETERS, DESCRIPTION)
RECORDINGS = "recordings.txt"
"""In a version's folder: the corrections whose recordings its acoustic part was made of, an id a line."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of an adapter on disk."""

    number: int
    folder: Path
    digest: str
    card: dict[str, Any]

    @property
    def learning(self) -> dict[str, Any]:
        """The part of the card about its learning: empty for an origin."""
        found = self.card.get(CARD)
        return found if isinstance(found, dict) else {}

    @property
    def parent(self) -> int | None:
        """The version that it was made from."""
        return self.learning.get("parent")

    @property
    def journal_lines(self) -> int:
        """Lines of the journal that it was made from."""
        return int(self.learning.get("journal_lines", 0))

    @property
    def learnt(self) -> str | None:
        """The digest of the corrections that its words are of; None on cards that do not say so."""
        return self.learning.get("learnt") if self.learning else digest_of(())

    @property
    def acoustic_lines(self) -> int:
        """Lines of the journal that its acoustic part was trained on."""
        return int(self.learning.get("acoustic_lines", 0))


class ChangedError(UsageError):
    """The adapter is not what it was when the making of a version began."""


class Versions:
    """The versions of one adapter, oldest first."""

    def __init__(self, adapter: Path) -> None:
        """adapter: its folder, which need not exist yet."""
        self.adapter = adapter
        self.folder = adapter.with_name(adapter.name + SUFFIX) / VERSIONS

    def all(self) -> list[Version]:
        """Every version. Raises AdapterError for a damaged one."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return [self.read(number) for number in sorted(int(name) for name in names if name.isdigit())]

    def read(self, number: int) -> Version:
        """One version. Raises UsageError where there is none of that number, AdapterError where it is damaged."""
        folder = self.folder / str(number)
        if not (folder / DESCRIPTION).is_file():
            known = ", ".join(str(version.number) for version in self.all()) or "none"
            raise UsageError(f"{self.adapter} has no version {number}. There are {known}.")
        description = read_description(folder)
        digest = described_digest(folder, description)
        return Version(number=number, folder=folder, digest=digest, card=description["card"])

    def current(self) -> Version | None:
        """The version that is in the adapter's place; None where that is none of them, or there is no adapter."""
        if not (self.adapter / DESCRIPTION).is_file():
            return None
        description = read_description(self.adapter)
        digest = described_digest(self.adapter, description)
        found = [version for version in self.all() if version.digest == digest]
        named = description["card"].get(CARD, {})
        number = named.get("version") if isinstance(named, dict) else None
        return next((version for version in found if version.number == number), found[-1] if found else None)

    def note_recordings(self, number: int, ids: Iterable[str]) -> None:
        """Write down what a version's acoustic part was made of. Raises AdapterError where that fails."""
        path = self.folder / str(number) / RECORDINGS
        try:
            with replace_file(path) as file:
                file.write("".join(f"{own}\n" for own in sorted(ids)).encode())
        except OSError as error:
            raise AdapterError(write_failure(path, error)) from error

    def recordings_of(self, version: Version, store: Corrections) -> set[str]:
        """Ids of the corrections whose recordings a version's acoustic part was made of.

        It may be that of a version before. One that has no list of them was made of the first lines of the journal.
        Raises AdapterError for a list that cannot be read.
        """
        lines, own = version.acoustic_lines, version
        while own.learning:
            try:
                return set((own.folder / RECORDINGS).read_text("utf-8").split())
            except FileNotFoundError:
                if own.parent is None or own.learning.get("part") == "acoustic":
                    break
                own = self.read(own.parent)
            except (OSError, UnicodeDecodeError) as error:
                raise AdapterError(f"{own.folder / RECORDINGS} cannot be read: {error}. Remove it.") from error
        return {each.id for each in store.read(lines) if each.audio is not None}

    def next_number(self) -> int:
        """The number of the next version."""
        return max((version.number for version in self.all()), default=-1) + 1

    def adopt(self) -> Version:
        """The version in the adapter's place, which becomes one where it is none yet. Raises AdapterError."""
        found = self.current()
        if found is not None:
            return found
        number = self.next_number()
        description = read_description(self.adapter)
        description["card"] = {key: value for key, value in description["card"].items() if key != CARD}
        text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
        self.put(self.adapter, self.folder / str(number), description=text.encode())
        return self.read(number)

    def has_in_place(self, version: Version | None) -> bool:
        """True if the adapter is what a version is; with None: if there is no adapter."""
        if not (self.adapter / DESCRIPTION).is_file():
            return version is None
        return version is not None and described_digest(self.adapter, read_description(self.adapter)) == version.digest

    def serve(self, version: Version) -> None:
        """Put a version in the adapter's place, by one rename. Raises AdapterError where it cannot be written."""
        self.put(version.folder, self.adapter)

    def put(self, source: Path, target: Path, *, description: bytes | None = None) -> None:
        """Make one adapter's folder what another is, with another description if one is given. Raises AdapterError."""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            contents = {name: (source / name).read_bytes() if (source / name).exists() else None for name in FILES}
            replace_contents(target, contents if description is None else {**contents, DESCRIPTION: description})
        except OSError as error:
            raise AdapterError(write_failure(target, error)) from error

    @contextmanager
    def change(self) -> Iterator[None]:
        """Hold the adapter for a change. Raises UsageError where another process does not end its own.

        Workers wait without limit: nobody would give them their work again.
        """
        with self.hold(LOCK, "is being changed", tries=0 if os.environ.get(WAITS) else TRIES):
            clean_leftovers(self.folder)
            yield

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold the adapter's training. Raises UsageError where another process trains it."""
        with self.hold(TRAINING_LOCK, "is being trained", tries=FEW_TRIES):
            yield

    @contextmanager
    def hold(self, name: str, busy: str, *, tries: int) -> Iterator[None]:
        """Hold one of the locks. Raises UsageError where another process has it, at so many tries; 0: wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder.parent / name).open("a+", encoding="utf-8") as file:
            if not tries:
                lock(file.fileno(), wait=True)
            for left in reversed(range(tries)):
                try:
                    lock(file.fileno(), wait=False)
                    break
                except BlockingIOError:
                    if not left:
                        file.seek(0)
                        holder = file.read(200).strip() or "another process"
                        raise UsageError(
                            f"{self.adapter} {busy} already ({holder}). Wait until that has ended; nothing is lost."
                        ) from None
                    time.sleep(PAUSE)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield

    def is_held(self, name: str) -> bool:
        """True if a process has one of the locks; False too where the file system has no locks."""
        try:
            with (self.folder.parent / name).open("rb") as file:
                lock(file.fileno(), wait=False)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def go_back(folder: Path, number: int | None = None) -> tuple[Version, int]:
    """Put an earlier version in the adapter's place, and set aside what was learnt since; it, and how many that is.

    number: the version; None: the one that today's was made from. Raises UsageError where there is none.
    """
    versions, store = Versions(folder), Corrections(folder, sample_rate=0)
    find_step(versions, number)  # before a lock makes a folder
    with versions.change():
        current, target = find_step(versions, number)
        stays = store.read(target.journal_lines)
        active = {own.key: own.id for own in store.read()}
        kept = {own.id for own in stays}
        learnt = {own.id for own in store.read(current.journal_lines)} - kept
        gone = [id_ for id_ in active.values() if id_ in learnt]
        again = [own.id for own in stays if own.key not in active or active[own.key] in learnt]
        if gone or again:
            store.set_aside(gone, again=again)
        versions.serve(target)
    return target, len(gone)


def find_step(versions: Versions, number: int | None) -> tuple[Version, Version]:
    """The version in the adapter's place, and that of a number, or the one it was made from. Raises UsageError."""
    current = versions.current()
    if current is None or (number is None and current.parent is None):
        raise UsageError(f"{versions.adapter} has no earlier version to go back to.")
    return current, versions.read(current.parent if number is None and current.parent is not None else number or 0)


def own_tokenizer(folder: Path, identity: BaseIdentity) -> Tokenizer | None:
    """The tokenizer of an adapter with a vocabulary of its own; None where it writes the base's tokens.

    identity: of its base. Parameters are not read. Raises AdapterError for a description or a tokenizer that is
    damaged, and for an adapter of another base.
    """
    description = read_description(folder)
    stored = read_vocabulary(folder, description.get("vocabulary"))
    if stored is None:
        return None
    check_base(description, identity)
    return stored.tokenizer
