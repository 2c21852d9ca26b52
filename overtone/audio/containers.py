"""The sound of container files, decoded by FFmpeg (PyAV) to blocks of samples.

FFmpeg gets the demuxer of the kind that the first bytes tell: nothing is probed, so that no playlist, script or picture
is ever opened. It sees one file object, no paths and no addresses.
Legend: S samples, C channels.
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from numpy.typing import NDArray

from overtone.audio.kinds import FLAC, MP3, OGG, Kind
from overtone.audio.pcm import Block
from overtone.errors import AudioError

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.packet import Packet

ALLOCATION_BYTES = 128 * 2**20
"""FFmpeg may allocate so much at once: the index of 30 hours of AAC. Headers of a few bytes ask for gigabytes."""
RUN_UP_SECONDS = 1.0
"""Decoded and dropped before the first wanted sample after a jump: lossy codecs need what lies before."""
READ_BYTES = 1 << 16
"""FFmpeg reads so many bytes of a file at once."""
LONGEST_PAGE = 1 << 16
"""Bytes of an Ogg page."""
PROBE_BYTES = 4096
"""FFmpeg looks at so many bytes of packets before it says what a file holds."""


CODECS = (
    "aac,ac3,adpcm_g722,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,alac,amrnb,amrwb,eac3,flac,gsm,gsm_ms,mp2,mp2float,mp3,"
    "mp3float,opus,pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,"
    "pcm_s32be,pcm_s32le,pcm_s8,pcm_u8,vorbis,wmapro,wmav1,wmav2,wmavoice"
)
"""FFmpeg's decoders that may run."""
OPTIONS = {
    "codec_whitelist": CODECS,
    "protocol_whitelist": "",
    "probesize": str(PROBE_BYTES),
}


class Source(Protocol):
    """An open file of sound."""

    def blocks(self, start: float = 0.0) -> Iterator[Block]:
        """The samples from `start` seconds to the end. Raises AudioError."""

    def seconds(self) -> float:
        """Seconds of sound, counted. Raises AudioError."""


class Readable(Protocol):
    """A file as FFmpeg sees it."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, none at the end."""

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """Go to a place, as files do."""

    def tell(self) -> int:
        """The place of the next byte."""

    def seekable(self) -> bool:
        """True if `seek` works."""


