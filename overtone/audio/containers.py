"""Readers of WAV and of headerless samples that are fed piece by piece; `compressed` has those of the other kinds."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from overtone.serving.errors import AudioError

Samples = npt.NDArray[np.float32]
Container = Literal["wav", "flac", "ogg", "mp3", "raw"]

BLOCK = 65_536
"""Samples decoded at a time, of all channels together."""
LONGEST_HEADER = 1 << 20
"""Bytes before the samples of a WAV file."""
SAMPLE_BYTES = {"pcm8": 1, "pcm16": 2, "pcm24": 3, "pcm32": 4, "float32": 4, "float64": 8, "mulaw": 1, "alaw": 1}


class Feed(Protocol):
    """A reader: bytes in, blocks of samples [S, C] in -1…1 out."""

    @property
    def container(self) -> Container: ...

    @property
    def rate(self) -> int:
        """Hz; 0 until known."""

    @property
    def channels(self) -> int: ...

    def push(self, data: bytes) -> Iterator[Samples]:
        """The next bytes -> what is decoded by now. Nothing happens until it is iterated."""

    def finish(self) -> Iterator[Samples]:
        """The end of the bytes -> the rest."""

    def close(self) -> None:
        """Give up."""


class RawReader:
    """Samples without a header."""

    def __init__(self, coding: str, rate: int, channels: int, *, container: Container = "raw") -> None:
        self.container: Container = container
        self.coding = coding
        self.rate = rate
        self.channels = channels
        self._rest = b""

    def push(self, data: bytes) -> Iterator[Samples]:
        data = self._rest + data
        size = SAMPLE_BYTES[self.coding] * self.channels
        whole = len(data) - len(data) % size
        self._rest = data[whole:]
        step = max(1, BLOCK // self.channels) * size
        for first in range(0, whole, step):
            yield samples_of(data[first : min(first + step, whole)], self.coding).reshape(-1, self.channels)

    def finish(self) -> Iterator[Samples]:
        yield from ()  # a sample that was cut in two is dropped

    def close(self) -> None:
        self._rest = b""


def samples_of(data: bytes, coding: str) -> Samples:
    """Whole samples as float32 in -1…1, little-endian."""
    if coding == "pcm16":
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
    if coding == "pcm8":
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / np.float32(128)
    if coding == "pcm24":
        octets = np.frombuffer(data, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(octets), 4), np.uint8)
        wide[:, 1:] = octets
        return (wide.view("<i4")[:, 0] / 2**31).astype(np.float32)
    if coding == "pcm32":
        return (np.frombuffer(data, "<i4") / 2**31).astype(np.float32)
    if coding in ("float32", "float64"):
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            return np.frombuffer(data, "<f4" if coding == "float32" else "<f8").astype(np.float32)
    return TABLES[coding][np.frombuffer(data, np.uint8)]


def mulaw_table() -> Samples:
    """ITU-T G.711 µ-law: byte -> sample."""
    byte = ~np.arange(256, dtype=np.uint8)
    sign, exponent, mantissa = byte & 0x80, (byte >> 4) & 7, (byte & 15).astype(np.int32)
    value = (((mantissa << 3) + 0x84) << exponent.astype(np.int32)) - 0x84
    return np.asarray(np.where(sign > 0, -value, value) / 32768, dtype=np.float32)


def alaw_table() -> Samples:
    """ITU-T G.711 A-law: byte -> sample."""
    byte = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = ((byte >> 4) & 7).astype(np.int32), (byte & 15).astype(np.int32)
    value = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
    return np.asarray(np.where(byte & 0x80, value, -value) / 32768, dtype=np.float32)


TABLES = {"mulaw": mulaw_table(), "alaw": alaw_table()}


class WavReader:
    """RIFF WAVE (also RF64 and streamed files of unknown length): PCM of 8 to 32 bits, float, µ-law, A-law."""

    container: Container = "wav"

    def __init__(self) -> None:
        self.rate = 0
        self.channels = 0
        self._header = b""
        self._raw: RawReader | None = None
        self._left = 0
        """Bytes of samples that are still to come; what follows them is not audio."""

    def push(self, data: bytes) -> Iterator[Samples]:
        if self._raw is None:
            self._header += data
            data = self._parsed()
        if self._raw is not None:
            data = data[: self._left]
            self._left -= len(data)
            yield from self._raw.push(data)

    def finish(self) -> Iterator[Samples]:
        if self._raw is None:
            raise AudioError("The WAV file ends before its samples begin.")
        yield from ()

    def close(self) -> None:
        self._header = b""

    def _parsed(self) -> bytes:
        """Read the header as far as it has come; what follows it, once it is complete."""
        header, position, coding = self._header, 12, ""
        if header[:4] == b"RIFX":
            raise AudioError("Big-endian WAV files are not supported; convert the file.", fault="unsupported")
        rate = channels = 0
        while len(header) >= position + 8:
            kind, size = struct.unpack_from("<4sI", header, position)
            if kind == b"data":
                if not coding:
                    raise AudioError("The WAV file has no format before its samples.")
                self.rate, self.channels = rate, channels
                self._raw = RawReader(coding, rate, channels, container="wav")
                # 0 and the largest number are what writers put that do not know the length yet.
                self._left = size if 0 < size < 0xFFFF_FF00 else 1 << 62
                self._header = b""
                return header[position + 8 :]
            if kind == b"fmt ":
                if len(header) < position + 8 + min(size, 40):
                    break
                coding, rate, channels = wav_format(header[position + 8 : position + 8 + size])
            position += 8 + size + size % 2
        if len(header) > LONGEST_HEADER or position > LONGEST_HEADER:
            raise AudioError("The WAV file holds no samples in its first megabyte.")
        return b""


def wav_format(chunk: bytes) -> tuple[str, int, int]:
    """The `fmt ` chunk -> coding, rate, channels."""
    if len(chunk) < 16:
        raise AudioError("The format of the WAV file is cut short.")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == 0xFFFE and len(chunk) >= 26:  # extensible: the tag lies in the first bytes of the GUID
        (tag,) = struct.unpack_from("<H", chunk, 24)
    codings = {(1, 8): "pcm8", (1, 16): "pcm16", (1, 24): "pcm24", (1, 32): "pcm32", (3, 32): "float32"}
    codings |= {(3, 64): "float64", (6, 8): "alaw", (7, 8): "mulaw"}
    if (tag, bits) not in codings:
        raise AudioError(
            f"WAV of format {tag} with {bits} bits is not supported; use PCM, float, µ-law or A-law.",
            fault="unsupported",
        )
    if not channels or not rate:
        raise AudioError(f"The WAV file states {channels} channels at {rate} Hz.")
    return codings[tag, bits], rate, channels
