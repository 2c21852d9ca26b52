"""What lies in a shelf's folder: descriptions of adapters, checked without reading their parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from overtone.adapters.adapter import check_name
from overtone.adapters.folder import DESCRIPTION, PARAMETERS, BaseIdentity, read_description, read_kind
from overtone.errors import AdapterError

Signature = tuple[tuple[int, int, int], ...]
"""Modification time in nanoseconds, size and inode of each file: what changes when a file does."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One state of an adapter's folder."""

    folder: Path
    signature: Signature
    """Of the files when they were looked at."""
    digest: str
    """Of the parameters, as the description states it."""
    identity: str
    """Hexadecimal digest of parameters, kind, places and strategy: equal versions do the same."""
    kind: str
    parameters: int
    card: Mapping[str, Any]


def signature_of(folder: Path) -> Signature | None:
    """None where the folder holds no adapter."""
    try:
        found = [(folder / name).stat() for name in (DESCRIPTION, PARAMETERS)]
    except OSError:
        return None
    return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in found)


def adapter_folders(folder: Path) -> dict[str, Path]:
    """The folders with an `adapter.yaml`, by name; hidden ones are left out."""
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return {}
    return {path.name: path for path in found if path.name[0] != "." and (path / DESCRIPTION).is_file()}


def read_version(folder: Path, identity: BaseIdentity) -> Version:
    """Raises AdapterError where the description is damaged, made for another base, or not of the parameters' file."""
    check_name(folder.name)
    signature = signature_of(folder)
    if signature is None:
        raise AdapterError(f"{PARAMETERS} is missing.")
    description = read_description(folder)
    if description["base_fingerprint"] != identity.fingerprint():
        raise AdapterError(
            f"It was made for another base: it needs {description['base_fingerprint']}, "
            f"this model is {identity.fingerprint()}."
        )
    if description["tokenizer_digest"] != identity.tokenizer_digest():
        raise AdapterError(
            f"It was made with another tokenizer: it needs {description['tokenizer_digest']}, "
            f"this model has {identity.tokenizer_digest()}."
        )
    read_kind(folder, description)
    return Version(
        folder=folder,
        signature=signature,
        digest=description["digest"],
        identity=identity_of(description),
        kind=description["kind"],
        parameters=parameters_in(folder),
        card=description["card"],
    )


def identity_of(description: Mapping[str, Any]) -> str:
    kind = description["kind"]
    meaning = [description[key] for key in ("digest", "kind", "modules", "layers", "strategy")]
    text = json.dumps([*meaning, description.get(kind)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def parameters_in(folder: Path) -> int:
    """How many parameters the file's header tells of; a file that is cut short is found out here."""
    try:
        with safe_open(folder / PARAMETERS, framework="pt") as file:
            return sum(product(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{PARAMETERS} is damaged: {error}.") from error


def product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
