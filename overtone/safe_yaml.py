"""YAML from untrusted files as plain values: mappings, lists, texts, numbers, true, false and null.

Dates, other objects, double keys, endless nesting and whatever unfolds to more than a budget are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import yaml

from overtone.budgets import NUMBER_CHARACTERS, TEXT, UNFOLDED_VALUES, YAML_VALUES, Budget

DEPTH = 60
"""Levels of mappings and lists: more than any file of ours or of NeMo's has."""
NUMBER_BITS = 1023
"""The largest whole number, in bits: what a float can hold, and JSON can say."""

TAG = "tag:yaml.org,2002:"
FLOAT_TAG = f"{TAG}float"
MERGE_TAG = f"{TAG}merge"
TIMESTAMP_TAG = f"{TAG}timestamp"
TEXT_TAG = f"{TAG}str"
SHORT_TAGS = (f"{TAG}null", f"{TAG}bool", f"{TAG}int", FLOAT_TAG, TIMESTAMP_TAG)
MISTAGGED = (LookupError, AttributeError, TypeError, ArithmeticError)
"""The errors of PyYAML where a value is not what its `!!tag` says."""


def new_reader(loader: Any, *, without: tuple[str, ...] = (TIMESTAMP_TAG,)) -> Any:
    """A subclass of the safe loader for plain values; it resolves nothing to the tags left out."""
    resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag not in without]
        for first, pairs in loader.yaml_implicit_resolvers.items()
    }
    built = loader.yaml_constructors
    constructors: dict[str | None, Any] = {
        **{tag: partial(_build_scalar, built[tag], NUMBER_CHARACTERS) for tag in SHORT_TAGS},
        **{tag: partial(_build_scalar, built[TEXT_TAG], TEXT) for tag in (TEXT_TAG, f"{TAG}value")},
        f"{TAG}seq": built[f"{TAG}seq"],
        f"{TAG}map": _build_mapping,
        f"{TAG}set": lambda loader, node: set(_build_mapping(loader, node)),
        None: built[None],
    }
    reader: Any = type("Reader", (loader,), {"yaml_implicit_resolvers": resolvers, "yaml_constructors": constructors})
    return reader


def _build_scalar(build: Callable[..., Any], longest: int, loader: Any, node: Any) -> Any:
    """A number, text, true, false or null. Raises ValueError for one that is too long."""
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(None, None, "a mapping or list has a scalar's tag", node.start_mark)
    if len(node.value) > longest:
        raise ValueError(f"a value of {len(node.value)} characters is too large: at most {longest} are allowed")
    return build(loader, node)


def _build_mapping(loader: Any, node: Any) -> dict[Any, Any]:
    """A mapping without double keys; it may override a key that it merges (`<<`).

    What is merged is built once, however often it is named. Raises ValueError where it unfolds to too much.
    """
    build = partial(loader.construct_object, deep=True)
    own: dict[Any, Any] = {}
    merged: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if key_node.tag == MERGE_TAG:
            for source in _merge_sources(build(value_node), value_node):
                loader.budget.step(len(source))
                merged.update(source)
            continue
        key = build(key_node)
        if not isinstance(key, str | int | float | bool | None) or key in own:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", key_node.start_mark)
        loader.budget.use_keys((key,))
        own[key] = value_node
    return merged | {key: build(value_node) for key, value_node in own.items()}


def _merge_sources(value: Any, node: Any) -> list[dict[Any, Any]]:
    """The mappings to merge, the one that counts most at the end."""
    sources = value[::-1] if isinstance(value, list) else [value]
    if not all(isinstance(source, dict) for source in sources):
        raise yaml.constructor.ConstructorError(None, None, "`<<` merges mappings alone", node.start_mark)
    return sources


SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Reader = new_reader(SafeLoader)


def read_values(text: bytes | str, *, reader: Any = Reader) -> Any:
    """Read the plain value of a YAML text. Raises ValueError, with a message of one line, for anything else."""
    try:
        _check_events(text)
        content = _load(text, reader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split()).rstrip(".")) from error
    except MISTAGGED as error:
        raise ValueError(f"a value is not what its tag says ({type(error).__name__} {error})") from error
    _check_values(content)
    return content


def _load(text: bytes | str, reader: Any) -> Any:
    loader = reader(text)
    loader.budget = Budget(steps=UNFOLDED_VALUES)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _check_events(text: bytes | str) -> None:
    """Refuse deep nesting and endless values before anything is built: the builder calls itself for every level."""
    depth, budget = 0, Budget(steps=2 * YAML_VALUES)  # a list begins and ends
    for event in yaml.parse(text, Loader=SafeLoader):
        budget.step()
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise ValueError(f"it nests deeper than {DEPTH} levels")


def _check_values(content: Any) -> None:
    """Refuse huge structures, counted with their aliases unfolded: a small file can name one."""
    pending, budget = [(content, 0)], Budget(steps=UNFOLDED_VALUES)
    while pending:
        value, depth = pending.pop()
        budget.step()
        if depth > DEPTH:
            raise ValueError("its aliases unfold to more levels than any such file holds")
        if isinstance(value, str):
            budget.hold(len(value))
        elif isinstance(value, dict):
            pending += [(part, depth + 1) for item in value.items() for part in item]
        elif isinstance(value, list):
            pending += [(item, depth + 1) for item in value]
        elif isinstance(value, int) and value.bit_length() > NUMBER_BITS:
            raise ValueError("it holds a number that is too large")
        elif not isinstance(value, int | float | None):
            raise ValueError(f"it holds a value of type {type(value).__name__}; texts and numbers are accepted")
