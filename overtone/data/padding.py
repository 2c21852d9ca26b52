"""Rows of different length as one tensor, in few shapes.

Processors build a kernel for every product of a new shape and keep it: a batch of a new length costs as long as a good
part of its computation and some megabytes (7 MB with the embedded model). So the length of a batch is rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SIZES_PER_OCTAVE = 16
"""Lengths between one power of two and the next: at most 1/16 of a batch is rounding, a fortieth on average."""


def rounded_up(size: int) -> int:
    """The next of the lengths that batches may have."""
    grain = max(1, (1 << (size.bit_length() - 1)) // SIZES_PER_OCTAVE) if size > 0 else 1
    return -(-size // grain) * grain


def side_by_side(arrays: Sequence[npt.NDArray[np.float32]], *, least: int = 1) -> tuple[Tensor, Tensor]:
    """Arrays [..., N] -> one tensor [B, ..., N] filled up with zeros, and their lengths [B] int64, `least` at least."""
    lengths = torch.tensor([max(least, array.shape[-1]) for array in arrays])
    whole = torch.zeros(len(arrays), *arrays[0].shape[:-1], rounded_up(int(lengths.max())))
    for row, array in enumerate(arrays):
        whole[row, ..., : array.shape[-1]] = torch.from_numpy(np.ascontiguousarray(array))
    return whole, lengths
