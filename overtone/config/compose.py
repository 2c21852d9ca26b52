"""YAML files and overrides -> one plain dictionary. Hydra composes; a file decides nothing about the program.

A `hydra:` node may set the folders of a search, its parameters, and a launcher or sweeper of our list. `${…}` refers
to keys of the same configuration and to nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from overtone.errors import ConfigError, did_you_mean
from overtone.safe_yaml import read_values

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

SHIPPED = Path(__file__).resolve().parent.parent / "configs"
"""Folder of the configurations that come with the package."""

SAMPLED = ("n_trials", "n_jobs", "sampler", "pruner", "direction", "study_name", "storage", "max_failure_rate")
"""Keys of a search whose settings a sampler chooses."""

LAUNCHERS = ("basic", "nemo_launcher")
SWEEPERS = ("basic", "optuna")
HYDRA_KEYS = (
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    "hydra.sweeper.params",
    *(f"hydra.sweeper.{key}" for key in SAMPLED),
    "hydra.launcher.num_gpus",
    "hydra.launcher.jobs_per_gpu",
    "hydra.output_subdir",
)
"""Keys that a `hydra:` node or a `hydra.…` override may set."""

MAX_RUNS = 1000
"""Most runs of a search."""

_MAX_FILE_BYTES = 1_000_000
_REFERENCE = re.compile(r"\$\{[^${}:]*\}")
"""An innermost `${…}` that names a key."""


def find_file(config_path: str | None, config_name: str) -> Path:
    """Find the YAML file of a run: in the folder given, else the one of that name that is shipped.

    Raises ConfigError where neither exists.
    """
    if config_name.endswith(".yml"):
        raise ConfigError(f"{config_name}: the name of a configuration ends in .yaml; rename the file.")
    name = config_name if config_name.endswith(".yaml") else f"{config_name}.yaml"
    folder = Path(config_path).expanduser() if config_path else Path()
    candidates = [folder / name, SHIPPED / Path(name).name] if config_path or "/" in name else [SHIPPED / name]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    shipped = sorted(path.name for path in SHIPPED.glob("*.yaml"))
    raise ConfigError(
        f"There is no configuration {candidates[0]}; shipped are {', '.join(shipped)}. "
        "Give --config-path FOLDER and --config-name NAME.yaml."
    )


def compose(
    overrides: Sequence[str], *, config_path: str | None = None, config_name: str = "asr_adaptation"
) -> dict[str, Any]:
    """Compose the configuration as plain data, references resolved; `???` stands for values that have to be given.

    Raises ConfigError for files that cannot be read, for overrides that cannot be understood, and for anything that
    reaches outside the configuration.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    file = find_file(config_path, config_name)
    check_file(file)
    lines = [rewrite(override, file) for override in parse(overrides)]
    search = f"hydra.searchpath=['file://{_quoted(SHIPPED)}']"
    try:
        with initialize_config_dir(str(file.parent), version_base="1.3"):
            config = hydra_compose(file.stem, overrides=[*lines, search])
        check_references(OmegaConf.to_container(config, resolve=False), "")
        plain = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{file.name}: {_first_lines(error)}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


# Overrides


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse `key=value`, `+key=value`, `++key=value` and `~key` as Hydra does. Raises ConfigError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed = []
    for override in overrides:
        try:
            parsed.append(parser.parse_override(override))
        except HydraException as error:
            raise ConfigError(
                f"'{override}' is no override: {_first_lines(error)}. Write key=value, and values with special "
                "characters in quotes twice: \"key='value'\"."
            ) from error
    return parsed


def rewrite(override: Override, file: Path) -> str:
    """Rewrite an override for Hydra. Raises ConfigError for one that may not be given.

    NeMo's documents set keys that its files do not define, without a `+`. Whether a key exists is checked later, with
    all others, so that every setting is forced in. A folder beside the file is a group: of its files one is chosen.
    """
    line = str(override.input_line)
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        _check_hydra_key(key, override.value() if not override.is_delete() else None, "the command line")
    if override.is_delete():
        return line
    if override.is_sweep_override():
        return _as_list(override)
    if "/" not in key and not (file.parent / key).is_dir():
        return "++" + line.lstrip("+")
    for other in _named_files({key: override.value()}, file):
        check_file(other)
    return line


def _as_list(override: Override) -> str:
    """Take `a,b` as a list of manifests or archives. Raises ConfigError for anything else: it is a search."""
    line = override.input_line.lstrip("+") if override.input_line else ""
    key, _, value = line.partition("=")
    if key.endswith(("manifest_filepath", "tarred_audio_filepaths")) and "(" not in value:
        return f"++{key}=[{value}]"
    raise ConfigError(
        f"'{line}' gives several values, which is a search over several runs: give --multirun too. "
        f"One value that is a list is written {key}=[{value}]."
    )


# Files


def check_file(file: Path, seen: frozenset[Path] = frozenset()) -> None:
    """Refuse what a configuration may not say, in the file and in those that its defaults name. Raises ConfigError."""
    if file in seen:
        return
    data = read_yaml(file)
    hydra = data.get("hydra")
    if hydra is not None:
        for key, value in _leaves(hydra, "hydra"):
            _check_hydra_key(key, value, file.name)
    defaults = data.get("defaults", [])
    if not isinstance(defaults, list):
        raise ConfigError(f"{file.name}: 'defaults' is no list.")
    for entry in defaults:
        for other in _named_files(entry, file):
            check_file(other, seen | {file})


