"""One forward of the model for rows of any adapters, as waveforms or as features."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overtone.model import AsrModel
from overtone.padding import side_by_side
from overtone.serving.waiting import LogProbs, Row

LEAST_FRAMES = 2
"""A shorter row is filled up with silence to so many encoder frames."""


def forward(model: AsrModel, rows: Sequence[Row], lock: AbstractContextManager[object]) -> list[LogProbs]:
    """The answers in the order of the rows; lock: guards `model.adapters` while the choice is read.

    They are computed in the order of their adapters, so that a batch of the same ones as the last finds them stacked.
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index].choice or "")
    answers = dict(zip(order, computed(model, [rows[index] for index in order], lock), strict=True))
    return [answers[index] for index in range(len(rows))]


def computed(model: AsrModel, rows: Sequence[Row], lock: AbstractContextManager[object]) -> list[LogProbs]:
    with torch.no_grad(), ExitStack() as stack:
        with lock:
            stack.enter_context(model.adapters.use([row.choice for row in rows]))
        log_probs, lengths = compute(model, rows)  # [B, T', V+1]
        values, frames = log_probs.float().cpu().numpy(), lengths.tolist()
    return [
        LogProbs(log_probs=values[index, :length].copy(), seconds_per_frame=model.seconds_per_frame)
        for index, length in enumerate(frames)
    ]


def compute(model: AsrModel, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    waveforms = [row.waveform for row in rows if row.waveform is not None]
    log_probs: Tensor
    if len(waveforms) == len(rows):
        least = round(LEAST_FRAMES * model.seconds_per_frame * model.sample_rate)
        batch, lengths = side_by_side(waveforms, least=least)
        log_probs, lengths = model(batch.to(model.device), lengths.to(model.device))
        return log_probs, lengths
    least = LEAST_FRAMES * model.encoder.subsampling_factor
    mel, lengths = side_by_side([features(model, row) for row in rows], least=least)
    return model.recognise(mel.to(model.device), lengths.to(model.device))


def features(model: AsrModel, row: Row) -> npt.NDArray[np.float32]:
    """[F, T] of a row, from its waveform where need be."""
    if row.mel is not None:
        return row.mel
    assert row.waveform is not None
    waveform, length = side_by_side([row.waveform])
    mel, frames = model.preprocessor(waveform.to(model.device), length.to(model.device))
    values: npt.NDArray[np.float32] = mel[0, :, : int(frames[0])].cpu().numpy()
    return values
