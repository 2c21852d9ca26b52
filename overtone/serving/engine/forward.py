"""One forward of the model for rows of any adapters, as waveforms or as features."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overtone.decoding.decoder import Emissions
from overtone.inference.rows import RowThreads
from overtone.models.asr_model import AsrModel
from overtone.nets.layers import pad_rows
from overtone.serving.engine.queue import Row

LEAST_FRAMES = 2
"""A shorter row is filled up with silence to so many encoder frames."""


def forward(
    model: AsrModel, rows: Sequence[Row], lock: AbstractContextManager[object], threads: RowThreads | None
) -> list[Emissions]:
    """Emissions [T, C] of each row, in the order of the rows.

    lock: guards `model.adapters` while the choices are read. threads: share the rows; None computes them here.
    """
    if threads is None:
        return compute_rows(model, lock, rows)
    return threads(partial(compute_rows, model, lock), rows, [round(1000 * row.seconds) for row in rows])


def compute_rows(model: AsrModel, lock: AbstractContextManager[object], rows: Sequence[Row]) -> list[Emissions]:
    """Compute rows in this thread, in the order of their adapters, for which the last stack is kept."""
    order = sorted(range(len(rows)), key=lambda index: rows[index].choice or "")
    ordered = [rows[index] for index in order]
    with torch.no_grad(), ExitStack() as stack:
        with lock:
            stack.enter_context(model.adapters.use([row.choice for row in ordered]))
        emissions, lengths = run_model(model, ordered)  # [B, T', C]
        values, frames = emissions.float().cpu().numpy(), lengths.tolist()
    answers = {row: values[index, : frames[index]].copy() for index, row in enumerate(order)}
    return [answers[row] for row in range(len(rows))]


def run_model(model: AsrModel, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Emissions [B, T', C] of rows, and lengths [B]; from features where one of them has only these."""
    waveforms = [row.waveform for row in rows if row.waveform is not None]
    emissions: Tensor
    if len(waveforms) == len(rows):
        least = round(LEAST_FRAMES * model.seconds_per_frame * model.sample_rate)
        batch, lengths = pad_rows(waveforms, least=least)
        emissions, lengths = model(batch.to(model.device), lengths.to(model.device))
        return emissions, lengths
    least = LEAST_FRAMES * model.encoder.subsampling_factor
    mel, lengths = pad_rows([features(model, row) for row in rows], least=least)
    return model.recognise(mel.to(model.device), lengths.to(model.device))


def features(model: AsrModel, row: Row) -> npt.NDArray[np.float32]:
    """Features [F, T] of a row, from its waveform if need be."""
    if row.mel is not None:
        return row.mel
    assert row.waveform is not None
    waveform, length = pad_rows([row.waveform])
    mel, frames = model.preprocessor(waveform.to(model.device), length.to(model.device))
    values: npt.NDArray[np.float32] = mel[0, :, : int(frames[0])].cpu().numpy()
    return values