def read_yaml(file: Path) -> dict[Any, Any]:
    """Read the content of a file by itself. Raises ConfigError."""
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{file} is larger than {_MAX_FILE_BYTES} bytes; a configuration is a small file.")
        data = read_values(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {_first_lines(error)}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds {type(data).__name__}, no keys and values.")
    return data


def _named_files(entry: Any, file: Path) -> Iterable[Path]:
    """Yield the files that one entry of a defaults list stands for."""
    pairs = entry.items() if isinstance(entry, dict) else [(None, entry)]
    named = [(group, option) for group, value in pairs for option in (value if isinstance(value, list) else [value])]
    for group, option in named:
        if "$" in f"{group}{option}":
            raise ConfigError(f"{file.name}: '{entry}' in 'defaults' is computed; name the file itself.")
        if not isinstance(option, str) or option == "_self_":
            continue
        words = str(group or "").split()
        name = words[-1].partition("@")[0].strip("/") if words else ""
        if name.startswith("hydra"):
            _check_hydra_key(name, option, file.name)
            continue
        for folder in (file.parent, SHIPPED):
            candidate = (folder / name / f"{option.partition('@')[0].strip('/').removesuffix('.yaml')}.yaml").resolve()
            if candidate.is_file():
                yield candidate
                break


def _check_hydra_key(key: str, value: Any, where: str) -> None:
    """Raises ConfigError where a hydra key is not one of the few that may be set."""
    group = key.replace("/", ".")
    choices = {"hydra.launcher": LAUNCHERS, "hydra.sweeper": SWEEPERS}.get(group)
    if choices is not None:
        if value not in choices:
            raise ConfigError(
                f"{where}: {key} '{value}' is not available.{did_you_mean(str(value), choices)} "
                f"Known are {', '.join(choices)}."
            )
    elif not any(group == known or group.startswith(f"{known}.") for known in HYDRA_KEYS):
        raise ConfigError(
            f"{where}: '{key}' may not be set.{did_you_mean(group, HYDRA_KEYS)} "
            f"Allowed are {', '.join(HYDRA_KEYS)}, and hydra/launcher and hydra/sweeper from a list."
        )


def _leaves(node: Any, path: str) -> Iterable[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path, node


def check_references(node: Any, path: str) -> None:
    """Raises ConfigError where a `${…}` asks for more than a key, such as the environment."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            check_references(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_references(value, f"{path}[{index}]")
    elif isinstance(node, str) and "${" in node:
        rest, before = node, ""
        while rest != before:
            rest, before = _REFERENCE.sub("x", rest), rest
        if "${" in rest:
            raise ConfigError(
                f"{path}: '{node}' asks for more than a key of the configuration; only ${{key}} is allowed, "
                "never the environment. Write the value itself."
            )


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace("'", "\\'")


def _first_lines(error: BaseException) -> str:
    """Return the message without Hydra's pointers into its grammar."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("See https", "full_key", "object_type", "reference_type"))]
    return " ".join(kept[:3]).rstrip(".")


def quoted(path: Path) -> str:
    """Quote a path as an override's value, whatever characters it has but `${`, which YAML takes for a reference."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


# Searches


class Combination(NamedTuple):
    """One run of a search."""

    chosen: tuple[str, ...]
    """The overrides that tell it from the other runs."""
    overrides: list[str]
    """All of its overrides."""


def combinations(
    overrides: Sequence[str], *, config_path: str | None = None, config_name: str = "asr_adaptation"
) -> list[Combination]:
    """List the combinations of overrides with several values, in the order of Hydra's basic sweeper.

    `a=1,2`, `a=choice(1,2)` and `a=range(1,3)` are several values, and so are `hydra.sweeper.params` of the file.
    The last key changes fastest. Raises ConfigError for values that cannot be counted up, and for more than `MAX_RUNS`
    runs.
    """
    words = parse(overrides)
    given = {word.key_or_group for word in words}
    file = find_file(config_path, config_name)
    words = [word for word in parse(file_search(read_yaml(file))[1]) if word.key_or_group not in given] + words
    values = [list(islice(_values(word), MAX_RUNS + 1)) for word in words]
    runs = prod(map(len, values))
    if runs > MAX_RUNS:
        raise ConfigError(f"This is a search of more than {MAX_RUNS} runs; give fewer values.")
    several = [word.is_sweep_override() for word in words]
    return [
        Combination(tuple(line for line, is_one in zip(lines, several, strict=True) if is_one), list(lines))
        for lines in product(*values)
    ]


def file_search(file: dict[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of the sweeper that a file sets, and the search that it describes, as overrides."""
    node: Any = file.get("hydra")
    sweeper = node.get("sweeper") if isinstance(node, dict) else None
    keys = dict(sweeper) if isinstance(sweeper, dict) else {}
    params = keys.pop("params", None)
    return keys, [f"{key}={value}" for key, value in params.items()] if isinstance(params, dict) else []


def launcher_keys(file: Path) -> dict[str, Any]:
    """The keys of a launcher that a file sets, `num_gpus` and `jobs_per_gpu`. Raises ConfigError."""
    node: Any = read_yaml(file).get("hydra")
    launcher = node.get("launcher") if isinstance(node, dict) else None
    return dict(launcher) if isinstance(launcher, dict) else {}


def _values(word: Override) -> Iterator[str]:
    """Yield the override once for each of its values."""
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
