"""Readers of compressed audio that are fed piece by piece.

FLAC and Ogg are read by libsndfile in a thread of their own, which waits for the bytes as they come; MP3, which it
can only read whole, at the end.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import soundfile

from overtone.audio.containers import BLOCK, Container, Samples
from overtone.serving.errors import AudioError

HELD_BLOCKS = 64
"""Decoded blocks that wait for the next push; the decoder rests meanwhile."""
PATIENCE = 30.0
"""Seconds for which libsndfile may be silent over bytes that are all there."""


class ThreadedFile:
    """libsndfile in a thread: it opens a source and reads block by block, until it is told to stop."""

    def __init__(self, container: Container, source: Any) -> None:
        self.container: Container = container
        self.rate = 0
        self.channels = 0
        self.fault: AudioError | None = None
        self._source = source
        self._blocks: deque[Samples] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.done = False
        self._thread = threading.Thread(target=self._run, name="overtone-audio", daemon=True)
        self._thread.start()

    def take(self) -> list[Samples]:
        """What is decoded by now. Raises AudioError where the decoder gave up."""
        with self._changed:
            blocks = list(self._blocks)
            self._blocks.clear()
            self._changed.notify_all()
        if self.fault is not None and not blocks:
            raise self.fault
        return blocks

    def rest(self) -> Iterator[Samples]:
        """Everything up to the end; never more than `HELD_BLOCKS` at a time."""
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self.done or self._blocks, PATIENCE):
                    raise AudioError("The audio could not be decoded in time.")
                over = self.done and not self._blocks
            if over:
                break
            yield from self.take()
        if self.fault is not None:
            raise self.fault

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            with soundfile.SoundFile(self._source, "r", closefd=False) as file:
                with self._changed:
                    self.rate, self.channels = file.samplerate, file.channels
                while not self._stopping and self._hold(file):
                    pass
        except Exception as error:  # what libsndfile makes of damaged files shares no base
            self.fault = AudioError(f"The {self.container.upper()} audio cannot be decoded: {reason(error)}.")
        if isinstance(self._source, int):
            os.close(self._source)
        with self._changed:
            self.done = True
            self._changed.notify_all()

    def _hold(self, file: Any) -> bool:
        block = file.read(max(1, BLOCK // self.channels), dtype="float32", always_2d=True)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or len(self._blocks) < HELD_BLOCKS)
            if len(block):
                self._blocks.append(block)
                self._changed.notify_all()
        return len(block) > 0


def reason(error: Exception) -> str:
    text = str(error).rpartition(": ")[2].strip().rstrip(".")
    return text or "the file is damaged or of an unknown kind"


class GrowingFile:
    """A file that libsndfile reads while it is still being written: reading past what is there waits."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._changed = threading.Condition()
        self._ended = False
        self._position = 0

    def append(self, data: bytes) -> None:
        with self._changed:
            self._data += data
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def readinto(self, buffer: Any) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._data) >= self._position + len(buffer))
            data = self._data[self._position : self._position + len(buffer)]
            self._position += len(data)
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])

    def seek(self, offset: int, whence: int = 0) -> int:
        # The end is not known yet: a length that no file reaches.
        base = {0: 0, 1: self._position, 2: 1 << 40}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: bytes) -> int:
        raise OSError("The file is only read.")


class FlacFeed:
    """FLAC, decoded as it comes."""

    container: Container = "flac"

    def __init__(self) -> None:
        self._file = GrowingFile()
        self._reader = ThreadedFile("flac", self._file)

    @property
    def rate(self) -> int:
        return self._reader.rate

    @property
    def channels(self) -> int:
        return self._reader.channels

    def push(self, data: bytes) -> Iterator[Samples]:
        self._file.append(data)
        yield from self._reader.take()

    def finish(self) -> Iterator[Samples]:
        self._file.end()
        yield from self._reader.rest()

    def close(self) -> None:
        self._reader.stop()
        self._file.end()


class OggFeed:
    """Ogg with Opus or Vorbis, decoded as it comes: through a pipe, from which libsndfile reads without seeking.

    It may be closed by another thread while it is being fed.
    """

    container: Container = "ogg"

    def __init__(self) -> None:
        source, self._sink = os.pipe()
        os.set_blocking(self._sink, False)
        self._reader = ThreadedFile("ogg", source)
        self._sink_lock = threading.Lock()
        """Nothing is written to the sink's number once it is closed: it may be another file's by then."""
        self._closed = False

    @property
    def rate(self) -> int:
        return self._reader.rate

    @property
    def channels(self) -> int:
        return self._reader.channels

    def push(self, data: bytes) -> Iterator[Samples]:
        while data and not self._reader.done:
            try:
                data = data[self._write(data[:BLOCK]) :]
            except BlockingIOError:
                yield from self._reader.take()
                time.sleep(0.001)
            except BrokenPipeError:  # closed, or the decoder has its end or has given up: `take` tells
                break
        yield from self._reader.take()

    def finish(self) -> Iterator[Samples]:
        self._close_sink()
        yield from self._reader.rest()

    def close(self) -> None:
        self._reader.stop()
        self._close_sink()

    def _write(self, data: bytes) -> int:
        with self._sink_lock:
            if self._closed:
                raise BrokenPipeError
            return os.write(self._sink, data)

    def _close_sink(self) -> None:
        with self._sink_lock:
            if not self._closed:
                self._closed = True
                os.close(self._sink)


class WholeFile:
    """What libsndfile can only read as a whole: nothing comes before the end."""

    def __init__(self, container: Container) -> None:
        self.container: Container = container
        self.rate = 0
        self.channels = 0
        self._data = bytearray()

    def push(self, data: bytes) -> Iterator[Samples]:
        self._data += data
        yield from ()

    def finish(self) -> Iterator[Samples]:
        try:
            with soundfile.SoundFile(io.BytesIO(self._data), "r") as file:
                self.rate, self.channels = file.samplerate, file.channels
                file.seekable = lambda: False  # soundfile jumps after every read, and MP3 is silent after a jump
                while len(block := file.read(max(1, BLOCK // self.channels), dtype="float32", always_2d=True)):
                    yield block
        except (soundfile.SoundFileError, OSError, TypeError, ValueError, MemoryError) as error:
            name = self.container.upper()
            raise AudioError(f"The {name} audio cannot be decoded: {reason(error)}.") from error

    def close(self) -> None:
        self._data.clear()
