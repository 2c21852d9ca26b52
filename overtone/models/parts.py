"""Parts of a model, and the plain settings that build them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from overtone.audio.features import LogMel
from overtone.nets.conformer import ConformerEncoder
from overtone.nets.ctc import CtcProjection

Settings = Mapping[str, Mapping[str, Any]]
"""Plain keyword arguments of the parts: `preprocessor` (LogMel), `encoder` and `decoder` (CtcProjection)."""

PARTS = {"preprocessor": LogMel, "encoder": ConformerEncoder, "decoder": CtcProjection}


def complete(part: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a part with its defaults filled in."""
    parameters = inspect.signature(PARTS[part]).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {**defaults, **settings}
