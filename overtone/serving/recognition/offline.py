"""A whole recording -> hypotheses."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from overtone.decoding.ctc import Hypothesis
from overtone.decoding.ctc_beam import BeamDecoder, BeamSettings, BoostTree
from overtone.decoding.decoder import Decoder, GreedyDecoder
from overtone.inference.windows import Window
from overtone.serving.adapter_store.store import Lease
from overtone.serving.engine.engine import Engine, LogProbs, Samples
from overtone.serving.engine.submit import Steps, drive, drive_async
from overtone.serving.recognition.windowed import Joiner, heard_in_windows, recording_windows, samples_in


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a request wants its log-probabilities read; greedy unless phrases or alternatives are asked for."""

    boosts: BoostTree | None = None
    """`BoostTree([Boost(phrases=…, boost=…)], model.tokenizer)`."""
    alternatives: int = 1
    """How many hypotheses at most."""
    beam: BeamSettings = field(default_factory=BeamSettings)

    @property
    def ignored(self) -> tuple[str, ...]:
        """What of it has no effect, for the log, in which no phrases are."""
        phrases = 0 if self.boosts is None else len(self.boosts.ignored)
        return (f"{phrases} phrase{'' if phrases == 1 else 's'}",) if phrases else ()

    def decoder(self, engine: Engine, first_frame: int = 0) -> Decoder:
        tokenizer, seconds = engine.model.tokenizer, engine.seconds_per_frame
        if self.alternatives > 1 or self.boosts:
            return BeamDecoder(
                tokenizer, seconds_per_frame=seconds, settings=self.beam, boosts=self.boosts, first_frame=first_frame
            )
        return GreedyDecoder(tokenizer, seconds_per_frame=seconds, first_frame=first_frame)


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The answer for one recording."""

    hypotheses: tuple[Hypothesis, ...]
    """At least one, best first."""
    seconds: float
    """Duration of the audio."""


def recognise(
    engine: Engine,
    waveform: Samples,
    *,
    lease: Lease | None = None,
    decoding: Decoding | None = None,
    deadline: float | None = None,
    group: str | None = None,
) -> Recognition:
    """waveform [S] float32 of any length; windows of 30 s that overlap. Raises what `Engine.submit` and its futures
    raise. The caller keeps the lease until this returns."""
    return drive(_steps(engine, waveform, lease, decoding or Decoding(), deadline, group))


async def recognise_async(
    engine: Engine,
    waveform: Samples,
    *,
    lease: Lease | None = None,
    decoding: Decoding | None = None,
    deadline: float | None = None,
    group: str | None = None,
) -> Recognition:
    """The same for an event loop; cancelling it frees the places in the queue."""
    steps = _steps(engine, waveform, lease, decoding or Decoding(), deadline, group)
    return await drive_async(steps, begins_quickly=True)


def _steps(
    engine: Engine,
    waveform: Samples,
    lease: Lease | None,
    decoding: Decoding,
    deadline: float | None,
    group: str | None,
) -> Steps[Recognition]:
    def submit(window: Window) -> Future[LogProbs]:
        part = samples_in(engine, waveform, window)
        return engine.submit(part, lease=lease, deadline=deadline, group=group)

    joiner = Joiner(recording_windows(engine, waveform), decoding.decoder(engine))
    yield from heard_in_windows(joiner, submit, begins=True)
    hypotheses = joiner.decoder.hypotheses(decoding.alternatives)
    return Recognition(hypotheses=tuple(hypotheses), seconds=waveform.size / engine.sample_rate)