class Track:
    """The sound of a container: its first audio stream, decoded by FFmpeg. Not for two threads at a time."""

    def __init__(self, file: Readable, kind: Kind) -> None:
        """Raises AudioError."""
        self.kind = kind
        self._file = file
        self._has_jumped = False
        """True if the next frame may be any of the file's."""
        limit_allocations()
        self._open()

    def close(self) -> None:
        """Free what FFmpeg holds. The file stays open."""
        self._container.close()

    def blocks(self, start: float = 0.0) -> Iterator[Block]:
        """The samples from `start` seconds to the end, a block for each of FFmpeg's frames. Raises AudioError."""
        self._has_jumped = start > RUN_UP_SECONDS and self.kind.jumps and self._jump(start - RUN_UP_SECONDS)
        frames = self._frames()
        first = next(frames, None)
        ahead = start
        if first is not None and self._has_jumped:
            ahead = start - self._time(first)
            if ahead < 0:  # FFmpeg went too far: decode from the beginning
                self._open()
                frames, ahead = self._frames(), start
                first = next(frames, None)
        left = None
        for frame in frames if first is None else chain((first,), frames):
            left = round(ahead * frame.sample_rate) if left is None else left
            if left < frame.samples:
                yield Block(frame_samples(frame)[left:], frame.sample_rate)
            left = max(0, left - frame.samples)

    def seconds(self) -> float:
        """Seconds of sound, counted over the packets of the whole file. Raises AudioError."""
        rate = self._stream.codec_context.sample_rate
        if self._time_base * rate > 1 and self._codec.name != "libopus":  # durations are rounded, by 1 % and more
            return sum(frame.samples / frame.sample_rate for frame in self._frames())
        ticks = skipped = 0
        for index, packet in enumerate(self._packets()):
            ticks += ctypes.c_int32(packet.duration or 0).value  # FFmpeg lets a last one be negative
            before, after = skipped_samples(packet)
            skipped += before + (after if self.kind is MP3 else 0)  # other demuxers cut the packet's duration
            if index == 0 and not before:
                ticks += min(0, packet.pts or 0)  # a codec's first packet that gives no samples
        if ticks > 0:
            return float(ticks * self._time_base) - skipped / rate
        self._open()
        return sum(frame.samples / frame.sample_rate for frame in self._frames())

    def _open(self) -> None:
        import av

        try:
            if self._file.seekable():
                self._file.seek(0)
            self._has_jumped = False
            self._container = av.open(
                self._file,
                "r",
                format=self.kind.demuxer,
                options=OPTIONS,
                metadata_errors="replace",
                buffer_size=READ_BYTES,
            )
        except Exception as error:  # what PyAV raises for damaged files shares no base
            raise self._error(error) from error
        tracks = self._container.streams.audio
        if not tracks:
            raise AudioError(f"The {self.kind.name} file holds no sound.", fault="unsupported")
        self._stream = tracks[0]
        self._time_base = self._stream.time_base or Fraction(1)
        codec = cast("AudioCodecContext | None", self._stream.codec_context)
        if codec is None or codec.name not in CODECS.split(","):
            name = "unknown" if codec is None else codec.name
            raise AudioError(f"The coding of the {self.kind.name} file ({name}) is not supported.", fault="unsupported")
        self._codec = libopus(codec, self._time_base) if codec.name == "opus" else codec
        if codec.name == "flac":
            codec.options = {"err_detect": "crccheck+explode"}

    def _jump(self, seconds: float) -> bool:
        """Go to a place before so many seconds; whether FFmpeg could."""
        if self.kind is OGG and is_chained(self._file):
            return False
        ticks = round(seconds / self._time_base) + (self._stream.start_time or 0)
        try:
            self._container.seek(ticks, stream=self._stream)
            self._codec.flush_buffers()
        except Exception:  # no index, or a file that cannot seek
            self._open()
            return False
        return True

    def _time(self, frame: AudioFrame) -> float:
        """Seconds from the start of the recording to the frame; infinite where it is not known."""
        if frame.time is None:
            return math.inf
        return frame.time - float((self._stream.start_time or 0) * self._time_base)

    def _packets(self) -> Iterator[Packet[AudioStream]]:
        """The packets that are left. Raises AudioError."""
        last = 0
        try:
            for packet in self._container.demux(self._stream):
                last = packet.pts or last
                yield packet
        except Exception as error:
            raise self._error(error, float(last * self._time_base)) from error

    def _frames(self) -> Iterator[AudioFrame]:
        """The frames that are left. Raises AudioError."""
        end, page = 0.0, VorbisPage()
        is_continuous = self.kind is FLAC and not self._has_jumped
        for packet in self._packets():
            try:
                if self.kind is OGG:
                    page.correct(packet)
                frames = self._codec.decode(packet)
            except Exception as error:
                if self.kind.is_lossless:
                    raise self._error(error, end) from error
                continue
            for frame in frames:
                if self.kind is OGG:
                    page.note(frame)
                begin, length = frame.time or 0.0, frame.samples / frame.sample_rate
                if is_continuous and abs(begin - end) > length / 2:  # FFmpeg leaves out damaged frames
                    raise self._error("it is damaged", end)
                is_continuous = self.kind is FLAC
                end = begin + length
                yield frame
        if not end and not self._has_jumped:
            raise self._error("nothing in it can be decoded")
        whole = float((self._stream.duration or 0) * self._time_base)
        if self.kind is FLAC and end < whole - 1e-4:
            raise self._error(f"it is cut short, {whole - end:.3f} s are missing", end)

    def _error(self, reason: str | Exception, seconds: float = 0.0) -> AudioError:
        """The error for a reason, or an error of FFmpeg's, that came after so many seconds of sound."""
        if isinstance(reason, AudioError):
            return reason
        if isinstance(reason, Exception):
            reason = "it is damaged" if seconds else "nothing in it can be decoded"
        where = f" after {seconds:.3f} s" if seconds else ""
        return AudioError(f"The {self.kind.name} audio cannot be decoded: {reason}{where}.")


