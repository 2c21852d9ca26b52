"""Access: tokens, tenants, their adapters and their rates.

A file of tokens names tenants, the hashes of their tokens, and the adapters that they may use:

    tenants:
      clinic:
        tokens: [sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08]
        adapters: [medical, radiology]   # or: all
        requests_per_minute: 600         # optional
        audio_seconds_per_minute: 3600   # optional
        sessions: 64                     # optional: calls, transcriptions and realtime sessions at a time
        priority: high                   # optional: high, normal or low
        learn: [medical]                 # optional: those of its adapters that learn from its corrections, or: all
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from overtone.adapters.adapter import check_name
from overtone.errors import AdapterError, UsageError, did_you_mean
from overtone.safe_yaml import read_values
from overtone.serving.auth.rates import RATES, Usage, read_count, read_priority, read_rate
from overtone.serving.errors import AccessError

Metadata = Sequence[tuple[str, str | bytes]]
"""Headers with lower-case names, in their order; a name may come several times."""
HASH = re.compile(r"sha256:[0-9a-f]{64}")
ALL = "all"
SHORTEST_ADMIN_TOKEN = 16
"""Characters."""
SESSIONS = 64
"""Calls, transcriptions and realtime sessions of one tenant at a time, unless its entry says otherwise."""
NONE = {"adapters": "the base alone", "learn": "no learning"}
"""Meaning of an empty list, by the key of a tenant's entry."""
MAX_FILE_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """One entry of the file of tokens."""

    name: str
    adapters: frozenset[str] | None
    """Adapters that it may use, `ADAPTER` (of any base) or `BASE:ADAPTER`; None for all. Bases are everybody's."""
    requests_per_minute: float = math.inf
    audio_seconds_per_minute: float = math.inf
    sessions: int = SESSIONS
    """Calls, transcriptions and realtime sessions at a time."""
    priority: str = ""
    """Key of PRIORITIES; empty leaves it to the adapter."""
    learn: frozenset[str] | None = frozenset()
    """Adapters that learn from its corrections, if they are among its own; None for all of these."""


