"""Word parts in NeMo's files, where NeMo passes over them: members of a `.nemo`, and an entry of an `adapters.pt`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overtone.adapters.adapter import Adapter
from overtone.adapters.words import WordPart
from overtone.checkpoints.nemo.torch_zip import RefusedError
from overtone.errors import AdapterError, CheckpointError
from overtone.models.asr_model import AsrModel

MEMBER = "overtone_words."
"""The beginning of the name of a member of a `.nemo`."""
MEMBER_NAME = re.compile(r"overtone_words\..+\.safetensors")
ENTRY = "__overtone_words__"
"""The key of an `adapters.pt` under which the files of the word parts stand, by adapter, as bytes in tensors."""


def take_members(files: dict[str, bytes]) -> dict[str, bytes]:
    """Take the word parts out of the files of a `.nemo`, by adapter."""
    names = [name for name in files if MEMBER_NAME.fullmatch(name)]
    return {name.removeprefix(MEMBER).removesuffix(".safetensors"): files.pop(name) for name in names}


def make_members(adapters: Iterable[Adapter]) -> dict[str, bytes]:
    """The word parts of adapters as files of a `.nemo`."""
    return {f"{MEMBER}{own.name}.safetensors": own.words.to_bytes() for own in adapters if own.words is not None}


def take_entry(content: dict[Any, Any]) -> dict[str, bytes]:
    """Take the word parts out of an `adapters.pt`, by adapter. Raises RefusedError for something else there."""
    found = content.pop(ENTRY, {})
    if not isinstance(found, dict) or not all(
        isinstance(own, Tensor) and own.dtype is torch.uint8 for own in found.values()
    ):
        raise RefusedError(f"its {ENTRY} are no word parts of adapters.")
    return {str(name): tensor.numpy().tobytes() for name, tensor in found.items()}


def make_entry(adapters: Iterable[Adapter]) -> dict[str, dict[str, Tensor]]:
    """The word parts of adapters as an entry of an `adapters.pt`; no entry where none has one."""
    parts = {own.name: own.words.to_bytes() for own in adapters if own.words is not None}
    tensors = {name: torch.frombuffer(bytearray(part), dtype=torch.uint8) for name, part in parts.items()}
    return {ENTRY: tensors} if tensors else {}


def read_part(model: AsrModel, content: bytes | None, source: str | Path) -> WordPart | None:
    """The word part of a file's bytes. Raises CheckpointError for a damaged one, or one of another tokenizer."""
    if content is None:
        return None
    try:
        return WordPart.from_bytes(content, tokenizer_digest=model.tokenizer.digest(), place=f"{source}: the word part")
    except AdapterError as error:
        raise CheckpointError(str(error)) from error


def give_words(model: AsrModel, parts: Mapping[str, bytes], source: str | Path) -> None:
    """Give the adapters of a model their word parts. Raises CheckpointError for a damaged part, and for nobody's."""
    for name, content in parts.items():
        if name not in model.adapters:
            raise CheckpointError(
                f"{source} has a word part of adapter '{name}', which it does not hold; it is damaged."
            )
        model.adapters[name].words = read_part(model, content, source)
