"""A live stream -> interim and final results, by buffered chunks with context.

Each step hears a chunk with audio to its left and right and keeps the frames of the chunk alone; those to its right
are read for the interim result and heard again with more context later, when the earlier opinion still counts for
something. An utterance that has ended is heard once more as a whole, which is what its final result is decoded from:
the chunks lacked context, and know less. Buffers begin at whole encoder frames, so that the frames of all steps lie on
one grid. Steps of all streams share the engine's batches, whatever their adapters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from overtone.audio.stream_features import Statistics, StreamFeatures
from overtone.decoding.decoder import Decoder, DecodingOptions, Emissions
from overtone.errors import UsageError
from overtone.inference.windows import Window, WindowJoiner
from overtone.serving.adapter_store.store import Lease
from overtone.serving.engine.engine import Engine, Samples
from overtone.serving.engine.submit import Steps, drive, drive_async, placed
from overtone.serving.recognition.windowed import heard_in_windows, windows_of
from overtone.serving.streaming.overlap import Overlap
from overtone.serving.streaming.stream_settings import StreamSettings
from overtone.serving.streaming.utterances import Ended, Event, Final, Interim, Utterances

__all__ = ["Event", "Final", "Interim", "Stream", "StreamSettings"]

AHEAD = 8
"""Steps of one stream in the queue at a time, where its audio came faster than it was heard."""
LEAST_LOOK_AHEAD = 0.5
"""Seconds of a stream before its first interim result."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A buffer [start, stop) of which the frames [keep_from, keep_to) are kept; the rest on the right is a guess.
    ends: with the buffer the stream ends, or the utterance because the client says so.
    """

    start: int
    stop: int
    keep_from: int
    keep_to: int
    ends: bool
    statistics: Statistics | None
    """Of the features up to its end; None where each buffer has its own."""


class Stream:
    """One client's stream, on the adapter versions that its lease held when it began. Not thread-safe: one caller.

    A context manager; leaving it cancels what is in flight and releases the lease.
    """

    def __init__(
        self,
        engine: Engine,
        lease: Lease | None = None,
        *,
        settings: StreamSettings | None = None,
        decoding: DecodingOptions | None = None,
        group: str | None = None,
    ) -> None:
        """Takes the lease over. Raises UsageError for settings that do not fit (cache-aware streaming too)."""
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
        self._heard = 0
        """Frames that a step has heard, the guesses included."""
        self._flight: deque[tuple[_Step, Future[Emissions]]] = deque()
        self._overlap = Overlap(averages=engine.model.head.gives_log_probs)
        self._heard_last: tuple[_Step, Emissions] | None = None
        """The newest step that was decoded, and what was heard in it."""
        self._decoding = decoding or DecodingOptions()
        self._utterances = Utterances(
            engine, settings.endpointing, self._decoding, max_utterance=settings.max_utterance, lead=self.left
        )
        self._begun = self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def seconds(self) -> float:
        """Audio received so far."""
        return self._received / self.engine.sample_rate

    def push(self, samples: Samples, *, force_eou: bool = False) -> list[Event]:
        """The next samples [S] at the model's rate, any number of them. force_eou: end the utterance after them.

        Raises what `Engine.submit` and its futures raise; the stream is then over.
        """
        return drive(self._steps(samples, ends=force_eou, last=False))

    async def push_async(self, samples: Samples, *, force_eou: bool = False) -> list[Event]:
        """The same for an event loop."""
        return await drive_async(self._steps(samples, ends=force_eou, last=False))

    def finish(self) -> list[Event]:
        """The end of the stream: the last final result, if anything was said; releases the lease."""
        return drive(self._steps(np.zeros(0, dtype=np.float32), ends=True, last=True))

    async def finish_async(self) -> list[Event]:
        return await drive_async(self._steps(np.zeros(0, dtype=np.float32), ends=True, last=True))

    def close(self) -> None:
        """Give up: cancel what is in flight, release the lease. Harmless after `finish`."""
        self._over = True
        while self._flight:
            self._flight.popleft()[1].cancel()
        if self.lease is not None:
            self.lease.release()

    # Steps

    def _steps(self, samples: Samples, *, ends: bool, last: bool) -> Steps[list[Event]]:
        """Everything that can be heard now. Whatever goes wrong, and a caller that goes away, ends the stream."""
        if self._over:
            raise UsageError("The stream is over; begin another.")
        events: list[Event] = []
        done = False
        try:
            self._append(samples)
            plan = self._plan(ends, last)
            step = next(plan, None)
            while step is not None or self._flight:
                if step is not None and len(self._flight) < AHEAD:
                    future = yield from placed(
                        partial(self._submit, step.start, step.stop, step.statistics), begins=not self._begun
                    )
                    self._begun = True
                    self._flight.append((step, future))
                    step = next(plan, None)
                    continue
                heard, future = self._flight[0]
                answer = yield future
                assert answer is not None
                self._flight.popleft()
                newest = step is None and not self._flight and not ends
                events += yield from self._absorb(heard, answer, newest)
            if ends:
                events += yield from self._results(self._utterances.end(self.seconds))
            done = not last
        finally:
            if not done:
                self.close()
        return events

    def _append(self, samples: Samples) -> None:
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
        """The steps that the audio allows, in order; each is to be submitted before the next is asked for."""
        available = self._available(last)
        while available - self._kept >= self.chunk + self.right:
            yield self._step(self._kept + self.chunk + self.right, self._kept + self.chunk)
        if ends and available > self._kept:
            yield self._step(available, available, ends=True)
        elif self.settings.interim and not ends:
            # At the beginning, and after a forced end, the right context is still missing: guess without it.
            seconds = available * self.engine.seconds_per_frame
            if available - max(self._heard, self._kept) >= self.chunk and seconds >= LEAST_LOOK_AHEAD:
                yield self._step(available, self._kept)

    def _step(self, stop: int, keep_to: int, *, ends: bool = False) -> _Step:
        step = _Step(
            start=max(0, self._kept - self.left),
            stop=stop,
            keep_from=self._kept,
            keep_to=keep_to,
            ends=ends,
            statistics=None if self._features is None else self._features.statistics(self._mel_until(stop)),
        )
        self._kept, self._heard = keep_to, stop
        return step

    def _available(self, last: bool) -> int:
        """Whole encoder frames so far; at the end of the stream a begun one counts."""
        if not last:
            return self._received // self.samples_per_frame
        return -(-self._received // self.samples_per_frame)

    def _submit(self, start: int, stop: int, statistics: Statistics | None) -> Future[Emissions]:
        """The frames [start, stop) of the stream."""
        if self._features is None or statistics is None:
            first, end = (frames * self.samples_per_frame - self._samples_from for frames in (start, stop))
            return self.engine.submit(self._samples[first:end], lease=self.lease, priority="stream", group=self.group)
        end = self._mel_until(stop)
        mel = self._features.between(self._mel_until(start), end, statistics)
        return self.engine.submit_features(mel, lease=self.lease, priority="stream", group=self.group)

    def _mel_until(self, stop: int) -> int:
        """Mel frames before an encoder frame; the last of a stream may have fewer."""
        assert self._features is not None
        return min(stop * self._features.raw.per_encoder_frame, self._features.frames)

    def _absorb(self, step: _Step, answer: Emissions, newest: bool) -> Steps[list[Event]]:
        """Decode what is kept; of the newest step also tell what the rest seems to say."""
        heard = min(self.seconds, step.stop * self.engine.seconds_per_frame)
        emissions = answer[: step.stop - step.start]
        events: list[Event] = []
        if step.keep_to > step.keep_from:  # a mere look ahead leaves no trace: it hangs on how the audio comes
            self._heard_last = step, emissions
            chunk = self._overlap.push(
                emissions, start=step.start, keep_from=step.keep_from, keep_to=step.keep_to, ends=step.ends
            )
            events = yield from self._results(self._utterances.push(chunk, heard))
        if newest and self.settings.interim:
            events += self._utterances.look_ahead(emissions[step.keep_to - step.start :], heard)
        return events

    def _results(self, found: Sequence[Interim | Ended]) -> Steps[list[Event]]:
        """Interim results as they are, where they are wanted, and ended utterances as final ones."""
        events: list[Event] = []
        alternatives = self._decoding.alternatives
        for each in found:
            if isinstance(each, Interim):
                events += [each] if self.settings.interim else []
                continue
            final: list[Final] = []
            if self.settings.finals == "whole":
                final = each.final((yield from self._second_pass(each)), alternatives)
            # What interim results have told is not left without a final one, even where the whole has no words.
            events += final or each.final(each.decoder, alternatives)
        return events

    def _second_pass(self, ended: Ended) -> Steps[Decoder]:
        """An utterance in one piece, with context on both sides; the last step may have heard all of that."""
        assert self._heard_last is not None
        step, emissions = self._heard_last
        head = self.engine.model.head
        decoder = head.decoder(self._decoding, first_frame=ended.begin)
        start, stop = max(0, ended.begin - self.left), min(ended.end + self.right, step.stop)
        if step.start <= start:
            decoder.push(emissions[ended.begin - step.start : ended.end - step.start])
            return decoder

        def submit(window: Window) -> Future[Emissions]:
            return self._submit(start + window.start, start + window.stop, step.statistics)

        windows = windows_of(self.engine, stop - start)
        joiner = WindowJoiner(windows, decoder, head.align_row, first=ended.begin - start, last=ended.end - start)
        yield from heard_in_windows(joiner, submit, begins=False)
        return decoder