class Guard:
    """Tokens, tenants, rates and the administrator. Thread-safe. Without tokens everything but administration is open.

    Every interface calls `admit` before it reads or holds anything, takes a `session`, and charges what was used.
    """

    def __init__(self, *, tenants: Mapping[str, Tenant] | None = None, admin_token: str = "") -> None:
        """tenants: by the hash of their tokens; None for a server without tokens."""
        self.tenants = tenants
        self._admin = hash_token(admin_token) if admin_token else ""
        self._lock = threading.Lock()
        self._servers = 1
        self._usage = {tenant.name: Usage(tenant) for tenant in (tenants or {}).values()}

    def renew(self, *, tenants: Mapping[str, Tenant] | None, admin_token: str) -> None:
        """Take other tenants, tokens and limits from now on; what is open goes on and counts, with fresh rates."""
        named = {tenant.name: tenant for tenant in (tenants or {}).values()}
        with self._lock:
            usage = {
                name: self._usage.get(name) or Usage(tenant, servers=self._servers) for name, tenant in named.items()
            }
            for name, tenant in named.items():
                usage[name].limit(tenant)
            self._usage, self.tenants = usage, tenants
            self._admin = hash_token(admin_token) if admin_token else ""

    def share(self, servers: int) -> None:
        """Take a part of each tenant's limits alone, where so many servers share them."""
        with self._lock:
            self._servers = servers
            for usage in self._usage.values():
                usage.share(servers)

    @property
    def has_admin(self) -> bool:
        return bool(self._admin)

    def authorise(self, metadata: Metadata, adapter: str | None, *, base: str = "") -> str:
        """Tenant of a request, who may use the adapter (None: the base) on that base; empty where there are no tenants.

        Quick and without consequences: it is also called to list the adapters of a tenant. Raises AccessError.
        """
        if self.tenants is None:
            return ""
        tenant = self._tenant(metadata)
        if adapter is not None and not is_listed(tenant.adapters, adapter, base):
            raise AccessError(f"The adapter '{adapter}' is not among those that this token may use.")
        return tenant.name

    def admit(self, metadata: Metadata) -> str:
        """Tenant of a new request, which has not used up what it may send. Raises AccessError."""
        name = self.authorise(metadata, None)
        usage = self._usage.get(name)
        if usage is None:
            return name
        with self._lock:
            seconds = usage.wait()
        if seconds > 0:
            raise AccessError(
                f"'{name}' has used up what it may send in a minute; try again in {math.ceil(seconds)} s.",
                fault="rate",
                retry_after=seconds,
            )
        return name

    def priority(self, tenant: str) -> str:
        """Priority of a tenant's requests, empty where it has none."""
        usage = self._usage.get(tenant)
        return "" if usage is None else usage.limits.priority

    @contextmanager
    def session(self, tenant: str, *, requests: int = 1) -> Iterator[None]:
        """One of the tenant's places, for a call, a transcription or a realtime session that is open.

        requests: charged as soon as it opens. Raises AccessError where every place is taken.
        """
        usage = self._usage.get(tenant)
        if usage is None:
            yield
            return
        with self._lock:
            if usage.open >= usage.places:
                raise AccessError(
                    f"'{tenant}' has {usage.open} calls and sessions open, as many as are allowed; end one first.",
                    fault="rate",
                    retry_after=1.0,
                )
            usage.open += 1
            usage.requests.take(requests)
        try:
            yield
        finally:
            with self._lock:
                usage.open -= 1

    def authorise_admin(self, metadata: Metadata) -> None:
        """Raises AccessError without the administrator's token."""
        if not self._admin:
            raise AccessError("This server has no administration; start it with an admin token file.")
        if not self._is_admin(metadata):
            raise AccessError("The administrator's token is needed.", fault="unauthenticated")

    def authorise_learning(self, metadata: Metadata, adapter: str, *, base: str = "") -> str:
        """Tenant of whoever may have an adapter learn; empty for the administrator, and where there are no tenants.

        Raises AccessError.
        """
        if self.tenants is None or self._is_admin(metadata):
            return ""
        name = self.authorise(metadata, adapter, base=base)
        if not is_listed(self._tenant(metadata).learn, adapter, base):
            raise AccessError(f"The adapter '{adapter}' is not among those that learn from this token's corrections.")
        return name

    def authorise_metrics(self, metadata: Metadata) -> None:
        """Raises AccessError, except for the administrator, tenants of all adapters, and servers without tokens."""
        if self.tenants is None:
            return
        if self._is_admin(metadata):
            return
        if self._tenant(metadata).adapters is not None:
            raise AccessError("Metrics tell of all adapters; a token that may use all of them is needed.")

    def charge(self, tenant: str, *, requests: int = 0, audio_seconds: float = 0.0) -> None:
        """Count what a tenant has used since its session was opened."""
        usage = self._usage.get(tenant)
        if usage is not None:
            with self._lock:
                usage.requests.take(requests)
                usage.audio.take(audio_seconds)

    def _is_admin(self, metadata: Metadata) -> bool:
        hashes = [hash_token(token) for token in presented_tokens(metadata)]
        return bool(self._admin) and any(hmac.compare_digest(each, self._admin) for each in hashes)

    def _tenant(self, metadata: Metadata) -> Tenant:
        tokens = presented_tokens(metadata)
        assert self.tenants is not None
        found = self.tenants.get(hash_token(next(iter(tokens)))) if len(tokens) == 1 else None
        if found is None:
            raise AccessError("A valid token is needed: Authorization: Bearer TOKEN.", fault="unauthenticated")
        return found


def is_listed(places: frozenset[str] | None, adapter: str, base: str) -> bool:
    """Tell whether a list, None for all, holds an adapter of a base, by its name alone or with the base's."""
    return places is None or not places.isdisjoint((adapter, f"{base}:{adapter}"))


def presented_tokens(metadata: Metadata) -> set[str]:
    """Tokens in the headers of a request; some clients send the same header twice."""
    tokens = set()
    for name, value in metadata:
        if isinstance(value, bytes):
            continue
        if name == "authorization":
            scheme, _, token = value.strip().partition(" ")
            tokens.add(token.strip() if scheme.lower() == "bearer" else "")
        elif name == "x-api-key":
            tokens.add(value.strip())
    return tokens


def hash_token(token: str) -> str:
    """`sha256:…` of a token, as the file of tokens has it."""
    return f"sha256:{hashlib.sha256(token.encode('utf-8', 'surrogateescape')).hexdigest()}"


# Files


