"""Plain samples: WAV headers, codings of samples, channels averaged and the rate changed.

Legend: S samples, C channels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

BLOCK = 1 << 18
"""Samples handled at a time, of all channels together."""
SAMPLE_BYTES = {"pcm8": 1, "pcm16": 2, "pcm24": 3, "pcm32": 4, "float32": 4, "float64": 8, "mulaw": 1, "alaw": 1}
WAV_CODINGS = {
    (1, 8): "pcm8", (1, 16): "pcm16", (1, 24): "pcm24", (1, 32): "pcm32",
    (3, 32): "float32", (3, 64): "float64", (6, 8): "alaw", (7, 8): "mulaw",
}  # fmt: skip
"""Format tag and bits of a `fmt ` chunk -> coding."""
EXTENSIBLE = 0xFFFE
LONGEST_WAV_HEADER = 1 << 20
"""Bytes before the samples of a WAV file; FFmpeg reads files with a longer header."""
UNKNOWN_SIZE = 0xFFFF_FF00
"""Sizes from here on are written by programs that do not know the length yet."""


ENDLESS = 1 << 62
"""Bytes of samples where no header tells their number."""


class Block(NamedTuple):
    """Samples that follow each other at one rate."""

    samples: npt.NDArray[Any]
    """[S, C]: floats with full scale 1, or integers of a decoder's, which `join_blocks` makes such floats"""
    rate: int
    """Hz"""


class WavLayout(NamedTuple):
    """The place and the coding of the samples in a WAV file."""

    coding: str
    """A key of SAMPLE_BYTES; empty where the file's coding is none of them."""
    rate: int
    """Hz"""
    channels: int
    first: int
    """Byte of the file where the samples begin."""
    size: int | None
    """Bytes of samples, as the header says; None where it does not know."""

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return SAMPLE_BYTES[self.coding] * self.channels


def read_wav_layout(start: bytes | bytearray) -> WavLayout | None:
    """The layout of a WAV file (RIFF or RF64) that begins so; None where `start` ends before the samples do begin.

    A `fmt ` chunk that comes too late or is cut short gives a layout without a coding.
    """
    riff_size = struct.unpack_from("<I", start, 4)[0]
    position, coding, rate, channels, long_size = 12, "", 0, 0, 0
    while len(start) >= position + 8:
        kind, size = struct.unpack_from("<4sI", start, position)
        if kind == b"data":
            whole = long_size if size == 0xFFFF_FFFF and long_size else size
            # A writer that was cut off leaves 0; a recording without samples has 0 too, and what follows is counted.
            is_empty = size == 0 and position < riff_size < UNKNOWN_SIZE
            known = is_empty or 0 < whole < UNKNOWN_SIZE or (whole == long_size and long_size > 0)
            return WavLayout(coding, rate, channels, position + 8, whole if known else None)
        if kind in (b"fmt ", b"ds64"):
            chunk = bytes(start[position + 8 : position + 8 + min(size, 40)])
            if len(chunk) < min(size, 40):
                return None
            if kind == b"ds64" and len(chunk) >= 16:
                (long_size,) = struct.unpack_from("<Q", chunk, 8)
            elif kind == b"fmt ":
                coding, rate, channels = _wav_format(chunk)
        position += 8 + size + size % 2
    return None


def _wav_format(chunk: bytes) -> tuple[str, int, int]:
    """Coding, rate and channels of a `fmt ` chunk."""
    if len(chunk) < 16:
        return "", 0, 0
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == EXTENSIBLE and len(chunk) >= 26:  # the tag lies in the first bytes of the GUID
        (tag,) = struct.unpack_from("<H", chunk, 24)
    return (WAV_CODINGS.get((tag, bits), "") if channels and rate else ""), rate, channels


