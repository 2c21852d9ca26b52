"""The engine: batches of mixed adapters, turns, overload, cancellation, failures, shutdown."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.errors import DeadlineError, DrainingError, OverloadError
from support.serving_models import Gate, make_adapter, marked, noise, offline, tiny_model, until
from support.tone_model import ToneModel

# Answers


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[AsrModel, Engine, AdapterStore]]:
    """A model with five adapters on its store."""
    model = tiny_model()
    for seed in range(5):
        make_adapter(model, tmp_path / f"voice{seed}", seed=seed)
    with (
        Engine(model, EngineSettings(max_wait=0.05)) as engine,
        AdapterStore(model, tmp_path, lock=engine.lock) as store,
    ):
        yield model, engine, store


def test_rows_of_many_adapters_in_one_batch_are_answered_as_each_alone(
    served: tuple[AsrModel, Engine, AdapterStore],
) -> None:
    model, engine, store = served
    names = [None, "voice0", "voice1", "voice2", "voice3", "voice4", "voice1+voice3", "voice3+voice1"]
    leases = [store.acquire(name) for name in names]
    waveforms = [noise(1.5 + 0.05 * index, seed=index) for index in range(len(names))]
    futures = [engine.submit(w, lease=lease) for w, lease in zip(waveforms, leases, strict=True)]
    answers = [future.result(30) for future in futures]
    state = engine.state()
    assert state.batches == state.mixed_batches == 1
    expected = [offline(model, w, lease.choice) for w, lease in zip(waveforms, leases, strict=True)]
    for answer, reference in zip(answers, expected, strict=True):
        assert answer.shape == reference.shape
        np.testing.assert_allclose(answer, reference, atol=2e-5)
    for index, other in enumerate(expected[1:], start=1):  # and the adapters do something, in their order
        assert np.abs(other - offline(model, waveforms[index])).max() > 1e-2
    assert np.abs(expected[6] - offline(model, waveforms[6], leases[7].choice)).max() > 1e-3


def test_threads_at_once_get_their_own_answers(served: tuple[AsrModel, Engine, AdapterStore]) -> None:
    model, engine, store = served
    wrong: list[str] = []

    def client(number: int) -> None:
        for turn in range(4):
            name = None if (number + turn) % 6 == 5 else f"voice{(number + turn) % 6}"
            waveform = noise(0.8 + 0.1 * (number % 3), seed=100 * number + turn)
            with store.acquire(name) as lease:
                answer = engine.submit(waveform, lease=lease).result(60)
                jobs.append((waveform, lease.choice, answer))

    jobs: list[tuple[np.ndarray, str | None, np.ndarray]] = []
    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(jobs) == 32
    for waveform, choice, answer in jobs:
        if np.abs(answer - offline(model, waveform, choice)).max() > 2e-5:
            wrong.append(str(choice))
    assert not wrong
    assert engine.state().batches < 32


def test_features_and_waveforms_share_a_batch(served: tuple[AsrModel, Engine, AdapterStore]) -> None:
    model, engine, store = served
    waveform = noise(2.0, seed=1)
    mel, frames = model.preprocessor(torch.from_numpy(waveform)[None], torch.tensor([waveform.size]))
    features = mel[0, :, : int(frames[0])].numpy()
    lease = store.acquire("voice2")
    futures = [engine.submit(waveform, priority="stream"), engine.submit_features(features, lease=lease)]
    answers = [future.result(30) for future in futures]
    assert engine.state().batches == 1
    np.testing.assert_allclose(answers[0], offline(model, waveform), atol=2e-5)
    np.testing.assert_allclose(answers[1], offline(model, waveform, lease.choice), atol=2e-5)


def test_audio_shorter_than_a_frame_is_answered(served: tuple[AsrModel, Engine, AdapterStore]) -> None:
    _, engine, _ = served
    for samples in (0, 1, 159, 161, 700):
        answer = engine.submit(np.zeros(samples, np.float32)).result(10)
        assert len(answer) >= 1


# Turns


def test_a_busy_adapter_does_not_keep_another_waiting(tones: ToneModel) -> None:
    gate = Gate(tones)
    with Engine(tones, EngineSettings(max_batch=4)) as engine:  # type: ignore[arg-type]
        engine.submit(marked(-1.0))
        gate.entered.acquire()
        crowd = [engine.submit(marked(mark), group="busy") for mark in range(1, 21)]
        alone = engine.submit(marked(100.0), group="quiet")
        gate.open.set()
        alone.result(10)
        wait(crowd)
    assert 100.0 in gate.batches[1]
    assert len(gate.batches[1]) == 4


# Overload, cancellation, deadlines


def test_overload_is_answered_at_once_and_leaves_room_for_the_modest(tones: ToneModel) -> None:
    gate = Gate(tones)
    settings = EngineSettings(max_batch=2, max_queue=8)
    with Engine(tones, settings) as engine:  # type: ignore[arg-type]
        running = engine.submit(marked(1.0))
        gate.entered.acquire()
        crowd = [engine.submit(marked(2.0), group="busy") for _ in range(6)]
        with pytest.raises(OverloadError, match="6 of 8 places") as refused:
            engine.submit(marked(2.0), group="busy")
        assert refused.value.retry_after > 0
        others = [
            engine.submit(marked(3.0), group="quiet"),
            engine.submit(marked(4.0), group="busy", priority="stream"),
        ]
        with pytest.raises(OverloadError):
            engine.submit(marked(5.0), group="new", priority="stream")
        assert engine.state().rejected == 2
        gate.open.set()
        done, _ = wait([running, *crowd, *others], timeout=10)
        assert len(done) == 9
        assert engine.state().rows == 9


def test_a_cancelled_request_frees_its_place_and_is_never_computed(tones: ToneModel) -> None:
    gate = Gate(tones)
    with Engine(tones, EngineSettings(max_queue=4)) as engine:  # type: ignore[arg-type]
        engine.submit(marked(1.0))
        gate.entered.acquire()
        futures = [engine.submit(marked(mark), priority="stream") for mark in (2.0, 3.0, 4.0, 5.0)]
        with pytest.raises(OverloadError):
            engine.submit(marked(6.0), priority="stream")
        assert futures[1].cancel()
        assert engine.state().waiting == 3
        last = engine.submit(marked(7.0), priority="stream")
        gate.open.set()
        last.result(10)
        with pytest.raises(CancelledError):
            futures[1].result()
        assert engine.state().cancelled == 1
    assert all(3.0 not in batch for batch in gate.batches)


def test_a_deadline_that_has_passed_is_told(tones: ToneModel) -> None:
    gate = Gate(tones)
    with Engine(tones) as engine:  # type: ignore[arg-type]
        engine.submit(marked(1.0))
        gate.entered.acquire()
        late = engine.submit(marked(2.0), deadline=time.monotonic() + 0.01)
        timely = engine.submit(marked(3.0), deadline=time.monotonic() + 60)
        time.sleep(0.03)
        gate.open.set()
        timely.result(10)
        with pytest.raises(DeadlineError):
            late.result(10)
        assert engine.state().expired == 1


# Shutdown


def test_draining_finishes_what_waits_and_takes_nothing_new(tones: ToneModel) -> None:
    gate = Gate(tones)
    with Engine(tones, EngineSettings(max_batch=2)) as engine:  # type: ignore[arg-type]
        futures: list[Future[Any]] = [engine.submit(marked(mark)) for mark in (1.0, 2.0, 3.0, 4.0, 5.0)]
        gate.entered.acquire()
        assert not engine.drain(0.05)
        with pytest.raises(DrainingError):
            engine.submit(marked(6.0))
        gate.open.set()
        assert engine.drain(10)
        assert all(future.done() and future.exception() is None for future in futures)


def test_closing_answers_everybody(tones: ToneModel) -> None:
    gate = Gate(tones)
    engine = Engine(tones, EngineSettings(max_batch=1))  # type: ignore[arg-type]
    futures = [engine.submit(marked(mark)) for mark in (1.0, 2.0, 3.0)]
    gate.entered.acquire()
    closer = threading.Thread(target=engine.close)
    closer.start()
    until(lambda: futures[1].done() and futures[2].done())
    gate.open.set()
    closer.join(10)
    assert not closer.is_alive()
    assert futures[0].result(5) is not None
    for future in futures[1:]:
        with pytest.raises(DrainingError):
            future.result(0)
    assert not engine.state().alive
    with pytest.raises(DrainingError):
        engine.submit(marked(1.0))