def read_tokens(path: Path) -> dict[str, Tenant]:
    """Tenants by the hash of their tokens. Raises UsageError, naming the file and the entry."""
    text = read_text(path, "tokens")
    try:
        data = read_values(text)
    except ValueError:  # its message may quote the file
        raise UsageError(f"{path} is no YAML of plain values, each key once.") from None
    try:
        return dict(read_tenants(data))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read_tenants(data: Any) -> Iterator[tuple[str, Tenant]]:
    """Hash of each token with its tenant. data: content of the file. Raises UsageError."""
    if not isinstance(data, dict) or set(data) != {"tenants"} or not isinstance(data["tenants"], dict):
        raise UsageError("one key is expected, 'tenants', with an entry for each.")
    if not data["tenants"]:
        raise UsageError("there is no tenant in it; nobody could ask anything.")
    seen: set[str] = set()
    for name, entry in data["tenants"].items():
        where = f"tenant '{name}'"
        allowed = {"tokens", *(field.name for field in fields(Tenant))} - {"name"}
        if not isinstance(name, str) or not name or not isinstance(entry, dict):
            raise UsageError(f"{where}: a name with an entry is expected.")
        for key in entry.keys() - allowed:
            raise UsageError(f"{where}: '{key}' is unknown.{did_you_mean(str(key), sorted(allowed))}")
        hashes = entry.get("tokens")
        if not isinstance(hashes, list) or not hashes:
            raise UsageError(f"{where}: 'tokens' must be a list of hashes, sha256:….")
        tenant = Tenant(
            name=name,
            adapters=read_adapters(entry.get("adapters"), where),
            learn=read_adapters(entry.get("learn", []), where, key="learn"),
            sessions=read_count(entry.get("sessions", SESSIONS), f"{where}: 'sessions'"),
            priority=read_priority(entry["priority"], f"{where}: 'priority'") if "priority" in entry else "",
            **{key: read_rate(entry[key], f"{where}: '{key}'") for key in RATES & entry.keys()},
        )
        for value in hashes:
            if not isinstance(value, str) or not HASH.fullmatch(value):
                raise UsageError(f"{where}: a token is told by its hash, sha256: and 64 digits 0-9a-f.")
            if value in seen:
                raise UsageError(f"{where}: a token is listed twice.")
            seen.add(value)
            yield value, tenant


def read_adapters(value: Any, where: str, *, key: str = "adapters") -> frozenset[str] | None:
    """Adapters of a tenant, None for all. where, key: their place, for the message. Raises UsageError."""
    if value == ALL:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{where}: '{key}' must be '{ALL}' or a list of names; [] allows {NONE[key]}.")
    try:
        return frozenset(check_place(name) for name in value)
    except AdapterError as error:
        raise UsageError(f"{where}: {error}") from error


def check_place(name: str) -> str:
    """`ADAPTER` or `BASE:ADAPTER` itself. Raises AdapterError where nothing can be called so."""
    base, colon, adapter = name.rpartition(":")
    check_name(adapter)
    if colon:
        check_name(base)
    return name


def check_bases(places: Iterable[str], where: str, known: Sequence[str]) -> None:
    """Raises UsageError for a `BASE:ADAPTER` whose base is not among the known ones. where: for the message."""
    for place in sorted(places):
        base, colon, _ = place.rpartition(":")
        if colon and base not in known:
            raise UsageError(
                f"{where}: '{place}': no base is called '{base}'.{did_you_mean(base, known)} Known: {', '.join(known)}."
            )


def read_admin_token(path: Path) -> str:
    """Token of the administrator, the one line of a file. Raises UsageError."""
    token = read_text(path, "the administrator's token").strip()
    if len(token) < SHORTEST_ADMIN_TOKEN or len(token.split()) != 1:
        raise UsageError(f"{path} must hold one token of {SHORTEST_ADMIN_TOKEN} characters or more, without spaces.")
    return token


def read_text(path: Path, what: str) -> str:
    """Text of a file of `what`. Raises UsageError."""
    try:
        return read_bytes(path, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}, the file of {what}, is no UTF-8.") from error


def read_bytes(path: Path, what: str) -> bytes:
    """Content of a file of `what`, if it is no larger than such a file can be. Raises UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}, the file of {what}, cannot be read: {error.strerror}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path} is too large to be the file of {what}.")
    return data
