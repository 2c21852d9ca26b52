"""Dropout with masks that cost nothing to draw.

Drawing a random number for every element takes longer than the matrix product that it follows. Here the masks
are random windows of one long tape that is drawn once: a mask is a view, it takes no memory in the backward
pass, and every element is dropped with the same probability as ever. Windows of one step may overlap.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 1 << 22
"""Elements of the tape that are drawn at once; a mask begins in the first block."""
SEED = 20_230_501

_tapes: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}


def dropped(x: Tensor, dropout: nn.Dropout) -> Tensor:
    """`x` after the module's dropout, if it is active."""
    return thinned(x, dropout.p if dropout.training else 0.0)


def thinned(x: Tensor, probability: float) -> Tensor:
    """`x` with so many of its elements dropped. Accelerators draw faster than they would read a tape."""
    if probability == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    return x * dropout_mask(tuple(x.shape), probability, x.dtype, x.device)


def dropout_mask(shape: tuple[int, ...], probability: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A mask to multiply with, zero with the given probability; the expectation of what remains is kept.

    The place on the tape comes from torch's own generator, so a seeded run repeats its masks, whatever was asked for
    before. The tape is shared: never write into a mask.
    """
    size = math.prod(shape)
    start = int(torch.randint(BLOCK, ()))
    return tape_of(BLOCK + size, probability, dtype, device)[start : start + size].view(shape)


def tape_of(size: int, probability: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tape, at least so long; growing, it keeps what it has."""
    key = (probability, dtype, device)
    tape = _tapes.get(key)
    if tape is None or tape.numel() < size:
        with torch.inference_mode(False):
            blocks = range(0 if tape is None else tape.numel() // BLOCK, math.ceil(size / BLOCK))
            drawn = [draw_block(number, probability, dtype).to(device) for number in blocks]
            tape = _tapes[key] = torch.cat(drawn if tape is None else [tape, *drawn])
    return tape


def draw_block(number: int, probability: float, dtype: torch.dtype) -> Tensor:
    if probability >= 1.0:
        return torch.zeros(BLOCK, dtype=dtype)
    # What is kept is scaled by a number that `dtype` can hold exactly, and kept just as often as that asks for.
    scale = torch.tensor(1.0 / (1.0 - probability)).to(dtype).float().item()
    generator = torch.Generator().manual_seed(SEED + number)
    return torch.empty(BLOCK).bernoulli_(1.0 / scale, generator=generator).mul_(scale).to(dtype)
