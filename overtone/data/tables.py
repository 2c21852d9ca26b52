"""Manifests that are tables in memory: data sets of Hugging Face's, frames of pandas, lists of rows.

A row has the columns of a manifest, or usual names of them (`audio`, `sentence`, …). Audio may be a path, samples, the
bytes of a file, or what the audio column of a data set holds; that of a data set is read when it is needed.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overtone.audio.containers import Source
from overtone.audio.held import hold
from overtone.audio.load import SAMPLE_RATE
from overtone.audio.sources import Held, file_status, open_source
from overtone.config.sources import Source as FileSource
from overtone.data.corpus.rows import Columns
from overtone.data.manifest import LineForm, Place, Utterance, find_file, read_rows
from overtone.data.manifest_file import Entry
from overtone.errors import DataError, UsageError

KEPT = ("duration", "offset", "channel", "channel_selector", "lang", "speaker", "_skipme")
"""Columns of a manifest that a table may have by the same names."""
PARTS = {"audio": "audio_filepath", "text": "text", "speaker": "speaker", "language": "lang"}
"""Columns with usual names -> the keys of a manifest."""
Manifests = Any
"""One manifest or several: paths, data sets of Hugging Face's, frames of pandas, lists of rows."""


@dataclass(frozen=True, eq=False)
class RowSound:
    """The recording of one row of a data set."""

    rows: Any
    index: int
    column: str
    name: str

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def open(self) -> Iterator[Source]:
        """Its sound. Raises DataError."""
        with open_source(self.place()) as source:
            yield source

    def digest(self) -> bytes:
        """Digest of what the row holds; of a path, of the name and the size of its file. Raises DataError."""
        place = self.place()
        if not isinstance(place, Path):
            return place.digest()
        return hashlib.sha256(f"{place.name} {file_status(place).st_size}".encode()).digest()

    def place(self) -> Path | Held:
        """The path of the recording, or the recording itself. Raises DataError."""
        try:
            return hold(self.rows[self.index][self.column], SAMPLE_RATE, name=self.name)
        except UsageError as error:
            raise DataError(str(error)) from error


def is_table(value: object) -> bool:
    """True for a data set, a frame, or a list of rows."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(row, Mapping) for row in value)
    return is_frame(value)


def is_frame(value: object) -> bool:
    """True for a data set or a frame; the libraries are not imported for the question."""
    datasets, pandas = sys.modules.get("datasets"), sys.modules.get("pandas")
    is_data_set = datasets is not None and isinstance(
        value, datasets.Dataset | datasets.IterableDataset | datasets.DatasetDict | datasets.IterableDatasetDict
    )
    return is_data_set or (pandas is not None and isinstance(value, pandas.DataFrame))


def name_tables(given: Any, label: str) -> tuple[list[Any], dict[str, Any]]:
    """The names of manifests, one or several, and the tables and sources among them by names that say what they are.

    label: the beginning of the tables' names.
    """
    listed = [given] if isinstance(given, str | Path | FileSource) or is_table(given) else list(given or ())
    names: list[Any] = []
    tables: dict[str, Any] = {}
    for number, item in enumerate(listed, start=1):
        name = item if isinstance(item, list | tuple) else str(item)  # a manifest with its weight
        if isinstance(item, FileSource):
            name = item.name
            tables[name] = item
        elif is_table(item):
            count = "" if len(listed) == 1 else f" {number}"
            name = f"{label}{count} ({type(item).__name__} of {len_of(item)} rows)"
            tables[name] = item
        names.append(name)
    return names, tables


def len_of(table: Any) -> str:
    """The number of rows, for messages."""
    try:
        return str(len(table))
    except TypeError:  # a stream
        return "unknown"


def read_table(table: Any, name: str, *, need_text: bool = True, silence: bool = False) -> list[Utterance]:
    """The rows of a table as utterances, in order. The other arguments are those of `read_manifest`.

    Paths start at the working folder. Raises DataError with the rows that cannot be used, each as `name:row: fault`,
    and for a table without a column of recordings or, where it is needed, of transcripts.
    """
    if isinstance(table, Mapping):
        parts = ", ".join(map(str, table))
        raise DataError(f"{name}: a data set of several parts ({parts}); give one of them, such as data['train'].")
    columns, rows = columns_of(table)
    chosen = Columns().choose(columns)
    if "audio" not in columns and "audio_filepath" in columns:
        chosen["audio"] = "audio_filepath"
    missing = [part for part in ("audio", *(["text"] if need_text else [])) if part not in chosen]
    if missing:
        there = ", ".join(map(repr, columns)) or "none"
        raise DataError(f"{name}: there is no column '{missing[0]}', or another usual name of it; there are {there}.")
    sound = chosen["audio"]
    entries, lazy = (rows, None) if rows is not None else (list(table.remove_columns(sound)), stored(table, sound))
    found: list[Entry] = []
    for index, row in enumerate(entries):
        entry = {PARTS[part]: row.get(column) for part, column in chosen.items() if part != "audio"}
        entry = {**{key: row[key] for key in KEPT if key in row}, **entry}
        entry = {key: plain(value) for key, value in entry.items()}
        given = row.get(sound) if lazy is None else RowSound(lazy, index, sound, f"{name}:{index + 1}")
        found.append({**entry, "audio_filepath": given})
    form = LineForm(need_text=need_text, silence=silence, find=lambda entry, folder: find(entry, folder, name))
    return read_rows(found, Path(name), form)


def columns_of(table: Any) -> tuple[list[str], Iterable[Mapping[str, Any]] | None]:
    """The names of the columns, and the rows; None for a data set, whose audio is left where it is."""
    if isinstance(table, Sequence):
        return list(dict.fromkeys(str(key) for row in table for key in row)), table
    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")
    if pandas is not None and isinstance(table, pandas.DataFrame):
        return [str(column) for column in table.columns], table.to_dict("records")
    assert datasets is not None
    if isinstance(table, datasets.IterableDataset):
        rows = list(table)
        return list(dict.fromkeys(key for row in rows for key in row)), rows
    return list(table.column_names), None


def stored(table: Any, column: str) -> Any:
    """The data set with the audio of a column as it is stored, bytes or a path."""
    import datasets

    if isinstance(table.features[column], datasets.Audio):
        table = table.cast_column(column, datasets.Audio(decode=False))
    return table.select_columns([column])


def find(entry: Entry, folder: Path, name: str) -> Place:
    """The recording of a row. Raises DataError where there is none."""
    value = entry["audio_filepath"]
    if isinstance(value, RowSound):
        return Place(Path(value.name), value)
    if isinstance(value, str):
        return find_file(entry, folder)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError("there is no recording. Leave the row out.")
    try:
        held = hold(value, SAMPLE_RATE, name="the recording")
    except UsageError as error:
        raise DataError(str(error)) from error
    return find_file({"audio_filepath": str(held)}, folder) if isinstance(held, Path) else Place(Path(name), held)


def plain(value: Any) -> Any:
    """A value as JSON has it: NaN, which pandas writes for what is missing, is null; NumPy's numbers are Python's."""
    value = value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
    return None if isinstance(value, float) and math.isnan(value) else value