def decode_samples(data: bytes | memoryview, coding: str) -> Samples:
    """Whole samples of one coding, little-endian -> [S * C] float32, full scale 1."""
    if coding == "pcm16":
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
    if coding == "pcm8":
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / np.float32(128)
    if coding == "pcm24":
        octets = np.frombuffer(data, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(octets), 4), np.uint8)
        wide[:, 1:] = octets
        return wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    if coding == "pcm32":
        return np.frombuffer(data, "<i4").astype(np.float32) / np.float32(2**31)
    if coding in ("float32", "float64"):
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            return np.frombuffer(data, "<f4" if coding == "float32" else "<f8").astype(np.float32)
    return TABLES[coding][np.frombuffer(data, np.uint8)]


def _mulaw_table() -> Samples:
    """ITU-T G.711 µ-law: byte -> sample."""
    byte = ~np.arange(256, dtype=np.uint8)
    sign, exponent, mantissa = byte & 0x80, (byte >> 4) & 7, (byte & 15).astype(np.int32)
    value = (((mantissa << 3) + 0x84) << exponent.astype(np.int32)) - 0x84
    return np.asarray(np.where(sign > 0, -value, value) / 32768, dtype=np.float32)


def _alaw_table() -> Samples:
    """ITU-T G.711 A-law: byte -> sample."""
    byte = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = ((byte >> 4) & 7).astype(np.int32), (byte & 15).astype(np.int32)
    value = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
    return np.asarray(np.where(byte & 0x80, value, -value) / 32768, dtype=np.float32)


TABLES = {"mulaw": _mulaw_table(), "alaw": _alaw_table()}


class SampleFeed:
    """Plain samples, after a WAV header or without one. A sample that is cut in two at the end is dropped."""

    is_quick = True

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


def join_blocks(blocks: Iterable[Block]) -> Iterator[Block]:
    """The same samples as float32 in fewer blocks: neighbours of one kind, up to BLOCK samples together."""
    held: list[npt.NDArray[Any]] = []
    rate = size = 0
    for samples, own_rate in blocks:
        if held and (
            own_rate != rate
            or size >= BLOCK
            or samples.shape[1] != held[0].shape[1]
            or samples.dtype is not held[0].dtype
        ):
            yield Block(_joined(held), rate)
            held, size = [], 0
        held.append(samples)
        rate, size = own_rate, size + samples.size
    if held:
        yield Block(_joined(held), rate)


def _joined(parts: list[npt.NDArray[Any]]) -> Samples:
    """Parts [S, C] of one type -> [S', C] float32, full scale 1."""
    whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if whole.dtype == np.uint8:
        return (whole.astype(np.float32) - 128) / np.float32(128)
    if whole.dtype.kind == "i":
        return whole.astype(np.float32) / np.float32(2.0 ** (8 * whole.itemsize - 1))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        return whole.astype(np.float32, copy=False)


class Resampler:
    """Blocks -> mono samples at one rate (soxr, HQ). The result does not depend on how the samples are cut into blocks.

    Where the rate of the blocks changes, what came before is finished first.
    """

    def __init__(self, target_rate: int) -> None:
        """target_rate: Hz"""
        self.target_rate = target_rate
        self._rate = target_rate
        self._stream: object | None = None

    def push(self, block: Block) -> Samples:
        """[S'] at the target rate: what is known by now."""
        samples = block.samples
        mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
        mono = np.ascontiguousarray(mono)
        before = self.finish() if block.rate != self._rate else EMPTY
        if block.rate != self._rate:
            self._begin(block.rate)
        changed = self._converted(mono, last=False)
        return np.concatenate((before, changed)) if before.size else changed

    def finish(self) -> Samples:
        """[S'] at the target rate: the rest."""
        rest = EMPTY if self._stream is None else self._converted(EMPTY, last=True)
        self._rate, self._stream = self.target_rate, None
        return rest

    def _begin(self, rate: int) -> None:
        import soxr

        self._rate = rate
        if rate != self.target_rate:
            self._stream = soxr.ResampleStream(rate, self.target_rate, 1, dtype="float32", quality="HQ")

    def _converted(self, mono: Samples, *, last: bool) -> Samples:
        if self._stream is None:
            return mono
        changed: Samples = self._stream.resample_chunk(mono, last=last)  # type: ignore[attr-defined]
        return changed


EMPTY: Samples = np.zeros(0, dtype=np.float32)
