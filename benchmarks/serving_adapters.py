"""What a server is loaded with: sound, adapters by the thousand, and the right answer to each request.

The right answer is computed here, apart from the server: one row at a time, one adapter at a time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from benchmarks.harness import SHAPES, tiny
from benchmarks.models import ADAPTER, make_model
from benchmarks.serving_ties import LogProbs, letters, tellable
from overtone.adapters.adapter import Adapter
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.audio.load import load_audio
from overtone.checkpoints.load import load_model, save_model
from overtone.data.manifest import read_manifest
from overtone.decoding.ctc import CtcHead, GreedyDecoder, greedy
from overtone.decoding.decoder import GREEDY, Decoder, DecodingOptions, Scope
from overtone.errors import AdapterError
from overtone.evaluation.verify import PROMPTS
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store.store import AdapterStore, Lease
from overtone.serving.engine.engine import Engine, EngineSettings, Samples
from overtone.serving.streaming.stream import Event, Final, Stream, StreamSettings
from overtone.tokenizers import Tokenizer

RATE = 16_000
GAP_SECONDS = 0.25
STRENGTH = 0.3
"""Deviation of the adapters' random up-projections, enough that each hears something else."""
SMOKE_STRENGTH = 3.0
FAVOURED, ASIDE = 25, 12.0
"""So many pieces of the vocabulary may an adapter of the soak test write; all others, and the blank, are so much less
likely to it, in nats. So it writes something in every frame, and in letters of its own."""
APART = 3
"""Letters by which texts of different versions differ at least."""

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


