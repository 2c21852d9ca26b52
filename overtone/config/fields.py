"""Fields of settings: how they are declared, built from plain data with every mistake named, and made plain again."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from overtone.errors import ConfigError, did_you_mean

T = TypeVar("T")

NOT_GIVEN = "???"
"""YAML's mark for a value that the user has to give."""

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}


FORMER_KEYS = {
    "gpus": "trainer.devices (and trainer.accelerator=gpu)",
    "tpu_cores": "trainer.devices (and trainer.accelerator)",
    "num_gpus": "trainer.devices (and trainer.accelerator=gpu)",
    "distributed_backend": "trainer.strategy",
    "amp_level": "trainer.precision",
    "checkpoint_callback": "exp_manager.create_checkpoint_callback",
    "resume_from_checkpoint": "exp_manager.resume_if_exists",
    "init_from_nemo_model": "model.nemo_model",
    "init_from_pretrained_model": "model.pretrained_model",
    "init_from_ptl_ckpt": "model.nemo_model, a .nemo that NeMo has made of the checkpoint",
}
"""Keys of earlier versions of NeMo and Lightning -> those of today."""


# Declaring


def bounded(
    default: Any, *, at_least: float | None = None, at_most: float | None = None, above: float | None = None
) -> Any:
    """Declare a number within limits; `above` excludes the limit itself."""
    limits = {"at_least": at_least, "at_most": at_most, "above": above}
    return field(default=default, metadata={name: x for name, x in limits.items() if x is not None})


def only(default: Any, *others: Any, instead: str) -> Any:
    """Declare a field of NeMo or Lightning that supports these values alone; `instead` is the advice."""
    return field(default=default, metadata={"only": (default, *others), "instead": instead})


def one_of(default: Any, names: Sequence[str]) -> Any:
    """Declare a word out of a list."""
    return field(default=default, metadata={"one_of": tuple(names)})


def target_of(names: Sequence[str]) -> Any:
    """Declare a `_target_` string out of a list; the first is the default."""
    return field(default=names[0], metadata={"key": "_target_", "one_of": tuple(names)})


def section(kind: type, key: str | None = None) -> Any:
    """Declare a section with fields of its own."""
    return field(default_factory=kind, metadata={"key": key} if key else {})


