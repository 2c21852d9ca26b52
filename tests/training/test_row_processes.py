"""The rows of a batch in several processes: the same numbers, and nothing left behind when one of them dies."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.audio.spec_augment import SpecAugment
from overtone.config import OptimSettings
from overtone.errors import ConfigError, DataError, OvertoneError, UsageError
from overtone.inference.rows import equal_parts
from overtone.models.asr_model import AsrModel
from overtone.training import row_processes
from overtone.training.callback import TrainingCallback
from overtone.training.console import Reporter
from overtone.training.forward import TrainingForward
from overtone.training.optim import OPTIMISERS, make_optimiser
from overtone.training.row_processes import PROCESS_NAME, RowProcesses
from overtone.training.run import Run
from overtone.training.run_folder import LOG_FILE
from overtone.training.train import run_training
from overtone.training.trainer import count_row_processes
from support.small_models import add_trained, small_model
from support.train_samples import losses, settings_for

pytestmark = pytest.mark.skipif(count_row_processes(2) != 2, reason="processes are copied under Linux only")

LENGTHS = [9_000, 31_000, 8_500, 17_000, 30_500]
"""Samples."""


def model_to_train(*, dropout: bool = False, dither: bool = False) -> AsrModel:
    model = small_model(layers=3)
    model.preprocessor.dither = 1e-5 if dither else 0.0
    model.adapters.add("mine", LinearAdapter(dim=4))
    add_trained(model, "other")
    with torch.no_grad():
        for parameter in model.adapters["mine"].parameters():
            parameter.add_(0.1)
    return model.train_only("mine", base_dropout=dropout)


def make_forward(
    model: AsrModel, *, augment: SpecAugment | None = None, inner: tuple[int, ...] = ()
) -> TrainingForward:
    return TrainingForward(model=model, adapter="mine", augment=augment, inner=inner)


@pytest.fixture
def waveforms() -> Tensor:
    return 0.1 * torch.randn(len(LENGTHS), 32_000, generator=torch.Generator().manual_seed(3))


def own_rows(heads: list[Tensor], counts: Tensor) -> list[Tensor]:
    """Every row's own frames of every head; what stands on the padding means nothing."""
    return [row[:count] for head in heads for row, count in zip(head, counts.tolist(), strict=True)]


