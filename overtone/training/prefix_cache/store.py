"""Activations between epochs: in memory while there is room, and in a folder where there is one.

A file holds one tensor with the SHA-256 of its values and the names of what it belongs to. What does not agree in
all of that is as good as absent. Files appear whole or not at all, so that processes may share a folder.

Legend: T time, D width.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from overtone.files import FULL, lock_byte, unlock_byte

SUFFIX = ".safetensors"
NAME_LENGTH = 32
"""Characters of a digest that name a folder."""
LOCK_DIGITS = 15
"""Digits of a key, in base 16, that choose the byte whose lock stands for it."""


class Activations(NamedTuple):
    """Activations of an utterance at the cut."""

    x: Tensor
    """[T, D], its own frames"""
    padded: int
    """Frames of a batch of this utterance alone, T or a few more"""


class PrefixStore:
    """Activations by key, within a limit of memory and one of disk.

    Nothing is ever thrown out: what comes when all is full is not stored, and has to be computed again.
    """

    def __init__(
        self,
        *,
        width: int,
        memory: float,
        folder: Path | None = None,
        disk: float = 0.0,
        owner: str = "",
        report: Callable[[str], None],
    ) -> None:
        """memory, disk: bytes. owner: the digest of all that the values depend on besides the key."""
        self.width = width
        self.memory = memory
        self.folder = folder
        self.disk = disk
        self.owner = owner
        self.report = report
        """Prints a line for the user: the disk takes no more."""
        self.in_memory: dict[str, Activations] = {}
        self.lock = threading.Lock()
        self.locks: IO[bytes] | None = None
        if folder is not None:
            self.disk -= bytes_in(folder)

    def get(self, key: str) -> Activations | None:
        """Return the activations as they were put in; None where they are not there, or cannot be trusted."""
        found = self.in_memory.get(key)
        if found is None and self.folder is not None:
            found = self.read(self.path_of(key), key)
            if found is not None:
                self.put_in_memory(key, found)
        return found

    def put(self, key: str, activations: Activations) -> None:
        """Store a tensor that lies in memory of its own."""
        self.put_in_memory(key, activations)
        if self.folder is not None:
            self.write(self.path_of(key), key, activations)

    def put_in_memory(self, key: str, activations: Activations) -> None:
        with self.lock:
            if key not in self.in_memory and activations.x.nbytes <= self.memory:
                self.memory -= activations.x.nbytes
                self.in_memory[key] = activations

    @contextmanager
    def claim(self, key: str, *, wait: bool) -> Iterator[bool]:
        """Hold a key for this process while its activations are computed; False where another process holds it.

        A process that dies holds nothing any more. Where a file system has no locks, each computes for itself.
        """
        if self.folder is None or not key:
            yield True
            return
        place, file = int(key[:LOCK_DIGITS], 16), self.lock_file()
        held = file is None or lock_byte(file, place, wait=wait)
        try:
            yield held
        finally:
            if file is not None and held:
                unlock_byte(file, place)

    def lock_file(self) -> int | None:
        """Return the descriptor of the file whose bytes stand for keys; None where it cannot be made."""
        if self.locks is None:
            assert self.folder is not None
            try:
                (self.folder / self.owner[:NAME_LENGTH]).mkdir(parents=True, exist_ok=True)
                self.locks = (self.folder / self.owner[:NAME_LENGTH] / "locks").open("wb")
            except OSError:  # nothing can be written there; the first file says so
                return None
        return self.locks.fileno()

    # Files

    def path_of(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / self.owner[:NAME_LENGTH] / key[:2] / f"{key}{SUFFIX}"

    def read(self, path: Path, key: str) -> Activations | None:
        """Read a file; None where there is none, or where it belongs to other values."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                found = Activations(file.get_tensor("x").clone(), int(metadata.get("padded", 0)))
        except (OSError, SafetensorError, ValueError):
            return None
        names = (metadata.get("owner"), metadata.get("key"), metadata.get("sha256"))
        fits = found.x.dim() == 2 and found.x.size(1) == self.width and found.x.is_floating_point()
        return found if fits and names == (self.owner, key, digest_of(found)) else None

    def write(self, path: Path, key: str, activations: Activations) -> None:
        """Write a file while the disk has room; it appears whole or not at all."""
        digest = digest_of(activations)
        metadata = {"owner": self.owner, "key": key, "padded": str(activations.padded), "sha256": digest}
        content = save({"x": activations.x}, metadata)
        if len(content) > self.disk:
            self.end_writing(f"{self.folder} holds as much as model.prefix_cache.disk_gb allows")
            return
        fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(content)
            fresh.replace(path)
            self.disk -= len(content)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            full = error.errno in FULL
            self.end_writing(f"the disk of {self.folder} is full" if full else f"{path}: {error.strerror or error}")

    def end_writing(self, reason: str) -> None:
        if self.disk > 0.0:
            self.report(
                f"Prefix cache: {reason}. No more is written there; what memory does not hold is computed anew."
            )
        self.disk = 0.0


def digest_of(activations: Activations) -> str:
    """Return the SHA-256 of frames, shape, dtype and values."""
    x = activations.x
    digest = hashlib.sha256(f"{activations.padded} {list(x.shape)} {x.dtype}".encode())
    digest.update(x.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def bytes_in(folder: Path) -> int:
    """Return the size of the files below a folder; other processes may be writing there."""
    total = 0
    for path in folder.rglob(f"*{SUFFIX}*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
