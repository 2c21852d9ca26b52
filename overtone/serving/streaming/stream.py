"""A live stream -> interim and final results, by buffered chunks with context.

Each step computes a chunk with audio to its left and right and keeps the frames of the chunk alone. The frames to its
right give the interim result; a later step computes them again with more context and averages both. An utterance that
has ended is computed once more as a whole for its final result, since its chunks lacked context. Buffers begin at whole
encoder frames, so that the frames of all steps lie on one grid. Steps of all streams share the engine's batches,
whatever their adapters.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from overtone.audio.stream_features import Statistics, StreamFeatures
from overtone.decoding.decoder import Alignment, Decoder, DecodingOptions, Emissions
from overtone.errors import UsageError
from overtone.inference.windows import Window, WindowJoiner
from overtone.serving.adapter_store.store import Lease
from overtone.serving.engine.engine import Engine, Group, Samples
from overtone.serving.recognition.offline import head_of, place, window_answers, windows_of, with_words
from overtone.serving.recognition.request import Endpointing
from overtone.serving.streaming.utterances import Ended, Event, Final, Interim, Overlap, Utterances, decoders_of

__all__ = ["Event", "Final", "Interim", "Stream", "StreamSettings"]

AHEAD = 8
"""Steps of one stream in the queue at a time, where its audio comes faster than it is computed."""
LEAST_LOOK_AHEAD = 0.5
"""Seconds of a stream before its first interim result."""
LONGEST_SECONDS = 60.0


class StreamFrames(NamedTuple):
    """Encoder frames of a step."""

    chunk: int
    left: int
    right: int


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Chunks, context and results of streams. Seconds are rounded to whole encoder frames."""

    chunk: float = 0.8
    """Seconds between two steps."""
    left: float = 1.6
    """Seconds of context before a chunk."""
    right: float = 1.6
    """Seconds of context after it."""
    endpointing: Endpointing = field(default_factory=Endpointing)
    interim: bool = True
    """Interim results are wanted."""
    normalisation: Literal["running", "buffer"] = "running"
    """Statistics of the features are those of the stream so far, or of each buffer alone."""
    finals: Literal["whole", "chunks"] = "whole"
    """Final results are decoded from the utterance, computed once more as a whole, or from its chunks."""
    max_utterance: float = 60.0
    """Seconds after which an utterance is ended, in the longest pause of the last ones."""
    attention_context: tuple[int, int] | None = None
    """Attention context of cache-aware streams, one that the model was trained with; None is the present one."""
    mode: Literal["auto", "buffered", "cache_aware"] = "auto"
    """`buffered`: chunks with context, for every model; `cache_aware`: each chunk once, with the model's own chunks and
    context, for models that were trained for it; `auto`: that where model and adapters allow it."""

    def frames(self, seconds_per_frame: float) -> StreamFrames:
        """Chunk and context of buffers in encoder frames. Raises UsageError for settings that do not fit."""
        for name in StreamFrames._fields:
            seconds = getattr(self, name)
            if not 0.0 <= seconds <= LONGEST_SECONDS:
                raise UsageError(f"{name} is {seconds} s of a stream; 0 to {LONGEST_SECONDS:g} seconds are allowed.")
        found = StreamFrames(*(round(seconds / seconds_per_frame) for seconds in (self.chunk, self.left, self.right)))
        if found.chunk < 1:
            raise UsageError(f"chunk is {self.chunk} s of a stream; {seconds_per_frame} s (one frame) are needed.")
        return found


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A buffer of the frames [start, stop); [keep_from, keep_to) of them are kept, those on the right are a guess."""

    start: int
    stop: int
    keep_from: int
    keep_to: int
    ends: bool
    """With the buffer the stream ends, or the utterance because the client says so."""
    statistics: Statistics | None
    """Statistics of the features up to its end; None where each buffer has its own."""


class Stream:
    """One client's buffered stream, on the adapter versions that its lease held when it began.

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
        """Take the lease over. Raises UsageError for settings that do not fit."""
        self.engine = engine
        self.lease = lease
        self.settings = settings = settings or StreamSettings()
        self.group = group
        self.chunk, self.left, self.right = settings.frames(engine.seconds_per_frame)
        self.samples_per_frame = round(engine.seconds_per_frame * engine.sample_rate)
        self._features = StreamFeatures(engine.raw_features) if settings.normalisation == "running" else None
        self._samples: Samples = np.zeros(0, dtype=np.float32)
        self._samples_from = 0
        self._received = 0
        self._kept = 0
        """Frames that are decoded for good, or will be by a step in flight."""
        self._computed = 0
        """Frames that a step has computed, the guesses included."""
        self._flight: deque[tuple[_Step, Future[Emissions]]] = deque()
        self._head = head_of(engine, lease)
        self._overlap = Overlap(averages=self._head.gives_log_probs)
        self._last_step: tuple[_Step, Emissions] | None = None
        """Newest step that was decoded, and its emissions [T, C]."""
        self._decoding = with_words(engine, lease, decoding)
        self._scope = engine.decoding_scope(lease)
        self._new_decoder = decoders_of(self._head, self._decoding, self._scope)
        self._utterances = Utterances(
            engine,
            settings.endpointing,
            self._new_decoder,
            pieces=self._head.tokenizer.vocabulary,
            max_utterance=settings.max_utterance,
            lead=self.left,
        )
        self._begun = self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def keeps_words(self) -> bool:
        """True where words of interim results that are known stay as they are in the final one."""
        return self.settings.finals == "chunks"

    @property
    def seconds(self) -> float:
        """Audio received so far."""
        return self._received / self.engine.sample_rate

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
        """Give up: cancel what is in flight, release the lease. Harmless after `finish`."""
        self._over = True
        while self._flight:
            self._flight.popleft()[1].cancel()
        if self.lease is not None:
            self.lease.release()

    # Steps

    async def _recognise(self, samples: Samples, *, ends: bool, last: bool) -> list[Event]:
        """Run all steps that the audio allows."""
        if self._over:
            raise UsageError("The stream is over; begin another.")
        events: list[Event] = []
        done = False
        try:
            if samples.size:
                await asyncio.to_thread(self._append, samples)
            steps = deque(self._plan(ends, last))
            if ends and not steps:
                events += await self._complete(await asyncio.to_thread(self._end))
            while steps or self._flight:
                while steps and len(self._flight) < AHEAD:
                    await self._begin(steps.popleft())
                answer = await asyncio.wrap_future(self._flight[0][1])
                step, _ = self._flight.popleft()
                is_newest = not steps and not self._flight
                found = await asyncio.to_thread(self._absorb, step, answer, is_newest=is_newest, ends=ends)
                events += await self._complete(found)
            done = not last
        finally:
            if not done:
                self.close()
        return events

    async def _begin(self, step: _Step) -> None:
        """Submit a step; the first one of a stream is refused where the queue is full."""
        submit = partial(self._submit, step.start, step.stop, step.statistics)
        self._flight.append((step, await place(submit, begins=not self._begun)))
        self._begun = True

    def _append(self, samples: Samples) -> None:
        """Compute the features of samples [S], and forget those before all utterances to come."""
        self._received += samples.size
        needed = self._kept if self.settings.finals == "chunks" else min(self._kept, self._utterances.begin)
        first = max(0, needed - self.left)
        if self._features is not None:
            self._features.forget(first * self._features.raw.per_encoder_frame)
            if samples.size:
                self._features.push(samples)
            return
        self._samples = np.concatenate((self._samples[first * self.samples_per_frame - self._samples_from :], samples))
        self._samples_from = first * self.samples_per_frame

    def _plan(self, ends: bool, last: bool) -> Iterator[_Step]:
        """Steps that the audio allows, in order."""
        available = self._available(last)
        while available - self._kept >= self.chunk + self.right:
            yield self._step(self._kept + self.chunk + self.right, self._kept + self.chunk)
        if ends and available > self._kept:
            yield self._step(available, available, ends=True)
        elif self.settings.interim and not ends:
            # At the beginning, and after a forced end, the right context is still missing: guess without it.
            seconds = available * self.engine.seconds_per_frame
            if available - max(self._computed, self._kept) >= self.chunk and seconds >= LEAST_LOOK_AHEAD:
                yield self._step(available, self._kept)

    def _step(self, stop: int, keep_to: int, *, ends: bool = False) -> _Step:
        """Next step, up to `stop`; its frames up to `keep_to` are kept."""
        step = _Step(
            start=max(0, self._kept - self.left),
            stop=stop,
            keep_from=self._kept,
            keep_to=keep_to,
            ends=ends,
            statistics=None if self._features is None else self._features.statistics(self._mel_until(stop)),
        )
        self._kept, self._computed = keep_to, stop
        return step

    def _available(self, last: bool) -> int:
        """Number of whole encoder frames so far; at the end of the stream a begun one counts."""
        if not last:
            return self._received // self.samples_per_frame
        return -(-self._received // self.samples_per_frame)

    def _submit(self, start: int, stop: int, statistics: Statistics | None) -> Future[Emissions]:
        """Submit the frames [start, stop) of the stream."""
        submit: dict[str, Any] = {
            "lease": self.lease,
            "priority": "stream",
            "group": self.group,
            "language": self._decoding.language,
        }
        if self._features is None or statistics is None:
            first, end = (frames * self.samples_per_frame - self._samples_from for frames in (start, stop))
            return self.engine.submit(self._samples[first:end], **submit)
        end = self._mel_until(stop)
        mel = self._features.between(self._mel_until(start), end, statistics)
        return self.engine.submit_features(mel, **submit)

    def _mel_until(self, stop: int) -> int:
        """Number of mel frames before an encoder frame; the last of a stream may have fewer."""
        assert self._features is not None
        return min(stop * self._features.raw.per_encoder_frame, self._features.frames)

    def _absorb(self, step: _Step, answer: Emissions, *, is_newest: bool, ends: bool) -> list[Event | Ended]:
        """Decode the kept frames of answer [T, C], and the rest of the newest step for an interim result.

        Utterances that are to be computed once more are returned as they are.
        """
        seconds = min(self.seconds, step.stop * self.engine.seconds_per_frame)
        emissions = answer[: step.stop - step.start]
        found: list[Event | Ended] = []
        if step.keep_to > step.keep_from:  # a mere look ahead leaves no trace: it depends on how the audio is cut
            self._last_step = step, emissions
            chunk = self._overlap.push(
                emissions, start=step.start, keep_from=step.keep_from, keep_to=step.keep_to, ends=step.ends
            )
            found += self._results(self._utterances.push(chunk, seconds))
        if is_newest and ends:
            found += self._end()
        elif is_newest and self.settings.interim:
            found += self._utterances.look_ahead(emissions[step.keep_to - step.start :], seconds)
        return found

    def _end(self) -> list[Event | Ended]:
        """End the utterance here."""
        return self._results(self._utterances.end(self.seconds))

    def _results(self, found: Sequence[Interim | Ended]) -> list[Event | Ended]:
        """Interim results as they are, where they are wanted; final ones of utterances whose context is computed."""
        results: list[Event | Ended] = []
        for each in found:
            if isinstance(each, Interim):
                results += [each] if self.settings.interim else []
            elif self.settings.finals == "chunks":
                results += each.final(each.decoder, self._decoding.alternatives)
            else:
                results += self._decode_whole(each)
        return results

    def _align(self, emissions: Emissions) -> Alignment:
        """Greedy alignment of emissions [T, C]."""
        with self._scope():
            return self._head.align_row(emissions)

    def _decode_whole(self, ended: Ended) -> list[Event | Ended]:
        """Final result of an utterance whose context lies within the last step; else the utterance as it is."""
        step, emissions = self._newest()
        if step.start > max(0, ended.begin - self.left):
            return [ended]
        decoder = self._new_decoder(ended.begin)
        decoder.push(emissions[ended.begin - step.start : ended.end - step.start])
        return [*self._final(ended, decoder)]

    def _final(self, ended: Ended, whole: Decoder) -> list[Final]:
        """Final result of an utterance from `whole`; from its chunks, like interim ones, where that has no words."""
        alternatives = self._decoding.alternatives
        return ended.final(whole, alternatives) or ended.final(ended.decoder, alternatives)

    def _newest(self) -> tuple[_Step, Emissions]:
        assert self._last_step is not None
        return self._last_step

    async def _complete(self, found: Sequence[Event | Ended]) -> list[Event]:
        """Events, where each utterance is computed once more in one piece, with context on both sides."""
        events: list[Event] = []
        for each in found:
            if not isinstance(each, Ended):
                events.append(each)
                continue
            events += await self._second_pass(each)
        return events

    async def _second_pass(self, ended: Ended) -> list[Final]:
        """Final result of an utterance that is computed in one piece."""
        step, _ = self._newest()
        start, stop = max(0, ended.begin - self.left), min(ended.end + self.right, step.stop)
        decoder = self._new_decoder(ended.begin)
        windows = windows_of(self.engine, stop - start)
        joiner = WindowJoiner(windows, decoder, self._align, first=ended.begin - start, last=ended.end - start)

        def submit(window: Window) -> Future[Emissions]:
            return self._submit(start + window.start, start + window.stop, step.statistics)

        def decode(answer: Emissions) -> list[Final]:
            joiner.push(answer)
            return self._final(ended, decoder) if joiner.is_complete else []

        final: list[Final] = []
        async with aclosing(window_answers(windows, submit, begins=False)) as answers:
            async for answer in answers:
                final = await asyncio.to_thread(decode, answer)
        return final
