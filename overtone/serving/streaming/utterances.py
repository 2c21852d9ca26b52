"""Utterances of a stream: overlapping windows -> frames in order -> interim results, and ends of utterances.

Legend: T frames, C channels of an emission, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from overtone.decoding.decoder import Decoder, DecodingOptions, Emissions, Flags, Head, Scope
from overtone.decoding.hypothesis import Hypothesis, Word, mark_name
from overtone.serving.engine.engine import Engine
from overtone.serving.recognition.offline import check_scores
from overtone.serving.recognition.request import Endpointing
from overtone.serving.streaming.endpointing import Endpointer

SMALLEST = np.finfo(np.float32).tiny
UNSURE = 0.9
"""Stability of a text that is decoded for good, as long as its utterance goes on."""
ENDS = frozenset(("EOU", "EOB"))
"""Marks that end an utterance."""
LATE_SECONDS = 5.0
"""An utterance that grows too long ends in the longest pause of so many seconds."""


@dataclass(frozen=True, kw_only=True)
class Interim:
    """Result of the current utterance so far; never empty."""

    text: str
    stability: float
    """0…0.9: share of the text that is decoded for good; 1.0 marks the early end of an utterance."""
    words: tuple[Word, ...]
    """Times in seconds from the beginning of the stream."""
    audio_processed: float
    """Seconds of the stream computed so far."""
    known: int = 0
    """Number of the words that end in frames which are decoded for good."""


@dataclass(frozen=True, kw_only=True)
class Final:
    """Result of an utterance that has ended; never empty."""

    text: str
    words: tuple[Word, ...]
    """Times in seconds from the beginning of the stream."""
    alternatives: tuple[Hypothesis, ...]
    """Best first; the first one is `text` and `words`."""
    confidence: float
    """Mean confidence of the words, 0…1."""
    start: float
    """Begin of the first word, seconds from the beginning of the stream."""
    end: float
    """End of the last word."""
    audio_processed: float


Event = Interim | Final


@dataclass(frozen=True, kw_only=True)
class Ended:
    """An utterance with words that has ended, decoded from its chunks."""

    begin: int
    """First frame in the stream; somewhat before the first word."""
    end: int
    decoder: Decoder
    """Decoder of its frames."""
    audio_processed: float

    def final(self, decoder: Decoder, alternatives: int) -> list[Final]:
        """Result of its frames in a decoder, if that has words. Raises WorkerError."""
        found = [each for each in check_scores(list(decoder.hypotheses(alternatives))) if each.words]
        if not found:
            return []
        best = found[0]
        return [
            Final(
                text=best.text,
                words=best.words,
                alternatives=tuple(found),
                confidence=sum(word.confidence for word in best.words) / len(best.words),
                start=best.words[0].start,
                end=best.words[-1].end,
                audio_processed=self.audio_processed,
            )
        ]


class Overlap:
    """Average of the windows of one stream, taken in order: one distribution for each frame of their chunks.

    A frame of a chunk was in the right context of the windows before. They had less audio after it, but more before
    it, so that they know something that the newest does not. Each window is weighted by the shorter of its two
    contexts. Nothing waits for the average, and nothing is computed again for it.
    """

    def __init__(self, *, averages: bool = True) -> None:
        """averages: emissions are log-probabilities; without it the newest window's are taken as they are."""
        self.averages = averages
        self._start = -1
        """First frame of the newest window; an earlier one that began there too knew nothing more, and is dropped."""
        self._sums: Emissions = np.zeros((0, 0), dtype=np.float32)
        """[T, V+1] weighted probabilities of the frames after the last chunk."""
        self._weights: Emissions = np.zeros((0, 1), dtype=np.float32)
        """[T, 1]"""

    def push(self, log_probs: Emissions, *, start: int, keep_from: int, keep_to: int, ends: bool = False) -> Emissions:
        """Average log_probs [T, V+1] of the window from `start` on for its chunk, [keep_to - keep_from, V+1].

        ends: the speech is over at the window's end, so that no frame lacks context after it.
        """
        fresh = log_probs[keep_from - start :]
        if not self.averages:
            return fresh[: keep_to - keep_from]
        left = np.arange(1, len(fresh) + 1, dtype=np.float32) + (keep_from - start)
        right = np.full_like(left, np.inf) if ends else np.arange(len(fresh), 0, -1, dtype=np.float32)
        weights = np.minimum(left, right)[:, None]
        sums = np.exp(fresh) * weights
        kept = keep_to - keep_from
        chunk = fresh[:kept]
        both = min(len(self._sums), len(fresh)) if self._start < start else 0
        if both:
            sums[:both] += self._sums[:both]
            weights[:both] += self._weights[:both]
            shared = min(both, kept)
            mean = np.log(np.maximum(sums[:shared] / weights[:shared], SMALLEST))
            chunk = np.concatenate((mean, chunk[shared:]))
        self._start = start
        self._sums, self._weights = sums[kept:].copy(), weights[kept:].copy()
        return chunk


