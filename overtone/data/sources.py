"""Utterances of the sources that a data set names: manifests, archives, cuts and shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from overtone.config.paths import expand_paths
from overtone.config.sources import Source
from overtone.data.lhotse_cuts import read_cuts, read_shar, shar_fields
from overtone.data.manifest import AUDIO_KEYS, TEXT_KEYS, LineForm, Utterance, read_manifest
from overtone.data.manifest_file import Entry
from overtone.data.tables import read_table
from overtone.data.tarred import read_tarred
from overtone.errors import DataError

OWN_KEYS = {*AUDIO_KEYS, *TEXT_KEYS, "duration", "offset", "shard_id", "_skipme"}
"""Keys of a manifest that each line has for itself."""
NO_TABLES: Mapping[str, Any] = MappingProxyType({})


def read_source(source: Source, say: Callable[[str], None], tables: Mapping[str, Any] = NO_TABLES) -> list[Utterance]:
    """Read the utterances of a source, in order; recordings of archives that are left out are said.

    tables: manifests in memory by their names.
    Raises DataError for files that are missing, torn, or do not belong together.
    """
    table = tables.get(source.manifest or "")
    lines = read_lines(source, say) if table is None else read_table(table, str(source.manifest), silence=True)
    return [replace(utterance, part=source.part) for utterance in lines]


def read_named(given: Any, name: str) -> list[Utterance]:
    """Read a table, or a source in its place, by its name. Raises DataError for what cannot be used."""
    return read_source(given, lambda _: None) if isinstance(given, Source) else read_table(given, name, silence=True)


def read_lines(source: Source, say: Callable[[str], None]) -> list[Utterance]:
    """Read the utterances of a source as its files have them. Raises DataError."""
    form = LineForm(silence=True, defaults={key: source.tags[key] for key in source.tags if key not in OWN_KEYS})
    if source.cuts is not None:
        paths = expand(source.cuts)
        return [one for path in paths for one in read_cuts(path, form=form, text_field=source.text_field)]
    if source.shar is not None:
        fields = shar_fields(Path(source.shar).expanduser()) if isinstance(source.shar, str) else named_fields(source)
        return read_shar(fields, form=form, text_field=source.text_field)
    if (source.text_field, source.lang_field) != ("text", "lang"):
        form = replace(form, convert=partial(rename, text_field=source.text_field, lang_field=source.lang_field))
    manifests = expand(source.manifest or "")
    if source.archives is None:
        return [one for path in manifests for one in read_manifest(path, form=form)]
    utterances, left_out = read_tarred(
        manifests, expand(source.archives), form=form, skip_unlisted=source.skip_unlisted
    )
    if left_out:
        say(f"{source.key}: {left_out} recordings of the archives have no line and are left out.")
    return utterances


def expand(text: str) -> list[Path]:
    """The files that a text names."""
    return [Path(path).expanduser() for path in expand_paths(text)]


def named_fields(source: Source) -> dict[str, list[Path]]:
    """The files of a Shar set that are named by field. Raises DataError for a value that names none."""
    assert isinstance(source.shar, Mapping)
    fields: dict[str, list[Path]] = {}
    for name, given in source.shar.items():
        listed = [given] if isinstance(given, str) else given
        if not isinstance(listed, list | tuple) or not all(isinstance(path, str) for path in listed):
            raise DataError(f"{source.key}.{name} is {given!r}; a pattern of files or a list of them is needed.")
        fields[name] = [path for text in listed for path in expand(text)]
    return fields


def rename(entry: Entry, *, text_field: str, lang_field: str) -> Entry:
    """The line with transcript and language under the usual keys. Raises DataError where it has no such transcript."""
    if text_field != "text" and text_field not in entry:
        raise DataError(f"the key '{text_field}' is missing, which text_field names. Write the transcript there.")
    return {**entry, "text": entry.get(text_field), "lang": entry.get(lang_field)}
