"""Kinds of adapters by name: those that come with the package, and those that a user registers."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from overtone.adapters.kinds.base import Kind, KnownKind, Tensors
from overtone.adapters.kinds.linear import LINEAR
from overtone.adapters.kinds.lora import LORA
from overtone.adapters.kinds.tiny_attention import TINY_ATTENTION
from overtone.adapters.strategies import ResidualAdd
from overtone.config import KindSettings, OwnKindSettings, StrategySettings
from overtone.errors import AdapterError, did_you_mean
from overtone.nets.taps import Bottleneck

KINDS: dict[str, KnownKind] = {known.name: known for known in (LINEAR, TINY_ATTENTION, LORA)}
NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED = (
    *("format", "name", "kind", "modules", "layers", "strategy", "points", "parameters", "parameters_digest"),
    *("base_fingerprint", "tokenizer_digest", "card", "words", "word_part", "vocabulary"),
)
"""Keys of an adapter's description, beside which the settings of its kind stand under the kind's name."""


def register_kind(
    kind: type[Kind],
    *,
    added: Callable[[Any, Tensors, Tensor, bool], Tensor | None] | None = None,
    bottleneck: Callable[[Any, Tensors, torch.dtype], Bottleneck | None] | None = None,
    reads_output_alone: bool = False,
    proportional: Callable[[Any], tuple[str, ...]] | None = None,
) -> None:
    """Make a kind of the user's own known by its name, so that its adapters can be trained and loaded from folders.

    kind: a frozen dataclass with a default for every setting; settings are plain values, and tuples of such.
    The others are fast forms that a kind may have; `KnownKind` says what each of them is.
    Raises AdapterError for what is no such class, and for a name that belongs to another kind.
    """
    make_default(kind)
    KINDS[kind.name] = KnownKind(
        kind=kind,
        added=added,
        bottleneck=bottleneck,
        reads_output_alone=reads_output_alone,
        proportional=proportional,
    )


def make_default(kind: Any) -> Kind:
    """The kind with its default settings. Raises AdapterError for what is no class of a kind with defaults."""
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise AdapterError(f"{kind!r} is no class of a kind: a frozen dataclass of settings is needed.")
    required = [
        item.name
        for item in fields(kind)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    if required:
        raise AdapterError(f"{kind.__name__}: give every setting a default; {', '.join(required)} has none.")
    made: Any = kind()
    check_kind(made)
    return made  # type: ignore[no-any-return]


def find_kind(kind: Kind | str) -> Kind:
    """A kind, or the one of that name with its default settings. Raises AdapterError for an unknown name."""
    if not isinstance(kind, str):
        return kind
    if kind not in KINDS:
        raise AdapterError(
            f"kind '{kind}' is unknown.{did_you_mean(kind, KINDS)} Known are {', '.join(KINDS)}, each with its default "
            "settings; others are given as objects, such as LinearAdapter(dim=64)."
        )
    return make_default(KINDS[kind].kind)


def check_kind(kind: object) -> None:
    """Raises AdapterError for what is no kind of adapter, and for one that bears the name of another."""
    name = type(kind).__name__
    if dataclasses.is_dataclass(kind) and type(kind).__hash__ is None:
        raise AdapterError(f"{name} is no frozen dataclass; write @dataclass(frozen=True) above it.")
    if isinstance(kind, type) or not dataclasses.is_dataclass(kind) or not isinstance(kind, Kind):
        raise AdapterError(f"{kind!r} is no kind of adapter; give one such as LinearAdapter(dim=32).")
    try:
        json.dumps(dataclasses.asdict(kind), allow_nan=False)
        hash(kind)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{kind!r}: its settings have to be plain values, and tuples of such ({error}).") from error
    if not NAME.fullmatch(kind.name) or kind.name in RESERVED:
        raise AdapterError(
            f"{name}: '{kind.name}' cannot be the name of a kind. Allowed: lower-case letters, digits and '_', "
            f"beginning with a letter; not {', '.join(RESERVED)}."
        )
    known = KINDS.get(kind.name)
    if known is not None and not is_same_class(known.kind, type(kind)):
        raise AdapterError(
            f"{name}: the name '{kind.name}' belongs to {known.kind.__name__} already; give the kind another."
        )


def is_same_class(one: type, other: type) -> bool:
    """True if both are the same class, or the same made anew by its module."""
    return one is other or (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def known(kind: Kind) -> KnownKind | None:
    """The entry of a kind, None where it is not registered."""
    found = KINDS.get(kind.name)
    return found if found is not None and found.kind is type(kind) else None


def check_registered(kind: Kind) -> None:
    """Raises AdapterError for a kind whose adapters could not be loaded again from their folders."""
    check_kind(kind)
    if kind.name not in KINDS:
        raise AdapterError(
            f"{type(kind).__name__} is not registered, so that adapters of it could be written but not loaded. "
            f"Call overtone.register_kind({type(kind).__name__}) first."
        )


# Sections of a configuration

SECTIONS: dict[type, KnownKind] = {each.section.settings: each for each in KINDS.values() if each.section is not None}
"""The kinds that a configuration can name, by the settings of their section."""


def kind_of(section: KindSettings) -> Kind:
    """The kind that a section `model.adapter.NAME` describes. Raises AdapterError for values that contradict it."""
    if isinstance(section, OwnKindSettings):
        own: Kind = section.kind
        return own
    found = SECTIONS[type(section)]
    assert found.section is not None
    build: Callable[..., Kind] = found.kind
    settings = {item.name for item in fields(found.kind)}  # type: ignore[arg-type]
    given = {found.section.names.get(key, key): value for key, value in vars(section).items()}
    return build(
        **{name: value for name, value in given.items() if name in settings}, **found.section.targets[section.target]
    )


def section_of(kind: Kind, strategy: ResidualAdd) -> KindSettings:
    """The section that describes a kind, the inverse of `kind_of`. Raises AdapterError for what is not registered."""
    check_registered(kind)
    form, values = KINDS[kind.name].section, {item.name: getattr(kind, item.name) for item in fields(kind)}  # type: ignore[arg-type]
    if form is None:
        name = f"{type(kind).__module__}.{type(kind).__qualname__}"
        return OwnKindSettings(target=name, kind=kind, adapter_strategy=StrategySettings(**vars(strategy)))
    keys = {ours: theirs for theirs, ours in form.names.items()}
    known_keys = {item.name for item in fields(form.settings)}
    given = {keys.get(name, name): value for name, value in values.items()}
    return form.settings(
        **{key: value for key, value in given.items() if key in known_keys},
        target=next(
            target
            for target, implied in form.targets.items()
            if all(values[name] == value for name, value in implied.items())
        ),
        adapter_strategy=replace(form.settings().adapter_strategy, **vars(strategy)),
    )
