"""Tensors of checkpoints in memory and as safetensors files: read once, into the memory that the model keeps."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from overtone.budgets import check_tensor_header
from overtone.errors import CheckpointError
from overtone.files import open_regular

MAPPED_BYTES = 2**20
"""Tensors from this size on get a mapping of their own."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of dtypes in a safetensors file."""


def empty_bytes(size: int) -> Tensor:
    """Memory that holds nothing yet, [size] uint8.

    Large pieces are mappings of their own, which go back to the system with the last tensor on them, in huge pages
    where the system gives them: they are filled sooner.
    """
    if size < MAPPED_BYTES:
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def memory_of(content: Tensor) -> memoryview:
    """The memory of [bytes] uint8, to read into."""
    return memoryview(content.numpy())  # type: ignore[arg-type]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises CheckpointError where it is missing or damaged.

    A file that is mapped would be in memory twice as soon as its tensors are copied out of it.
    """
    try:
        with open_regular(path) as file:
            start = file.read(8)
            check_tensor_header(start)
            with safe_open(path, framework="pt"):  # checks that the tensors lie in the file without gaps and overlaps
                pass
            begin = 8 + int.from_bytes(start, "little")
            header = json.loads(file.read(begin - 8))
            places = {name: place for name, place in header.items() if name != "__metadata__"}
            return {name: read_tensor(file, begin, places[name]) for name in sorted(places)}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist.") from error
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is truncated, damaged or no safetensors file: {error}.") from error


def read_tensor(file: IO[bytes], begin: int, place: Mapping[str, Any]) -> Tensor:
    """Read the tensor, of any shape, that an entry of the header describes; the values begin at byte `begin`.

    Raises ValueError for a dtype without a counterpart, and for a size that is not that of the shape.
    """
    if place["dtype"] not in DTYPES:
        raise ValueError(f"tensors of type {place['dtype']} are not supported; supported: {', '.join(DTYPES)}")
    dtype, (first, end) = DTYPES[place["dtype"]], place["data_offsets"]
    content = empty_bytes(math.prod(place["shape"]) * dtype.itemsize)
    file.seek(begin + first)
    if end - first != len(content) or file.readinto(memory_of(content)) != len(content):  # type: ignore[attr-defined]
        raise ValueError(f"a tensor of shape {place['shape']} does not lie at {first} to {end}")
    return content.view(dtype).view(place["shape"])


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, with the permissions that the umask leaves: safetensors writes for the owner alone."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)
