"""Going on with a run that was cut off: what its checkpoint says, and whether it is of the same run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from overtone.errors import CheckpointError


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Where a run stood when it wrote the checkpoint, and its identity. Raises CheckpointError."""
    try:
        state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)["overtone"]
    except Exception as error:  # torch raises whatever the damage leads to
        raise CheckpointError(f"{checkpoint} is no checkpoint of a training, or damaged: {error}") from error
    return state


def check_same_run(checkpoint: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises CheckpointError where the identities of two parts of a run differ in what both of them name."""
    changed = "; ".join(differences(before, now))
    if changed:
        raise CheckpointError(
            f"{checkpoint} belongs to another run: {changed}. Give the same settings, or begin a new run."
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """A few words for each value that has changed, under its dotted name."""
    for key in now:
        if key not in before or before[key] == now[key]:
            continue
        if isinstance(before[key], Mapping) and isinstance(now[key], Mapping):
            yield from differences(before[key], now[key], f"{above}{key}.")
        else:
            yield f"{above}{key} was {before[key]}, now {now[key]}"
