"""Adapter folders on disk -> versions in the model, leased to requests.

A name is an alias; what is loaded, leased and evicted are versions, told apart by the digest of their content. A
replacement is a new version beside the old one, which stays as long as a request uses it.
"""

from __future__ import annotations

import shutil
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from overtone.adapters.adapter import check_name
from overtone.adapters.storage import BaseIdentity
from overtone.errors import AdapterError, did_you_mean
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store.cache import Resident, Residents
from overtone.serving.adapter_store.folder import Lookout, Signature, Version, read_version
from overtone.serving.adapter_store.upload import place

__all__ = ["Lease", "Shelf", "ShelfEntry"]

State = Literal["ready", "resident", "refused"]
BASE_NAMES = (None, "", "base", "none")
TRIES = 3
"""So often is a version read anew that is being replaced just now."""
MOST_WATCHING = 0.002
"""The share of one core that watching may take: a folder that takes long is looked at less often."""


@dataclass(frozen=True, kw_only=True)
class ShelfEntry:
    """One name on the shelf."""

    name: str
    """What requests call it: the folder's name, or the adapter's own where it came with the model's file."""
    state: State
    """`ready`: on disk; `resident`: in the model; `refused`: cannot be used, see `reason`."""
    reason: str
    """Why it (or its latest replacement) is refused; empty where all is well."""
    digest: str
    """`sha256:…` of its content; empty where refused and never read."""
    kind: str
    """linear, lora, …; empty where unknown."""
    parameters: int
    """Number of parameters; 0 where unknown."""
    card: Mapping[str, Any]
    """What it was trained on and what it reached."""
    source: Literal["folder", "model"]
    """A folder of the shelf, or the file of the model."""


@dataclass(kw_only=True, eq=False)
class _Entry:
    """What the watcher knows of a folder."""

    signature: Signature | None = None
    version: Version | None = None
    """The latest that was good."""
    problem: str = ""
    """Why the latest state is not."""


