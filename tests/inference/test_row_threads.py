"""Several threads that share the rows of a batch: the same answers, the same errors, no trace of them afterwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from overtone.backends.fused.attention import AttentionCore
from overtone.backends.fused.encoder import FusedEncoder
from overtone.inference.rows import MOST_THREADS, RowThreads, one_thread
from overtone.inference.transcribe import Transcriber
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.server import Addresses, Server, ServerSettings, run
from support.serving_models import make_adapter, noise, offline, tiny_model
from support.small_models import small_model


@pytest.fixture
def two() -> Iterator[RowThreads]:
    with RowThreads(small_model(), 2) as threads:
        yield threads


def in_thread(function: Callable[[], int]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_answers_come_in_the_order_of_the_rows_from_parts_of_equal_work(two: RowThreads) -> None:
    parts: list[tuple[str, int, list[int]]] = []

    def square(rows: Sequence[int]) -> list[int]:
        parts.append((threading.current_thread().name, torch.get_num_threads(), list(rows)))
        return [row**2 for row in rows]

    lengths = [10, 40, 10, 10, 10]
    assert two(square, [3, 1, 4, 1, 5], lengths) == [9, 1, 16, 1, 25]
    assert sorted(rows for _, _, rows in parts) == [[1], [3, 4, 1, 5]]
    assert all(name.startswith("overtone-rows") and threads == 1 for name, threads, _ in parts)


def test_a_single_row_is_computed_by_the_caller(two: RowThreads) -> None:
    assert two(lambda rows: [threading.current_thread()], ["row"], [1]) == [threading.current_thread()]


@pytest.mark.parametrize("count", [1, MOST_THREADS + 1])
def test_batches_are_not_cut_where_that_gains_nothing(count: int) -> None:
    with RowThreads(small_model(), count) as threads:
        assert threads(lambda rows: [len(rows)] * len(rows), [1, 2], [1, 1]) == [2, 2]


def test_rows_that_depend_on_their_batch_stay_together() -> None:
    with RowThreads(small_model(conv_norm="group_norm4"), 2) as threads:
        assert threads(lambda rows: [len(rows)] * len(rows), [1, 2], [1, 1]) == [2, 2]


def test_an_error_is_raised_when_every_part_has_ended(two: RowThreads) -> None:
    ended: list[int] = []
    failed = threading.Event()

    def compute(rows: Sequence[int]) -> list[int]:
        if 1 in rows:
            failed.set()
            raise ValueError("this row")
        assert failed.wait(10)
        ended.extend(rows)
        return list(rows)

    with pytest.raises(ValueError, match="this row"):
        two(compute, [1, 2], [1, 1])
    assert ended == [2]


def test_threads_that_begin_later_compute_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with RowThreads(small_model(), 2) as threads:
            threads(list, [1, 2], [1, 1])
            assert torch.get_num_threads() == 3
        assert in_thread(torch.get_num_threads) == 3
        with one_thread() as had:
            assert (had, torch.get_num_threads(), in_thread(torch.get_num_threads)) == (3, 1, 1)
        assert (torch.get_num_threads(), in_thread(torch.get_num_threads)) == (3, 3)
    finally:
        torch.set_num_threads(before)


def test_a_copy_is_derived_by_one_of_the_threads(two: RowThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    derived: list[object] = []
    both = threading.Barrier(2)
    derive = FusedEncoder.derive
    monkeypatch.setattr(FusedEncoder, "derive", lambda self: (derived.append(self), derive(self))[1])
    model = two.model.set_compute_dtype("float32", prepared=True)

    def compute(rows: Sequence[np.ndarray]) -> list[torch.Tensor]:
        both.wait(10)
        with torch.no_grad():
            found = [model(torch.from_numpy(row)[None], torch.tensor([row.size])) for row in rows]
        return [log_probs[0, : int(lengths[0])] for log_probs, lengths in found]

    waveforms = [noise(1.0, seed=1), noise(1.0, seed=2)]
    found = two(compute, waveforms, [1, 1])
    assert len(derived) == 1
    for answer, waveform in zip(found, waveforms, strict=True):
        np.testing.assert_array_equal(answer.numpy(), offline(model, waveform))


def test_distances_are_encoded_for_the_longest_row_of_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread with shorter rows waits for one that is at it, and does not put shorter encodings in their place."""
    prepared = small_model().set_compute_dtype("float32", prepared=True).backend
    assert isinstance(prepared, FusedEncoder)
    prepared.refresh()
    encoding, go_on = threading.Event(), threading.Event()
    encoded: list[int] = []
    prepare = AttentionCore.prepare

    def slowly(self: AttentionCore, positions: torch.Tensor) -> None:
        encoded.append(positions.size(1))
        encoding.set()
        assert go_on.wait(10)
        prepare(self, positions)

    monkeypatch.setattr(AttentionCore, "prepare", slowly)
    threads = [
        threading.Thread(target=prepared.encode_distances, args=(frames, torch.device("cpu"))) for frames in (600, 300)
    ]
    threads[0].start()
    assert encoding.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    go_on.set()
    for thread in threads:
        thread.join()
    assert encoded == [2047] * len(prepared.layers)
    assert prepared.longest == 1024