# Building


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Mistakes and missing keys that the check of one configuration has found."""

    mistakes: list[str] = field(default_factory=list)
    """One line each, beginning with the key."""
    missing: set[str] = field(default_factory=set)
    """Keys that are `???` and have no value."""

    def add(self, path: str, message: str) -> None:
        self.mistakes.append(f"{path}: {message}")

    def raise_if_any(self) -> None:
        """Raises ConfigError with all mistakes."""
        if len(self.mistakes) == 1:
            raise ConfigError(self.mistakes[0])
        if self.mistakes:
            lines = "\n".join(f"  {line}" for line in self.mistakes)
            raise ConfigError(f"{len(self.mistakes)} mistakes in the configuration:\n{lines}")


def key_of(item: Field[Any]) -> str:
    """Return the name of the field in YAML."""
    key: str = item.metadata.get("key", item.name)
    return key


def build(kind: type[T], data: Mapping[str, Any], findings: Findings, *, path: str = "") -> T:
    """Build settings of a kind; mistakes go into the findings, and a wrong value keeps its default."""
    hints, listed = get_type_hints(kind), fields(kind)  # type: ignore[arg-type]
    items = {key_of(item): item for item in listed if "rest" not in item.metadata}
    rest = next((item for item in listed if "rest" in item.metadata), None)
    usual: Mapping[str, Any] = getattr(kind(), rest.name) if rest is not None else {}
    values: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    for key, value in data.items():
        where = f"{path}.{key}" if path else str(key)
        item = items.get(str(key))
        if item is not None:
            result = _field_value(item, hints[item.name], value, where, findings)
            if result is not MISSING:
                values[item.name] = result
            continue
        section_kind = rest.metadata["rest"](str(key), value) if rest is not None else None
        if section_kind is not None and isinstance(value, Mapping):
            sections[str(key)] = build(section_kind, value, findings, path=where)
        else:
            findings.add(where, _unknown(str(key), value, [*items, *usual]))
    if rest is not None:
        values[rest.name] = {**usual, **sections}
    return kind(**values)


def _unknown(key: str, value: Any, allowed: list[str]) -> str:
    if isinstance(value, Mapping) and "_target_" in value:
        return f"unknown _target_ '{value['_target_']}'; classes are looked up in a list and never imported."
    if key in FORMER_KEYS:
        return f"unknown key. It is called {FORMER_KEYS[key]} today."
    near = did_you_mean(key, allowed)
    return f"unknown key.{near}" if near else f"unknown key; known are {', '.join(sorted(allowed))}."


def _field_value(item: Field[Any], hint: Any, value: Any, where: str, findings: Findings) -> Any:
    """Return the checked value, or MISSING where the default stays."""
    if isinstance(value, str) and value == NOT_GIVEN:
        findings.missing.add(where)
        if item.default is not None:
            findings.add(where, "has to be given.")
        return MISSING
    if "only" in item.metadata and value not in item.metadata["only"]:
        findings.add(where, f"{_shown(value)} is not supported; {item.metadata['instead']}.")
        return MISSING
    before = len(findings.mistakes)
    result = convert(hint, value, where, findings)
    if len(findings.mistakes) > before:
        return result if is_dataclass(result) else MISSING
    problem = None if "only" in item.metadata else _limits(item.metadata, result)
    if problem:
        findings.add(where, problem)
        return MISSING
    return result


def _limits(metadata: Mapping[str, Any], value: Any) -> str | None:
    """Return what is wrong with a value of the right type."""
    if "one_of" in metadata and value not in metadata["one_of"]:
        names = metadata["one_of"]
        return f"unknown '{value}'.{did_you_mean(str(value), names)} Known are {', '.join(names)}."
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return f"{value} is no finite number."
    if "at_least" in metadata and value < metadata["at_least"]:
        return f"{value} is too small; it is at least {metadata['at_least']}."
    if "at_most" in metadata and value > metadata["at_most"]:
        return f"{value} is too large; it is at most {metadata['at_most']}."
    if "above" in metadata and value <= metadata["above"]:
        return f"{value} is too small; it is more than {metadata['above']}."
    return None


def convert(hint: Any, value: Any, where: str, findings: Findings) -> Any:
    """Convert a value to the type that the annotation asks for; a mistake where it is none of them."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        kind = get_origin(option) or option
        if is_dataclass(kind) and isinstance(value, Mapping):
            return build(kind, value, findings, path=where)  # type: ignore[arg-type]
        if kind is Literal and value in get_args(option):
            return value
        if kind is Any or (kind is type(None) and value is None):
            return value
        if kind is tuple and isinstance(value, list | tuple):
            element = get_args(option)[0]
            return tuple(convert(element, entry, f"{where}[{index}]", findings) for index, entry in enumerate(value))
        if kind is Mapping and isinstance(value, Mapping):
            return dict(value)
        if kind in (bool, int, float, str) and type(value) is kind:
            return value
    loose = _loosely([get_origin(option) or option for option in options], value)
    if loose is not None:
        return loose
    findings.add(where, f"{_shown(value)} is not {_allowed(options)}.")
    return None


def _loosely(kinds: list[Any], value: Any) -> Any:
    """Convert numbers in place of text or of other numbers, and numbers written as text (`1e-5`)."""
    if isinstance(value, bool):
        return None
    if float in kinds and isinstance(value, int | str):
        try:
            return float(value)
        except ValueError:
            return None if str not in kinds else value
    if int in kinds and (
        (isinstance(value, float) and value.is_integer()) or (isinstance(value, str) and value.lstrip("+-").isdigit())
    ):
        return int(value)
    return str(value) if str in kinds and isinstance(value, int | float) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _allowed(options: tuple[Any, ...]) -> str:
    words = []
    for option in options:
        kind = get_origin(option) or option
        if kind is Literal:
            words += [f"'{name}'" for name in get_args(option)]
        elif kind is tuple:
            words.append("a list")
        elif is_dataclass(kind) or kind is Mapping:
            words.append("a section with keys of its own")
        else:
            words.append(_WORDS.get(kind, str(kind)))
    return " or ".join(words)


# Plain data again


def to_plain(value: Any) -> Any:
    """Turn settings into plain data under the keys of the YAML."""
    if is_dataclass(value):
        content: dict[str, Any] = {}
        for item in fields(value):
            inner = to_plain(getattr(value, item.name))
            if "rest" in item.metadata:
                content.update(inner)
            else:
                content[key_of(item)] = inner
        return content
    if isinstance(value, dict):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    return value
