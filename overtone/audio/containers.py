"""Audio containers read by FFmpeg (PyAV): the kinds that are accepted, and the sound of a file as blocks of samples.

A file's kind is told by its first bytes, and FFmpeg gets exactly that demuxer: nothing is probed, so that no playlist,
script or picture is ever opened. It sees one file object, no paths and no addresses.
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
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from overtone.audio.pcm import Block, Samples
from overtone.errors import AudioError

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.packet import Packet

HEADER_BYTES = 16
"""They tell every kind from the others."""
MOST_TRACKS = 64
"""Tracks of an MP4 file. Each costs FFmpeg memory, whatever the file's size."""
ALLOCATION_BYTES = 128 * 2**20
"""FFmpeg may allocate so much at once: the index of 30 hours of AAC. Headers of a few bytes ask for gigabytes."""
RUN_UP_SECONDS = 1.0
"""Decoded and dropped before the first wanted sample after a jump: lossy codecs need what lies before."""
LONGEST_PAGE = 1 << 16
"""Bytes of an Ogg page."""
PROBE_BYTES = 4096
"""FFmpeg looks at so many bytes of packets before it says what a file holds."""


class Kind(NamedTuple):
    """A kind of container."""

    name: str
    """What messages call it."""
    demuxer: str
    """FFmpeg's name."""
    streams: bool = False
    """Whether it is decoded while its bytes come, from anybody. The others need the whole file, and are read from
    disk only: their demuxers unpack compressed tags of any size."""
    jumps: bool = False
    """Whether the timestamps after a jump are exact."""
    is_lossless: bool = False
    """Whether a packet that cannot be decoded is an error; lossy codecs go on with the next one."""


MP3 = Kind("MP3", "mp3", streams=True, jumps=True)
FLAC = Kind("FLAC", "flac", streams=True, jumps=True, is_lossless=True)
OGG = Kind("Ogg", "ogg", streams=True, jumps=True)
MP4 = Kind("MP4", "mov", streams=True, jumps=True)
AAC = Kind("AAC", "aac", streams=True)
WAV = Kind("WAV", "wav")
MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"fLaC", FLAC),
    (0, b"OggS", OGG),
    (0, b"\x1aE\xdf\xa3", Kind("WebM/Matroska", "matroska", streams=True)),
    (0, b"#!AMR", Kind("AMR", "amr", streams=True)),
    *((4, box, MP4) for box in (b"ftyp", b"moov", b"mdat", b"wide")),
    *((0, riff, WAV) for riff in (b"RIFF", b"RF64", b"RIFX")),
    (0, b"riff\x2e\x91\xcf\x11", Kind("Wave64", "w64", is_lossless=True)),
    (8, b"AIFF", Kind("AIFF", "aiff", is_lossless=True)),
    (8, b"AIFC", Kind("AIFF", "aiff")),
    (0, b".snd", Kind("AU", "au", is_lossless=True)),
    (0, b"caff", Kind("CAF", "caf")),
    (0, b"NIST_1A", Kind("SPHERE", "nistsphere")),
    (0, b"Creative Voice", Kind("VOC", "voc")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind("ASF/WMA", "asf")),
)
"""Position and bytes that tell the kind of a file."""

CODECS = frozenset(
    "aac aac_latm ac3 eac3 adpcm_g722 adpcm_ima_qt adpcm_ima_wav adpcm_ms alac amrnb amrwb flac g722 gsm gsm_ms mp2 mp2float mp3 "
    "mp3float opus vorbis wmapro wmav1 wmav2 wmavoice libopencore_amrnb libopencore_amrwb pcm_alaw pcm_mulaw pcm_u8 "
    "pcm_s8 pcm_s16le pcm_s16be pcm_s24le pcm_s24be pcm_s32le pcm_s32be pcm_f32le pcm_f32be pcm_f64le pcm_f64be".split()
)
"""FFmpeg's decoders that may run."""
OPTIONS = {
    "codec_whitelist": ",".join(sorted(CODECS)),
    "protocol_whitelist": "",
    "probesize": str(PROBE_BYTES),
}


