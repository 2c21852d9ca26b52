"""Adapter store: names of adapters, their folders on disk, and leases on their versions in the model.

A name is an alias. Versions are loaded, leased and evicted, and told apart by the digest of their content. A
replacement is a new version beside the old one, which stays as long as a request uses it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from overtone.adapters.adapter import check_name
from overtone.adapters.storage import BaseIdentity
from overtone.errors import AdapterError, did_you_mean
from overtone.files import remove_folder
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store.cache import AdapterCache, CachedAdapter, Lease
from overtone.serving.adapter_store.entry import AdapterEntry, entry_of_folder, entry_of_model, log_change
from overtone.serving.adapter_store.folder import FolderWatcher, Signature, Version, read_version
from overtone.serving.adapter_store.upload import place

__all__ = ["AdapterEntry", "AdapterStore", "Lease"]

BASE_NAMES = (None, "", "base", "none")
TRIES = 3
"""Times that a version which is being replaced just now is read."""
MOST_WATCHING = 0.002
"""Share of one core that watching an unchanged folder may take: one that takes long is looked at less often."""


@dataclass(kw_only=True, eq=False)
class _FolderState:
    """A folder as it was found last."""

    signature: Signature | None = None
    version: Version | None = None
    """Latest version that was good."""
    problem: str = ""
    """Fault of the folder's latest state; empty where there is none."""


