"""Folder of adapters on disk: what is in it, and one version of an adapter, checked without its parameters."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from overtone.adapters.adapter import check_name
from overtone.adapters.storage import (
    DESCRIPTION,
    LARGEST_PARAMETERS,
    PARAMETERS,
    BaseIdentity,
    check_base,
    described_digest,
    read_description,
)
from overtone.errors import AdapterError
from overtone.files import read_regular

LOG = logging.getLogger("overtone.serving.adapter_store.store")

Signature = tuple[tuple[int, int, int], ...]
"""Modification time in nanoseconds, size and inode of each file: they change when a file does."""
ABSENT = (FileNotFoundError, NotADirectoryError)
"""Errors of a file that is not there. Others pass: too many open files, a file server that is away."""
EXPONENTS = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "BF16": ("<u2", 0xFF << 7),
    "F16": ("<u2", 0x1F << 10),
}
"""Kinds of numbers -> their bits as numbers, and the exponent that only NaN and the infinite have."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One state of an adapter's folder."""

    folder: Path
    signature: Signature
    """State of the files when they were looked at."""
    digest: str
    """`sha256:…` of kind, settings, strategy, points and parameters."""
    identity: str
    """Hexadecimal digits of the digest: equal versions do the same."""
    kind: str
    parameters: int
    description: dict[str, Any]
    """Content of `adapter.yaml` in that state: reading it takes as long as reading the parameters."""

    @property
    def card(self) -> Mapping[str, Any]:
        card: Mapping[str, Any] = self.description["card"]
        return card


class FolderWatcher:
    """Finds the adapters in a folder again and again. What cannot be looked at for a while is taken to be as it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, Signature | None] = {}
        self.trouble = ""
        """Why the folder, or something in it, could not be looked at the last time."""

    def look(self) -> dict[str, Signature | None]:
        """Find the folders with an `adapter.yaml`, by name; None for those without parameters, hidden ones left out."""
        trouble = ""
        try:
            self.found, unseen = adapter_folders(self.folder, self.found)
            trouble = unseen[0] if unseen else ""
        except OSError as error:
            trouble = str(error)
        if trouble and trouble != self.trouble:
            LOG.warning("what cannot be looked at in the folder of adapters is taken to be as it was: %s", trouble)
        self.trouble = trouble
        return self.found


def signature_of(folder: Path) -> Signature | None:
    """Signature of an adapter's folder; None where it holds no adapter. Raises OSError where it cannot be looked at."""
    return signature_at(str(folder))


def signature_at(place: str) -> Signature | None:
    """`signature_of` a plain path, without a detour: a folder of a thousand adapters is looked at every second."""
    try:
        description = os.stat(f"{place}/{DESCRIPTION}")  # noqa: PTH116
        parameters = os.stat(f"{place}/{PARAMETERS}")  # noqa: PTH116
    except ABSENT:
        return None
    return (
        (description.st_mtime_ns, description.st_size, description.st_ino),
        (parameters.st_mtime_ns, parameters.st_size, parameters.st_ino),
    )


def adapter_folders(
    folder: Path, before: Mapping[str, Signature | None]
) -> tuple[dict[str, Signature | None], list[str]]:
    """Result of `FolderWatcher.look`, and errors of the entries that keep their state of before. Raises OSError."""
    place = str(folder)
    try:
        names = sorted(name for name in os.listdir(place) if name[0] != ".")  # noqa: PTH208
    except ABSENT:
        return {}, []
    found: dict[str, Signature | None] = {}
    unseen = []
    for name in names:
        try:
            signature = signature_at(f"{place}/{name}")
        except OSError as error:
            unseen.append(str(error))
            if name in before:
                found[name] = before[name]
            continue
        if signature is not None or os.path.isfile(f"{place}/{name}/{DESCRIPTION}"):  # noqa: PTH113
            found[name] = signature
    return found, unseen


def read_version(folder: Path, identity: BaseIdentity) -> Version:
    """Read and check the description of an adapter.

    Raises AdapterError where it is damaged, made for another base, or does not match the file of parameters.
    """
    check_name(folder.name)
    signature = signature_of(folder)
    if signature is None:
        raise AdapterError(f"{PARAMETERS} is missing.")
    description = read_description(folder)
    check_base(description, identity)
    digest = described_digest(folder, description)
    return Version(
        folder=folder,
        signature=signature,
        digest=digest,
        identity=digest.removeprefix("sha256:"),
        kind=description["kind"],
        parameters=count_finite(folder),
        description=description,
    )


def count_finite(folder: Path) -> int:
    """Count the parameters, which are all finite. Raises AdapterError where they are not, or cannot be read."""
    path = folder / PARAMETERS
    try:
        parts = deserialize(read_regular(path, at_most=LARGEST_PARAMETERS))  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is missing or damaged: {error}") from error
    for name, part in parts:
        bits, exponent = EXPONENTS.get(part["dtype"], ("u1", 0x100))
        if ((np.frombuffer(part["data"], bits) & exponent) == exponent).any():
            raise AdapterError(f"{path} holds numbers in '{name}' that are not finite: its training has failed.")
    return sum(math.prod(part["shape"]) for _, part in parts)
