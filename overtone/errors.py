"""Errors that a user can mend, each with a message of its own.

OvertoneError             exit code 2, one message, no traceback
├── UsageError            a wrong call: flags, names, combinations
├── ConfigError           a wrong configuration key or value
├── DataError             manifests, transcripts, recordings
├── AudioError            audio that is malformed, of an unsupported kind, or past a limit
├── CheckpointError       model files: damaged, foreign, unsupported
├── OutputError           outputs of a model that are not finite
└── AdapterError          adapters: unknown, taken, misplaced, made for another base
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

Fault = Literal["malformed", "unsupported", "too_large"]


class OvertoneError(Exception):
    """A mistake that a message can explain; `str(error)` says what came, what is allowed and what to do."""

    exit_code = 2


class UsageError(OvertoneError):
    """A call that cannot be carried out as given."""


class ConfigError(OvertoneError):
    """A configuration key or value that is not allowed."""


class DataError(OvertoneError):
    """A manifest, transcript or recording that cannot be used."""


class AudioError(OvertoneError):
    """Audio that cannot or must not be decoded. `fault` decides the status that a server answers with."""

    def __init__(self, message: str, *, fault: Fault = "malformed") -> None:
        super().__init__(message)
        self.fault: Fault = fault


class CheckpointError(OvertoneError):
    """A model file that cannot be read, or asks for something that is not supported."""


class OutputError(OvertoneError):
    """Outputs of a model that are not finite numbers: its weights, or those of an adapter, are damaged."""


class AdapterError(OvertoneError):
    """An adapter that does not exist, exists already, fits nowhere or belongs to another base."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest allowed word, or an empty string when none is near."""
    near = get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