def write_adapter(
    model: AsrModel, folder: Path, *, seed: int, dim: int = 32, strength: float = STRENGTH, favoured: int = 0
) -> None:
    """favoured: of how many pieces, drawn by the seed, its texts shall consist; 0 leaves that to the random weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = model.adapters.add("made", LinearAdapter(dim=dim))
    try:
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                if name.endswith("up.weight"):
                    parameter.copy_(strength * torch.randn(parameter.shape, generator=generator))
        if favoured:
            favour(model, adapter, favoured, generator)
        model.adapters.save("made", folder, overwrite=True)
    finally:
        model.adapters.remove("made")


def favour(model: AsrModel, adapter: Adapter, count: int, generator: torch.Generator) -> None:
    """Make the last layer add the same to every frame: what the head takes for so many pieces and against the rest.

    Hidden units see the norm's bias alone, so that nothing that is rounded grows.
    """
    pieces = [index for index, piece in enumerate(model.tokenizer.vocabulary) if piece.strip(" \u2581").isalpha()]
    chosen = [pieces[place] for place in torch.randperm(len(pieces), generator=generator)[:count].tolist()]
    projection = model.decoder.projection.weight.detach().flatten(1)  # [V+1, D]
    scores = torch.full((len(projection),), -ASIDE)
    scores[chosen] = 0.0
    added = torch.linalg.pinv(projection) @ (scores - scores.mean())  # [D]
    last = adapter.at(adapter.points[-1]).tensors()
    hidden, width = last["down.weight"].shape
    with torch.no_grad():
        last["norm.weight"].zero_()
        last["norm.bias"].fill_(1.0)
        last["down.weight"].fill_(1.0 / width)
        unit = torch.nn.functional.silu(torch.ones(())) * hidden
        last["up.weight"].copy_((added / unit)[:, None].expand(-1, hidden))


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
        self.head = model.heads[model.head_name] = RecordingHead(model)
        self.clips = clips
        self.engine = Engine(model, EngineSettings(max_batch=1, max_wait=0.0))
        self.store = AdapterStore(model, versions, lock=self.engine.lock, poll_seconds=0)
        self.known: dict[Asked, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()
        self.store.close()

    def text(self, asked: Asked) -> str:
        if asked not in self.known:
            self.known[asked] = self.heard(asked)[0]
        return self.known[asked]

    def heard(self, asked: Asked) -> tuple[str, list[LogProbs]]:
        """The text and the log-probabilities [T, V+1] that it was read from, utterance by utterance."""
        return self.streamed(asked) if asked.streamed else self.whole(asked)

    def is_distinct(self, version: str) -> bool:
        """Whether all that a new version says is far from all that others and the base say; if not, it is forgotten."""
        fresh = [
            Asked(clip=clip, adapter=version, streamed=streamed) for clip in self.clips for streamed in (False, True)
        ]
        for asked in fresh:
            self.text(replace(asked, adapter=None))
            if any(apart(other, self.text(asked)) < APART for other in self.others([asked])):
                for each in fresh:
                    self.known.pop(each, None)
                return False
        return True

    def others(self, allowed: Sequence[Asked]) -> list[str]:
        """Known texts of the same clip, heard in the same way, that are not allowed."""
        first = allowed[0]
        return [
            text
            for asked, text in self.known.items()
            if (asked.clip, asked.streamed) == (first.clip, first.streamed) and asked not in allowed
        ]

    def lease(self, adapter: str | None) -> Lease:
        """Of versions that were written after the last look, too."""
        try:
            return self.store.acquire(adapter)
        except AdapterError:
            self.store.scan()
            return self.store.acquire(adapter)

    def whole(self, asked: Asked) -> tuple[str, list[LogProbs]]:
        waveform = torch.from_numpy(self.clips[asked.clip])[None]
        with self.lease(asked.adapter) as lease, torch.no_grad(), self.model.adapters.use(lease.choice):
            log_probs, lengths = self.model(waveform, torch.tensor([waveform.shape[1]]))
        text = greedy(log_probs, lengths, self.model.tokenizer, seconds_per_frame=1.0)[0].text
        return plain(text), [log_probs[0, : int(lengths[0])].float().numpy()]

    def streamed(self, asked: Asked) -> tuple[str, list[LogProbs]]:
        self.head.made.clear()

        async def events() -> list[Event]:
            with Stream(self.engine, self.lease(asked.adapter), settings=StreamSettings(interim=False)) as stream:
                return [*await stream.push(self.clips[asked.clip]), *await stream.finish()]

        texts = [event.text for event in asyncio.run(events()) if isinstance(event, Final)]
        return plain(" ".join(texts)), [self.head.read_for(text) for text in texts]

    def verdict(self, text: str, allowed: Sequence[Asked]) -> Verdict:
        """Whether a text is one of the allowed answers, or what the frames of one say where ties fall otherwise.

        It must be nearer to an allowed one than to any other that is known, too.
        """
        own = [self.text(asked) for asked in allowed]
        if plain(text) in own:
            return "right"
        self.text(replace(allowed[0], adapter=None))
        changes = min(apart(each, text) for each in own)
        if any(apart(other, text) <= changes for other in self.others(allowed)):
            return "wrong"
        told = any(tellable(self.heard(asked)[1], text, self.model.tokenizer) for asked in allowed)
        return "rounded" if told else "wrong"


class RecordingHead(CtcHead):
    """A CTC head whose greedy decoders keep the log-probabilities that they have read."""

    def __init__(self, model: AsrModel) -> None:
        super().__init__(model.decoder, model.tokenizer, seconds_per_frame=model.seconds_per_frame)
        self.made: list[RecordingDecoder] = []

    def decoder(
        self, options: DecodingOptions = GREEDY, *, first_frame: int = 0, scope: Scope = nullcontext
    ) -> Decoder:
        decoder = RecordingDecoder(
            self.tokenizer, seconds_per_frame=self.seconds_per_frame, first_frame=first_frame
        )  # fmt: skip
        self.made.append(decoder)
        return decoder

    def read_for(self, text: str) -> LogProbs:
        """[T, V+1], from which the newest decoder with that text has it."""
        decoder = next(decoder for decoder in reversed(self.made) if decoder.hypotheses()[0].text == text)
        return np.concatenate(decoder.read)


class RecordingDecoder(GreedyDecoder):
    """Keeps the frames."""

    def __init__(self, tokenizer: Tokenizer, *, seconds_per_frame: float, first_frame: int = 0) -> None:
        super().__init__(tokenizer, seconds_per_frame=seconds_per_frame, first_frame=first_frame)
        self.read: list[LogProbs] = []

    def push(self, emissions: LogProbs) -> None:
        self.read.append(emissions)
        super().push(emissions)


def plain(text: str) -> str:
    return " ".join(text.split())


def apart(expected: str, text: str) -> int:
    """Letters that differ, spaces aside."""
    return int(Levenshtein.distance(letters(expected), letters(text)))


@contextmanager
def truth(model: str, dtype: str, versions: Path, clips: Mapping[str, Samples]) -> Iterator[Truth]:
    loaded = load_model(model)
    loaded.set_compute_dtype(dtype)
    with Truth(loaded, versions, clips) as found:
        yield found
