"""Recordings of any length: joined windows, places in the queue, errors."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from overtone.decoding.decoder import DecodingOptions
from overtone.decoding.phrase_boost import Boost, BoostTree
from overtone.inference.windows import plan_windows
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.errors import WorkerError
from overtone.serving.recognition.offline import Recognition, recognise, recognise_in_parts
from support.serving_models import Gate, marked, poisoned, until
from support.streams import run
from support.tone_model import ToneModel, spoken


def test_a_long_recording_reads_as_the_whole(tones: ToneModel) -> None:
    text = " ".join(["abc", "bad", "cafe", "deed", "fed"] * 20)
    waveform = spoken(text)
    with Engine(tones) as engine:  # type: ignore[arg-type]
        for decoding in (
            None,
            DecodingOptions(alternatives=2),
            DecodingOptions(boosts=BoostTree([Boost(phrases=("bad",), boost=5)], tones.tokenizer)),
        ):
            found = run(recognise(engine, waveform, decoding=decoding))
            assert found.hypotheses[0].text == text
            assert found.seconds == pytest.approx(waveform.size / 16_000)
            last = found.hypotheses[0].words[-1]
            assert last.end == pytest.approx(waveform.size / 16_000, abs=0.1)
    assert len(plan_windows(waveform.size // 640, window=750, overlap=100)) > 2
    assert max(length for batch in tones.batches for length in batch) <= 30 * 16_000


def test_a_recording_in_an_event_loop(tones: ToneModel) -> None:
    async def several() -> list[str]:
        with Engine(tones, EngineSettings(max_wait=0.02)) as engine:  # type: ignore[arg-type]
            texts = ["abba", "cafe", "bad bed"]
            found = await asyncio.gather(*(recognise(engine, spoken(text)) for text in texts))
            return [each.hypotheses[0].text for each in found]

    assert run(several()) == ["abba", "cafe", "bad bed"]


def test_a_cancelled_recording_leaves_the_queue(tones: ToneModel) -> None:
    gate = Gate(tones)

    async def vanish() -> int:
        with Engine(tones, EngineSettings(max_batch=1)) as engine:  # type: ignore[arg-type]
            first = engine.submit(marked(1.0))
            await asyncio.to_thread(gate.entered.acquire)
            task = asyncio.ensure_future(recognise(engine, spoken("abc" * 400)))
            while engine.state().waiting < 3:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            left = engine.state().waiting
            gate.open.set()
            await asyncio.wrap_future(first)
            return left

    assert run(vanish()) == 0


def test_parts_of_a_recording_grow_to_the_whole(tones: ToneModel) -> None:
    text = " ".join(["abc", "bad", "cafe", "deed", "fed"] * 20)

    async def parts(engine: Engine) -> list[Recognition]:
        return [part async for part in recognise_in_parts(engine, spoken(text))]

    with Engine(tones) as engine:  # type: ignore[arg-type]
        found = run(parts(engine))
        assert found[-1] == run(recognise(engine, spoken(text)))
    windows = plan_windows(spoken(text).size // 640, window=750, overlap=100)
    assert len(found) == len(windows) - 1  # the first is decoded when its seam with the second is known
    assert [part.seconds for part in found] == sorted({part.seconds for part in found})
    assert all(text.startswith(part.hypotheses[0].text) for part in found)


def test_a_recording_that_is_left_frees_its_places(tones: ToneModel) -> None:
    gate = Gate(tones)

    async def leave() -> int:
        with Engine(tones, EngineSettings(max_batch=1)) as engine:  # type: ignore[arg-type]
            first = engine.submit(marked(1.0))
            await asyncio.to_thread(gate.entered.acquire)
            parts = recognise_in_parts(engine, spoken("abc" * 400))
            task = asyncio.ensure_future(anext(parts))
            while engine.state().waiting < 2:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            left = engine.state().waiting
            gate.open.set()
            await asyncio.wrap_future(first)
            return left

    assert run(leave()) == 0


@pytest.mark.parametrize("in_parts", [True, False])
def test_a_recording_that_was_refused_goes_with_its_error(tones: ToneModel, in_parts: bool) -> None:
    poisoned(tones, ValueError)
    waveforms = [marked(0.5)]
    samples = weakref.ref(waveforms[0])

    async def refused(engine: Engine) -> None:
        waveform = waveforms.pop()
        work = anext(recognise_in_parts(engine, waveform)) if in_parts else recognise(engine, waveform)
        del waveform
        with pytest.raises(WorkerError, match="poison"):
            await work

    gc.disable()
    try:
        with Engine(tones, EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
            run(refused(engine))
            until(lambda: samples() is None)
    finally:
        gc.enable()
