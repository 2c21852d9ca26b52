"""Bytes of any container, in pieces of any size -> mono float32 samples at the model's rate.

WAV files of plain samples and headerless PCM, µ-law and A-law are read here; FFmpeg reads the rest, in a thread that
waits for the bytes. Nothing is decoded past the limits, so that a small file cannot fill the memory.
Legend: S samples.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np

from overtone.audio.containers import (
    AAC,
    HEADER_BYTES,
    MP3,
    MP4,
    WAV,
    FileView,
    Kind,
    Track,
    check_tracks,
    kind_of,
    mp4_is_streamable,
    tag_bytes,
)
from overtone.audio.pcm import (
    BLOCK,
    EMPTY,
    Block,
    Resampler,
    Samples,
    WavLayout,
    decode_samples,
    join_blocks,
    read_wav_layout,
)
from overtone.errors import AudioError

__all__ = ["AudioDecoder", "AudioFormat", "AudioLimits", "Encoding"]

Encoding = Literal["auto", "linear_pcm", "flac", "mulaw", "alaw", "ogg_opus"]

HEADERLESS = {"linear_pcm": "pcm16", "mulaw": "mulaw", "alaw": "alaw"}
"""Encodings of samples without a header -> coding."""
ENDLESS = 1 << 62
"""Bytes of samples where no header tells their number."""
LONGEST_WAV_HEADER = 1 << 20
"""Bytes before the samples of a WAV file."""
PUSH_SAMPLES = 1 << 20
"""Samples of all channels that one push decodes at most, so that it is short; the rest comes with the next ones."""
AHEAD_SAMPLES = 1 << 18
"""Samples of all channels that FFmpeg's thread decodes ahead of the caller."""
MP3_HEAD = 1 << 18
"""Bytes at the beginning of an MP3 file that FFmpeg reads more than once: it looks for tags and the first frame."""
PATIENCE = 30.0
"""Seconds for which FFmpeg may be silent over bytes that are all there."""


