"""NeMo's registry of encoders with adapters: here every encoder has them, and the names are kept for its scripts."""

from __future__ import annotations

from dataclasses import dataclass

from overtone.checkpoints.nemo.config import ENCODERS


@dataclass(frozen=True)
class AdapterRegistryInfo:
    """NeMo's classes of one encoder, by their import paths."""

    base_class_path: str
    """The encoder without adapters."""
    adapter_class_path: str
    """The encoder with adapters."""


def get_registered_adapter(target: str) -> AdapterRegistryInfo | None:
    """The classes of an encoder by the `_target_` of its configuration; None for one without adapters in NeMo."""
    for known in ENCODERS.values():
        if target in known.classes:
            return AdapterRegistryInfo(base_class_path=known.classes[0], adapter_class_path=known.adaptable)
    return None
