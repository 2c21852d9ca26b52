"""Data sets of Hugging Face's, by the library `datasets`: folders that it has saved, and folders of Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from overtone.data.corpus.rows import Columns, Found, rows_of_objects
from overtone.errors import DataError, UsageError

SAVED = ("dataset_info.json", "dataset_dict.json")


def is_saved(folder: Path) -> bool:
    """True if a folder was written by `datasets`, or holds Parquet files."""
    return any((folder / name).is_file() for name in SAVED) or any(folder.glob("**/*.parquet"))


def read_saved(folder: Path, columns: Columns, part: str | None = None) -> Found:
    """The rows of a saved data set, of one of its parts where it has several.

    Audio is not decoded here: its bytes or paths are taken. Raises DataError for what cannot be read, UsageError where
    `datasets` is not installed, and for a part that is not there.
    """
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"{folder} is a data set of Hugging Face's; install the extra: pip install 'overtone[datasets]'."
        ) from error
    try:
        if any((folder / name).is_file() for name in SAVED):
            whole = datasets.load_from_disk(str(folder))
        else:
            files = sorted(str(path) for path in folder.glob("**/*.parquet"))
            whole = datasets.Dataset.from_parquet(files)
    except Exception as error:  # what the library raises shares no base
        raise DataError(f"{folder} cannot be read as a data set: {str(error).partition(chr(10))[0]}.") from error
    return rows_of_objects(undecoded(choose_part(whole, part, folder), columns), columns, str(folder))


def choose_part(whole: Any, part: str | None, folder: Path) -> Any:
    """One part of a data set of several. Raises UsageError for one that is not there."""
    if not isinstance(whole, Mapping):
        return whole
    if part is None and len(whole) == 1:
        return next(iter(whole.values()))
    if part not in whole:
        raise UsageError(f"{folder} has the parts {', '.join(whole)}; choose one with --part.")
    return whole[part]


def undecoded(rows: Any, columns: Columns) -> Iterable[Mapping[str, Any]]:
    """The rows with their audio as bytes or a path, as it is stored."""
    import datasets

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Audio):
            rows = rows.cast_column(name, datasets.Audio(decode=False))
    found: Iterable[Mapping[str, Any]] = rows
    return found
