"""NeMo's way of calling: `--config-path`, `--config-name` and `key=value` words."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from overtone.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from overtone.config import Purpose, Settings
    from overtone.config.sweeper import SampledSearch
    from overtone.search.trials import Trial

OVERRIDE = re.compile(r"^(\+{0,2}[A-Za-z_][\w./@-]*(\[[^=]*\])?=|~[A-Za-z_])")


def is_override(word: str) -> bool:
    """Return whether a word is `key=value`, `+key=value`, `++key=value` or `~key`; a file of such a name is a file."""
    return OVERRIDE.match(word) is not None and not os.path.exists(word)  # noqa: PTH110 (Path raises for long words)


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the YAML."""
    parser.add_argument("--config-path", "-cp", metavar="FOLDER", help="where the YAML lies")
    parser.add_argument(
        "--config-name", "-cn", metavar="NAME", help="of the YAML; asr_adaptation is shipped (default: asr_adaptation)"
    )
    parser.add_argument(
        "--multirun",
        "-m",
        action="store_true",
        help="train once for each combination of key=value1,value2 (overtone train)",
    )


def read_settings(arguments: argparse.Namespace, overrides: Sequence[str], purpose: Purpose) -> Settings:
    """Read the settings of a command.

    Raises UsageError for words that are no overrides, ConfigError with every mistake in the configuration.
    """
    from overtone import config

    if arguments.multirun:
        raise UsageError("--multirun is for training; an evaluation takes several adapters and manifests at once.")
    check_overrides(overrides)
    return config.load_settings(overrides, **configuration(arguments), purpose=purpose)


def load_settings(overrides: Sequence[str], arguments: argparse.Namespace) -> Settings:
    """Load the settings of a training with the YAML that the arguments choose. Raises ConfigError."""
    from overtone import config

    return config.load_settings(overrides, **configuration(arguments))


def read_sampled(arguments: argparse.Namespace, overrides: Sequence[str]) -> SampledSearch | None:
    """Read a search with a sampler; None for one that counts up its values. Raises UsageError and ConfigError."""
    from overtone.config.sweeper import read_search

    check_overrides(overrides)
    return read_search(overrides, **configuration(arguments))


def read_trials(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[Trial]:
    """Read the trainings of a search; all are checked before the first begins. Raises UsageError and ConfigError."""
    from overtone.config import combinations
    from overtone.search.trials import Trial, separate

    check_overrides(overrides)
    trials = []
    for chosen, words in combinations(overrides, **configuration(arguments)):
        try:
            settings = load_settings(words, arguments)
        except ConfigError as error:
            raise ConfigError(f"With {' '.join(chosen)}: {error}" if chosen else str(error)) from error
        trials.append(Trial(chosen=chosen, settings=settings, overrides=tuple(words)))
    return separate(trials)


def configuration(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the YAML that the arguments choose, as keyword arguments of `load_settings`."""
    return {"config_path": arguments.config_path, "config_name": arguments.config_name or "asr_adaptation"}


def configuration_words(arguments: argparse.Namespace) -> list[str]:
    """Return the options that choose the YAML, as they are given to a command."""
    given = (("--config-path", arguments.config_path), ("--config-name", arguments.config_name))
    return [f"{option}={value}" for option, value in given if value is not None]


def read_launcher(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keys `hydra.launcher` of the YAML and the command line. Raises ConfigError."""
    from overtone.config.compose import find_file, launcher_keys, parse

    chosen = configuration(arguments)
    keys = launcher_keys(find_file(chosen["config_path"], chosen["config_name"]))
    for override in parse(arguments.settings):
        if override.key_or_group.startswith("hydra.launcher."):
            keys[override.key_or_group.removeprefix("hydra.launcher.")] = override.value()
    return keys


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises UsageError for a word that is no override."""
    strange = [word for word in overrides if not is_override(word)]
    if strange:
        raise UsageError(
            f"'{strange[0]}' is no setting; settings are written key=value, such as model.nemo_model=base.nemo."
        )
