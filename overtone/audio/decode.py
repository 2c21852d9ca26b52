"""Bytes of any container, in pieces of any size -> float32 samples at the model's rate.

WAV, raw PCM, µ-law and A-law are read here; FLAC, Ogg (Opus, Vorbis) and MP3 by libsndfile. Nothing is decoded past
the limits, so that a small file cannot fill the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import soxr

from overtone.audio.compressed import FlacFeed, OggFeed, WholeFile
from overtone.audio.containers import Container, Feed, RawReader, Samples, WavReader
from overtone.serving.errors import AudioError

__all__ = ["AudioDecoder", "AudioFormat", "AudioLimits", "Encoding"]

Encoding = Literal["auto", "linear_pcm", "flac", "mulaw", "alaw", "ogg_opus"]

RAW = {"linear_pcm": "pcm16", "mulaw": "mulaw", "alaw": "alaw"}
HEADER_BYTES = 12
"""What tells every container from the others."""


@dataclass(frozen=True, kw_only=True)
class AudioLimits:
    """What a request may send."""

    max_bytes: int = 64 * 2**20
    """As sent."""
    max_seconds: float = 2 * 3600.0
    """Decoded; decoding stops there."""
    max_channels: int = 8
    """They are averaged; 1 refuses anything but mono."""
    min_rate: int = 8_000
    max_rate: int = 192_000


@dataclass(frozen=True, kw_only=True)
class AudioFormat:
    """What the header (or the declaration) said."""

    container: Container
    sample_rate: int
    channels: int


class AudioDecoder:
    """Push bytes as they come, get samples as soon as they are known. One caller; any thread may `close` it.

    A header is believed before a declaration: clients declare LINEAR_PCM and send a WAV file. Only MP3 without a tag is
    taken for the raw samples that it was declared as, which may begin with the same bytes. A context manager.
    """

    def __init__(
        self,
        *,
        encoding: Encoding = "auto",
        sample_rate: int = 0,
        channels: int = 0,
        target_rate: int = 16_000,
        limits: AudioLimits | None = None,
    ) -> None:
        """sample_rate, channels: for headerless audio; 0 is unknown (channels: 1)."""
        self.encoding = encoding
        self.declared = (sample_rate, channels or 1)
        self.target_rate = target_rate
        self.limits = limits or AudioLimits()
        self.format: AudioFormat | None = None
        """None until the header is complete."""
        self._start = b""
        self._feed: Feed | None = None
        self._closed = False
        self._resampler: soxr.ResampleStream | None = None
        self._bytes = 0
        self._decoded = 0
        """Samples of each channel, at the audio's own rate."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def push(self, data: bytes) -> Samples:
        """[S] float32, perhaps empty. Raises AudioError."""
        self._bytes += len(data)
        if self._bytes > self.limits.max_bytes:
            raise AudioError(f"More than {self.limits.max_bytes} bytes of audio were sent.", fault="too_large")
        if self._feed is None:
            self._start += data
            if len(self._start) < HEADER_BYTES:
                return nothing()
            data, self._start = self._start, b""
        feed = self._feed or self._begin(data)
        return self._converted(feed.push(data), last=False)

    def finish(self) -> Samples:
        """The rest. Raises AudioError for audio that ended inside its header, or held no samples at all."""
        rest = []
        feed = self._feed
        if feed is None:
            if not self._start:
                raise AudioError("The audio is empty.")
            feed = self._begin(self._start)
            rest.append(self._converted(feed.push(self._start), last=False))
        rest.append(self._converted(feed.finish(), last=True))
        if not self._decoded:
            raise AudioError("The audio holds no samples.")
        return np.concatenate(rest)

    def close(self) -> None:
        """Give up; harmless after `finish`."""
        self._closed = True
        if self._feed is not None:
            self._feed.close()

    def _begin(self, start: bytes) -> Feed:
        self._feed = self._recognised(start)
        if self._closed:  # meanwhile, and there was nothing to close yet
            self._feed.close()
        return self._feed

    def _recognised(self, start: bytes) -> Feed:
        """What reads this audio, judged by its first bytes."""
        if start[:4] in (b"RIFF", b"RF64", b"RIFX") and start[8:12] == b"WAVE":
            return WavReader()
        if start[:4] == b"fLaC":
            return FlacFeed()
        if start[:4] == b"OggS":
            return OggFeed()
        if start[:3] == b"ID3" or (self.encoding not in RAW and is_mp3_frame(start)):
            return WholeFile("mp3")
        rate, channels = self.declared
        if self.encoding in ("flac", "ogg_opus"):
            raise AudioError(f"The audio was declared as {self.encoding}, but does not begin like it.")
        if self.encoding == "auto" and not rate:
            raise AudioError(
                "The audio has no header that is known. Send WAV, FLAC, Ogg (Opus, Vorbis) or MP3, or declare encoding "
                "and sample rate.",
                fault="unsupported",
            )
        if not rate:
            raise AudioError(f"Audio without a header ({self.encoding}) needs its sample rate to be declared.")
        return RawReader(RAW.get(self.encoding, "pcm16"), rate, channels)

    def _converted(self, blocks: Iterator[Samples], *, last: bool) -> Samples:
        """Blocks [S, C] -> [S'] at the target rate, within the limits."""
        assert self._feed is not None
        done = []
        for block in blocks:
            if self.format is None:
                self.format = self._checked(self._feed)
            self._decoded += len(block)
            if self._decoded > self.limits.max_seconds * self.format.sample_rate:
                self.close()
                raise AudioError(f"The audio is longer than {self.limits.max_seconds:g} s.", fault="too_large")
            if not np.isfinite(block).all():
                raise AudioError("The audio holds samples that are NaN or infinite.")
            mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
            done.append(self._resampled(np.ascontiguousarray(mono), last=False))
        if self.format is None and self._feed.rate:
            self.format = self._checked(self._feed)
        if last:
            done.append(self._resampled(nothing(), last=True))
        return np.concatenate(done) if done else nothing()

    def _checked(self, feed: Feed) -> AudioFormat:
        limits = self.limits
        if not limits.min_rate <= feed.rate <= limits.max_rate:
            raise AudioError(
                f"The audio has {feed.rate} Hz; {limits.min_rate} to {limits.max_rate} Hz are accepted.",
                fault="unsupported",
            )
        if not 1 <= feed.channels <= limits.max_channels:
            raise AudioError(
                f"The audio has {feed.channels} channels; 1 to {limits.max_channels} are accepted.", fault="unsupported"
            )
        if feed.rate != self.target_rate:
            self._resampler = soxr.ResampleStream(feed.rate, self.target_rate, 1, dtype="float32", quality="HQ")
        return AudioFormat(container=feed.container, sample_rate=feed.rate, channels=feed.channels)

    def _resampled(self, mono: Samples, *, last: bool) -> Samples:
        if self._resampler is None:
            return mono
        resampled: Samples = self._resampler.resample_chunk(mono, last=last)
        return resampled


def is_mp3_frame(start: bytes) -> bool:
    """Whether the bytes begin with a header of an MPEG audio frame, layer III."""
    return (
        len(start) >= 4
        and start[0] == 0xFF
        and start[1] & 0xE6 == 0xE2
        and start[1] & 0x18 != 0x08
        and start[2] >> 4 not in (0, 15)
        and start[2] & 0x0C != 0x0C
    )


def nothing() -> Samples:
    return np.zeros(0, dtype=np.float32)
