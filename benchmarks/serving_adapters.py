"""What a server is loaded with: sound, adapters by the thousand, and the right answer to each request.

The right answer is computed here, apart from the server: one row at a time, one adapter at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch

from benchmarks.harness import SHAPES, tiny
from benchmarks.models import ADAPTER, make_model
from overtone.adapters.kinds import LinearAdapter
from overtone.audio import load_audio
from overtone.checkpoints.load import load_model, save_model
from overtone.decoding.ctc import greedy
from overtone.errors import AdapterError
from overtone.jobs.verify import PROMPTS
from overtone.manifest import read_manifest
from overtone.model import AsrModel
from overtone.serving.engine import Engine, EngineSettings, Samples
from overtone.serving.shelf import Lease, Shelf
from overtone.serving.stream_settings import StreamSettings
from overtone.serving.streaming import Final, Stream
from overtone.wer import character_errors

RATE = 16_000
GAP_SECONDS = 0.25
STRENGTH = 0.3
"""Deviation of the adapters' random up-projections, enough that each hears something else."""
SMOKE_STRENGTH = 3.0
FEW, NEAR = 2, 0.2
"""An answer of which so many characters differ, or this share, and which is nearer to the right one than to any other
adapter's or the base's, is the right one: batches of other shapes round otherwise, in bfloat16 above all."""

Verdict = Literal["right", "rounded", "wrong"]


def stand_in(folder: Path) -> str:
    """A model of two tiny layers with fresh weights, on disk; its texts mean nothing but differ."""
    model = make_model(replace(tiny(SHAPES["fastconformer"]), classes=32))
    model.adapters.remove(ADAPTER)
    model.name = "stand-in"
    with torch.no_grad():
        model.decoder.projection.weight.mul_(8.0)
    save_model(model, folder)
    return str(folder)


def sound(seconds: float) -> Samples:
    """[S], at least so long: the telephone prompts of this project, one after the other, as often as need be."""
    gap = np.zeros(round(GAP_SECONDS * RATE), dtype=np.float32)
    lines = [line for name in ("train", "test") for line in read_manifest(PROMPTS / f"{name}.jsonl")]
    parts: list[Samples] = []
    for line in itertools.cycle(lines):
        parts += [load_audio(line.audio_path), gap]
        seconds -= line.duration + GAP_SECONDS
        if seconds <= 0:
            return np.concatenate(parts)
    raise AssertionError("there are prompts")


def make_clips(folder: Path, seconds: Sequence[float]) -> dict[str, Samples]:
    """Stretches of the sound, as the client will read them: `NAME.raw`, 16-bit samples."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = sound(sum(seconds) + 1.0)
    values = np.round(whole * 32767).astype("<i2")
    clips, begin = {}, 0
    for index, duration in enumerate(seconds):
        end = begin + round(duration * RATE)
        name = f"clip{index:03d}"
        (folder / f"{name}.raw").write_bytes(values[begin:end].tobytes())
        clips[name] = values[begin:end].astype(np.float32) / 32768
        begin = end
    return clips


def make_adapters(
    model: AsrModel, folder: Path, names: Sequence[str], *, dim: int = 32, seed: int = 0, strength: float = STRENGTH
) -> None:
    """A linear adapter in every layer under each name, each with other weights."""
    for index, name in enumerate(names):
        write_adapter(model, folder / name, seed=1000 * seed + index, dim=dim, strength=strength)


def write_adapter(model: AsrModel, folder: Path, *, seed: int, dim: int = 32, strength: float = STRENGTH) -> None:
    generator = torch.Generator().manual_seed(seed)
    adapter = model.adapters.add("made", LinearAdapter(dim=dim))
    try:
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                if name.endswith("up.weight"):
                    parameter.copy_(strength * torch.randn(parameter.shape, generator=generator))
        model.adapters.save("made", folder, overwrite=True)
    finally:
        model.adapters.remove("made")


def adapter_name(index: int) -> str:
    return f"voice{index:04d}"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a right answer depends on."""

    clip: str
    adapter: str | None
    """Name of its folder among the versions; None is the base."""
    streamed: bool = False


class Truth:
    """Right answers, computed when they are first asked for."""

    def __init__(self, model: AsrModel, versions: Path, clips: Mapping[str, Samples]) -> None:
        """versions: holds every adapter's folder that the server ever had."""
        self.model = model
        self.clips = clips
        self.engine = Engine(model, EngineSettings(max_batch=1, max_wait=0.0))
        self.shelf = Shelf(model, versions, lock=self.engine.lock, poll_seconds=0)
        self.known: dict[Asked, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()
        self.shelf.close()

    def text(self, asked: Asked) -> str:
        if asked not in self.known:
            self.known[asked] = plain(self.streamed(asked) if asked.streamed else self.whole(asked))
        return self.known[asked]

    def lease(self, adapter: str | None) -> Lease:
        """Of versions that were written after the last look, too."""
        try:
            return self.shelf.acquire(adapter)
        except AdapterError:
            self.shelf.scan()
            return self.shelf.acquire(adapter)

    def whole(self, asked: Asked) -> str:
        waveform = torch.from_numpy(self.clips[asked.clip])[None]
        with self.lease(asked.adapter) as lease, torch.no_grad(), self.model.adapters.use(lease.choice):
            log_probs, lengths = self.model(waveform, torch.tensor([waveform.shape[1]]))
        return greedy(log_probs, lengths, self.model.tokenizer, seconds_per_frame=1.0)[0].text

    def streamed(self, asked: Asked) -> str:
        settings = StreamSettings(interim=False)
        with Stream(self.engine, self.lease(asked.adapter), settings=settings) as stream:
            events = [*stream.push(self.clips[asked.clip]), *stream.finish()]
        return " ".join(event.text for event in events if isinstance(event, Final))

    def verdict(self, text: str, allowed: Sequence[Asked]) -> Verdict:
        """Whether a text is one of the allowed answers, or nearer to one of them than to any other known one."""
        own = [self.text(asked) for asked in allowed]
        if plain(text) in own:
            return "right"
        first = allowed[0]
        self.text(replace(first, adapter=None))
        others = [
            known
            for asked, known in self.known.items()
            if (asked.clip, asked.streamed) == (first.clip, first.streamed) and asked not in allowed
        ]
        near = min(own, key=lambda each: apart(each, text))
        changes = apart(near, text)
        alike = changes <= max(FEW, NEAR * len(near))
        return "rounded" if alike and all(apart(other, text) > changes for other in others) else "wrong"


def plain(text: str) -> str:
    return " ".join(text.split())


def apart(expected: str, text: str) -> int:
    """Characters that differ."""
    return character_errors(expected, text).errors


@contextmanager
def truth(model: str, dtype: str, versions: Path, clips: Mapping[str, Samples]) -> Iterator[Truth]:
    loaded = load_model(model)
    loaded.set_compute_dtype(dtype)
    with Truth(loaded, versions, clips) as found:
        yield found
