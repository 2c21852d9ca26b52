"""Cuts and shards of lhotse: `cuts.jsonl.gz`; Lhotse Shar folders of `cuts.000000.jsonl.gz`, `recording.000000.tar`.

Cuts of one recording on disk or in a shard are read. Nothing that a cut says is executed: commands, addresses,
transforms and mixtures are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from overtone.audio.archives import ArchiveMember, list_members
from overtone.data.manifest import LineForm, Place, Utterance, read_manifest
from overtone.data.manifest_file import Entry
from overtone.errors import DataError

CUTS = ("MonoCut", "MultiCut")
FILE_FORMS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
BESIDE_AUDIO = (".json", ".nometa", ".nodata")
"""Suffixes of what lies beside each recording in a shard."""
SHAR_NUMBER = re.compile(r"\.(\d+)\.")
RECORDINGS = "recording"
"""The field of a Shar folder that holds audio."""


def read_cuts(path: Path, *, form: LineForm, text_field: str = "text") -> list[Utterance]:
    """Read the cuts of a file as utterances, in order. Raises DataError for those that are no stretch of a file."""
    if not path.name.endswith(FILE_FORMS):
        raise DataError(f"{path}: cuts are read from {', '.join(FILE_FORMS)}. Write them with cuts.to_file.")
    return read_manifest(path, form=replace(form, convert=partial(entry_of_cut, text_field=text_field)))


def shar_fields(folder: Path) -> dict[str, list[Path]]:
    """The shards of a Shar folder by field. Raises DataError where there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of Lhotse Shar. Check shar_path.")
    fields: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        fields.setdefault(path.name.partition(".")[0], []).append(path)
    if "cuts" not in fields:
        raise DataError(
            f"{folder}: there is no cuts.000000.jsonl.gz in it. Name a folder that cuts.to_shar has written."
        )
    return {name: fields[name] for name in ("cuts", RECORDINGS) if name in fields}


def read_shar(fields: Mapping[str, Sequence[Path]], *, form: LineForm, text_field: str = "text") -> list[Utterance]:
    """Read the cuts of shards as utterances, in order.

    fields: the files of the shards, `cuts` and `recording`; without the latter, cuts name files of their own.
    Raises DataError for a shard that is missing or torn, for cuts without their recording, and for the contrary.
    """
    cuts, archives = fields["cuts"], fields.get(RECORDINGS)
    if archives is None:
        return [utterance for path in cuts for utterance in read_cuts(path, form=form, text_field=text_field)]
    by_number, _ = number_shards(archives), number_shards(cuts)
    utterances: list[Utterance] = []
    for path in cuts:
        archive = by_number.pop(number_of(path), None)
        if archive is None:
            raise DataError(f"{path}: its shard of recordings, number {number_of(path)}, is not there. Fetch it.")
        utterances += read_shard(path, archive, form=form, text_field=text_field)
    if by_number:
        raise DataError(f"{next(iter(by_number.values()))}: its shard of cuts is not there. Fetch it.")
    return utterances


def read_shard(cuts: Path, archive: Path, *, form: LineForm, text_field: str) -> list[Utterance]:
    """Read one shard. Raises DataError for cuts without their recording, and for recordings without their cut."""
    members = {
        name.removesuffix(Path(name).suffix): member
        for name, member in list_members(archive).items()
        if not name.endswith(BESIDE_AUDIO)
    }
    listed: set[str] = set()

    def find(entry: Entry, folder: Path) -> Place:
        name = entry["audio_filepath"]
        member: ArchiveMember | None = members.get(name) if isinstance(name, str) else None
        if member is None:
            raise DataError(f"the recording of cut '{name}' is not in {archive}. Fetch or write the shard anew.")
        listed.add(name)
        return Place(Path(str(member)), member, archive)

    convert = partial(entry_of_stored_cut, text_field=text_field)
    utterances = read_manifest(cuts, form=replace(form, convert=convert, find=find))
    extra = [name for name in members if name not in listed]
    if extra:
        raise DataError(
            f"{archive}: the recording '{extra[0]}' has no cut in {cuts}, nor have {len(extra) - 1} others. "
            "Fetch or write the shard anew."
        )
    return utterances


