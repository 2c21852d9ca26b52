"""A whole recording -> hypotheses."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from overtone.decoding.decoder import DecodingOptions, Emissions
from overtone.decoding.hypothesis import Hypothesis
from overtone.inference.windows import Window, WindowJoiner
from overtone.serving.adapter_store.store import Lease
from overtone.serving.engine.engine import Engine, Samples
from overtone.serving.engine.submit import Steps, drive, drive_async
from overtone.serving.recognition.windowed import heard_in_windows, recording_windows, samples_in


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The answer for one recording."""

    hypotheses: tuple[Hypothesis, ...]
    """At least one, best first."""
    seconds: float
    """Duration of the audio."""


def recognise(
    engine: Engine,
    waveform: Samples,
    *,
    lease: Lease | None = None,
    decoding: DecodingOptions | None = None,
    deadline: float | None = None,
    group: str | None = None,
) -> Recognition:
    """waveform [S] float32 of any length; windows of 30 s that overlap. Raises what `Engine.submit` and its futures
    raise. The caller keeps the lease until this returns."""
    return drive(_steps(engine, waveform, lease, decoding or DecodingOptions(), deadline, group))


async def recognise_async(
    engine: Engine,
    waveform: Samples,
    *,
    lease: Lease | None = None,
    decoding: DecodingOptions | None = None,
    deadline: float | None = None,
    group: str | None = None,
) -> Recognition:
    """The same for an event loop; cancelling it frees the places in the queue."""
    steps = _steps(engine, waveform, lease, decoding or DecodingOptions(), deadline, group)
    return await drive_async(steps, begins_quickly=True)


def _steps(
    engine: Engine,
    waveform: Samples,
    lease: Lease | None,
    decoding: DecodingOptions,
    deadline: float | None,
    group: str | None,
) -> Steps[Recognition]:
    def submit(window: Window) -> Future[Emissions]:
        part = samples_in(engine, waveform, window)
        return engine.submit(part, lease=lease, deadline=deadline, group=group)

    head = engine.model.head
    joiner = WindowJoiner(recording_windows(engine, waveform), head.decoder(decoding), head.align_row)
    yield from heard_in_windows(joiner, submit, begins=True)
    hypotheses = joiner.decoder.hypotheses(decoding.alternatives)
    return Recognition(hypotheses=tuple(hypotheses), seconds=waveform.size / engine.sample_rate)
