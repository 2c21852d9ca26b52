"""Where activations are kept between epochs: in memory while there is room, and in a folder where there is one.

A file holds one tensor with the SHA-256 of its values and the names of what it belongs to. What does not agree in
all of that is as good as absent. Files appear whole or not at all, so that processes may share a folder.

Legend: T time, D width.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from overtone.files import FULL

SUFFIX = ".safetensors"
NAME_LENGTH = 32
"""Characters of a digest that name a folder."""


class Kept(NamedTuple):
    """What is kept of an utterance."""

    x: Tensor
    """[T, D], its own frames"""
    padded: int
    """Frames that a batch has which it stands in alone, T or a few more."""


class PrefixStore:
    """What is kept by key, within a limit of memory and one of disk.

    Nothing is ever thrown out: what comes when all is full is not kept, and has to be computed again.
    """

    def __init__(
        self,
        *,
        width: int,
        memory: float,
        folder: Path | None = None,
        disk: float = 0.0,
        owner: str = "",
        tell: Callable[[str], None],
    ) -> None:
        """memory, disk: bytes. owner: the digest of all that the values depend on besides the key."""
        self.width = width
        self.memory = memory
        self.folder = folder
        self.disk = disk
        self.owner = owner
        self.tell = tell
        """Where the user is told that the disk takes no more."""
        self.held: dict[str, Kept] = {}
        self.lock = threading.Lock()
        if folder is not None:
            self.disk -= bytes_in(folder)

    def get(self, key: str) -> Kept | None:
        """As it was put in; None where it is not there, or cannot be trusted."""
        kept = self.held.get(key)
        if kept is None and self.folder is not None:
            kept = self.read(self.place(key), key)
            if kept is not None:
                self.hold(key, kept)
        return kept

    def put(self, key: str, kept: Kept) -> None:
        """Keep a tensor that lies in memory of its own."""
        self.hold(key, kept)
        if self.folder is not None:
            self.write(self.place(key), key, kept)

    def hold(self, key: str, kept: Kept) -> None:
        with self.lock:
            if key not in self.held and kept.x.nbytes <= self.memory:
                self.memory -= kept.x.nbytes
                self.held[key] = kept

    # Files

    def place(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / self.owner[:NAME_LENGTH] / key[:2] / f"{key}{SUFFIX}"

    def read(self, path: Path, key: str) -> Kept | None:
        try:
            with safe_open(path, framework="pt") as file:
                said = file.metadata() or {}
                kept = Kept(file.get_tensor("x").clone(), int(said.get("padded", 0)))
        except (OSError, SafetensorError, ValueError):
            return None
        told = (said.get("owner"), said.get("key"), said.get("sha256"))
        fits = kept.x.dim() == 2 and kept.x.size(1) == self.width and kept.x.is_floating_point()
        return kept if fits and told == (self.owner, key, digest_of(kept)) else None

    def write(self, path: Path, key: str, kept: Kept) -> None:
        said = {"owner": self.owner, "key": key, "padded": str(kept.padded), "sha256": digest_of(kept)}
        content = save({"x": kept.x}, said)
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
            self.tell(f"Prefix cache: {reason}. No more is written there; what memory does not hold is computed anew.")
        self.disk = 0.0


def digest_of(kept: Kept) -> str:
    """SHA-256 of frames, shape, dtype and values."""
    digest = hashlib.sha256(f"{kept.padded} {list(kept.x.shape)} {kept.x.dtype}".encode())
    digest.update(kept.x.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def bytes_in(folder: Path) -> int:
    """What the files below a folder take; other processes may be writing there."""
    total = 0
    for path in folder.rglob(f"*{SUFFIX}*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
