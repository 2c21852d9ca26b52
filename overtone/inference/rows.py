"""The rows of a batch in groups of similar length, each padded to its own longest row only.

A single long utterance among short ones makes most of a batch padding, which is computed, and kept for the backward
pass, like speech.

Legend: B batch, F mel bins, T mel frames, T' encoder frames, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from overtone.data.padding import rounded_up
from overtone.models.asr_model import AsrModel

WORTH_FRAMES = 600
"""Mel frames of padding that one more pass through a net has to save: what its many small calls take."""

PADDING_BLIND_NORMS = ("batch_norm", "layer_norm")
"""Norms of the convolution whose outcome for a row does not depend on its padding."""

Recognise = Callable[[Tensor, Tensor], tuple[list[Tensor], Tensor]]
"""mel [B, F, T], lengths [B] -> emissions [B, T', C] of one head or several, lengths [B]."""


def rows_are_independent(model: AsrModel, adapter: str | None) -> bool:
    """Whether each row comes out the same in whatever group it is computed, on a device where that saves time."""
    trained = model.training and not model.base_is_frozen  # batch norms look at the whole batch
    penalised = model.training and adapter is not None and model.adapters[adapter].strategy.l2_lambda > 0.0
    norm = model.setting("encoder", "conv_norm")
    return model.device.type == "cpu" and not trained and not penalised and norm in PADDING_BLIND_NORMS


def length_groups(lengths: Sequence[int], worth: int = WORTH_FRAMES) -> list[list[int]]:
    """The numbers of the rows, long ones first, cut where a cut saves more than `worth` frames of padding."""

    def cut(rows: list[int]) -> list[list[int]]:
        longest = lengths[rows[0]]
        saved = [(longest - lengths[row]) * (len(rows) - place) for place, row in enumerate(rows)]
        if max(saved) <= worth:
            return [rows]
        place = saved.index(max(saved))
        return cut(rows[:place]) + cut(rows[place:])

    return cut(sorted(range(len(lengths)), key=lambda row: -lengths[row]))


def equal_parts(lengths: Sequence[int], count: int) -> list[list[int]]:
    """The numbers of the rows, long ones first, in at most `count` parts whose work is as equal as can be.

    The work of a part is its rows, padded to the longest of them.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    low, high = max(lengths), max(lengths) * len(lengths)
    while low < high:  # the smallest limit that the parts can keep
        middle = (low + high) // 2
        if len(filled(order, lengths, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    return filled(order, lengths, low)


def filled(order: Sequence[int], lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Rows in this order, each part as large as the limit of its work allows."""
    parts: list[list[int]] = []
    for row in order:
        if parts and lengths[parts[-1][0]] * (len(parts[-1]) + 1) <= limit:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def recognise_in_groups(
    recognise: Recognise, mel: Tensor, lengths: Tensor, *, factor: int
) -> tuple[list[Tensor], Tensor]:
    """`recognise` for each group by itself; what it gives, side by side again in the order of the batch.

    factor: mel frames of one encoder frame. A group's frames are the batch's modulo it: some subsamplings count a
    row's frames by what is left over. Beyond that they are rounded up, as those of whole batches are.
    """
    groups = length_groups(lengths.tolist())
    if len(groups) == 1:
        return recognise(mel, lengths)
    outcomes = []
    for rows in groups:
        index = torch.tensor(rows, device=mel.device)
        frames = rounded_up(int(lengths[index].max()))
        frames += (mel.size(2) - frames) % factor  # past the batch's own end the slice ends there
        outcomes.append(recognise(mel[index, :, :frames], lengths[index]))
    back = torch.tensor([row for rows in groups for row in rows], device=mel.device).argsort()
    heads = [joined_rows(parts)[back] for parts in zip(*(heads for heads, _ in outcomes), strict=True)]
    return heads, torch.cat([counts for _, counts in outcomes])[back]


def joined_rows(parts: Sequence[Tensor]) -> Tensor:
    """Groups of rows [B, T', C] of different T' -> all rows, padded with zeros."""
    frames = max(part.size(1) for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, frames - part.size(1))) for part in parts])
