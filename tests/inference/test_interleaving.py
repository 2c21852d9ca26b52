"""Blocks, generators, streams and threads in any order: every forward is that of a fresh model with that choice."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor

from overtone.adapters.selection import Choice
from overtone.inference.transcribe import Transcriber, Transcription
from overtone.models.asr_model import AsrModel
from support.small_models import add_trained, small_model

CHOICES: tuple[Any, ...] = (None, "a", "b", "a+b", ("a", None), (None, "b"))
DTYPES = ("float32", "bfloat16")
ROWS, SAMPLES = 2, 6000
WAVEFORMS = torch.randn(ROWS, SAMPLES, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([SAMPLES, 4000])
RECORDINGS = 3


def fresh_model() -> AsrModel:
    model = small_model(layers=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_trained(model, "a", seed=1)
        add_trained(model, "b", seed=2)
    return model


def forward(model: AsrModel) -> Tensor:
    """Emissions [B, T', V+1] of one batch, with whatever choice acts."""
    with torch.no_grad():
        return model(WAVEFORMS, LENGTHS)[0]


@cache
def expected(choice: Any, dtype: str) -> Tensor:
    """The same of a model that has been used for nothing else."""
    model = fresh_model()
    with model.computing_in(dtype), model.adapters.use(choice):
        return forward(model)


def recordings(folder: Path) -> list[Path]:
    """Short recordings of noise, written where they are not there yet."""
    paths = [folder / f"{number}.wav" for number in range(RECORDINGS)]
    for number, path in enumerate(paths):
        if not path.exists():
            noise = np.random.default_rng(number).standard_normal(5000 + 500 * number).astype(np.float32)
            soundfile.write(path, 0.1 * noise, 16_000)
    return paths


def stream(model: AsrModel, folder: Path, choice: str, dtype: str) -> Iterator[Transcription]:
    return Transcriber(model, batch_seconds=0.4, compute_dtype=dtype).stream(recordings(folder), adapter=choice)


@cache
def expected_texts(folder: Path, choice: str, dtype: str) -> list[str]:
    return [said(result) for result in stream(fresh_model(), folder, choice, dtype)]


def said(result: Transcription) -> str:
    assert result.hypothesis is not None
    return result.hypothesis.text


def in_threads(*works: Any) -> None:
    """Carry out works at the same time, each in a thread; the first error is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def carry_out(work: Any) -> None:
        try:
            start.wait(60)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=carry_out, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class Interleaving(RuleBasedStateMachine):
    """One model, and everything that is going on with it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = fresh_model()
        self.folder = folder
        self.blocks: list[tuple[str, Any, AbstractContextManager[object]]] = []
        self.generators: list[tuple[Any, str | None, Generator[Tensor, None, None]]] = []
        self.streams: list[tuple[list[str], Iterator[Transcription]]] = []
        self.added = 0

    def acting(self, kind: str, default: Any) -> Any:
        """The value of the innermost open block of a kind."""
        return next((value for own, value, _ in reversed(self.blocks) if own == kind), default)

    def check(self, choice: Any, dtype: str) -> None:
        assert torch.equal(forward(self.model), expected(choice, dtype))

    @invariant()
    def the_caller_sees_its_own_blocks_alone(self) -> None:
        self.check(self.acting("adapters", None), self.acting("dtype", "float32"))
        assert not any(module.training for module in self.model.modules() if module is not self.model.adapters)

    @rule(choice=st.sampled_from(CHOICES))
    def open_adapters(self, choice: Any) -> None:
        self.open("adapters", choice, self.model.adapters.use(choice))

    @rule(dtype=st.sampled_from(DTYPES))
    def open_dtype(self, dtype: str) -> None:
        self.open("dtype", dtype, self.model.computing_in(dtype))

    def open(self, kind: str, value: Any, block: AbstractContextManager[object]) -> None:
        block.__enter__()
        self.blocks.append((kind, value, block))

    @precondition(lambda self: self.blocks)
    @rule(number=st.integers(0, 99))
    def close_any_block(self, number: int) -> None:
        self.blocks.pop(number % len(self.blocks))[2].__exit__(None, None, None)

    @rule(choice=st.sampled_from(CHOICES), dtype=st.sampled_from((None, *DTYPES)))
    def start_generator(self, choice: Any, dtype: str | None) -> None:
        def forwards() -> Generator[Tensor, None, None]:
            with ExitStack() as stack:
                if dtype is not None:
                    stack.enter_context(self.model.computing_in(dtype))
                with self.model.adapters.use(choice):
                    while True:
                        yield forward(self.model)

        self.generators.append((choice, dtype, forwards()))

    @precondition(lambda self: self.generators)
    @rule(number=st.integers(0, 99))
    def go_on_with_any_generator(self, number: int) -> None:
        choice, dtype, generator = self.generators[number % len(self.generators)]
        assert torch.equal(next(generator), expected(choice, dtype or self.acting("dtype", "float32")))

    @precondition(lambda self: self.generators)
    @rule(number=st.integers(0, 99), elsewhere=st.booleans())
    def end_any_generator(self, number: int, elsewhere: bool) -> None:
        _, _, generator = self.generators.pop(number % len(self.generators))
        if elsewhere:
            in_threads(generator.close)
        else:
            generator.close()

    @rule(choice=st.sampled_from(("a", "b", "a+b")), dtype=st.sampled_from(DTYPES))
    def start_stream(self, choice: str, dtype: str) -> None:
        self.streams.append(
            (list(expected_texts(self.folder, choice, dtype)), stream(self.model, self.folder, choice, dtype))
        )

    @precondition(lambda self: self.streams)
    @rule(number=st.integers(0, 99))
    def go_on_with_any_stream(self, number: int) -> None:
        texts, results = self.streams[number % len(self.streams)]
        if texts:
            assert said(next(results)) == texts.pop(0)
        else:
            self.streams.pop(number % len(self.streams))
            assert next(results, None) is None

    @rule(choices=st.lists(st.sampled_from(CHOICES), min_size=2, max_size=3), dtype=st.sampled_from(DTYPES))
    def work_in_threads(self, choices: list[Choice], dtype: str) -> None:
        def work(choice: Choice) -> None:
            self.check(None, "float32")
            with self.model.evaluating(), self.model.adapters.use(choice), self.model.computing_in(dtype):
                self.check(choice, dtype)
            self.check(None, "float32")

        in_threads(*(lambda choice=choice: work(choice) for choice in choices))

    @rule()
    def add_and_remove_in_threads(self) -> None:
        name, self.added = f"more{self.added}", self.added + 1

        def change(own: str) -> None:
            add_trained(self.model, own, seed=3)
            with self.model.evaluating():
                pass
            self.model.adapters.remove(own)

        in_threads(lambda: change(f"{name}x"), lambda: change(f"{name}y"), lambda: self.check(None, "float32"))

    def teardown(self) -> None:
        for _, _, block in self.blocks:
            block.__exit__(None, None, None)
        for _, _, generator in self.generators:
            generator.close()
        for _, results in self.streams:
            results.close()  # type: ignore[attr-defined]
        self.blocks = []
        self.check(None, "float32")
        assert self.model.adapters.names == ["a", "b"]


def test_every_forward_is_that_of_a_fresh_model(tmp_path: Path) -> None:
    for choice in CHOICES:  # before there are threads, which would share torch's generator
        for dtype in DTYPES:
            expected(choice, dtype)
    chosen = settings(
        max_examples=12,
        stateful_step_count=20,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(lambda: Interleaving(tmp_path), settings=chosen)  # type: ignore[no-untyped-call]
