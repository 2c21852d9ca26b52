"""One forward of the model for rows of any adapters: waveforms, features, or steps of streams with a state."""

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
from overtone.nets.encoder_cache import join_caches, split_cache
from overtone.nets.layers import pad_rows
from overtone.serving.engine.queue import Row, StepAnswer, StreamStep

Answer = Emissions | StepAnswer
LEAST_FRAMES = 2
"""A shorter row is filled up with silence to so many encoder frames."""


def forward(
    model: AsrModel, rows: Sequence[Row], lock: AbstractContextManager[object], threads: RowThreads | None
) -> list[Answer]:
    """The answer to each row, in the order of the rows, which are of one kind.

    lock: guards `model.adapters` while the choices are read. threads: share the rows; None computes them here.
    """
    if threads is None:
        return compute_rows(model, lock, rows)
    return threads(partial(compute_rows, model, lock), rows, [round(1000 * row.seconds) for row in rows])


def is_number(answer: Answer) -> bool:
    """Tell whether an answer holds numbers alone; with NaN in it, any text would look sure."""
    emissions = answer.emissions if isinstance(answer, StepAnswer) else answer
    return not np.isnan(emissions).any()


def compute_rows(model: AsrModel, lock: AbstractContextManager[object], rows: Sequence[Row]) -> list[Answer]:
    """Compute rows in this thread, in the order of their adapters, for which the last stack is kept."""
    order = sorted(range(len(rows)), key=lambda index: rows[index].choice or "")
    ordered = [rows[index] for index in order]
    steps = [row.step for row in ordered if row.step is not None]
    with torch.no_grad(), ExitStack() as stack:
        with lock:
            stack.enter_context(model.adapters.use([row.choice for row in ordered]))
        stack.enter_context(model.speaking([row.language for row in ordered]))
        found = run_steps(model, steps) if steps else compute_whole(model, ordered)
    answers = dict(zip(order, found, strict=True))
    return [answers[row] for row in range(len(rows))]


def compute_whole(model: AsrModel, rows: Sequence[Row]) -> Sequence[Answer]:
    """Emissions [T, C] of waveforms or features."""
    emissions, lengths = run_model(model, rows)  # [B, T', C]
    values, frames = emissions.float().cpu().numpy(), lengths.tolist()
    heads = model.heads_of_rows(len(rows))
    return [values[row, : frames[row], : head.channels].copy() for row, head in enumerate(heads)]


def run_steps(model: AsrModel, steps: Sequence[StreamStep]) -> Sequence[Answer]:
    """Compute steps of one kind, each with the state of its own stream."""
    encoder = steps[0].encoder
    mel = torch.from_numpy(np.stack([step.mel for step in steps])).to(model.device)  # [B, F, T]
    lengths = torch.tensor([step.frames for step in steps], device=model.device)
    x, lengths, cache = encoder.step(mel, lengths, join_caches([step.cache for step in steps]), last=True)
    emissions, frames = model.head.emit(model.prompt(x), lengths).float().cpu().numpy(), lengths.tolist()
    answers, heads = [], model.heads_of_rows(len(steps))
    for row, (step, own) in enumerate(zip(steps, split_cache(cache), strict=True)):
        kept = frames[row] if step.last else min(frames[row], encoder.sizes.keep)
        answers.append(StepAnswer(emissions=emissions[row, :kept, : heads[row].channels].copy(), cache=own))
    return answers


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
