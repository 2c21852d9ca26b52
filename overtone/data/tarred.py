"""Tarred sets as NeMo makes them: manifests whose recordings lie in shards, which are tar archives.

Shards have numbers: `audio_3.tar` is number 3, its lines have `"shard_id": 3` or stand in `manifest_3.json`. Segments
of one recording may be named `a-sub1.wav`, `a-sub2.wav`, … in the manifest, each with its `offset`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from overtone.audio.archives import ArchiveMember, list_members
from overtone.data.manifest import Find, LineForm, Place, Utterance, audio_name, read_manifest
from overtone.data.manifest_file import Entry
from overtone.errors import DataError

READERS = 8
"""Threads that list archives; most of the time they wait for the disk."""
NUMBER = re.compile(r"_(\d+)")
SEGMENT = re.compile(r"(.+)-sub\d+(\.\w+)?")
"""The name of a segment in a manifest: the recording's, with a number."""


class Shard:
    """The members of one archive, and which of them have a line."""

    def __init__(self, archive: Path, members: Mapping[str, ArchiveMember]) -> None:
        self.archive = archive
        self.members = members
        self.by_stem: dict[str, list[str]] = {}
        for name in members:
            self.by_stem.setdefault(Path(name).stem, []).append(name)
        self.listed: set[str] = set()

    def find(self, name: str) -> ArchiveMember | None:
        """The member that a line means: of that name, or, as NeMo looks, of its last part without the suffix."""
        segment = SEGMENT.fullmatch(name)
        for written in (name, f"{segment[1]}{segment[2] or ''}") if segment else (name,):
            stems = self.by_stem.get(Path(written).stem, [])
            found = written if written in self.members else stems[0] if len(stems) == 1 else None
            if found is not None:
                self.listed.add(found)
                return self.members[found]
        return None

    @property
    def unlisted(self) -> list[str]:
        """Names of the members without a line."""
        return [name for name in self.members if name not in self.listed]


def read_tarred(
    manifests: Sequence[Path], archives: Sequence[Path], *, form: LineForm, skip_unlisted: bool = False
) -> tuple[list[Utterance], int]:
    """Read the utterances of a tarred set, in the order of its manifests, and the number of unlisted recordings.

    skip_unlisted: allow recordings without a line, which are left out.
    Raises DataError for a shard that is missing, torn or named twice, for lines without their recording, and for
    recordings without a line.
    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="overtone-archives") as threads:
        listed = list(threads.map(list_members, archives))
    shards = {
        number: Shard(archive, members)
        for number, archive, members in zip(number_shards(archives), archives, listed, strict=True)
    }
    numbers: Iterator[int | None] = iter(number_shards(manifests) if len(manifests) > 1 else [None])
    utterances: list[Utterance] = []
    for manifest, number in zip(manifests, numbers, strict=True):
        utterances += read_manifest(manifest, form=replace(form, find=make_find(shards, number)))
    unlisted = [(shard, name) for shard in shards.values() for name in shard.unlisted]
    if unlisted and not skip_unlisted:
        shard, name = unlisted[0]
        raise DataError(
            f"Recordings of the shards without a line in {name_all(manifests)}: {len(unlisted)}, such as '{name}' in "
            f"{shard.archive}. Give the manifest that belongs to the shards, or leave such recordings out with "
            "skip_missing_manifest_entries=true."
        )
    return utterances, len(unlisted)


def make_find(shards: Mapping[int, Shard], number: int | None) -> Find:
    """Make the search for the recording of a line. number: of the shard, where the line names none."""

    def find(entry: Entry, folder: Path) -> Place:
        _, name = audio_name(entry)
        given = entry.get("shard_id", number)
        if given is None:
            candidates = list(shards.values())
        elif isinstance(given, bool) or not isinstance(given, int):
            raise DataError(f"'shard_id' is {given!r}; the number of a shard is needed.")
        elif given not in shards:
            raise DataError(f"'shard_id' is {given}, and there is no such shard; given are {name_numbers(shards)}.")
        else:
            candidates = [shards[given]]
        members = [member for shard in candidates if (member := shard.find(name)) is not None]
        if len(members) == 1:
            return Place(Path(str(members[0])), members[0], members[0].archive)
        if members:
            raise DataError(f"'{name}' is in {len(members)} shards. Name the one that is meant with 'shard_id'.")
        where = str(candidates[0].archive) if len(candidates) == 1 else f"any of the {len(candidates)} shards"
        raise DataError(f"'{name}' is not in {where}. Fetch or pack the shard anew, or correct the manifest.")

    return find


def number_shards(paths: Sequence[Path]) -> list[int]:
    """The numbers of shards, the last in their file's name; their places where a name has none.

    Raises DataError where two have the same.
    """
    found = [NUMBER.findall(path.name) for path in paths]
    numbers = [int(each[-1]) for each in found if each] if all(found) else list(range(len(paths)))
    for number, path in zip(numbers, paths, strict=True):
        first = paths[numbers.index(number)]
        if first is not path:
            raise DataError(f"{first} and {path} are both shard {number}, the last number in their names. Rename one.")
    return numbers


def name_numbers(shards: Mapping[int, Shard]) -> str:
    """The numbers of the shards for a message: `0 to 7`, or one by one."""
    numbers = sorted(shards)
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def name_all(paths: Sequence[Path]) -> str:
    """Paths for a message: the one, or the first and the number of others."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} or the {len(paths) - 1} other manifests"