class Lease:
    """A hold on the versions that a request uses: they stay in the model until the lease is released.

    A context manager; releasing twice, and dropping a lease unreleased, do no harm.
    """

    def __init__(self, shelf: Shelf, names: tuple[str, ...], residents: tuple[Resident, ...]) -> None:
        self.names = names
        """The names asked for, in the order in which they act; empty for the base."""
        self.digests = tuple(resident.digest for resident in residents)
        """The content digest of each."""
        self.choice = "+".join(resident.key for resident in residents) or None
        """What `AdapterSet.use` takes for these very versions; None is the base."""
        self._residents = shelf.residents
        self._held = tuple(resident for resident in residents if resident.identity)
        self._forget = weakref.finalize(self, shelf.residents.forgotten.append, self._held)

    def release(self) -> None:
        if self._forget.detach() is not None:
            self._residents.release(self._held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class Shelf:
    """All adapters that requests may name. Thread-safe. A context manager; leaving it stops the watching."""

    def __init__(
        self,
        model: AsrModel,
        folder: Path | None,
        *,
        lock: AbstractContextManager[object],
        capacity: int = 64,
        poll_seconds: float = 1.0,
    ) -> None:
        """folder: holds one adapter folder each; None for the model's own adapters alone. It is scanned once before
        this returns and then watched by a thread every `poll_seconds` (0 does not watch; call `scan`).
        lock: the engine's, taken for each change of `model.adapters`. capacity: versions resident at most.
        """
        self.folder = folder
        fingerprint, tokenizer = model.fingerprint(), model.tokenizer.digest()
        self.identity = BaseIdentity(fingerprint=lambda: fingerprint, tokenizer_digest=lambda: tokenizer)
        self.residents = Residents(
            model.adapters, self.identity, model_lock=lock, capacity=capacity, is_last_copy=self._is_last_copy
        )
        own = list(model.adapters)
        self._own = {adapter.name: Resident(identity="", key=adapter.name, digest=adapter.digest()) for adapter in own}
        """What came with the model's file."""
        self._own_entries = {
            adapter.name: ShelfEntry(
                name=adapter.name,
                state="resident",
                reason="",
                digest=self._own[adapter.name].digest,
                kind=adapter.kind.name,
                parameters=adapter.parameter_count(),
                card=adapter.card,
                source="model",
            )
            for adapter in own
        }
        self._lock = threading.RLock()
        """Guards what follows; never held while a file is read."""
        self._entries: dict[str, _Entry] = {}
        self._refused: dict[str, _Entry] = {}
        """Those with a problem."""
        self._replacements = self._refusals = 0
        self._placing = threading.Lock()
        """Whoever changes the folder is alone with it: a folder is two files, renamed one after the other."""
        self._scanning = threading.Lock()
        self._lookout = None if folder is None else Lookout(folder)
        self._closed = threading.Event()
        self.scan()
        if folder is not None and poll_seconds > 0:
            threading.Thread(target=self._watch, args=(poll_seconds,), name="overtone-shelf", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def names(self) -> list[ShelfEntry]:
        """All entries by name, refused ones included."""
        with self._lock:
            return [self._shown(name) for name in sorted({*self._own, *self._entries})]

    def entry(self, name: str) -> ShelfEntry:
        """Raises AdapterError, listing what exists, for an unknown name."""
        with self._lock:
            self._check_known(name)
            return self._shown(name)

    def at_hand(self, names: Sequence[str]) -> bool:
        """Whether all of these adapters are in the model, so that `acquire` is quick unless one goes this moment."""
        with self._lock:
            entries = [self._entries.get(name) for name in names]
        return all(
            name in self._own
            if entry is None
            else entry.version is not None and entry.version.identity in self.residents
            for name, entry in zip(names, entries, strict=True)
        )

    def acquire(self, choice: str | None) -> Lease:
        """A lease on `name`, a chain `a+b`, or the base (None, "", "base", "none"); loads what is not resident.

        Raises AdapterError: unknown (what exists is listed) or refused (with the reason); OverloadError where every
        place is leased. Blocks for the loading, a few milliseconds: call it off the event loop.
        """
        if choice in BASE_NAMES:
            return Lease(self, (), ())
        assert choice is not None
        names = tuple(choice.split("+"))
        if len(set(names)) != len(names):
            raise AdapterError(f"'{choice}' names an adapter twice; name each once.")
        with self._lock:
            for name in names:
                self._check_known(name)
        held: list[Resident] = []
        try:
            for name in names:
                held.append(self._hold(name))  # noqa: PERF401  what was held before a failure is released
        except BaseException:
            self.residents.release(tuple(resident for resident in held if resident.identity))
            raise
        lease = Lease(self, names, tuple(held))
        if len({resident.key for resident in held}) != len(held):
            lease.release()
            raise AdapterError(f"'{choice}' names one adapter by two names; name each once.")
        return lease

    def put(self, name: str, archive: bytes) -> ShelfEntry:
        """Place or replace an adapter: a zip or tar(.gz) with adapter.yaml and adapter.safetensors.

        Checked completely before it appears. Raises AdapterError.
        """
        with self._placing:
            place(self._own_folder(), check_name(name), archive, self.identity)
        self.scan()
        return self.entry(name)

    def unload(self, name: str) -> None:
        """Take it out of the model (once no lease holds it); it stays on the shelf."""
        with self._lock:
            self._check_known(name)
            if name not in self._entries:
                raise AdapterError(f"'{name}' came with the model's file and stays in the model.")
            version = self._entries[name].version
        if version is not None:
            self.residents.drop(version.identity)

    def remove(self, name: str) -> None:
        """Delete it from the shelf's folder, a link without what it leads to; running leases keep their version."""
        folder = self._own_folder()
        with self._lock:
            self._check_known(name)
            if name not in self._entries:
                raise AdapterError(f"'{name}' came with the model's file; it is not on the shelf.")
        hidden = folder / f".removed-{name}-{time.monotonic_ns()}"
        try:
            with self._placing:
                (folder / name).rename(hidden)
            if hidden.is_symlink():
                hidden.unlink()
            else:
                shutil.rmtree(hidden)
        except OSError as error:
            raise AdapterError(f"'{name}' cannot be removed: {error.strerror or error}.") from error
        self.scan()

    def scan(self) -> None:
        """Look at the folder now."""
        if self._lookout is None:
            return
        with self._scanning:
            found = self._lookout.look()
            for name, signature in found.items():
                self._look_at(name, signature)
            with self._lock:
                for name in self._entries.keys() - found.keys():
                    self._refused.pop(name, None)
                    self._drop_unless_named(self._entries.pop(name).version)

    def counters(self) -> dict[str, float]:
        """For metrics: counts since the start, and `resident`, `leased`, `refused`, `names` as they are now."""
        with self._lock:
            return {
                **vars(self.residents.counts),
                "replacements": self._replacements,
                "refusals": self._refusals,
                "resident": len(self.residents),
                "leased": self.residents.leased(),
                "refused": len(self._refused),
                "names": len(self._own.keys() | self._entries.keys()),
            }

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    # Names

    def _own_folder(self) -> Path:
        if self.folder is None:
            raise AdapterError("This server has no shelf; start it with a folder of adapters.")
        return self.folder

    def _check_known(self, name: str) -> None:
        if name not in self._own and name not in self._entries:
            known = sorted({*self._own, *self._entries})
            listed = ", ".join(known[:20]) + (f" … {len(known)} in all" if len(known) > 20 else "") or "none"
            raise AdapterError(f"Adapter '{name}' is unknown.{did_you_mean(name, known)} Available: {listed}.")

    def _shown(self, name: str) -> ShelfEntry:
        if name not in self._entries:
            return self._own_entries[name]
        entry = self._entries[name]
        version = entry.version
        resident = version is not None and version.identity in self.residents
        state: State = "resident" if resident else "refused" if entry.problem or version is None else "ready"
        return ShelfEntry(
            name=name,
            state=state,
            reason=entry.problem,
            digest=version.digest if version else "",
            kind=version.kind if version else "",
            parameters=version.parameters if version else 0,
            card=version.card if version else {},
            source="folder",
        )

    # Watching

    def _watch(self, poll_seconds: float) -> None:
        pause = poll_seconds
        while not self._closed.wait(pause):
            used = time.thread_time()
            self.scan()
            self.residents.release(())
            pause = max(poll_seconds, (time.thread_time() - used) / MOST_WATCHING)

    def _look_at(self, name: str, signature: Signature | None) -> None:
        """Read a folder that is new or has changed; what is wrong with it becomes the entry's problem."""
        with self._lock:
            entry = self._entries.get(name) or self._entries.setdefault(name, _Entry())
            if signature is not None and signature == entry.signature:
                return
        version, problem = None, ""
        try:
            version = read_version(self._own_folder() / name, self.identity)
        except Exception as error:  # whatever a damaged description makes of the reading, the watcher goes on
            told = isinstance(error, AdapterError)
            problem = str(error) if told else f"It cannot be read: {type(error).__name__}: {error}"
            signature = None if unread(error) else signature
        with self._lock:
            before = entry.version
            entry.signature = signature
            self._judge(name, entry, problem)
            if version is None:
                return
            entry.version = version
            if before is not None and before.identity != version.identity:
                self._replacements += 1
                self._drop_unless_named(before)

    def _drop_unless_named(self, version: Version | None) -> None:
        """A version that no name means any more goes, once no lease holds it."""
        named = {entry.version.identity for entry in self._entries.values() if entry.version}
        if version is not None and version.identity not in named:
            self.residents.drop(version.identity)

    def _judge(self, name: str, entry: _Entry, problem: str) -> None:
        """What is wrong with the latest state of an entry, or nothing."""
        if problem and problem != entry.problem:
            self._refusals += 1
        entry.problem = problem
        if problem:
            self._refused[name] = entry
        else:
            self._refused.pop(name, None)

    def _is_last_copy(self, identity: str) -> bool:
        """Whether the files of a version have been replaced by something that cannot be used."""
        refused = tuple(self._refused.values())  # asked for each adapter that might be evicted: not of all entries
        return any(entry.version is not None and entry.version.identity == identity for entry in refused)

    # Versions

    def _hold(self, name: str) -> Resident:
        """The resident version of a name with one more lease on it, loaded where need be."""
        if name in self._own and name not in self._entries:
            return self._own[name]
        version, problem, again = None, "", False
        for attempt in range(TRIES):
            with self._lock:
                entry = self._entries.get(name)
                version = None if entry is None else entry.version
                problem = "It was removed a moment ago." if entry is None else entry.problem
            if version is None or (problem and version.identity not in self.residents):
                break
            try:
                return self.residents.hold(name, version)
            except AdapterError as error:  # its files may have been replaced under our hands: look again
                problem, again = str(error), unread(error)
                time.sleep(0.02 * attempt)
                self.scan()
        self._refuse(name, version, problem, again=again)
        raise AdapterError(f"Adapter '{name}' is refused: {problem}")

    def _refuse(self, name: str, version: Version | None, problem: str, *, again: bool) -> None:
        """Note why the version cannot be used, unless another one has taken its place meanwhile.

        again: the next scan looks at it anew.
        """
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and entry.version is version and not entry.problem:
                self._judge(name, entry, problem)
                entry.signature = None if again else entry.signature


def unread(error: Exception) -> bool:
    """Whether files could not be read for a reason that may pass, and that their signature does not show."""
    return isinstance(error, OSError) or isinstance(error.__cause__, OSError)