def outcome(model: AsrModel, heads: list[Tensor], counts: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The rows, and the adapter's gradients of a loss that weighs them differently."""
    rows = own_rows(heads, counts)
    loss = torch.stack([(number + 1) * row[:, 3].sum() for number, row in enumerate(rows)]).sum()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [row.detach() for row in rows], list(torch.autograd.grad(loss, parameters))


def assert_close(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("inner", [(), (0, 1)])
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_compute_what_one_does(waveforms: Tensor, processes: int, inner: tuple[int, ...]) -> None:
    model = model_to_train()
    forward = make_forward(model, inner=inner)
    lengths = torch.tensor(LENGTHS)
    rows, gradients = outcome(model, *forward(waveforms, lengths)[:2])
    assert any(gradient.abs().max() > 0.01 for gradient in gradients)
    with RowProcesses(forward, processes) as shared:
        found, by_parts = outcome(model, *shared(waveforms, lengths))
    assert_close(found, rows, 1e-4)
    assert_close(by_parts, gradients, 1e-3)


def test_what_has_been_learnt_is_told(waveforms: Tensor) -> None:
    model, lengths = model_to_train(), torch.tensor(LENGTHS)
    forward = make_forward(model)
    with RowProcesses(forward, 2) as shared:
        before = own_rows(*shared(waveforms, lengths))
        with torch.no_grad():
            for parameter in model.adapters["mine"].parameters():
                parameter.add_(0.3)
        after = own_rows(*shared(waveforms, lengths))
        alone = own_rows(*forward(waveforms, lengths)[:2])
    assert all((one - other).abs().max() > 0.01 for one, other in zip(after, before, strict=True))
    assert_close(after, alone, 1e-4)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_the_step_of_an_optimiser_is_told(waveforms: Tensor, name: str, fused: bool) -> None:
    model, lengths = model_to_train(), torch.tensor(LENGTHS)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = 30.0 if name == "adadelta" else 0.3  # its first step is a thousandth of the rate
    optimiser = make_optimiser(OptimSettings(name=name, lr=rate), parameters, fused=fused)
    with RowProcesses(make_forward(model), 2) as shared:
        before = own_rows(*shared(waveforms, lengths))
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
        after = own_rows(*shared(waveforms, lengths))
    assert all((one - other).abs().max() > 0.01 for one, other in zip(after, before, strict=True))


def test_the_base_alone_and_evaluation(waveforms: Tensor) -> None:
    model, lengths = model_to_train(dropout=True, dither=True).eval(), torch.tensor(LENGTHS)
    forward = make_forward(model, augment=SpecAugment(freq_masks=2, freq_width=60))
    with torch.no_grad():
        wanted = [own_rows(*forward(waveforms, lengths, base_alone=base)[:2]) for base in (False, True)]
        with RowProcesses(forward, 2) as shared:
            found = [own_rows(*shared(waveforms, lengths, base_alone=base)) for base in (False, True)]
    assert_close(found[0], wanted[0], 1e-4)
    assert_close(found[1], wanted[1], 1e-4)
    assert (wanted[0][0] - wanted[1][0]).abs().max() > 0.01


def test_randomness_depends_on_the_seed_alone(waveforms: Tensor) -> None:
    model, lengths = model_to_train(dropout=True, dither=True), torch.tensor(LENGTHS)

    def seeded(shared: RowProcesses, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return shared(waveforms, lengths)[0][0].detach()

    with RowProcesses(make_forward(model, augment=SpecAugment(freq_masks=2)), 2) as shared:
        first, other, again = (seeded(shared, seed) for seed in (1, 2, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().amax((1, 2)).min() > 0.001


def test_one_row_is_computed_by_one_process(waveforms: Tensor) -> None:
    model = model_to_train()
    forward, lengths = make_forward(model), torch.tensor(LENGTHS[:1])
    with RowProcesses(forward, 2) as shared:
        heads, _ = shared(waveforms[:1, : LENGTHS[0]], lengths)
    assert torch.equal(heads[0], forward(waveforms[:1, : LENGTHS[0]], lengths)[0][0])


def test_threads_come_back(waveforms: Tensor) -> None:
    before = torch.get_num_threads()
    with RowProcesses(make_forward(model_to_train()), 2) as shared:
        assert torch.get_num_threads() == max(1, before - 1)
        process = shared.others[0].process
    assert torch.get_num_threads() == before
    assert not process.is_alive()
    assert process.exitcode == 0


def test_a_process_that_is_killed(waveforms: Tensor) -> None:
    with RowProcesses(make_forward(model_to_train()), 2) as shared:
        pid = shared.others[0].process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(OvertoneError, match=r"has ended \(exit code -9\).*compute_processes=1"):
            shared(waveforms, torch.tensor(LENGTHS))


@pytest.mark.parametrize("late", [False, True])
def test_the_others_end_with_the_first_process(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """However it ends: they do not carry on with what nobody waits for.

    late: the first process has ended before another one could ask the system to end with it.
    """
    first, theirs = multiprocessing.Pipe()
    end_with_first_process = row_processes.end_with_first_process

    def end_later() -> None:
        time.sleep(0.5)
        end_with_first_process()

    if late:
        monkeypatch.setattr(row_processes, "end_with_first_process", end_later)

    def begin_and_wait() -> None:
        shared = RowProcesses(make_forward(model_to_train()), 2, first_task=partial(time.sleep, 60.0))
        theirs.send(shared.others[0].process.pid)
        time.sleep(60.0)

    process = multiprocessing.get_context("fork").Process(target=begin_and_wait)
    process.start()
    other = first.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    end = time.monotonic() + 60.0
    while is_computing(other):
        assert time.monotonic() < end, "the other process lives on"
        time.sleep(0.01)


def is_computing(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that has ended may wait for somebody to ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_what_goes_wrong_there_is_raised_here(waveforms: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.getpid()
    recognise = TrainingForward.__call__

    def failing(self: TrainingForward, *given: Any, **named: Any) -> Any:
        if os.getpid() != here:
            raise UsageError("not there")
        return recognise(self, *given, **named)

    monkeypatch.setattr(TrainingForward, "__call__", failing)
    with RowProcesses(make_forward(model_to_train()), 2) as shared, pytest.raises(UsageError, match="not there"):
        shared(waveforms, torch.tensor(LENGTHS))


def test_a_first_task_is_done_before_the_first_batch(waveforms: Tensor) -> None:
    here = os.getpid()
    with RowProcesses(make_forward(model_to_train()), 3, first_task=lambda: os.getpid()) as shared:
        assert shared.has_first_task
        done_by = shared.first_result()
        assert not shared.has_first_task
        heads, _ = shared(waveforms, torch.tensor(LENGTHS))
    assert done_by not in (here, None)
    assert len(heads[0]) == len(LENGTHS)


def test_a_first_task_that_fails(waveforms: Tensor) -> None:
    def failing() -> None:
        raise DataError("no such recording")

    with (
        RowProcesses(make_forward(model_to_train()), 2, first_task=failing) as shared,
        pytest.raises(DataError, match="no such recording"),
    ):
        shared.first_result()


# Parts


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_parts_are_as_equal_as_can_be(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for size in (1, 2, 5, 8):
        lengths = torch.randint(1, 100, (size,), generator=generator).tolist()
        parts = equal_parts(lengths, count)
        assert sorted(row for rows in parts for row in rows) == list(range(size))
        assert len(parts) <= count
        assert work(lengths, parts) == least_work(lengths, count)


def work(lengths: list[int], parts: list[list[int]]) -> int:
    return max(len(rows) * max(lengths[row] for row in rows) for rows in parts)


def least_work(lengths: list[int], count: int) -> int:
    """Of all ways to deal the rows out."""
    ways = itertools.product(range(count), repeat=len(lengths))
    return min(
        work(lengths, [rows for part in range(count) if (rows := [r for r, p in enumerate(way) if p == part])])
        for way in ways
        if count <= 2 or len(lengths) <= 5 or sorted_way(lengths, way)
    )


def sorted_way(lengths: list[int], way: tuple[int, ...]) -> bool:
    """Whether parts follow each other in length: enough to look at, and far fewer."""
    by_length = [part for _, part in sorted(zip(lengths, way, strict=True))]
    return all(one <= other for one, other in itertools.pairwise(by_length))


# Whole trainings


def test_a_training_in_two_processes(tmp_path: Path) -> None:
    """Without dropout, its losses are those of one process but for rounding."""
    found, bases = {}, set()
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        settings = settings_for(
            folder, f"compute_processes={processes}", "model.base_dropout=false", "trainer.max_steps=20"
        )
        model = small_model()
        model.preprocessor.dither = 0.0
        run_training(settings, model=model)
        text = (folder / "run" / LOG_FILE).read_text()
        bases.add(re.search(r"step 0: WER (.*%)", text)[1])
        found[processes] = [value for _, value in losses(folder / "run")["train_loss"]]
    assert len(bases) == 1
    assert len(found[1]) == 20
    assert found[2] == pytest.approx(found[1], rel=1e-3)
    assert found[2][-1] < found[2][0]


@pytest.mark.parametrize("wanted", ["0", "many"])
def test_a_number_of_processes_that_is_none(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(ConfigError, match="compute_processes"):
        settings_for(tmp_path, f"compute_processes={wanted}")


def test_auto_is_one_process_for_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of a process with more threads would have one each, and leave the others idle."""
    counts = {1: 1, 2: 2, 4: 4, 5: 1, 64: 1}
    for threads, count in counts.items():
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert count_row_processes("auto") == count
        assert count_row_processes(3) == 3


def test_the_process_that_scores_the_base_keeps_no_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    plan = row_processes.plan_base_scoring

    def looked_at(run: Run, forward: TrainingForward) -> Any:
        score = plan(run, forward)
        assert score is not None
        score()
        kept.append(len(run.validation[0].dataset.cache))
        return None

    monkeypatch.setattr(row_processes, "plan_base_scoring", looked_at)
    settings = settings_for(tmp_path, "compute_processes=2", "trainer.max_steps=1")
    run_training(settings, model=small_model(), reporter=Reporter(quiet=True))
    assert kept == [0]


def test_the_last_adapter_is_kept_when_a_process_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = TrainingCallback.on_train_batch_start

    def kill(self: TrainingCallback, *arguments: Any) -> None:
        begin(self, *arguments)
        if self.progress.batches == 2:
            (process,) = [process for process in multiprocessing.active_children() if process.name == PROCESS_NAME]
            process.kill()

    monkeypatch.setattr(TrainingCallback, "on_train_batch_start", kill)
    settings = settings_for(tmp_path, "compute_processes=2", "trainer.max_steps=9", validation=False)
    with pytest.raises(DataError, match=r"computes rows of the batch has ended.*compute_processes=1"):
        run_training(settings, model=small_model(), reporter=Reporter(quiet=True))
    assert small_model().adapters.load(tmp_path / "run/checkpoints/mine-last").card["steps"] == 2
