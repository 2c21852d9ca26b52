"""Dropout for frozen parts, with masks that cost nothing to draw.

Drawing a random number for every element takes longer than the matrix product that it follows. Here the masks
are random windows of one long tape that is drawn once: a mask is a view, it takes no memory in the backward
pass, and every element is dropped with the same probability as ever. Windows of one step may overlap.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST_TAPE = 1 << 22
SEED = 20_230_501

_tapes: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}


def dropout_mask(shape: tuple[int, ...], probability: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A mask to multiply with, zero with the given probability; the expectation of what remains is kept.

    The place on the tape comes from torch's own generator, so a seeded run repeats its masks. The tape is shared:
    never write into a mask.
    """
    size = 1
    for length in shape:
        size *= length
    tape = tape_of(size, probability, dtype, device)
    start = int(torch.randint(tape.numel() - size + 1, ()))
    return tape[start : start + size].view(shape)


def tape_of(size: int, probability: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tape, at least four times as long as the longest mask that was asked for."""
    key = (probability, dtype, device)
    tape = _tapes.get(key)
    if tape is None or tape.numel() < 4 * size:
        with torch.inference_mode(False):
            tape = _tapes[key] = draw_tape(max(SHORTEST_TAPE, 4 * size), probability, dtype).to(device)
    return tape


def draw_tape(size: int, probability: float, dtype: torch.dtype) -> Tensor:
    if probability >= 1.0:
        return torch.zeros(size, dtype=dtype)
    # What is kept is scaled by a number that `dtype` can hold exactly, and kept just as often as that asks for.
    scale = torch.tensor(1.0 / (1.0 - probability)).to(dtype).float().item()
    generator = torch.Generator().manual_seed(SEED)
    return torch.empty(size).bernoulli_(1.0 / scale, generator=generator).mul_(scale).to(dtype)
