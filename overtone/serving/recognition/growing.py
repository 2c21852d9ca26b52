"""A recording whose transcript is told while it is being recognised."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial

from overtone.decoding.decoder import DecodingOptions, Emissions
from overtone.inference.windows import Window, WindowJoiner
from overtone.serving.adapter_store.store import Lease
from overtone.serving.engine.engine import Engine, Samples
from overtone.serving.engine.submit import drive_async, placed
from overtone.serving.recognition.offline import Recognition
from overtone.serving.recognition.windowed import recording_windows, samples_in

AHEAD = 2
"""Windows of one recording in the queue at a time."""


async def growing(
    engine: Engine,
    waveform: Samples,
    *,
    lease: Lease,
    decoding: DecodingOptions,
    deadline: float | None = None,
    group: str | None = None,
) -> AsyncIterator[Recognition]:
    """waveform [S]: what is known after each window of 30 s; the last one is what `offline.recognise_async` gives.

    `seconds` is how much of the recording has been decoded for good. Leaving the iteration frees what waits.
    """
    windows = recording_windows(engine, waveform)
    head = engine.model.head
    joiner = WindowJoiner(windows, head.decoder(decoding), head.align_row)

    def submit(window: Window) -> Future[Emissions]:
        part = samples_in(engine, waveform, window)
        return engine.submit(part, lease=lease, deadline=deadline, group=group)

    waiting: deque[Future[Emissions]] = deque()
    unsent = deque(windows)
    try:
        while unsent or waiting:
            while unsent and len(waiting) < AHEAD:
                begins = len(unsent) == len(windows)
                steps = placed(partial(submit, unsent[0]), begins=begins)
                waiting.append(await drive_async(steps, begins_quickly=True))
                unsent.popleft()
            answer = await asyncio.wrap_future(waiting[0])
            waiting.popleft()
            await asyncio.to_thread(joiner.push, answer)
            whole = not unsent and not waiting
            if joiner.decoder.frames or whole:
                hypotheses = await asyncio.to_thread(joiner.decoder.hypotheses, decoding.alternatives)
                seconds = waveform.size / engine.sample_rate if whole else joiner.begin * engine.seconds_per_frame
                yield Recognition(hypotheses=tuple(hypotheses), seconds=seconds)
    finally:
        for future in waiting:
            future.cancel()


async def text_deltas(recognitions: AsyncIterator[Recognition]) -> AsyncIterator[tuple[str, Recognition]]:
    """What each adds to the text told so far; together the text of the last one.

    The newest word is kept back until the next one follows: a seam may lie within it. A beam search may change its
    mind; then what it changed is told at the end.
    """
    told, before = "", None
    async with aclosing(recognitions) as each:  # type: ignore[type-var]
        async for recognition in each:
            if before is not None:
                text = before.hypotheses[0].text
                sure = text.rpartition(" ")[0]
                if sure.startswith(told):
                    yield sure[len(told) :], before
                    told = sure
            before = recognition
    assert before is not None
    text = before.hypotheses[0].text
    yield text.removeprefix(told), before
