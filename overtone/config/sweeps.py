"""Several values for a key -> one list of overrides for each combination, in the order of Hydra's basic sweeper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, product
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from overtone.config.compose import find_file, parse, read_yaml
from overtone.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MOST = 1000
"""Runs of a search."""


class Combination(NamedTuple):
    chosen: tuple[str, ...]
    """The overrides that tell it from the others."""
    overrides: list[str]
    """All of its overrides."""


def combinations(
    overrides: Sequence[str], *, config_path: str | None = None, config_name: str = "asr_adaptation"
) -> list[Combination]:
    """`a=1,2`, `a=choice(1,2)` and `a=range(1,3)` are several values, and so are `hydra.sweeper.params` of the file.

    The last key changes fastest. Raises ConfigError for what cannot be counted up, and for more than `MOST` runs.
    """
    words = parse(overrides)
    given = {word.key_or_group for word in words}
    file = find_file(config_path, config_name)
    words = [word for word in parse(_params(read_yaml(file))) if word.key_or_group not in given] + words
    values = [list(islice(_values(word), MOST + 1)) for word in words]
    runs = prod(map(len, values))
    if runs > MOST:
        raise ConfigError(f"This is a search of more than {MOST} runs; give fewer values.")
    several = [word.is_sweep_override() for word in words]
    return [
        Combination(tuple(line for line, is_one in zip(lines, several, strict=True) if is_one), list(lines))
        for lines in product(*values)
    ]


def _params(file: dict[Any, Any]) -> list[str]:
    """What a file says of a search, as overrides."""
    node: Any = file
    for key in ("hydra", "sweeper", "params"):
        node = node.get(key) if isinstance(node, dict) else None
    return [f"{key}={value}" for key, value in node.items()] if isinstance(node, dict) else []


def _values(word: Override) -> Iterator[str]:
    """The override once for each of its values."""
    from hydra.errors import HydraException

    if not word.is_sweep_override():
        yield str(word.input_line)
        return
    try:
        for value in word.sweep_string_iterator():
            yield f"{word.get_key_element()}={value}"
    except HydraException as error:
        raise ConfigError(
            f"'{word.input_line}' cannot be counted up. Give the values themselves, as in key=1,2,3 or key=range(1,4)."
        ) from error
