"""NeMo's way of calling: `--config-path`, `--config-name` and `key=value` words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overtone.errors import UsageError

if TYPE_CHECKING:
    from overtone.config import Purpose, Settings

OVERRIDE = re.compile(r"^(\+{0,2}[A-Za-z_][\w./@-]*(\[[^=]*\])?=|~[A-Za-z_])")


def is_override(word: str) -> bool:
    """`key=value`, `+key=value`, `++key=value` or `~key`; a file of such a name is a file."""
    return OVERRIDE.match(word) is not None and not Path(word).exists()


def add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-path", "-cp", metavar="FOLDER", help="where the YAML lies")
    parser.add_argument(
        "--config-name", "-cn", metavar="NAME", help="of the YAML; asr_adaptation is shipped (default: asr_adaptation)"
    )
    parser.add_argument("--multirun", "-m", action="store_true", help="a search over several values: not available yet")


def read_settings(arguments: argparse.Namespace, overrides: Sequence[str], purpose: Purpose) -> Settings:
    """Raises UsageError for words that are no overrides, ConfigError with every mistake in the configuration."""
    from overtone.config import load_settings

    if arguments.multirun:
        raise UsageError("A search over several values (--multirun) is not available yet; give each key one value.")
    strange = [word for word in overrides if not is_override(word)]
    if strange:
        raise UsageError(
            f"'{strange[0]}' is no setting; settings are written key=value, such as model.nemo_model=base.nemo."
        )
    return load_settings(
        overrides,
        config_path=arguments.config_path,
        config_name=arguments.config_name or "asr_adaptation",
        purpose=purpose,
    )
