"""Errors of a base on some speech, measured once for all trainings that share a folder.

Of several trainings that need the same numbers at the same time one measures, and the others wait for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from overtone.files import lock, replace_file
from overtone.models.asr_model import AsrModel
from overtone.models.attention import attention_facts
from overtone.version import __version__

NAME_LENGTH = 32
"""Characters of a digest that name a file."""


@dataclass(frozen=True)
class BaseErrors:
    """Counts by what they depend on, each in a file of the folder; None: they are measured by every training."""

    folder: Path | None = None

    def known(self, identity: Mapping[str, Any]) -> list[float] | None:
        """Return the counts; None where nobody has measured them yet, or where their file is damaged."""
        if self.folder is None:
            return None
        digest = digest_of(identity)
        try:
            content = json.loads((self.folder / f"{digest[:NAME_LENGTH]}.json").read_text("utf-8"))
            same, counts = content["identity"] == digest, [float(count) for count in content["counts"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return counts if same else None

    def keep(self, identity: Mapping[str, Any], counts: Sequence[float]) -> None:
        """Write the counts for the others; the file appears whole or not at all. Raises OSError."""
        if self.folder is None:
            return
        digest = digest_of(identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replace_file(self.folder / f"{digest[:NAME_LENGTH]}.json") as file:
            file.write(json.dumps({"identity": digest, "counts": list(counts)}).encode())

    def measure(self, identity: Mapping[str, Any], count: Callable[[], Sequence[float]]) -> list[float]:
        """Return the counts that are known, or count; one process at a time. Raises OSError."""
        with self.alone(identity):
            found = self.known(identity)
            if found is None:
                found = list(count())
                self.keep(identity, found)
        return found

    @contextmanager
    def alone(self, identity: Mapping[str, Any]) -> Iterator[None]:
        """Hold what the identity names for this process; a process that dies holds nothing any more."""
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{digest_of(identity)[:NAME_LENGTH]}.lock").open("wb") as file:
            lock(file.fileno(), wait=True)
            yield


def base_facts(model: AsrModel, *, device: str, dtype: str) -> dict[str, Any]:
    """Return what the texts of a base depend on, besides the audio."""
    return {
        "overtone": __version__,
        "torch": torch.__version__,
        "device": device,
        "base": model.fingerprint(),
        "dtype": dtype,
        "head": model.head_in_use,
        **attention_facts(model),
    }


def digest_of(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
