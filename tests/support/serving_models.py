"""Models and adapters for the tests of serving: small, with random weights, quick to build."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.models.asr_model import AsrModel, build_model
from overtone.serving.adapter_store.store import AdapterStore
from overtone.tokenizers import CharTokenizer
from support.tone_model import ToneModel

LETTERS = [" ", *"abcdefghijklmnopqrstuvwxyz'"]


def tiny_model(seed: int = 0, **preprocessor: object) -> AsrModel:
    """A Conformer of two narrow layers, one encoder frame in 40 ms."""
    torch.manual_seed(seed)
    settings = {
        "preprocessor": {"features": 16, "n_fft": 512, "dither": 0.0, **preprocessor},
        "encoder": {"features": 16, "width": 16, "layers": 2, "heads": 2, "kernel_size": 5, "subsampling_factor": 4},
        "decoder": {"width": 16, "classes": len(LETTERS)},
    }
    return build_model(settings=settings, tokenizer=CharTokenizer(LETTERS), name="tiny")


def make_adapter(model: AsrModel, folder: Path, *, seed: int = 0, kind: object | None = None) -> Path:
    """Write an adapter that changes the output into a folder; the model is left without it."""
    name = f"made{seed}"
    adapter = model.adapters.add(name, kind or LinearAdapter(dim=4))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    model.adapters.save(name, folder, overwrite=True)
    model.adapters.remove(name)
    return folder


def three_voices(model: AsrModel, folder: Path) -> Path:
    """A store's folder with the adapters `voice0` to `voice2`."""
    for seed in range(3):
        make_adapter(model, folder / f"voice{seed}", seed=seed)
    return folder


def store_of(model: AsrModel, folder: Path | None, **options: object) -> AdapterStore:
    """A store that looks when it is told."""
    return AdapterStore(model, folder, lock=threading.RLock(), poll_seconds=0, **options)


def states(store: AdapterStore) -> dict[str, str]:
    return {entry.name: entry.state for entry in store.entries()}


def noise(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """[S] float32: sound with some shape."""
    generator = np.random.default_rng(seed)
    samples = int(seconds * rate)
    envelope = np.repeat(generator.uniform(0.01, 0.5, samples // 1600 + 1), 1600)[:samples]
    return (envelope * generator.standard_normal(samples)).astype(np.float32)


def offline(model: AsrModel, waveform: np.ndarray, choice: str | None = None) -> np.ndarray:
    """[T, V+1]: the model's answer for a waveform alone."""
    with torch.no_grad(), model.adapters.use(choice):
        log_probs, frames = model(torch.from_numpy(waveform)[None], torch.tensor([waveform.size]))
    return log_probs[0, : int(frames[0])].numpy()


def marked(mark: float, samples: int = 6400) -> np.ndarray:
    """A waveform that is recognised by its first sample."""
    waveform = np.zeros(samples, dtype=np.float32)
    waveform[0] = mark
    return waveform


def until(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


class Gate:
    """Holds the worker in its forward until it is opened, and remembers what went through."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.batches: list[list[str | None]] = []
        self.error: BaseException | None = None
        self.forward = model.forward
        model.forward = self

    def __call__(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> Any:
        selection = self.model.adapters.selection
        self.batches.append([float(row[0]) for row in waveforms])
        assert selection is not None
        self.entered.release()
        assert self.open.wait(10)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.forward(waveforms, lengths)


def poisoned(model: ToneModel, error: type[BaseException], *, times: int = 10**9) -> list[int]:
    """Forwards with a row that begins with 0.5 raise; the number of forwards so far."""
    forward, count, left = model.forward, [0], [times]

    def replaced(waveforms: torch.Tensor, lengths: torch.Tensor) -> Any:
        count[0] += 1
        if bool((waveforms[:, 0] == 0.5).any()) and left[0]:
            left[0] -= 1
            raise error("poison")
        return forward(waveforms, lengths)

    model.forward = replaced  # type: ignore[method-assign]
    return count
