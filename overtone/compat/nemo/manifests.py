"""Manifests as NeMo's helpers read and write them: a list of plain mappings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from overtone.errors import DataError
from overtone.files import write_failure


def read_manifest(manifest: str | Path) -> list[dict[str, Any]]:
    """The lines of a manifest as they stand. Raises DataError for a file or line that cannot be read."""
    try:
        lines = Path(manifest).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{manifest} cannot be read: {error}.") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"{manifest}:{number} is no JSON: {error}.") from error
        if not isinstance(entry, dict):
            raise DataError(f"{manifest}:{number} is no mapping of keys to values.")
        entries.append(entry)
    return entries


def write_manifest(output_path: str | Path, target_manifest: Iterable[Mapping[str, Any]]) -> None:
    """Write one line of JSON for each entry. Raises DataError where that fails."""
    path = Path(output_path).expanduser()
    text = "".join(json.dumps(dict(entry), ensure_ascii=False) + "\n" for entry in target_manifest)
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise DataError(write_failure(path, error)) from error