def kind_of(start: bytes | bytearray, *, headerless: bool = False) -> Kind | None:
    """The kind of container that begins so; None where it is none of ours.

    headerless: the audio may be plain samples, which can begin with the bytes of an MP3 or AAC frame.
    """
    for position, magic, kind in MAGIC:
        if start[position : position + len(magic)] == magic and (kind is not WAV or start[8:12] == b"WAVE"):
            return kind
    if not headerless and len(start) >= 4 and start[0] == 0xFF:
        if start[1] & 0xF6 == 0xF0:  # layer 0: ADTS
            return AAC
        is_frame = start[1] & 0xE6 == 0xE2 and start[1] & 0x18 != 0x08
        if is_frame and start[2] >> 4 not in (0, 15) and start[2] & 0x0C != 0x0C:
            return MP3
    return None


def tag_bytes(start: bytes | bytearray) -> int:
    """Bytes of the ID3 tag that `start` begins with, 0 where there is none.

    Tags are skipped here: FFmpeg would unpack compressed ones, a gigabyte from a megabyte.
    """
    if start[:3] != b"ID3" or len(start) < 10 or max(start[6:10]) > 0x7F:
        return 0
    size = start[6] << 21 | start[7] << 14 | start[8] << 7 | start[9]
    return 10 + size + (10 if start[5] & 0x10 else 0)


def mp4_is_streamable(start: bytes | bytearray) -> bool | None:
    """Whether the description of an MP4 file comes before its samples; None where `start` does not tell yet.

    Raises AudioError for more tracks than a recording has.
    """
    position = 0
    while len(start) >= position + 16:
        size, kind = struct.unpack_from(">I4s", start, position)
        if size == 1:
            (size,) = struct.unpack_from(">Q", start, position + 8)
        if kind == b"moov" and size >= 8:
            if len(start) < position + size:
                return None
            check_tracks(start[position : position + size])
            return True
        if kind == b"mdat" or size < 8:
            return False
        position += size
    return None


def check_tracks(data: bytes | bytearray) -> None:
    """Raises AudioError for an MP4 file with more tracks than a recording has."""
    if data.count(b"trak") > MOST_TRACKS:
        raise AudioError(f"The MP4 file has more than {MOST_TRACKS} tracks.")


class Readable(Protocol):
    """A file as FFmpeg sees it."""

    def read(self, size: int = ..., /) -> bytes:
        """The next bytes, none at the end."""

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """Go to a place, as files do."""

    def tell(self) -> int:
        """The place of the next byte."""

    def seekable(self) -> bool:
        """Whether `seek` works."""