class Utterances:
    """Decoder and endpointer of one stream."""

    def __init__(
        self,
        engine: Engine,
        endpointing: Endpointing,
        new_decoder: Callable[[int], Decoder],
        *,
        pieces: Sequence[str],
        max_utterance: float,
        lead: int,
    ) -> None:
        """new_decoder: makes a decoder of the frames from a number on. pieces: its tokens. max_utterance: seconds.

        lead: frames of silence that an utterance begins with, where there are so many.
        """
        self.engine = engine
        self.new_decoder = new_decoder
        self.lead = lead
        self.endpointer = Endpointer(endpointing, engine.seconds_per_frame)
        self.longest = max(1, round(max_utterance / engine.seconds_per_frame))
        self.ending_tokens = frozenset(index for index, piece in enumerate(pieces) if mark_name(piece) in ENDS)
        """Tokens by which the model says that an utterance has ended."""
        self.frames = 0
        """Frames of the stream so far."""
        self.begin = 0
        """First frame of the current utterance."""
        self.decoder = self.new_decoder(self.frames)
        self.has_words = False
        """True once the current utterance has a frame with a token."""
        self.early = self.longest - min(round(LATE_SECONDS / engine.seconds_per_frame), self.longest // 2)
        """Frames of an utterance before which it is not cut."""
        self._before: Decoder | None = None
        """Decoder before the frames of `_late`, once the utterance has become that long."""
        self._late: list[Emissions] = []

    def push(self, emissions: Emissions, seconds: float) -> list[Interim | Ended]:
        """Decode the next frames, emissions [T, C]. seconds: duration of the stream computed for them."""
        events: list[Interim | Ended] = []
        silent = self.decoder.silent(emissions)
        begin = 0
        for mark in self.endpointer.push(silent.tolist()):
            self._decode(emissions[begin : mark.frames], silent[begin : mark.frames])
            begin = mark.frames
            events += self._end(seconds) if mark.kind == "end" else self._interim(self.decoder, 1.0, seconds)
        if self.has_words and self.decoder.frames + len(emissions) - begin > self.longest:
            events += self._cut(emissions[begin:], seconds)
        else:
            self._decode(emissions[begin:], silent[begin:])
            events += self._end_by_mark(seconds)
        return events

    def look_ahead(self, emissions: Emissions, seconds: float) -> list[Interim]:
        """Interim result of the utterance with emissions [T, C] of frames that will be computed again."""
        decoder = self.decoder
        if len(emissions):
            decoder = decoder.fork()
            decoder.push(emissions)
        return self._interim(decoder, None, seconds)

    def end(self, seconds: float) -> list[Ended]:
        """End the utterance here."""
        self.endpointer.reset()
        return self._end(seconds)

    def _end_by_mark(self, seconds: float) -> list[Ended]:
        """End the utterance where the model's last token so far says that it has ended."""
        if not self.has_words or not self.ending_tokens:
            return []
        ids = self.decoder.hypotheses()[0].ids
        return self.end(seconds) if ids and ids[-1] in self.ending_tokens else []

    def _cut(self, emissions: Emissions, seconds: float) -> list[Ended]:
        """End the utterance in a pause, before these frames or among them; the frames after it begin the next one."""
        if self._before is not None:
            self.decoder = self._before
            self.frames -= sum(map(len, self._late))
        late = np.concatenate((*self._late, emissions))
        silent = self.decoder.silent(late)
        cut = pause(silent)
        self._decode(late[:cut], silent[:cut])
        ended = self._end(seconds)
        self._decode(late[cut:], silent[cut:])
        return ended

    def _decode(self, emissions: Emissions, silent: Flags) -> None:
        self.frames += len(emissions)
        if not self.has_words and silent.all():  # silence before an utterance is not kept
            self.decoder = self.new_decoder(self.frames)
            self.begin = max(self.begin, self.frames - self.lead)
            return
        self.has_words = True
        if not len(emissions):
            return
        if self._before is None and self.decoder.frames + len(emissions) > self.early:
            self._before = self.decoder.fork()
        if self._before is not None:
            self._late.append(emissions)
        self.decoder.push(emissions)

    def _interim(self, decoder: Decoder, stability: float | None, seconds: float) -> list[Interim]:
        best = decoder.hypotheses()[0]
        if not best.text.strip():
            return []
        settled = self.frames - self.decoder.frames + self.decoder.settled
        until = settled * self.engine.seconds_per_frame
        known = sum(word.end <= until for word in best.words)
        if stability is None:
            stability = UNSURE * known / max(len(best.words), 1)
        return [Interim(text=best.text, stability=stability, words=best.words, audio_processed=seconds, known=known)]

    def _end(self, seconds: float) -> list[Ended]:
        """End the current utterance, which is returned if it has words, and begin the next one."""
        ended = Ended(begin=self.begin, end=self.frames, decoder=self.decoder, audio_processed=seconds)
        has_words, self.has_words = self.has_words, False
        self._before, self._late = None, []
        self.decoder = self.new_decoder(self.frames)
        self.begin = self.frames
        return [ended] if has_words else []


def decoders_of(head: Head, options: DecodingOptions, scope: Scope) -> Callable[[int], Decoder]:
    """Return what makes a decoder of the frames from a number on. Nothing in it leads back to a stream."""

    def new_decoder(first_frame: int) -> Decoder:
        return head.decoder(options, first_frame=first_frame, scope=scope)

    return new_decoder


def pause(silent: Flags) -> int:
    """Number of frames before the middle of the longest pause, the last one of these; all where there is none.

    silent: [T] bool.
    """
    edges = np.flatnonzero(np.diff(silent, prepend=False, append=False))
    begins, ends = edges[0::2], edges[1::2]
    if not begins.size:
        return len(silent)
    longest = np.flatnonzero(ends - begins == (ends - begins).max())[-1]
    return int(begins[longest] + ends[longest] + 1) // 2
