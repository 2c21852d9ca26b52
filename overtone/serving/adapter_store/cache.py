"""The versions of adapters that are in the model: loaded when first asked for, leased, evicted when long unused."""

from __future__ import annotations

import gc
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from overtone.adapters.adapter_set import AdapterSet
from overtone.adapters.storage import BaseIdentity, read_folder
from overtone.errors import AdapterError
from overtone.serving.adapter_store.folder import Version, signature_of
from overtone.serving.errors import OverloadError

KEY_DIGITS = 12
"""Hexadecimal digits of the identity in the name of a version."""
FEW_TO_SETTLE = 200
"""So many adapters do no harm to a search for garbage."""


@dataclass(kw_only=True, eq=False)
class Resident:
    """A version in the model, or on its way there."""

    identity: str
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
class ResidentCounts:
    hits: int = 0
    misses: int = 0
    loads: int = 0
    load_seconds: float = 0.0
    evictions: int = 0


class Residents:
    """A bounded cache of versions, the least recently used going first, leased ones never. Thread-safe."""

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
        self.counts = ResidentCounts()
        self._model_lock = model_lock
        self._is_last_copy = is_last_copy
        self._lock = threading.RLock()
        """Taken before the model's; never held while a file is read."""
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        """By identity, the least recently used first."""
        self._to_settle = 0
        """Loads since `_settle` did something."""
        self.forgotten: deque[tuple[Resident, ...]] = deque()
        """What leases held that were dropped unreleased: a destructor may run under any lock and takes none."""

    def __contains__(self, identity: str) -> bool:
        with self._lock:
            return identity in self._residents and self._residents[identity].loaded.is_set()

    def __len__(self) -> int:
        return len(self._residents)

    def leased(self) -> int:
        with self._lock:
            return sum(resident.leases > 0 for resident in self._residents.values())

    def hold(self, name: str, version: Version) -> Resident:
        """One more lease on a version, loaded where need be; several callers wait for one loading.

        Raises AdapterError where it cannot be loaded, OverloadError where every place is leased.
        """
        self.release(())
        with self._lock:
            resident = self._residents.get(version.identity)
            loads = resident is None
            if resident is None:
                self._make_room()
                self.counts.misses += 1
                key = f"{name}.{version.identity[:KEY_DIGITS]}"
                resident = Resident(identity=version.identity, key=key, digest=version.digest)
                self._residents[version.identity] = resident
            else:
                self.counts.hits += 1
                self._residents.move_to_end(version.identity)
            resident.leases += 1
            resident.doomed = False
        if loads:
            self._load(resident, version)
        resident.loaded.wait()
        if resident.error is not None:
            raise resident.error
        return resident

    def release(self, residents: tuple[Resident, ...]) -> None:
        """One lease less on each, and on each of those that were forgotten."""
        with self._lock:
            while self.forgotten:
                residents += self.forgotten.popleft()
            for resident in residents:
                resident.leases -= 1
                if resident.doomed:
                    self._drop(resident)

    def drop(self, identity: str) -> None:
        """Take a version out of the model, now or when its last lease is released."""
        with self._lock:
            if identity in self._residents:
                self._drop(self._residents[identity])

    def _drop(self, resident: Resident) -> None:
        if resident.leases > 0:
            resident.doomed = True
        elif self._residents.get(resident.identity) is resident:
            del self._residents[resident.identity]
            with self._model_lock:
                self.adapters.remove(resident.key)

    def _make_room(self) -> None:
        """Evict the version that was used least recently, if every place is taken; last copies go last."""
        while len(self._residents) >= self.capacity:
            free = [resident for resident in self._residents.values() if resident.leases == 0]
            if not free:
                raise OverloadError(f"All {self.capacity} places for adapters are in use. Try again a little later.")
            self.counts.evictions += 1
            spare = (resident for resident in free if not self._is_last_copy(resident.identity))
            self._drop(next(spare, free[0]))

    def _load(self, resident: Resident, version: Version) -> None:
        """Read the parameters and put them into the model; a failure is kept in the resident."""
        began = time.monotonic()
        try:
            self._add(resident.key, version)
        except AdapterError as error:
            resident.error = error
        except Exception as error:  # whatever a damaged file makes of the reading, the shelf goes on
            resident.error = AdapterError(f"It cannot be loaded: {type(error).__name__}: {error}")
            resident.error.__cause__ = error
        with self._lock:
            if resident.error is not None:
                del self._residents[resident.identity]
            else:
                self.counts.loads += 1
                self.counts.load_seconds += time.monotonic() - began
                self._to_settle += 1
        resident.loaded.set()
        self._settle()

    def _settle(self) -> None:
        """Leave what has been loaded out of Python's searches for garbage, a few hundred adapters at a time.

        An adapter is some four hundred objects: a thousand of them made each search through everything take 0.2 s,
        for which the whole server stood still. An evicted one is freed all the same, since nothing in it is a cycle.
        """
        with self._lock:
            if self._to_settle < max(FEW_TO_SETTLE, len(self._residents) // 4):
                return
            self._to_settle = 0
        gc.collect()  # what is garbage now would stay for ever
        gc.freeze()

    def _add(self, key: str, version: Version) -> None:
        stored = read_folder(version.folder, self.identity, description=version.description)
        if signature_of(version.folder) != version.signature:
            raise AdapterError("Its files have changed while they were read.")
        adapter = self.adapters.make_frozen(key, stored)
        with self._model_lock:
            self.adapters.insert(adapter)
