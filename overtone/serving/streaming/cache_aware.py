"""A live stream -> interim and final results, by cache-aware streaming: each chunk is computed once, with a state.

Chunks and their look ahead are those of the model's attention context. Steps of all streams share the engine's batches,
whatever their adapters. Where the client ends an utterance within a chunk, the frames so far are computed for it, and
once more with the whole chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from overtone.audio.stream_features import StreamFeatures
from overtone.decoding.decoder import DecodingOptions
from overtone.errors import UsageError
from overtone.models.asr_model import AsrModel
from overtone.nets.encoder_cache import ATTENTION_ADAPTER, CachedEncoder, check_encoder, is_made_for_streams
from overtone.serving.adapter_store.store import Lease
from overtone.serving.engine.engine import Engine, Group, Samples
from overtone.serving.engine.queue import StepAnswer, StreamStep
from overtone.serving.recognition.offline import head_of, place, with_words
from overtone.serving.streaming.stream import StreamSettings
from overtone.serving.streaming.utterances import Ended, Event, Interim, Utterances, decoders_of


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """The mel frames [begin, stop) of a stream: a whole step, or the frames there are at the end of an utterance."""

    begin: int
    stop: int
    whole: bool
    last: bool
    """True if the stream ends with it, and it is not whole."""


class CacheAwareStream:
    """One client's cache-aware stream, on the adapter versions that its lease held when it began.

    Not thread-safe: one caller. A context manager; leaving it cancels what is in flight and releases the lease.
    """

    def __init__(
        self,
        engine: Engine,
        lease: Lease | None = None,
        *,
        settings: StreamSettings | None = None,
        decoding: DecodingOptions | None = None,
        group: Group = None,
    ) -> None:
        """Take the lease over. Raises UsageError for a model or adapters that cannot be computed step by step."""
        check_adapters(engine, lease)
        self.engine = engine
        self.lease = lease
        self.settings = settings = settings or StreamSettings()
        self.group = group
        self.encoder = CachedEncoder(engine.step_weights, settings.attention_context)
        if self.encoder.context[0] < 0:
            raise UsageError(
                f"The attention context {list(self.encoder.context)} has no limit on the left: a stream's state "
                "would grow with it. Choose another, or buffered streaming."
            )
        self._cache = self.encoder.begin()
        self._features = StreamFeatures(engine.raw_features)
        self._begin = 0
        """First mel frame of the next step, those that it computes again left out."""
        self._frame = 0
        """Number of the first encoder frame of the next step."""
        self._decoded = 0
        """Encoder frames that are decoded for good."""
        self._flight: Future[StepAnswer] | None = None
        self._decoding = with_words(engine, lease, decoding)
        head = head_of(engine, lease)
        self._utterances = Utterances(
            engine,
            settings.endpointing,
            decoders_of(head, self._decoding, engine.decoding_scope(lease)),
            pieces=head.tokenizer.vocabulary,
            max_utterance=settings.max_utterance,
            lead=0,
        )
        self._begun = self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def keeps_words(self) -> bool:
        """True where words of interim results that are known stay as they are in the final one."""
        return True

    @property
    def seconds(self) -> float:
        """Audio received so far."""
        return self._features.received / self.engine.sample_rate

    async def push(self, samples: Samples, *, force_eou: bool = False) -> list[Event]:
        """Recognise the next samples [S] at the model's rate, any number of them. force_eou: end the utterance there.

        Raises UsageError for a stream that is over, and the errors of `Engine.submit` and its futures. After an error
        and after cancellation the stream is over.
        """
        return await self._recognise(samples, ends=force_eou, last=False)

    async def finish(self) -> list[Event]:
        """End the stream with the last final result, if anything was said, and release the lease. Raises as `push`."""
        return await self._recognise(np.zeros(0, dtype=np.float32), ends=True, last=True)

    def close(self) -> None:
        """Give up: cancel what is in flight, forget the state, release the lease. Harmless after `finish`."""
        self._over = True
        if self._flight is not None:
            self._flight.cancel()
            self._flight = None
        self._cache = self.encoder.begin(0)
        if self.lease is not None:
            self.lease.release()

    # Steps

    async def _recognise(self, samples: Samples, *, ends: bool, last: bool) -> list[Event]:
        """Run all steps that the audio allows, one after the other: each needs the state after the one before."""
        if self._over:
            raise UsageError("The stream is over; begin another.")
        events: list[Event] = []
        done, decoded = False, self._decoded
        try:
            if samples.size:
                await asyncio.to_thread(self._append, samples)
            chunk = self._next(ends, last)
            while chunk is not None:
                flight = self._flight = await place(partial(self._submit, chunk), begins=not self._begun)
                self._begun = True
                answer = await asyncio.wrap_future(flight)
                self._flight = None
                events += await asyncio.to_thread(self._absorb, chunk, answer)
                chunk = self._next(ends, last) if chunk.whole else None
            if ends:
                events += await asyncio.to_thread(self._end)
            elif self.settings.interim and self._decoded > decoded:
                nothing = np.zeros((0, 0), dtype=np.float32)
                events += await asyncio.to_thread(self._utterances.look_ahead, nothing, self._heard())
            done = not last
        finally:
            if not done:
                self.close()
        return events

    def _append(self, samples: Samples) -> None:
        """Compute the features of samples [S], and forget those before all steps to come."""
        self._features.forget(max(0, self._begin - self.encoder.sizes.front))
        self._features.push(samples)

    def _next(self, ends: bool, last: bool) -> _Chunk | None:
        """The next chunk that the audio allows; at the end of an utterance one that is not whole."""
        sizes, begin, frames = self.encoder.sizes, self._begin, self._features.frames
        stop = begin + (sizes.later if begin else sizes.first)
        if stop <= (frames if last else self._features.settled):
            return _Chunk(begin=begin, stop=stop, whole=True, last=False)
        stop = min(stop, frames)
        return _Chunk(begin=begin, stop=stop, whole=False, last=last) if ends and stop > begin else None

    def _submit(self, chunk: _Chunk) -> Future[StepAnswer]:
        """Submit the mel frames of a chunk, filled up to those of a whole step."""
        sizes = self.encoder.sizes
        front = sizes.front if chunk.begin else 0
        first = max(0, chunk.begin - front)
        missing = front - (chunk.begin - first)
        size = front + (sizes.later if chunk.begin else sizes.first)
        found = self._features.between(first, chunk.stop, self._features.statistics(chunk.stop))
        mel = np.zeros((found.shape[0], size), dtype=np.float32)
        mel[:, missing : missing + found.shape[1]] = found
        step = StreamStep(
            encoder=self.encoder,
            mel=mel,
            frames=missing + found.shape[1],
            cache=self._cache,
            last=not chunk.whole,
        )
        return self.engine.submit_step(step, lease=self.lease, group=self.group, language=self._decoding.language)

    def _absorb(self, chunk: _Chunk, answer: StepAnswer) -> list[Event]:
        """Decode the frames that are new in an answer, and keep the state of a whole step."""
        first, emissions = self._frame, answer.emissions
        if not chunk.whole and not chunk.last:  # frames whose audio is not complete come again
            most = int(self.seconds / self.engine.seconds_per_frame + 1e-6) - first
            emissions = emissions[: max(0, most)]
        if chunk.whole:
            self._begin += self.encoder.sizes.shift if chunk.begin else self.encoder.sizes.first_shift
            self._frame += len(emissions)
            self._cache = answer.cache
        fresh = emissions[max(0, self._decoded - first) :]
        self._decoded = max(self._decoded, first + len(emissions))
        return self._results(self._utterances.push(fresh, self._heard())) if len(fresh) else []

    def _heard(self) -> float:
        """Seconds of the stream that are decoded."""
        return min(self.seconds, self._decoded * self.engine.seconds_per_frame)

    def _end(self) -> list[Event]:
        """End the utterance here."""
        return self._results(self._utterances.end(self.seconds))

    def _results(self, found: Sequence[Interim | Ended]) -> list[Event]:
        """Interim results, where they are wanted, and final ones."""
        results: list[Event] = []
        for each in found:
            if isinstance(each, Ended):
                results += each.final(each.decoder, self._decoding.alternatives)
            elif self.settings.interim:
                results.append(each)
        return results


def check_mode(settings: StreamSettings, model: AsrModel) -> None:
    """Raises UsageError for settings of streams that do not fit a model."""
    settings.frames(model.seconds_per_frame)
    if settings.mode == "cache_aware":
        check_encoder(model.encoder, settings.attention_context)


def prepare_steps(settings: StreamSettings, engine: Engine) -> None:
    """Make the weights of the steps ahead of the first stream, where streams are computed so."""
    if settings.mode == "cache_aware" or (settings.mode == "auto" and is_made_for_streams(engine.model.encoder)):
        CachedEncoder(engine.step_weights, settings.attention_context)


def check_adapters(engine: Engine, lease: Lease | None) -> None:
    """Raises UsageError for adapters that cannot be computed step by step."""
    if attention_adapters(engine, lease):
        raise UsageError(ATTENTION_ADAPTER)


def attention_adapters(engine: Engine, lease: Lease | None) -> bool:
    """True if an adapter of the lease acts after the attention, and so looks at other frames."""
    names = [] if lease is None or lease.choice is None else lease.choice.split("+")
    adapters = engine.model.adapters
    places = {adapters.points[point].place for name in names for point in adapters[name].by_point}
    return "after_attention" in places