class AdapterStore:
    """All adapters that requests may name. Thread-safe. A context manager; leaving it stops the watching."""

    def __init__(
        self,
        model: AsrModel,
        folder: Path | None,
        *,
        lock: AbstractContextManager[object],
        capacity: int = 64,
        poll_seconds: float = 1.0,
        mirrored: str = "",
    ) -> None:
        """folder: holds one adapter folder each; None for the model's own adapters alone. It is scanned once before
        this returns and then watched by a thread every `poll_seconds` (0 does not watch; call `scan`).
        lock: the engine's, taken for each change of `model.adapters`. capacity: versions in the model at most.
        mirrored: URI of which the folder is a mirror, so that others change it.
        """
        self.folder = folder
        self.mirrored = mirrored
        fingerprint, tokenizer = model.fingerprint(), model.tokenizer.digest()
        self.identity = BaseIdentity(fingerprint=lambda: fingerprint, tokenizer_digest=lambda: tokenizer)
        self.cache = AdapterCache(
            model.adapters, self.identity, model_lock=lock, capacity=capacity, is_last_copy=self._is_last_copy
        )
        own = list(model.adapters)
        self._own = {
            adapter.name: CachedAdapter(identity="", key=adapter.name, digest=adapter.digest()) for adapter in own
        }
        """Adapters that came with the model's file."""
        self._own_entries = {adapter.name: entry_of_model(adapter, self._own[adapter.name].digest) for adapter in own}
        self._lock = threading.RLock()
        """Guards the fields below; never held while a file is read."""
        self._entries: dict[str, _FolderState] = {}
        self._refused: dict[str, _FolderState] = {}
        """Entries with a problem."""
        self._replacements = self._refusals = 0
        self._reading_seconds = 0.0
        """Processor time that the reading of changes took, all of it."""
        self._has_scanned = False
        self._placing = threading.Lock()
        """Held while the folder is changed: an adapter is two files, renamed one after the other."""
        self._scanning = threading.Lock()
        self._watcher = None if folder is None else FolderWatcher(folder)
        self._closed = threading.Event()
        self.scan()
        if folder is not None and poll_seconds > 0:
            threading.Thread(target=self._watch, args=(poll_seconds,), name="overtone-adapters", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def entries(self) -> list[AdapterEntry]:
        """Entries in the order of their names, refused ones included."""
        with self._lock:
            return [self._entry_of(name) for name in sorted({*self._own, *self._entries})]

    def entry(self, name: str) -> AdapterEntry:
        """Entry of a name. Raises AdapterError, listing what exists, for an unknown one."""
        with self._lock:
            self._check_known(name)
            return self._entry_of(name)

    def is_in_model(self, names: Sequence[str]) -> bool:
        """Tell whether all of these are in the model, so that `acquire` is quick unless one is evicted this moment."""
        with self._lock:
            entries = [self._entries.get(name) for name in names]
        return all(
            name in self._own if entry is None else entry.version is not None and entry.version.identity in self.cache
            for name, entry in zip(names, entries, strict=True)
        )

    def acquire(self, choice: str | None) -> Lease:
        """Lease `name`, a chain `a+b`, or the base (None, "", "base", "none"), and load what is not in the model.

        Raises AdapterError: unknown (what exists is listed) or refused (with the reason); OverloadError where every
        place is leased. Blocks for the loading, a few milliseconds: call it off the event loop.
        """
        if choice in BASE_NAMES:
            return Lease(self.cache, (), ())
        assert choice is not None
        names = tuple(choice.split("+"))
        if len(set(names)) != len(names):
            raise AdapterError(f"'{choice}' names an adapter twice; name each once.")
        with self._lock:
            for name in names:
                self._check_known(name)
        held: list[CachedAdapter] = []
        try:
            for name in names:
                held.append(self._hold(name))  # noqa: PERF401  a failure releases those before it
        except BaseException:
            self.cache.release(tuple(cached for cached in held if cached.identity))
            raise
        lease = Lease(self.cache, names, tuple(held))
        if len({cached.key for cached in held}) != len(held):
            lease.release()
            raise AdapterError(f"'{choice}' names one adapter by two names; name each once.")
        return lease

    def put(self, name: str, archive: bytes) -> AdapterEntry:
        """Place or replace an adapter: a zip or tar(.gz) with adapter.yaml and adapter.safetensors.

        Checked completely before it appears. Raises AdapterError.
        """
        place(self._own_folder(), check_name(name), archive, self.identity, self._placing)
        self.scan()
        return self.entry(name)

    def unload(self, name: str) -> None:
        """Take an adapter out of the model, once no lease holds it; it stays in the store. Raises AdapterError."""
        with self._lock:
            self._check_known(name)
            if name not in self._entries:
                raise AdapterError(f"'{name}' came with the model's file and stays in the model.")
            version = self._entries[name].version
        if version is not None:
            self.cache.drop(version.identity)

    def remove(self, name: str) -> None:
        """Delete an adapter from the folder, a link without its target; running leases keep their version.

        Raises AdapterError.
        """
        folder = self._own_folder()
        with self._lock:
            self._check_known(name)
            if name not in self._entries:
                raise AdapterError(f"'{name}' came with the model's file; it is not in the folder of adapters.")
        try:
            with self._placing:
                remove_folder(folder / name)
        except OSError as error:
            raise AdapterError(f"'{name}' cannot be removed: {error.strerror or error}.") from error
        self.scan()

    def scan(self) -> None:
        """Look for changes of the folder now."""
        if self._watcher is None:
            return
        with self._scanning:
            found = self._watcher.look()
            with self._lock:  # at once; reading what is new may take a while
                gone = {name: self._entries.pop(name).version for name in self._entries.keys() - found.keys()}
                for name in gone:
                    self._refused.pop(name, None)
            for name, signature in found.items():
                self._look_at(name, signature)
            with self._lock:
                for version in gone.values():
                    self._drop_unless_named(version)
            for name in sorted(gone):
                log_change("removed", name)
            self._has_scanned = True

    def __contains__(self, name: object) -> bool:
        """True for the name of an adapter, refused or not."""
        with self._lock:
            return name in self._own or name in self._entries

    def names(self) -> set[str]:
        """Names in the store, those of refused adapters included."""
        with self._lock:
            return self._own.keys() | self._entries.keys()

    def counters(self) -> dict[str, float]:
        """Counts since the start for metrics, and `resident`, `leased`, `refused` and `names` as they are now."""
        with self._lock:
            return {
                **vars(self.cache.counts),
                "replacements": self._replacements,
                "refusals": self._refusals,
                "resident": len(self.cache),
                "leased": self.cache.leased(),
                "refused": len(self._refused),
                "names": len(self._own.keys() | self._entries.keys()),
            }

    def close(self) -> None:
        """Stop watching the folder."""
        self._closed.set()

    # Names

    def _own_folder(self) -> Path:
        if self.folder is None:
            raise AdapterError("This server has no adapter store; start it with a folder of adapters.")
        return self.folder

    def _check_known(self, name: str) -> None:
        if name not in self._own and name not in self._entries:
            known = sorted({*self._own, *self._entries})
            listed = ", ".join(known[:20]) + (f" … {len(known)} in all" if len(known) > 20 else "") or "none"
            raise AdapterError(f"Adapter '{name}' is unknown.{did_you_mean(name, known)} Available: {listed}.")

    def _entry_of(self, name: str) -> AdapterEntry:
        if name not in self._entries:
            return self._own_entries[name]
        entry = self._entries[name]
        version = entry.version
        in_model = version is not None and version.identity in self.cache
        return entry_of_folder(name, version, problem=entry.problem, in_model=in_model)

    # Watching

    def _watch(self, poll_seconds: float) -> None:
        pause = poll_seconds
        while not self._closed.wait(pause):
            used = time.thread_time() - self._reading_seconds
            self.scan()
            self.cache.release(())
            looking = time.thread_time() - self._reading_seconds - used
            pause = max(poll_seconds, looking / MOST_WATCHING)

    def _look_at(self, name: str, signature: Signature | None) -> None:
        """Read a folder that is new or has changed; a fault becomes the entry's problem."""
        with self._lock:
            entry = self._entries.get(name) or self._entries.setdefault(name, _FolderState())
            if signature is not None and signature == entry.signature:
                return
        version, problem = None, ""
        began = time.thread_time()
        try:
            version = read_version(self._own_folder() / name, self.identity)
        except Exception as error:  # a damaged description may raise anything; the watcher goes on
            is_plain = isinstance(error, AdapterError)
            problem = self._reason(error if is_plain else f"It cannot be read: {type(error).__name__}: {error}")
            signature = None if is_passing(error) else signature
        self._reading_seconds += time.thread_time() - began
        with self._lock:
            before = entry.version
            was_refused = bool(entry.problem)
            entry.signature = signature
            self._judge(name, entry, problem)
            if version is None:
                return
            entry.version = version
            is_other = before is not None and before.identity != version.identity
            if before is not None and is_other:
                self._replacements += 1
                self._drop_unless_named(before)
        if before is None or is_other or was_refused:
            event = "added" if before is None else "replaced" if is_other else "usable again"
            log_change(event, name, is_news=self._has_scanned, digest=version.digest, kind=version.kind)

    def _reason(self, error: Exception | str) -> str:
        """Message of an error for clients, with the places of files in the folder: where that lies is not for them."""
        folder = str(self._own_folder())
        return str(error).replace(f"{folder}{os.sep}", "").replace(folder, "the folder of adapters")

    def _drop_unless_named(self, version: Version | None) -> None:
        """Drop a version that no name means any more, once no lease holds it."""
        named = {entry.version.identity for entry in self._entries.values() if entry.version}
        if version is not None and version.identity not in named:
            self.cache.drop(version.identity)

    def _judge(self, name: str, entry: _FolderState, problem: str) -> None:
        """Note the fault of an entry's latest state; empty where there is none."""
        if problem and problem != entry.problem:
            self._refusals += 1
            log_change("refused", name, reason=problem)
        entry.problem = problem
        if problem:
            self._refused[name] = entry
        else:
            self._refused.pop(name, None)

    def _is_last_copy(self, identity: str) -> bool:
        """Tell whether the files of a version have been replaced by something that cannot be used."""
        refused = tuple(self._refused.values())  # called for each adapter that may be evicted, so not of all entries
        return any(entry.version is not None and entry.version.identity == identity for entry in refused)

    # Versions

    def _hold(self, name: str) -> CachedAdapter:
        """Add a lease to the version of a name and load it if need be. Raises AdapterError and OverloadError."""
        if name in self._own and name not in self._entries:
            return self._own[name]
        version, problem, again = None, "", False
        for attempt in range(TRIES):
            with self._lock:
                entry = self._entries.get(name)
                version = None if entry is None else entry.version
                problem = "It was removed a moment ago." if entry is None else entry.problem
            if version is None or (problem and version.identity not in self.cache):
                break
            try:
                return self.cache.hold(name, version)
            except AdapterError as error:  # its files may have been replaced meanwhile: look again
                problem, again = self._reason(error), is_passing(error)
                time.sleep(0.02 * attempt)
                self.scan()
        self._refuse(name, version, problem, again=again)
        raise AdapterError(f"Adapter '{name}' is refused: {problem}")

    def _refuse(self, name: str, version: Version | None, problem: str, *, again: bool) -> None:
        """Note why a version cannot be used, unless another one has taken its place meanwhile.

        again: the next scan reads it anew.
        """
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and entry.version is version and not entry.problem:
                self._judge(name, entry, problem)
                entry.signature = None if again else entry.signature


def is_passing(error: Exception) -> bool:
    """Tell whether files could not be read for a reason that may pass and that their signature does not show."""
    return isinstance(error, OSError) or isinstance(error.__cause__, OSError)
