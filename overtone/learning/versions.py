"""Versions of an adapter that learns: each a whole adapter's folder, and one of them in the adapter's place.

`FOLDER.learning/versions/3` is written whole before FOLDER becomes the same, by one rename. What an adapter was before
it first learnt, or was made into by something else than learning, is a version too: an origin.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from overtone.adapters.storage import (
    DESCRIPTION,
    PARAMETERS,
    WORDS,
    described_digest,
    read_description,
    replace_contents,
)
from overtone.errors import AdapterError, UsageError
from overtone.files import clean_leftovers, lock, write_failure
from overtone.learning.corrections import SUFFIX

VERSIONS = "versions"
LOCK = "learning.lock"
CARD = "learning"
"""The key of a card under which a version says what it is."""
FILES = (WORDS, PARAMETERS, DESCRIPTION)


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
    def learner(self) -> Iterator[None]:
        """Hold the adapter for one learner. Raises UsageError where another process is learning."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder.parent / LOCK
        with path.open("a+", encoding="utf-8") as file:
            try:
                lock(file.fileno(), wait=False)
            except BlockingIOError:
                file.seek(0)
                holder = file.read(200).strip()
                raise UsageError(
                    f"{self.adapter} is learning already ({holder or 'another process'}). Wait until that has ended; "
                    "what it has not seen is learnt then."
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            clean_leftovers(self.folder)
            yield
