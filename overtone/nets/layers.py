"""Layers that every net is made of: frame masks, convolutions over time, dropout, recomputation.

Legend: B batch, T time, D width.
"""

from __future__ import annotations

import contextvars
import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from overtone.nets.products import linear
from overtone.scope import pinned_context

Reduction = Literal["mean_batch", "mean_volume", "mean", "sum"]
recomputing: contextvars.ContextVar[bool] = contextvars.ContextVar("overtone_recomputing", default=False)
"""True if a net runs for the second time, for a backward pass: what a forward records is recorded already."""

BLOCK = 1 << 22
"""Elements of the dropout tape that are drawn at once; a mask begins in the first block."""
SEED = 20_230_501

_tapes: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}
Net = TypeVar("Net", bound=nn.Module)
Replaced = dict[str, tuple[nn.Module, nn.Module]]
"""Modules of a twin that it does not share with a net, by name, each with the net's own in its place."""


def valid_frames(lengths: Tensor, frames: int) -> Tensor:
    """[B] lengths -> [B, frames] bool, true below each row's length."""
    return torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)


def time_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, left: int, right: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Convolution over time, of one kernel a channel or of groups of channels.

    x [B, T, D], weight [E, D / groups, K] with dilation · (K - 1) = left + right, bias [E] -> [B, T', E],
    T' = T / stride, rounded up. Read as a channels-last image of height one, which needs no copies and is many times
    faster on CPUs than [B, D, T].
    """
    groups = x.size(-1) // weight.size(1)
    if groups > 1 and torch.is_autocast_enabled(x.device.type):
        # Under autocast the weights are trained, and the reduced kernels' weight gradients are the slower ones.
        with torch.autocast(x.device.type, enabled=False):
            return time_conv(x.float(), weight, bias, left=left, right=right, stride=stride, dilation=dilation)
    if left != right:
        x = F.pad(x, (0, 0, left, right))
        left = 0
    image = x.transpose(1, 2)  # [B, D, T], channels last in memory
    if groups > 1 and not channels_last_is_safe(x.dtype, x.size(-1)):
        return F.conv1d(image, weight, bias, stride, left, dilation, groups).transpose(1, 2)
    image = F.conv2d(image.unsqueeze(2), weight.unsqueeze(2), bias, (1, stride), (0, left), (1, dilation), groups)
    return image.squeeze(2).transpose(1, 2)


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution with kernels of one place: x [..., in], weight [out, in, 1, …] -> [..., out].

    The input is made contiguous because torch else chooses between kernels that round differently by whether the
    weight requires a gradient: freezing the base would change its output.
    """
    return linear(x.contiguous(), weight.flatten(1), bias)


def normalise_image(x: Tensor, norm: nn.Module) -> Tensor:
    """x [B, T, D] -> [B, T, D] by a norm over channels, as a channels-last image of height one."""
    image: Tensor = norm(x.transpose(1, 2).unsqueeze(2))
    return image.squeeze(2).transpose(1, 2)


def channels_last_is_safe(dtype: torch.dtype, channels: int) -> bool:
    """True if depthwise kernels may run channels-last.

    The bfloat16 kernel of torch 2.13's CPU library never returns for some shapes when channels ≡ 16 (mod 64).
    """
    return not (dtype is torch.bfloat16 and channels % 64 == 16)


# Dropout
#
# Drawing a random number for every element takes longer than the matrix product that it follows. Here the masks
# are random windows of one long tape that is drawn once: a mask is a view, it takes no memory in the backward
# pass, and every element is dropped with the same probability as ever. Windows of one step may overlap.


def apply_dropout(x: Tensor, dropout: nn.Dropout) -> Tensor:
    """x of any shape -> the same after the module's dropout, if it is active."""
    return drop(x, dropout.p if dropout.training else 0.0)


def drop(x: Tensor, probability: float) -> Tensor:
    """x of any shape -> the same with each element dropped with that probability, the others scaled up.

    Accelerators draw faster than they would read a tape.
    """
    if probability == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    return x * dropout_mask(tuple(x.shape), probability, x.dtype, x.device)


def dropout_mask(shape: tuple[int, ...], probability: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A mask of that shape to multiply with, zero with the given probability; the expectation of the product is x.

    The place on the tape comes from torch's own generator, so a seeded run repeats its masks, whatever was asked for
    before. The tape is shared: never write into a mask.
    """
    size = math.prod(shape)
    start = int(torch.randint(BLOCK, ()))
    return dropout_tape(BLOCK + size, probability, dtype, device)[start : start + size].view(shape)


def dropout_tape(size: int, probability: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tape [at least `size`]; where it grows, its beginning stays."""
    key = (probability, dtype, device)
    tape = _tapes.get(key)
    if tape is None or tape.numel() < size:
        with torch.inference_mode(False):
            blocks = range(0 if tape is None else tape.numel() // BLOCK, math.ceil(size / BLOCK))
            drawn = [draw_block(number, probability, dtype).to(device) for number in blocks]
            tape = _tapes[key] = torch.cat(drawn if tape is None else [tape, *drawn])
    return tape


def draw_block(number: int, probability: float, dtype: torch.dtype) -> Tensor:
    """One block [BLOCK] of the tape, by its number."""
    if probability >= 1.0:
        return torch.zeros(BLOCK, dtype=dtype)
    # The rest is scaled by a number that `dtype` can hold exactly, and is as frequent as that number asks for.
    scale = torch.tensor(1.0 / (1.0 - probability)).to(dtype).float().item()
    generator = torch.Generator().manual_seed(SEED + number)
    return torch.empty(BLOCK).bernoulli_(1.0 / scale, generator=generator).mul_(scale).to(dtype)


# Padding

SIZES_PER_OCTAVE = 16
"""Lengths between one power of two and the next: at most 1/16 of a batch is rounding, a fortieth on average."""


def round_up(size: int) -> int:
    """The next of the lengths that batches may have.

    Processors build a kernel for every product of a new shape and keep it: a batch of a new length costs as long as a
    good part of its computation, and some megabytes.
    """
    grain = max(1, (1 << (size.bit_length() - 1)) // SIZES_PER_OCTAVE) if size > 0 else 1
    return -(-size // grain) * grain


def pad_rows(arrays: Sequence[npt.NDArray[np.float32]], *, least: int = 1) -> tuple[Tensor, Tensor]:
    """Arrays [..., N] -> one tensor [B, ..., N] filled up with zeros, and their lengths [B] int64, `least` at least."""
    lengths = torch.tensor([max(least, array.shape[-1]) for array in arrays])
    whole = torch.zeros(len(arrays), *arrays[0].shape[:-1], round_up(int(lengths.max())))
    for row, array in enumerate(arrays):
        whole[row, ..., : array.shape[-1]] = torch.from_numpy(np.ascontiguousarray(array))
    return whole, lengths


# Losses


def reduce_losses(losses: Tensor, target_lengths: Tensor, reduction: Reduction) -> Tensor:
    """The losses of utterances, [B], as a scalar; target_lengths [B]: tokens of each.

    `mean_batch`: averaged over utterances; `mean_volume`: the sum over all, divided by the number of target tokens;
    `mean`: each utterance by its tokens, then averaged; `sum`.
    """
    if reduction == "mean_batch":
        return losses.mean()
    if reduction == "mean_volume":
        return losses.sum() / target_lengths.sum().clamp(min=1)
    if reduction == "mean":
        return (losses / target_lengths.clamp(min=1)).mean()
    return losses.sum()


# Recomputation


def run_checkpointed(part: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call `part(*arguments)` without keeping its activations: they are computed again in the backward pass.

    That happens later, perhaps on another thread: the second run gets the choices and context variables of now.
    """
    context = pinned_context()
    earlier_runs = itertools.count()

    def run(*arguments: Any) -> Tensor:
        context.run(recomputing.set, next(earlier_runs) > 0)
        return context.run(part, *arguments)

    output: Tensor = checkpoint(run, *arguments, use_reentrant=False)
    return output


def share_modules(net: Net, own: Mapping[str, nn.Module]) -> Net:
    """A twin of a net with modules of its own, by name; every other module, parameter and buffer is the net's."""
    twin = copy.copy(net)
    twin._modules = {**net._modules, **own}
    return twin
