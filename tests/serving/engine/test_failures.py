"""The engine when forwards fail, and when its worker dies."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import wait
from traceback import format_exception
from typing import Any

import pytest
import torch

from overtone.decoding.hypothesis import Hypothesis
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.errors import WorkerError
from overtone.serving.recognition.offline import check_scores, recognise
from overtone.serving.streaming.stream import Stream, StreamSettings
from support.serving_models import marked, poisoned, until
from support.streams import run
from support.tone_model import ToneModel, spoken


def test_one_bad_row_answers_for_itself_alone(tones: ToneModel) -> None:
    poisoned(tones, ValueError)
    with Engine(tones, EngineSettings(max_wait=0.1)) as engine:  # type: ignore[arg-type]
        good = [engine.submit(marked(mark)) for mark in (0.1, 0.2)]
        bad = engine.submit(marked(0.5))
        assert all(len(future.result(10)) == 10 for future in good)
        with pytest.raises(WorkerError, match="ValueError: poison"):
            bad.result(10)
        state = engine.state()
        assert (state.failed, state.restarts, state.alive) == (1, 0, True)


def test_a_row_without_numbers_is_no_answer(tones: ToneModel) -> None:
    """The rows beside it are answered, in the same forward."""
    forward, count = tones.forward, [0]

    def replaced(waveforms: torch.Tensor, lengths: torch.Tensor) -> Any:
        count[0] += 1
        log_probs, frames = forward(waveforms, lengths)
        log_probs[waveforms[:, 0] == 0.5, -1] = torch.nan
        return log_probs, frames

    tones.forward = replaced  # type: ignore[method-assign]
    with Engine(tones, EngineSettings(max_wait=0.1)) as engine:  # type: ignore[arg-type]
        futures = [engine.submit(marked(mark)) for mark in (0.1, 0.5, 0.2)]
        for future in (futures[0], futures[2]):
            assert len(future.result(60)) == 10
        with pytest.raises(WorkerError, match="NaN"):
            futures[1].result(60)
        assert engine.state().failed == 1


def test_hypotheses_without_numbers_are_no_answer() -> None:
    good, bad = Hypothesis(text="a", score=-1.0), Hypothesis(text="a", score=float("nan"))
    assert check_scores([good]) == [good]
    with pytest.raises(WorkerError, match="NaN"):
        check_scores([good, bad])


def test_a_worker_that_dies_is_started_again_and_loses_nothing(tones: ToneModel) -> None:
    poisoned(tones, SystemExit, times=1)
    with Engine(tones, EngineSettings(max_wait=0.1)) as engine:  # type: ignore[arg-type]
        futures = [engine.submit(marked(mark)) for mark in (0.1, 0.5, 0.2)]
        assert all(len(future.result(10)) == 10 for future in futures)
        assert engine.state().restarts == 1
        assert isinstance(engine.last_death, SystemExit)


def test_a_worker_that_died_goes_on_in_its_thread(tones: ToneModel) -> None:
    """Another thread would have another heap, whose freed memory is kept, and other kernels."""
    seen: set[int] = set()
    poisoned(tones, SystemExit)
    forward = tones.forward

    def watched(waveforms: torch.Tensor, lengths: torch.Tensor) -> Any:
        seen.add(threading.get_ident())
        return forward(waveforms, lengths)

    tones.forward = watched  # type: ignore[method-assign]
    with Engine(tones, EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
        for mark in (0.5, 0.1, 0.5, 0.2):
            wait([engine.submit(marked(mark))], 10)
        assert engine.state().restarts == 4
        assert len(seen) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_cannot_help_itself_is_followed_by_another(
    tones: ToneModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(tones, SystemExit, times=1)
    recover, calls = Engine._recover, []

    def dying_once(engine: Engine) -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 1:
            raise SystemExit
        recover(engine)

    monkeypatch.setattr(Engine, "_recover", dying_once)
    with Engine(tones, EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
        assert len(engine.submit(marked(0.5)).result(10)) == 10
        assert calls == ["overtone-worker", "overtone-supervisor"]
        assert engine.state().restarts == 1


@pytest.mark.parametrize("error", [SystemExit, ValueError])
def test_nothing_of_a_forward_that_broke_off_is_kept(tones: ToneModel, error: type[BaseException]) -> None:
    """The traceback of what was raised leads to all that its functions had in their hands."""
    held: list[weakref.ref[torch.Tensor]] = []

    def broken(waveforms: torch.Tensor, lengths: torch.Tensor) -> Any:
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        raise error("broken")

    tones.forward = broken  # type: ignore[method-assign]
    gc.disable()
    try:
        with Engine(tones, EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
            with pytest.raises(WorkerError) as raised:
                engine.submit(marked(0.1)).result(10)
            assert engine.last_death is not None or raised.value.__cause__ is not None
            until(lambda: not any(each() is not None for each in held))
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [None, ValueError, SystemExit])
def test_rows_go_as_soon_as_they_are_answered(tones: ToneModel, error: type[BaseException] | None) -> None:
    """Without waiting for a garbage collection; what they were made of, even while the answer is kept."""
    if error is not None:
        poisoned(tones, error)
    waveforms = [marked(0.5), marked(0.1)]
    samples = [weakref.ref(waveform) for waveform in waveforms]
    gc.disable()
    try:
        with Engine(tones, EngineSettings(max_wait=0.1)) as engine:  # type: ignore[arg-type]
            futures = [engine.submit(waveforms.pop(0)) for _ in samples]
            wait(futures, 10)
            until(lambda: not any(each() is not None for each in samples))
            assert (futures[0].exception() is not None) == (error is not None)
            answers = [weakref.ref(future) for future in futures]
            futures.clear()
            until(lambda: not any(each() is not None for each in answers))
    finally:
        gc.enable()


def test_a_cancelled_row_goes_at_once(tones: ToneModel) -> None:
    waveform = marked(0.1)
    samples = weakref.ref(waveform)
    gc.disable()
    try:
        with Engine(tones, EngineSettings(max_wait=60.0)) as engine:  # type: ignore[arg-type]
            future = engine.submit(waveform)
            del waveform
            assert future.cancel()
            until(lambda: samples() is None)
            assert engine.state().waiting == 0
    finally:
        gc.enable()


def test_a_stream_that_failed_goes_with_its_error(tones: ToneModel) -> None:
    poisoned(tones, ValueError)
    streams: list[weakref.ref[Stream]] = []

    async def refused(engine: Engine) -> None:
        stream = Stream(engine, settings=StreamSettings(normalisation="buffer"))
        streams.append(weakref.ref(stream))
        with pytest.raises(WorkerError, match="poison"):
            await stream.push(marked(0.5, samples=64_000))

    gc.disable()
    try:
        with Engine(tones, EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
            run(refused(engine))
            until(lambda: streams[0]() is None)
    finally:
        gc.enable()


def test_the_lines_of_a_failure_stay(tones: ToneModel) -> None:
    poisoned(tones, ValueError)
    with Engine(tones, EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
        error = engine.submit(marked(0.5)).exception(10)
    assert 'raise error("poison")' in "".join(format_exception(error))


def test_what_kills_every_worker_is_given_up(tones: ToneModel) -> None:
    poisoned(tones, SystemExit)
    with Engine(tones, EngineSettings(max_wait=0.1)) as engine:  # type: ignore[arg-type]
        futures = [engine.submit(marked(mark)) for mark in (0.1, 0.5, 0.2)]
        assert len(futures[0].result(10)) == len(futures[2].result(10)) == 10
        with pytest.raises(WorkerError, match="died of this request"):
            futures[1].result(10)
        assert len(engine.submit(marked(0.3)).result(10)) == 10
        assert engine.state().restarts == 2
        assert engine.state().alive


def test_a_failing_recording_is_refused_whole(tones: ToneModel) -> None:
    poisoned(tones, ValueError)
    with Engine(tones) as engine:  # type: ignore[arg-type]
        with pytest.raises(WorkerError):
            run(recognise(engine, marked(0.5)))
        assert run(recognise(engine, spoken("abc"))).hypotheses[0].text == "abc"