@dataclass(frozen=True, kw_only=True)
class AudioLimits:
    """Limits of one recording that comes from a client."""

    max_bytes: int = 64 * 2**20
    """As sent."""
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
        """Samples of all channels together: two channels at 96 kHz for `max_seconds`, so that work is bounded too."""
        return self.max_seconds * 2 * 96_000


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
        self._closed = False
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
        parts = []
        if self._feed is None:
            if not self._bytes:
                raise AudioError("The audio is empty.")
            self._begin(ended=True)
            assert self._feed is not None
            parts.append(self._convert(self._feed, self._feed.push(bytes(self._start))))
        parts.append(self._convert(self._feed, self._feed.finish()))
        if not self._samples:
            raise AudioError("The audio holds no samples.")
        return np.concatenate([*parts, self._resampler.finish()])

    def close(self) -> None:
        """Give up; harmless after `finish`."""
        self._closed = True
        if self._feed is not None:
            self._feed.close()

    def _begin(self, *, ended: bool) -> None:
        """Choose the feed, once the first bytes tell which."""
        feed = self._choose(ended=ended)
        self._feed = feed
        if feed is not None and self._closed:  # meanwhile, and there was nothing to close yet
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
                return SampleFeed("WAV", layout)
            if layout is None and len(start) < LONGEST_WAV_HEADER:
                if ended:
                    raise AudioError("The WAV file ends before its samples begin.")
                return None
        if not kind.streams:
            raise AudioError(
                f"{kind.name} audio of this coding is read from disk only. Send WAV (PCM), FLAC, Ogg, MP3, M4A or WebM.",
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
        parts = []
        for block in join_blocks(blocks):
            self._check(feed, block)
            parts.append(self._resampler.push(block))
        return np.concatenate(parts) if parts else EMPTY

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


class Feed(Protocol):
    """A reader of pieces: bytes in, blocks of samples out."""

    container: str

    def push(self, data: bytes) -> Iterator[Block]:
        """The next bytes -> the samples that are decoded by now. They are decoded while it is iterated."""

    def finish(self) -> Iterator[Block]:
        """The end of the bytes -> the rest."""

    def close(self) -> None:
        """Give up."""


class SampleFeed:
    """Plain samples, after a WAV header or without one. A sample that is cut in two at the end is dropped."""

    def __init__(self, container: str, layout: WavLayout) -> None:
        self.container = container
        self._layout = layout
        self._ahead = layout.first
        """Bytes of the header that are still to come."""
        self._left = ENDLESS if layout.size is None else layout.size
        """Bytes of samples that are still to come; the bytes after them are not audio."""
        self._rest = b""

    def push(self, data: bytes) -> Iterator[Block]:
        """The samples that are whole by now."""
        skipped = min(self._ahead, len(data))
        self._ahead -= skipped
        data = data[skipped : skipped + self._left]
        self._left -= len(data)
        data = self._rest + data
        layout, size = self._layout, self._layout.frame_bytes
        whole = len(data) - len(data) % size
        self._rest = data[whole:]
        step = max(1, BLOCK // layout.channels) * size
        view = memoryview(data)
        for first in range(0, whole, step):
            samples = decode_samples(view[first : min(first + step, whole)], layout.coding)
            yield Block(samples.reshape(-1, layout.channels), layout.rate)

    def finish(self) -> Iterator[Block]:
        """Nothing: `push` gives all whole samples."""
        yield from ()

    def close(self) -> None:
        """Forget the rest."""
        self._rest = b""


class HeldFeed:
    """A container that can only be read whole: nothing comes before the end."""

    def __init__(self, kind: Kind) -> None:
        self.container = kind.name
        self._kind = kind
        self._data = bytearray()
        self._closed = False

    def push(self, data: bytes) -> Iterator[Block]:
        """Hold the bytes."""
        self._data += data
        yield from ()

    def finish(self) -> Iterator[Block]:
        """The whole file's samples, until it is closed."""
        check_tracks(self._data)
        track = Track(FileView(io.BytesIO(self._data), 0, has_size=True), self._kind)
        try:
            for block in track.blocks():
                if self._closed:
                    return
                yield block
        finally:
            track.close()

    def close(self) -> None:
        """Stop at the next block."""
        self._closed = True


class ContainerFeed:
    """A container that FFmpeg decodes as it comes, in a thread of its own.

    The thread works while a caller waits in `push` or `finish`, and a little ahead of it. It ends with the audio, or
    when the feed is closed.
    """

    def __init__(self, kind: Kind) -> None:
        self.container = kind.name
        self._kind = kind
        self._pieces = Pieces(kind)
        self._changed = self._pieces.changed
        self._blocks: list[Block] = []
        self._held = 0
        """Samples in `_blocks`."""
        self._done = False
        self._fault: AudioError | None = None
        self._thread = threading.Thread(target=self._run, name="overtone-audio", daemon=True)
        self._thread.start()

    def push(self, data: bytes) -> Iterator[Block]:
        """Blocks until FFmpeg wants more bytes, or `PUSH_SAMPLES` are reached."""
        self._pieces.append(data)
        return self._take(PUSH_SAMPLES)

    def finish(self) -> Iterator[Block]:
        """Blocks until FFmpeg is done."""
        self._pieces.end()
        return self._take(None)

    def close(self) -> None:
        """End the thread; what waits for it goes on."""
        self._pieces.close()

    def _take(self, most: int | None) -> Iterator[Block]:
        taken, over = 0, False
        while not over and (most is None or taken < most):
            with self._changed:
                if not self._changed.wait_for(self._is_worth_a_look, PATIENCE):
                    self.close()
                    raise AudioError("The audio could not be decoded in time.")
                blocks, self._blocks, self._held = self._blocks, [], 0
                over = not blocks
                self._changed.notify_all()
            taken += sum(block.samples.size for block in blocks)
            yield from blocks
        if over and self._fault is not None and not self._pieces.closed:
            raise self._fault

    def _is_worth_a_look(self) -> bool:
        pieces = self._pieces
        return self._done or pieces.hungry or pieces.closed or self._held >= AHEAD_SAMPLES

    def _run(self) -> None:
        try:
            track = Track(self._pieces, self._kind)
            for block in track.blocks():
                if not self._hold(block):
                    break
            track.close()
        except AudioError as error:
            self._fault = error
        except Exception as error:
            self._fault = AudioError(f"The {self._kind.name} audio cannot be decoded: {error}.")
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _hold(self, block: Block) -> bool:
        """Leave a block for the caller; whether more are wanted."""
        with self._changed:
            self._blocks.append(block)
            self._held += block.samples.size
            if self._held >= AHEAD_SAMPLES:
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._pieces.closed or self._held < AHEAD_SAMPLES)
            return not self._pieces.closed


class Pieces:
    """Bytes that come in pieces, as a file that is read forward; reading past the last piece waits for the next one."""

    def __init__(self, kind: Kind) -> None:
        self.changed = threading.Condition()
        self.hungry = False
        """Whether a read waits for bytes."""
        self.closed = False
        self._kind = kind
        self._data = bytearray()
        self._first = 0
        """Place of the first byte of `_data` in the file."""
        self._position = 0
        self._ended = False

    def append(self, data: bytes) -> None:
        """The next piece."""
        with self.changed:
            self._data += data
            if self._kind is AAC:
                self._blot_tags(len(self._data) - len(data))
            self.hungry = self.hungry and not data
            self.changed.notify_all()

    def end(self) -> None:
        """No more pieces come."""
        with self.changed:
            self._ended, self.hungry = True, False
            self.changed.notify_all()

    def close(self) -> None:
        """Reading ends here."""
        with self.changed:
            self.closed = True
            self._data.clear()
            self.changed.notify_all()

    def seekable(self) -> bool:
        """Whether FFmpeg may ask for the size, and go back to where it is."""
        return self._kind is MP3

    def read(self, size: int) -> bytes:
        """Up to so many bytes, as soon as there are any; none at the end."""
        with self.changed:
            self.hungry = not self._is_readable()
            if self.hungry:
                self.changed.notify_all()
                self.changed.wait_for(self._is_readable)
                self.hungry = False
            begin = self._position - self._first
            data = bytes(self._data[begin : min(begin + size, len(self._data) - self._kept())])
            self._position += len(data)
            if self._kind is not MP3 or self._position > MP3_HEAD:
                del self._data[: begin + len(data)]
                self._first = self._position
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go back within the head of an MP3 file, or stay here; where the end is, is not known."""
        with self.changed:
            if whence == os.SEEK_SET and self._first <= offset <= self._first + len(self._data):
                self._position = offset
            return 0 if whence == os.SEEK_END else self._position

    def tell(self) -> int:
        """The place of the next byte."""
        return self._position

    def _is_readable(self) -> bool:
        there = self._first + len(self._data) - self._kept()
        return self._ended or self.closed or there > self._position

    def _kept(self) -> int:
        """Bytes that are not read yet, since the next piece may tell that they begin a tag."""
        return 2 if self._kind is AAC and not (self._ended or self.closed) else 0

    def _blot_tags(self, begin: int) -> None:
        """Make ID3 tags between frames unknown bytes: FFmpeg would unpack compressed ones, a gigabyte from a megabyte."""
        place = self._data.find(b"ID3", max(0, begin - 2))
        while place >= 0:
            self._data[place : place + 3] = bytes(3)
            place = self._data.find(b"ID3", place + 3)
