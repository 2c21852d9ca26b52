"""Adapters with a vocabulary of their own, in NeMo's files: no adapter of NeMo's has one, a whole model does."""

from __future__ import annotations

from overtone.adapters.adapter import Adapter
from overtone.errors import CheckpointError


def refuse_vocabulary(adapter: Adapter) -> None:
    """Raises CheckpointError for an adapter with a vocabulary of its own."""
    if adapter.vocabulary is not None:
        raise CheckpointError(
            f"Adapter '{adapter.name}' has a vocabulary of its own, which NeMo's adapters do not have. Save it as an "
            "adapter folder (adapters.save) or the model as a native folder."
        )
