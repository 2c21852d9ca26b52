"""Bytes of any container, in pieces of any size -> mono float32 samples at the model's rate.

The kind is told by the first bytes. Nothing is decoded past the limits, so that a small file cannot fill the memory.
Legend: S samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from overtone.audio.feeds import ContainerFeed, Feed, HeldFeed, WavFeed
from overtone.audio.kinds import HEADER_BYTES, MP3, MP4, WAV, kind_of, mp4_is_streamable, tag_bytes
from overtone.audio.pcm import (
    EMPTY,
    LONGEST_WAV_HEADER,
    Block,
    Resampler,
    SampleFeed,
    Samples,
    WavLayout,
    join_blocks,
    read_wav_layout,
)
from overtone.errors import AudioError

__all__ = ["AudioDecoder", "AudioFormat", "AudioLimits", "Encoding"]

Encoding = Literal["auto", "linear_pcm", "flac", "mulaw", "alaw", "ogg_opus"]

HEADERLESS = {"linear_pcm": "pcm16", "mulaw": "mulaw", "alaw": "alaw"}
"""Encodings of samples without a header -> coding."""
WORK_RATE = 2 * 48_000
"""Samples of all channels in a second of ordinary audio, which is the unit of work."""


@dataclass(frozen=True, kw_only=True)
class AudioLimits:
    """Limits of one recording that comes from a client."""

    max_bytes: int = 384 * 2**20
    """As sent; `max_seconds` of 16-bit samples at 24 kHz are less."""
    max_seconds: float = 2 * 3600.0
    """Decoded; decoding stops there."""
    max_channels: int = 8
    """They are averaged; 1 refuses anything but mono."""
    min_rate: int = 8_000
    """Hz"""
    max_rate: int = 192_000
    """Hz"""

    @property
    def max_samples(self) -> float:
        """Samples of all channels together: two channels at 48 kHz for `max_seconds`, so that work is bounded too."""
        return self.max_seconds * WORK_RATE


@dataclass(frozen=True, kw_only=True)
class AudioFormat:
    """The format that a header, or the declaration, gives."""

    container: str
    """WAV, FLAC, MP4, …; raw for samples without a header."""
    sample_rate: int
    """Hz"""
    channels: int


class AudioDecoder:
    """Push bytes as they come, get samples as soon as they are known. One caller; any thread may `close` it.

    A header is believed before a declaration: clients declare LINEAR_PCM and send a WAV file. Only MP3 and AAC without
    a tag are taken for the headerless samples that they were declared as, which may begin with the same bytes.
    A context manager.
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
        self.limits = limits or AudioLimits()
        self.format: AudioFormat | None = None
        """None until the header is complete."""
        self._start = bytearray()
        """Bytes so far, as long as they do not tell what they are."""
        self._has_tag = False
        self._feed: Feed | None = None
        self.closed = False
        """True if it was told to give up."""
        self._resampler = Resampler(target_rate)
        self._bytes = 0
        self._seconds = 0.0
        self._samples = 0
        """Decoded, of all channels."""

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
            self._begin(ended=False)
            if self._feed is None:
                return EMPTY
            data, self._start = bytes(self._start), bytearray()
        return self._convert(self._feed, self._feed.push(data))

    def finish(self) -> Samples:
        """[S] float32: the rest. Raises AudioError for audio that ended inside its header, or held no samples."""
        return np.concatenate([EMPTY, *self.rest()])

    def rest(self) -> Iterator[Samples]:
        """The rest in pieces [S] float32, decoded while they are iterated. Raises AudioError as `finish` does."""
        if self._feed is None:
            if not self._bytes:
                raise AudioError("The audio is empty.")
            self._begin(ended=True)
            assert self._feed is not None
            yield from self._pieces(self._feed, self._feed.push(bytes(self._start)))
        yield from self._pieces(self._feed, self._feed.finish())
        if not self._samples:
            raise AudioError("The audio holds no samples.")
        yield self._resampler.finish()

    @property
    def is_quick(self) -> bool:
        """True once it is known that a push takes no longer than its bytes are many: of samples without a codec."""
        return self._feed is not None and self._feed.is_quick

    @property
    def work_seconds(self) -> float:
        """Audio so far in units of work: seconds of up to two channels at 48 kHz, more seconds of more than that."""
        return max(self._seconds, self._samples / WORK_RATE)

    def close(self) -> None:
        """Give up; harmless after `finish`."""
        self.closed = True
        if self._feed is not None:
            self._feed.close()

    def _begin(self, *, ended: bool) -> None:
        """Choose the feed, once the first bytes tell which."""
        feed = self._choose(ended=ended)
        self._feed = feed
        if feed is not None and self.closed:  # meanwhile, and there was nothing to close yet
            feed.close()

    def _choose(self, *, ended: bool) -> Feed | None:
        """The feed for audio that begins with the bytes so far; None where they do not tell and more may come."""
        start = self._start
        if len(start) < HEADER_BYTES and not ended:
            return None
        while tag := tag_bytes(start):
            if len(start) < tag + HEADER_BYTES and not ended:
                return None
            del start[:tag]
            self._has_tag = True
        is_declared = self.encoding in HEADERLESS and not self._has_tag
        kind = kind_of(start, headerless=is_declared)
        if kind is None and (self._has_tag or start[:3] == b"ID3"):
            kind = MP3
        if kind is None:
            return self._headerless()
        if kind is WAV and start[:4] != b"RIFX":
            layout = read_wav_layout(start)
            if layout is not None and layout.coding:
                return WavFeed()
            if layout is None and len(start) < LONGEST_WAV_HEADER:
                if ended:
                    raise AudioError("The WAV file ends before its samples begin.")
                return None
        if not kind.streams:
            raise AudioError(
                f"{kind.name} audio of this coding is not accepted. Send WAV (PCM), FLAC, Ogg, MP3, M4A or WebM.",
                fault="unsupported",
            )
        if kind is MP4:
            streams = mp4_is_streamable(start)
            if streams is None and not ended:
                return None
            return ContainerFeed(kind) if streams else HeldFeed(kind)
        return ContainerFeed(kind)

    def _headerless(self) -> Feed:
        """The feed for samples without a header. Raises AudioError where they are not declared as such."""
        rate, channels = self.declared
        if self.encoding in ("flac", "ogg_opus"):
            raise AudioError(f"The audio was declared as {self.encoding}, but does not begin like it.")
        if self.encoding == "auto" and not rate:
            raise AudioError(
                "The audio has no header that is known. Send WAV, FLAC, Ogg (Opus, Vorbis), MP3, MP4/M4A or WebM, or "
                "declare encoding and sample rate.",
                fault="unsupported",
            )
        if not rate:
            raise AudioError(f"Audio without a header ({self.encoding}) needs its sample rate to be declared.")
        coding = HEADERLESS.get(self.encoding, "pcm16")
        return SampleFeed("raw", WavLayout(coding, rate, channels, first=0, size=None))

    def _convert(self, feed: Feed, blocks: Iterator[Block]) -> Samples:
        """Blocks -> [S] at the target rate, within the limits."""
        parts = list(self._pieces(feed, blocks))
        return np.concatenate(parts) if parts else EMPTY

    def _pieces(self, feed: Feed, blocks: Iterator[Block]) -> Iterator[Samples]:
        """The same in pieces, one for each block that is decoded."""
        for block in join_blocks(blocks):
            self._check(feed, block)
            yield self._resampler.push(block)

    def _check(self, feed: Feed, block: Block) -> None:
        """Raises AudioError for a block past a limit."""
        limits, channels = self.limits, block.samples.shape[1]
        if not limits.min_rate <= block.rate <= limits.max_rate:
            raise AudioError(
                f"The audio has {block.rate} Hz; {limits.min_rate} to {limits.max_rate} Hz are accepted.",
                fault="unsupported",
            )
        if not 1 <= channels <= limits.max_channels:
            raise AudioError(
                f"The audio has {channels} channels; 1 to {limits.max_channels} are accepted.", fault="unsupported"
            )
        if self.format is None:
            self.format = AudioFormat(container=feed.container, sample_rate=block.rate, channels=channels)
        self._seconds += len(block.samples) / block.rate
        self._samples += block.samples.size
        if self._seconds > limits.max_seconds:
            self.close()
            raise AudioError(f"The audio is longer than {limits.max_seconds:g} s.", fault="too_large")
        if self._samples > limits.max_samples:
            self.close()
            raise AudioError(
                f"The audio holds more than {limits.max_samples:.0f} samples in its {channels} channels at "
                f"{block.rate} Hz. Send one channel, or a lower rate.",
                fault="too_large",
            )
        if not np.isfinite(block.samples).all():
            raise AudioError("The audio holds samples that are NaN or infinite.")