def number_shards(paths: Sequence[Path]) -> dict[int, Path]:
    """The shards of a field by number. Raises DataError where two have the same, or one has none."""
    found: dict[int, Path] = {}
    for path in paths:
        first = found.setdefault(number_of(path), path)
        if first is not path:
            raise DataError(f"{first} and {path} are both shard {number_of(path)}. Rename one, or read them apart.")
    return found


def number_of(path: Path) -> int:
    """The number of a shard. Raises DataError for a name without one."""
    numbers = SHAR_NUMBER.findall(path.name)
    if not numbers:
        raise DataError(f"{path}: the name of a shard has a number, such as {path.name.partition('.')[0]}.000000.")
    return int(numbers[-1])


def entry_of_cut(cut: Entry, *, text_field: str) -> Entry:
    """A cut of a file as a line of a manifest. Raises DataError for any other."""
    recording = cut.get("recording")
    if not isinstance(recording, dict) or not isinstance(recording.get("sources"), list):
        raise DataError("the cut has no recording (features alone?). Write cuts that have one.")
    sources = recording["sources"]
    if recording.get("transforms"):
        raise DataError(
            "its recording is changed by 'transforms'. Store the changed audio with cuts.save_audios first."
        )
    kinds = [source.get("type") if isinstance(source, dict) else None for source in sources]
    if kinds != ["file"]:
        raise DataError(
            f"its recording is of type {', '.join(map(str, kinds)) or 'none'}; a single file is needed. Nothing is "
            "executed or fetched: store the audio with cuts.save_audios, or as shards with cuts.to_shar."
        )
    return entry_of_stored_cut(cut, text_field=text_field) | {"audio_filepath": sources[0].get("source")}


def entry_of_stored_cut(cut: Entry, *, text_field: str) -> Entry:
    """A cut as a line of a manifest that names its recording by the cut's id.

    Raises DataError for a mixture, and for supervisions that are none.
    """
    if cut.get("type", "MonoCut") not in CUTS:
        raise DataError(f"a {cut.get('type')}; {' and '.join(CUTS)} are read. Store the audio with cuts.save_audios.")
    spoken = cut.get("supervisions") or []
    if not isinstance(spoken, list) or not all(isinstance(part, dict) for part in spoken):
        raise DataError(f"'supervisions' is {str(spoken)[:40]}; a list of objects is needed.")
    texts = [text for part in spoken if (text := text_of(part, text_field)) is not None]
    entry = {
        "audio_filepath": cut.get("id"),
        "offset": cut.get("start", 0.0),
        "duration": cut.get("duration"),
        "channel": cut.get("channel") if chooses_channels(cut) else None,
    }
    if texts:
        entry["text"] = " ".join(str(text) for text in texts)
    for ours, theirs in (("lang", "language"), ("speaker", "speaker")):
        given = [part[theirs] for part in spoken if part.get(theirs) is not None]
        if not all(isinstance(value, str | int) for value in given):
            raise DataError(f"the '{theirs}' of a supervision is {str(given)[:40]}; a name is needed.")
        values = set(given)
        if len(values) == 1:
            entry[ours] = values.pop()
    return entry


def text_of(part: Mapping[str, Any], text_field: str) -> Any:
    """The transcript of a supervision, among its custom fields too."""
    custom = part.get("custom")
    return part.get(text_field, custom.get(text_field) if isinstance(custom, dict) else None)


def chooses_channels(cut: Entry) -> bool:
    """True for a cut of some channels of its recording, rather than of all."""
    recording, channel = cut.get("recording"), cut.get("channel")
    there = recording.get("channel_ids") if isinstance(recording, dict) else None
    return there is not None and there != (channel if isinstance(channel, list) else [channel])