def test_the_engine_answers_rows_of_many_adapters_as_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model().set_compute_dtype("float32", prepared=True)
    names = [f"voice{seed}" for seed in range(5)]
    for seed, name in enumerate(names):
        make_adapter(model, tmp_path / name, seed=seed)
    computing: list[tuple[int, int]] = []
    forward = model.forward

    def watched(waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        computing.append((len(waveforms), torch.get_num_threads()))
        return forward(waveforms, lengths)

    model.forward = watched  # type: ignore[method-assign]
    settings = EngineSettings(max_wait=0.05, threads=2)
    with Engine(model, settings) as engine, AdapterStore(model, tmp_path, lock=engine.lock) as store:
        monkeypatch.setattr("overtone.serving.engine.engine.LONG", -1.0)
        leases = [store.acquire(name) for name in (*names, None)]
        waveforms = [noise(1.5 + 0.05 * index, seed=index) for index in range(len(leases))]
        futures = [engine.submit(w, lease=lease) for w, lease in zip(waveforms, leases, strict=True)]
        answers = [future.result(30) for future in futures]
        assert engine.state().batches == 1
        assert sorted(computing) == [(3, 1), (3, 1)]
        computing.clear()
        engine.submit(waveforms[0]).result(30)
        assert computing == [(1, 2)]
        monkeypatch.setattr("overtone.serving.engine.engine.LONG", 60.0)
        futures = [engine.submit(waveform) for waveform in waveforms[:2]]
        assert all(len(future.result(30)) for future in futures)
        assert computing[1:] == [(2, 1)]
        for answer, waveform, lease in zip(answers, waveforms, leases, strict=True):
            np.testing.assert_allclose(answer, offline(model, waveform, lease.choice), atol=2e-5)


def test_a_recording_reads_the_same_however_many_threads_hear_it(tmp_path: Path) -> None:
    model = small_model()
    for number, seconds in enumerate((2.0, 1.0, 1.5)):
        soundfile.write(tmp_path / f"{number}.wav", noise(seconds, seed=number), 16_000)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(Transcriber(model).transcribe(tmp_path))
    finally:
        torch.set_num_threads(before)
    assert [each.text for each in found[0]] == [each.text for each in found[1]]
    assert [each.words for each in found[0]] == [each.words for each in found[1]]


def test_beside_the_engine_no_thread_of_a_server_spreads_its_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    stop: list[asyncio.Event] = []
    spread: list[int] = []
    monkeypatch.setattr("overtone.serving.server.listen_to_signals", stop.append)

    def started(server: Server, addresses: Addresses) -> None:
        async def look() -> None:
            spread.append(await asyncio.to_thread(torch.get_num_threads))
            stop.pop().set()

        looking.append(asyncio.ensure_future(look()))

    looking: list[asyncio.Future[None]] = []
    settings = ServerSettings(grpc_port=0, http_port=0, engine=EngineSettings(threads=2))
    server = Server(settings, tiny_model())
    try:
        assert asyncio.run(run(server, started, keeps_memory=False))
    finally:
        server.close()
    assert spread == [1]
