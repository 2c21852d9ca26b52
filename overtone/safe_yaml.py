"""YAML from untrusted files as plain values: mappings, lists, texts, numbers, true, false and null.

Dates, other objects, double keys, endless nesting and aliases that unfold to more than fits are refused.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import yaml

DEPTH = 60
"""Levels of mappings and lists: more than any file of ours or of NeMo's has."""
MOST = 4 << 20
"""Values and characters of all texts together, aliases unfolded."""
NUMBER_BITS = 1023
"""The largest whole number, in bits: what a float can hold, and JSON can say."""

FLOAT_TAG = "tag:yaml.org,2002:float"
MERGE_TAG = "tag:yaml.org,2002:merge"
TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
MISTAGGED = (LookupError, AttributeError, TypeError, ArithmeticError)
"""The errors of PyYAML where a value is not what its `!!tag` says."""


def new_reader(loader: Any, *, without: tuple[str, ...] = (TIMESTAMP_TAG,)) -> Any:
    """A subclass of the safe loader that resolves no value to the tags left out, and refuses double keys."""
    resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag not in without]
        for first, pairs in loader.yaml_implicit_resolvers.items()
    }
    reader: Any = type("Reader", (loader,), {"yaml_implicit_resolvers": resolvers})
    reader.add_constructor("tag:yaml.org,2002:map", _mapping_once)
    return reader


def _mapping_once(loader: Any, node: Any) -> dict[Any, Any]:
    """A mapping without double keys; it may override a key that it merges (`<<`)."""
    own = set()
    for key_node, _ in node.value:
        if key_node.tag == MERGE_TAG:
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None) or key in own:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", key_node.start_mark)
        own.add(key)
    loader.flatten_mapping(node)
    build = partial(loader.construct_object, deep=True)
    return {build(key_node): build(value_node) for key_node, value_node in node.value}


SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Reader = new_reader(SafeLoader)


def read_values(text: bytes | str, *, reader: Any = Reader) -> Any:
    """Read the plain value of a YAML text. Raises ValueError, with a message of one line, for anything else."""
    try:
        _check_depth(text)
        content = yaml.load(text, Loader=reader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split()).rstrip(".")) from error
    except MISTAGGED as error:
        raise ValueError(f"a value is not what its tag says ({type(error).__name__} {error})") from error
    _check_values(content)
    return content


def _check_depth(text: bytes | str) -> None:
    """Refuse deep nesting before anything is built, because the builder calls itself for every level."""
    depth = 0
    for event in yaml.parse(text, Loader=SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise ValueError(f"it nests deeper than {DEPTH} levels")


def _check_values(content: Any) -> None:
    """Refuse huge structures, counted with their aliases unfolded: a small file can name one."""
    pending, size = [(content, 0)], 0
    while pending:
        value, depth = pending.pop()
        size += 1 + (len(value) if isinstance(value, str) else 0)
        if size > MOST or depth > DEPTH:
            raise ValueError("its aliases unfold to more values than any such file holds")
        if isinstance(value, dict):
            pending += [(part, depth + 1) for item in value.items() for part in item]
        elif isinstance(value, list):
            pending += [(item, depth + 1) for item in value]
        elif isinstance(value, int) and value.bit_length() > NUMBER_BITS:
            raise ValueError("it holds a number that is too large")
        elif not isinstance(value, str | int | float | None):
            raise ValueError(f"it holds a value of type {type(value).__name__}; texts and numbers are accepted")