class Track:
    """The sound of a container: its first audio stream, decoded by FFmpeg. Not for two threads at a time."""

    def __init__(self, file: Readable, kind: Kind) -> None:
        """Raises AudioError."""
        self.kind = kind
        self._file = file
        limit_allocations()
        self._open()

    def close(self) -> None:
        """Free what FFmpeg holds. The file stays open."""
        self._container.close()

    def blocks(self, start: float = 0.0) -> Iterator[Block]:
        """The samples from `start` seconds to the end, a block for each of FFmpeg's frames. Raises AudioError."""
        has_jumped = start > RUN_UP_SECONDS and self.kind.jumps and self._jump(start - RUN_UP_SECONDS)
        ahead = None if has_jumped else round(start * self._stream.codec_context.sample_rate)
        for frame in self._frames():
            if ahead is None:
                ahead = round((start - self._time(frame)) * frame.sample_rate)
                if ahead < 0:  # FFmpeg went too far
                    self._open()
                    yield from self.blocks(start)
                    return
            if ahead < frame.samples:
                yield Block(frame_samples(frame)[ahead:], frame.sample_rate)
            ahead = max(0, ahead - frame.samples)

    def seconds(self) -> float:
        """Seconds of sound, counted over the packets of the whole file. Raises AudioError."""
        ticks = skipped = 0
        for index, packet in enumerate(self._packets()):
            ticks += ctypes.c_int32(packet.duration or 0).value  # FFmpeg lets a last one be negative
            before, after = skipped_samples(packet)
            skipped += before + (after if self.kind is MP3 else 0)  # other demuxers cut the packet's duration
            if index == 0 and not before:
                ticks += min(0, packet.pts or 0)  # a codec's first packet that gives no samples
        if ticks > 0:
            return float(ticks * self._time_base) - skipped / self._stream.codec_context.sample_rate
        self._open()
        return sum(len(block.samples) / block.rate for block in self.blocks())

    def _open(self) -> None:
        import av

        try:
            if self._file.seekable():
                self._file.seek(0)
            self._container = av.open(
                self._file, format=self.kind.demuxer, options=OPTIONS, metadata_errors="replace", buffer_size=1 << 16
            )
        except Exception as error:  # what PyAV raises for damaged files shares no base
            raise self._damaged(error) from error
        tracks = self._container.streams.audio
        if not tracks:
            raise AudioError(f"The {self.kind.name} file holds no sound.", fault="unsupported")
        self._stream = tracks[0]
        self._time_base = self._stream.time_base or Fraction(1)
        codec = self._stream.codec_context
        if codec is None or codec.name not in CODECS:
            name = "unknown" if codec is None else codec.name
            raise AudioError(f"The coding of the {self.kind.name} file ({name}) is not supported.", fault="unsupported")
        self._codec = libopus(codec, self._time_base) if codec.name == "opus" else codec

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
        seconds = 0.0
        try:
            for packet in self._container.demux(self._stream):
                seconds = float((packet.pts or 0) * self._time_base)
                yield packet
        except Exception as error:
            raise self._damaged(error, seconds) from error

    def _frames(self) -> Iterator[AudioFrame]:
        """The frames that are left. Raises AudioError."""
        end, first_error, page = 0.0, None, VorbisPage()
        for packet in self._packets():
            try:
                if self.kind is OGG:
                    page.correct(packet)
                frames = self._codec.decode(packet)
            except Exception as error:
                if self.kind.is_lossless:
                    raise self._damaged(error, end) from error
                first_error = first_error or error
                continue
            for frame in frames:
                page.note(frame)
                end = (frame.time or 0.0) + frame.samples / frame.sample_rate
                yield frame
        if not end:
            raise self._damaged(first_error or ValueError("nothing in it can be decoded"))
        whole = float((self._stream.duration or 0) * self._time_base)
        if self.kind is FLAC and end < whole - 1e-4:
            raise self._damaged(ValueError(f"it is cut short, after {end:.3f} s of {whole:.3f} s"))

    def _damaged(self, error: Exception, seconds: float = 0.0) -> AudioError:
        """The error of ours for one of FFmpeg's, which came after so many seconds of sound."""
        import av

        if isinstance(error, AudioError):
            return error
        if isinstance(error, av.FFmpegError):
            reason = f"it is damaged after {seconds:.3f} s" if seconds else "nothing in it can be decoded"
        else:
            reason = str(error) or type(error).__name__
        return AudioError(f"The {self.kind.name} audio cannot be decoded: {reason}.")


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

    def __init__(self, file: IO[bytes], first: int, *, has_size: bool) -> None:
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
        """Whether it can jump: always."""
        return True


def is_chained(file: Readable) -> bool:
    """Whether an Ogg file holds several recordings after each other: times begin anew in each of them."""
    place = file.tell()
    file.seek(0)
    first = file.read(18)[14:18]
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - LONGEST_PAGE))
    last = file.read().rpartition(b"OggS")[2][10:14]
    file.seek(place)
    return first != last


def frame_samples(frame: AudioFrame) -> Samples:
    """[S, C] of one of FFmpeg's frames, full scale 1."""
    array = frame.to_ndarray()
    array = array.T if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels)
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / np.float32(128)
    if array.dtype.kind == "i":
        return array.astype(np.float32) / np.float32(2.0 ** (8 * array.itemsize - 1))
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32, copy=False)


@cache
def limit_allocations() -> None:
    """Cap a single allocation of FFmpeg, where its library lies where PyAV's wheels have it."""
    import av

    for library in Path(av.__file__).parent.parent.glob("av.libs/*avutil*"):
        call = ctypes.CDLL(str(library)).av_max_alloc
        call.argtypes, call.restype = [ctypes.c_size_t], None
        call(ALLOCATION_BYTES)
