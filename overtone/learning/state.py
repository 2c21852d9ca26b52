"""Settings of an adapter's learning that are remembered, and the state of the learner that is at work or was last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from overtone.errors import DataError
from overtone.files import replace_file
from overtone.learning.corrections import SUFFIX, now
from overtone.learning.versions import LOCK, TRAINING_LOCK, WAITS, Versions

SETTINGS = "settings.json"
STATE = "state.json"
LOG = "learning.log"
LOWEST_PRIORITY = 19
Phase = Literal["idle", "words", "training", "done", "failed", "ended"]


@dataclass(frozen=True, kw_only=True)
class LearnSettings:
    """Choices of an adapter that learns; one that is given once counts from then on."""

    kind: str = "linear"
    """The kind of a new acoustic part, where the adapter has none."""
    steps: int | None = None
    """Steps of a training; None: by the number of recordings."""
    replay: tuple[str, ...] = ()
    """Manifests of what the adapter was first trained on; empty: what its card names, if that is still there."""
    general: tuple[str, ...] = ()
    """Manifests of general speech."""
    kappa: float = 0.5
    """Points of word error rate that general speech may lose."""
    hours: float = 20.0
    """Most hours of recordings that are kept."""


def read_settings(adapter: Path) -> LearnSettings:
    """The settings that are remembered beside an adapter's folder. Raises DataError where they are damaged."""
    path = adapter.with_name(adapter.name + SUFFIX) / SETTINGS
    try:
        content = json.loads(path.read_text("utf-8"))
        known = {item.name for item in fields(LearnSettings)}
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        return LearnSettings(**{key: value for key, value in given.items() if key in known})
    except FileNotFoundError:
        return LearnSettings()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}). Remove it, and give the options again.") from error


def remember(adapter: Path, **given: Any) -> LearnSettings:
    """The settings with what is given in their place (None: as it was), written down. Raises DataError."""
    settings = replace(read_settings(adapter), **{key: own for key, own in given.items() if own is not None})
    folder = adapter.with_name(adapter.name + SUFFIX)
    write(folder / SETTINGS, asdict(settings))
    return settings


def write_state(adapter: Path, phase: Phase, **facts: Any) -> None:
    """Write down what the learner does, for others to see."""
    content = {"phase": phase, "process": os.getpid(), "at": now(), **facts}
    write(adapter.with_name(adapter.name + SUFFIX) / STATE, content)


def read_state(adapter: Path) -> dict[str, Any]:
    """The state of an adapter's learner: `phase`, and what goes with it. One that was killed has `ended`."""
    folder = adapter.with_name(adapter.name + SUFFIX)
    try:
        content = json.loads((folder / STATE).read_text("utf-8"))
    except (OSError, ValueError):
        return {"phase": "idle"}
    if not isinstance(content, dict):
        return {"phase": "idle"}
    versions = Versions(adapter)
    held = versions.is_held(TRAINING_LOCK) if content.get("phase") == "training" else versions.is_held(LOCK)
    if content.get("phase") in ("words", "training") and not held:
        return {**content, "phase": "ended"}
    return content


def worker_command(adapter: Path, model: str, *options: str) -> list[str]:
    """The command line of a process that learns what there is to be learnt."""
    return [sys.executable, "-m", "overtone", "learn", str(adapter.absolute()), "--model", model, *options]


def start_worker(adapter: Path, model: str, *options: str) -> Path:
    """Start a process that learns what is there to be learnt, at low priority; the file that it writes lines to.

    It goes on where this process ends.
    """
    log = adapter.with_name(adapter.name + SUFFIX) / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        subprocess.Popen(
            worker_command(adapter, model, *options),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, WAITS: "1"},
            preexec_fn=yield_processor if os.name == "posix" else None,
        )
    return log


def yield_processor() -> None:
    """Let every other process of the machine go first."""
    os.nice(LOWEST_PRIORITY)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data as JSON, whole or not at all. Raises DataError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            file.write(json.dumps(dict(content), indent=1, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror or error}.") from error
