"""Finished pieces of work as JSON files, so that a run that was cut off goes on where it stood."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from overtone.errors import UsageError

Cell = dict[str, Any]


class Cells:
    """A folder with one JSON file for each cell."""

    def __init__(self, folder: Path, *, resume: bool) -> None:
        """Raises UsageError where cells lie there already and are not meant to be gone on with."""
        self.folder = folder
        if not resume and folder.is_dir() and any(folder.rglob("*.json")):
            raise UsageError(f"{folder} holds finished cells. Go on with --resume, or choose another --output.")

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def get(self, name: str) -> Cell | None:
        path = self.path(name)
        if not path.exists():
            return None
        cell: Cell = json.loads(path.read_text("utf-8"))
        return cell

    def finished(self, name: str, identity: Mapping[str, Any], make: Callable[[], Cell]) -> Cell:
        """The cell, made now unless it lies there.

        identity: what it depends on. Raises UsageError where it lies there and was made of something else.
        """
        wanted = json.loads(json.dumps(dict(identity)))
        cell = self.get(name)
        if cell is not None:
            before = cell["identity"]
            changed = [key for key in {**before, **wanted} if before.get(key) != wanted.get(key)]
            if changed:
                lines = "; ".join(f"{key} was {before.get(key)}, now {wanted.get(key)}" for key in sorted(changed))
                raise UsageError(f"{self.path(name)} was made otherwise: {lines}. Choose another --output.")
            return cell
        cell = {"identity": wanted, **make()}
        write_json(self.path(name), cell)
        return cell


def write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", "utf-8")
    partial.replace(path)
