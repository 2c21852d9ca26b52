"""YAML as plain data: a safe loader, numbers as omegaconf reads them, `${…}` within the file alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from overtone.budgets import UNFOLDED_VALUES, Budget
from overtone.errors import CheckpointError
from overtone.safe_yaml import DEPTH, FLOAT_TAG, TIMESTAMP_TAG, SafeLoader, new_reader, read_values

FLOAT = re.compile(
    r"""^(?:
     [-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |[-+]?\.[0-9_]+(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
"""As omegaconf does, `1e-5` is a number too."""
REFERENCE = re.compile(r"\$\{([^${}]*)\}")
MULTIPLY = "multiply"
"""The resolver of NeMo's that is followed: the product of two numbers, such as `${multiply:${model.width}, 4}`."""


def _reading() -> Any:
    """A safe reader with omegaconf's floats."""
    reader = new_reader(SafeLoader, without=(FLOAT_TAG, TIMESTAMP_TAG))
    reader.add_implicit_resolver(FLOAT_TAG, FLOAT, list("-+0123456789."))
    return reader


def _writing(dumper: Any) -> Any:
    """A safe dumper class that quotes, as omegaconf does, what a reader could take for a number or for yes and no."""
    writer: Any = type("Writer", (dumper,), {"yaml_implicit_resolvers": dict(dumper.yaml_implicit_resolvers)})
    writer.add_implicit_resolver(FLOAT_TAG, FLOAT, list("-+0123456789."))
    writer.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^[yYnN]$"), list("yYnN"))
    return writer


Reader = _reading()
Writer = _writing(getattr(yaml, "CSafeDumper", yaml.SafeDumper))


def read_yaml(text: bytes | str, source: str) -> dict[str, Any]:
    """The mapping that a file holds, `${…}` as it stands. Raises CheckpointError, beginning with `source`."""
    try:
        content = read_values(text, reader=Reader)
    except ValueError as error:
        raise CheckpointError(f"{source} is no plain YAML: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{source} holds no configuration: a mapping of keys is needed.")
    return content


def write_yaml(content: Mapping[str, Any]) -> str:
    """YAML that `read_yaml` and omegaconf read back as the same plain data."""
    text: str = yaml.dump(_plain(content), Dumper=Writer, sort_keys=False, allow_unicode=True, width=2**20)
    return text


def refuse_resolvers(content: Any, source: str, key: str = "") -> None:
    """Raise CheckpointError for any `${name:…}`, which would reach outside of the file."""
    if isinstance(content, dict):
        for name, value in content.items():
            refuse_resolvers(value, source, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            refuse_resolvers(value, source, f"{key}[{index}]")
    elif isinstance(content, str):
        for reference in REFERENCE.findall(content):
            if ":" in reference and reference.partition(":")[0].strip() != MULTIPLY:
                raise CheckpointError(
                    f"{source}: {key} is '{content}', which asks for the resolver '{reference.partition(':')[0]}'. "
                    f"Only references to keys of the same file and {MULTIPLY} are followed; write the value itself."
                )


def resolved(root: Mapping[str, Any], path: str, source: str) -> Any:
    """The value at a dotted path with every `${key.path}` (or relative `${.key}`) replaced by what it names.

    Raises CheckpointError where a reference leads nowhere or in a circle.
    """
    return _Resolver(root, source).value(_walk(root, path.split(".") if path else []), path.split("."), 0)


class _Resolver:
    """One pass over a part of a configuration."""

    def __init__(self, root: Mapping[str, Any], source: str) -> None:
        self.root = root
        self.source = source
        self.budget = Budget(steps=UNFOLDED_VALUES)

    def value(self, value: Any, path: list[str], depth: int) -> Any:
        if depth > DEPTH:
            raise CheckpointError(f"{self.source}: the references of {'.'.join(path)} lead in a circle.")
        try:
            self.budget.step()
            if isinstance(value, str):
                self.budget.hold(len(value))
        except ValueError as error:
            raise CheckpointError(f"{self.source}: at {'.'.join(path)}, {error}.") from error
        if isinstance(value, dict):
            return {key: self.value(item, [*path, str(key)], depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, [*path, str(index)], depth + 1) for index, item in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return self.text(value, path, depth)
        return value

    def text(self, text: str, path: list[str], depth: int) -> Any:
        whole = REFERENCE.fullmatch(text)
        if whole is not None:
            return self.target(whole[1], path, text, depth)
        if REFERENCE.search(text) is None:
            return text
        replaced = REFERENCE.sub(lambda found: str(self.target(found[1], path, text, depth)), text)
        return self.value(replaced, path, depth + 1)

    def target(self, reference: str, path: list[str], text: str, depth: int) -> Any:
        resolver, colon, arguments = reference.partition(":")
        if colon and resolver.strip() == MULTIPLY:
            return self.product(arguments, path, text)
        keys = re.sub(r"\[([^\]]*)\]", r".\1", reference.strip())
        dots = len(keys) - len(keys.lstrip("."))
        names = [name.strip("'\"") for name in keys.lstrip(".").split(".")]
        full = [*path[: len(path) - dots], *names] if dots else names
        try:
            found = _walk(self.root, full)
        except (KeyError, IndexError, TypeError, ValueError):
            raise CheckpointError(
                f"{self.source}: {'.'.join(path)} is '{text}', but the file holds no key '{'.'.join(full)}'."
            ) from None
        return self.value(found, full, depth + 1)

    def product(self, arguments: str, path: list[str], text: str) -> int | float:
        try:
            first, second = (yaml.load(each, Reader) for each in arguments.split(","))
            if type(first) not in (int, float) or type(second) not in (int, float):
                raise ValueError(arguments)
        except (ValueError, yaml.YAMLError):
            raise CheckpointError(
                f"{self.source}: {'.'.join(path)} is '{text}', but {MULTIPLY} is of two numbers."
            ) from None
        return first * second  # type: ignore[no-any-return]


def _walk(value: Any, keys: list[str]) -> Any:
    for key in keys:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def _plain(value: Any) -> Any:
    """Dicts, lists and values of their own, so that nothing is written as an alias."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
