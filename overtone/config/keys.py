"""Tables of keys: a section of somebody else's configuration as keyword arguments of ours, checked and renamed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from overtone.errors import CheckpointError, did_you_mean

REQUIRED = object()
Check = Callable[[Any], Any]


class NotSupportedError(Exception):
    """The message says what is supported."""


@dataclass(frozen=True)
class Key:
    """One key of a section."""

    theirs: str
    """Name in the configuration."""
    ours: str
    """The keyword argument it becomes."""
    check: Check
    """Returns the value as it is passed on, or raises NotSupportedError."""
    default: Any = REQUIRED
    back: Callable[[Any], Any] = lambda value: value
    """The value for writing."""


def integer(at_least: int = 1, at_most: int = 1_000_000) -> Check:
    """Make a check for a whole number within limits."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise NotSupportedError(f"a whole number from {at_least} to {at_most}")
        if not at_least <= value <= at_most:
            raise NotSupportedError(f"a whole number from {at_least} to {at_most}")
        return int(value)

    return check


def number(at_least: float = -math.inf, at_most: float = math.inf) -> Check:
    """Make a check for a finite number within limits."""

    def check(value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not at_least <= value <= at_most or not math.isfinite(value):
            limits = [f"from {at_least:g}"] * math.isfinite(at_least) + [f"to {at_most:g}"] * math.isfinite(at_most)
            raise NotSupportedError(" ".join(["a finite number", *limits]))
        return float(value)

    return check


def flag(value: Any) -> bool:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise NotSupportedError("true or false")
    return value


def a_list(value: Any) -> list[Any]:
    """Check for a list; null is an empty one."""
    if not isinstance(value, list | tuple | None):
        raise NotSupportedError("a list")
    return list(value or ())


def one_of(*allowed: str) -> Check:
    """Make a check for a word out of a list."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise NotSupportedError(", ".join(allowed))
        return value

    return check


def optional(check: Check) -> Check:
    """A check that also takes null."""
    return lambda value: None if value is None else check(value)


def read_section(
    section: Any,
    keys: tuple[Key, ...],
    where: str,
    *,
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
    idle: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Read a section as keyword arguments, complete with NeMo's defaults.

    `fixed`: keys with the only values that are supported. `idle`: keys that may hold anything.
    Raises CheckpointError naming key, value and what is supported.
    """
    if not isinstance(section, dict):
        raise CheckpointError(f"{where} is {section!r}; a mapping of keys is needed.")
    fixed = fixed or {}
    known = {key.theirs for key in keys} | set(fixed) | set(idle) | {"_target_"}
    for name, value in section.items():
        if name in fixed and value not in fixed[name]:
            refuse(where, name, value, ", ".join(map(shown, fixed[name])))
        if name not in known and value is not None:
            raise CheckpointError(
                f"{where}.{name} is {shown(value)}; this key is unknown and could change the numbers."
                f"{did_you_mean(str(name), known)} Known: {', '.join(sorted(known))}."
            )
    return {key.ours: read_key(section, key, where) for key in keys}


def read_key(section: Mapping[str, Any], key: Key, where: str) -> Any:
    """Read one key of a section. Raises CheckpointError where it is missing or not supported."""
    value = section.get(key.theirs, key.default)
    if value is REQUIRED or value == "???":
        raise CheckpointError(f"{where}.{key.theirs} is missing.")
    try:
        return key.check(value)
    except NotSupportedError as error:
        refuse(where, key.theirs, value, str(error))
    except (TypeError, ValueError, OverflowError):
        refuse(where, key.theirs, value, "a plain value")


def refuse(where: str, name: str, value: Any, supported: str) -> NoReturn:
    """Raises CheckpointError for the value of a key. supported: the values that are."""
    raise CheckpointError(f"{where}.{name} is {shown(value)}, which is not supported yet. Supported: {supported}.")


def shown(value: Any) -> str:
    """A value as YAML spells it, shortened."""
    text = str(value)
    if value is None or isinstance(value, bool):
        text = "null" if value is None else text.lower()
    return text if len(text) <= 80 else text[:77] + "…"


def write_section(settings: Mapping[str, Any], keys: tuple[Key, ...]) -> dict[str, Any]:
    """The section that `read_section` reads as these settings."""
    return {key.theirs: key.back(settings[key.ours]) for key in keys}
