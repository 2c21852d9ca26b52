"""Cache of adapter versions in the model: loaded when first asked for, leased to requests, evicted when long unused."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Self

from overtone.adapters.adapter_set import AdapterSet
from overtone.adapters.storage import BaseIdentity, read_folder
from overtone.errors import AdapterError
from overtone.serving.adapter_store.folder import Version, signature_of
from overtone.serving.errors import OverloadError

__all__ = ["AdapterCache", "CachedAdapter", "Lease"]

KEY_DIGITS = 12
"""Hexadecimal digits of the identity in the name of a version."""
FEW_TO_FREEZE = 200
"""Adapters that a garbage collection may look through without harm."""


@dataclass(kw_only=True, eq=False)
class CachedAdapter:
    """A version in the model, or on its way there."""

    identity: str
    """`Version.identity`; empty for an adapter that came with the model's file and always stays."""
    key: str
    """Its name in `model.adapters`."""
    digest: str
    leases: int = 0
    loaded: threading.Event = field(default_factory=threading.Event)
    error: AdapterError | None = None
    """Why it could not be loaded."""
    doomed: bool = False
    """It goes as soon as no lease holds it."""


@dataclass(kw_only=True)
class CacheCounts:
    """Counts since the start, for metrics."""

    hits: int = 0
    misses: int = 0
    loads: int = 0
    load_seconds: float = 0.0
    evictions: int = 0


class AdapterCache:
    """A bounded cache of versions: the least recently used goes first, a leased one never. Thread-safe."""

    def __init__(
        self,
        adapters: AdapterSet,
        identity: BaseIdentity,
        *,
        model_lock: AbstractContextManager[object],
        capacity: int,
        is_last_copy: Callable[[str], bool],
    ) -> None:
        """model_lock: guards `adapters`. is_last_copy: whether a version can no longer be read from disk."""
        self.adapters = adapters
        self.identity = identity
        self.capacity = capacity
        self.counts = CacheCounts()
        self._model_lock = model_lock
        self._is_last_copy = is_last_copy
        self._lock = threading.RLock()
        """Taken before the model's; never held while a file is read."""
        self._cached: OrderedDict[str, CachedAdapter] = OrderedDict()
        """By identity, the least recently used first."""
        self._unfrozen = 0
        """Adapters loaded since the last `gc.freeze`."""
        self.dropped_leases: deque[tuple[CachedAdapter, ...]] = deque()
        """Adapters of leases that were dropped unreleased: a destructor may run under any lock and takes none."""

    def __contains__(self, identity: str) -> bool:
        with self._lock:
            return identity in self._cached and self._cached[identity].loaded.is_set()

    def __len__(self) -> int:
        return len(self._cached)

    def leased(self) -> int:
        """Number of versions that a lease holds."""
        with self._lock:
            return sum(cached.leases > 0 for cached in self._cached.values())

    def hold(self, name: str, version: Version) -> CachedAdapter:
        """Add a lease to a version and load it if need be; several callers wait for one loading.

        Raises AdapterError where it cannot be loaded, OverloadError where every place is leased.
        """
        self.release(())
        with self._lock:
            cached = self._cached.get(version.identity)
            is_missing = cached is None
            if cached is None:
                self._make_room()
                self.counts.misses += 1
                key = f"{name}.{version.identity[:KEY_DIGITS]}"
                cached = CachedAdapter(identity=version.identity, key=key, digest=version.digest)
                self._cached[version.identity] = cached
            else:
                self.counts.hits += 1
                self._cached.move_to_end(version.identity)
            cached.leases += 1
            cached.doomed = False
        if is_missing:
            self._load(cached, version)
        cached.loaded.wait()
        if cached.error is not None:
            raise cached.error
        return cached

    def release(self, adapters: tuple[CachedAdapter, ...]) -> None:
        """Take a lease from each, and from those whose lease was dropped unreleased."""
        with self._lock:
            while self.dropped_leases:
                adapters += self.dropped_leases.popleft()
            for cached in adapters:
                cached.leases -= 1
                if cached.doomed:
                    self._drop(cached)

    def drop(self, identity: str) -> None:
        """Take a version out of the model, now or when its last lease is released."""
        with self._lock:
            if identity in self._cached:
                self._drop(self._cached[identity])

    def _drop(self, cached: CachedAdapter) -> None:
        if cached.leases > 0:
            cached.doomed = True
        elif self._cached.get(cached.identity) is cached:
            del self._cached[cached.identity]
            with self._model_lock:
                self.adapters.remove(cached.key)

    def _make_room(self) -> None:
        """Evict the version that was used least recently, if every place is taken; last copies go last."""
        while len(self._cached) >= self.capacity:
            free = [cached for cached in self._cached.values() if cached.leases == 0]
            if not free:
                raise OverloadError(f"All {self.capacity} places for adapters are in use. Try again a little later.")
            self.counts.evictions += 1
            spare = (cached for cached in free if not self._is_last_copy(cached.identity))
            self._drop(next(spare, free[0]))

    def _load(self, cached: CachedAdapter, version: Version) -> None:
        """Read the parameters and put them into the model; a failure is kept in `cached.error`."""
        began = time.monotonic()
        try:
            self._add(cached.key, version)
        except AdapterError as error:
            cached.error = error
        except Exception as error:  # a damaged file may raise anything; the other adapters are served on
            cached.error = AdapterError(f"It cannot be loaded: {type(error).__name__}: {error}")
            cached.error.__cause__ = error
        with self._lock:
            if cached.error is not None:
                del self._cached[cached.identity]
            else:
                self.counts.loads += 1
                self.counts.load_seconds += time.monotonic() - began
                self._unfrozen += 1
        cached.loaded.set()
        self._freeze()

    def _freeze(self) -> None:
        """Leave loaded adapters out of garbage collections, a few hundred at a time.

        An adapter is some four hundred objects. With a thousand adapters each collection took 0.2 s, during which the
        whole server stood still. An evicted adapter is freed all the same, since nothing in it is a cycle.
        """
        with self._lock:
            if self._unfrozen < max(FEW_TO_FREEZE, len(self._cached) // 4):
                return
            self._unfrozen = 0
        gc.collect()  # garbage that is frozen would stay for ever
        gc.freeze()

    def _add(self, key: str, version: Version) -> None:
        stored = read_folder(version.folder, self.identity, description=version.description)
        if signature_of(version.folder) != version.signature:
            raise AdapterError("Its files have changed while they were read.")
        adapter = self.adapters.make_frozen(key, stored)
        with self._model_lock:
            self.adapters.insert(adapter)


class Lease:
    """A hold on the versions that a request uses: they stay in the model until the lease is released.

    A context manager; releasing twice, and dropping a lease unreleased, do no harm.
    """

    def __init__(self, cache: AdapterCache, names: tuple[str, ...], adapters: tuple[CachedAdapter, ...]) -> None:
        """adapters: held already, one for each name."""
        self.names = names
        """Adapters asked for, in the order in which they act; empty for the base."""
        self.digests = tuple(cached.digest for cached in adapters)
        """Content digest of each."""
        self.choice = "+".join(cached.key for cached in adapters) or None
        """Argument of `AdapterSet.use` for these very versions; None is the base."""
        self._cache = cache
        self._held = tuple(cached for cached in adapters if cached.identity)
        self._forget = weakref.finalize(self, cache.dropped_leases.append, self._held)

    def release(self) -> None:
        """Let the versions go. A second call does nothing."""
        if self._forget.detach() is not None:
            self._cache.release(self._held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
