"""Kinds of audio containers, told by the first bytes of a file."""

from __future__ import annotations

import struct
from typing import NamedTuple

from overtone.errors import AudioError

HEADER_BYTES = 16
"""They tell every kind from the others."""
MOST_TRACKS = 64
"""Tracks of an MP4 file. Each costs FFmpeg memory, whatever the file's size."""


class Kind(NamedTuple):
    """A kind of container."""

    name: str
    """The name in messages."""
    demuxer: str
    """FFmpeg's name."""
    streams: bool = False
    """True if it is decoded while its bytes come, from anybody. The others need the whole file, and are read from
    disk only: their demuxers unpack compressed tags of any size."""
    jumps: bool = False
    """True if the timestamps after a jump are exact."""
    is_lossless: bool = False
    """True if a packet that cannot be decoded is an error; lossy codecs go on with the next one."""


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
    """True if the description of an MP4 file comes before its samples; None where `start` does not tell yet.

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