def libopus(codec: AudioCodecContext, time_base: Fraction) -> AudioCodecContext:
    """The reference decoder of Opus. FFmpeg would take its own, which garbles some speech."""
    import av

    own = av.AudioCodecContext.create("libopus", "r")
    own.extradata, own.sample_rate, own.layout = codec.extradata, codec.sample_rate, codec.layout.name
    own.options = {"request_sample_fmt": "flt", "pkt_timebase": str(time_base)}
    return own


def skipped_samples(packet: Packet[AudioStream]) -> tuple[int, int]:
    """Samples that are dropped from the beginning and from the end of a packet."""
    if not packet.has_sidedata("skip_samples"):
        return 0, 0
    before, after = struct.unpack_from("<II", bytes(packet.get_sidedata("skip_samples")))
    return before, after


class VorbisPage:
    """The end of an Ogg Vorbis recording that is one page long.

    Its first packet gives no samples. FFmpeg counts it all the same, and would drop as many too many at the end.
    """

    def __init__(self) -> None:
        self._packet: int | None = None
        self._frame: int | None = None

    def correct(self, packet: Packet[AudioStream]) -> None:
        """Change what is dropped from the end of a packet, before it is decoded."""
        if packet.stream.codec_context.name != "vorbis":
            return
        if self._packet is None:
            self._packet = packet.pts
        _, after = skipped_samples(packet)
        if after and self._packet == 0 and self._frame:
            data = packet.get_sidedata("skip_samples")
            data.update(struct.pack("<II", 0, max(0, after - self._frame)) + bytes(data)[8:])
            packet.set_sidedata(data)

    def note(self, frame: AudioFrame) -> None:
        """Remember when the first frame begins."""
        if self._frame is None:
            self._frame = frame.pts


class FileView:
    """A file from a byte on, as FFmpeg sees it."""

    def __init__(self, file: Readable, first: int, *, has_size: bool) -> None:
        """has_size: FFmpeg may ask for the file's size. An MP3 file then ends where its own header says."""
        self._file = file
        self._first = first
        self._has_size = has_size
        file.seek(first)

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        return self._file.read(size)

    def tell(self) -> int:
        """The place of the next byte."""
        return self._file.tell() - self._first

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, as files do."""
        if whence == os.SEEK_END and not self._has_size:
            return 0
        return self._file.seek(offset + (self._first if whence == os.SEEK_SET else 0), whence) - self._first

    def seekable(self) -> bool:
        """True if it can jump: always."""
        return True


def is_chained(file: Readable) -> bool:
    """True if an Ogg file holds several recordings after each other: times begin anew in each of them."""
    place = file.tell()
    file.seek(0)
    first = file.read(18)[14:18]
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - LONGEST_PAGE))
    last = file.read(LONGEST_PAGE).rpartition(b"OggS")[2][10:14]
    file.seek(place)
    return first != last


def frame_samples(frame: AudioFrame) -> NDArray[Any]:
    """[S, C] of one of FFmpeg's frames, of the decoder's type."""
    array = frame.to_ndarray()  # planar [C, S], else [1, S * C]
    is_planar = frame.format.is_planar and len(array) > 1
    return array.T if is_planar else array.reshape(-1, frame.layout.nb_channels)


@cache
def limit_allocations() -> None:
    """Cap a single allocation of FFmpeg, where its library lies where PyAV's wheels have it."""
    import av

    for library in Path(av.__file__).parent.parent.glob("av.libs/*avutil*"):
        call = ctypes.CDLL(str(library)).av_max_alloc
        call.argtypes, call.restype = [ctypes.c_size_t], None
        call(ALLOCATION_BYTES)
