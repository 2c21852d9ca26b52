"""Choices of adapters for recordings: the chain of names behind each, and what speaks against it."""

from __future__ import annotations

import torch

from overtone.adapters.adapter_set import FILE_CHOICE
from overtone.errors import OutputError, UsageError
from overtone.models.asr_model import AsrModel

Choice = str | None
"""None is the base, "a" an adapter, "a+b" a chain of them, "@file" what the model's own file had enabled."""


def refuse_selection(model: AsrModel) -> None:
    """Raises UsageError where a `use` block around the caller has adapters act, and `adapter` was not given."""
    selection = model.adapters.selection
    if selection is not None and not selection.is_base:
        names = "+".join(selection.chain) or "another adapter for each row"
        raise UsageError(
            f"A `use` block has {names} act, and `adapter` was not given, which means the base. Name the adapter here, "
            "as adapter=…, or leave the block; inside it, [None] for each path is the base."
        )


def check_weights(model: AsrModel, chain: Choice) -> None:
    """Raises OutputError with the first tensor of the base, or of the adapters in use, that is not finite."""
    for name, tensor in model.base_state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise OutputError(
                f"The outputs of the model are not finite: {name} holds NaN or infinity. Fetch or save the model again."
            )
    for adapter in [] if chain is None else chain.split("+"):
        for name, tensor in model.adapters[adapter].tensors().items():
            if not torch.isfinite(tensor).all():
                raise OutputError(
                    f"The outputs of the model are not finite: {name} of adapter '{adapter}' holds NaN or infinity. "
                    "Train it again, or fetch it again."
                )


def resolve_choice(model: AsrModel, choice: Choice) -> Choice:
    """The chain of names behind a choice, None for the base. Raises AdapterError for an unknown name."""
    chain = "+".join(model.adapters.file_choice) if choice == FILE_CHOICE else choice
    with model.adapters.use(chain or None):
        return chain or None
