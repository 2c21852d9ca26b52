"""Readers of containers that come in pieces: decoded by FFmpeg as they come, or whole.

Legend: S samples.
"""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from overtone.audio.containers import Track
from overtone.audio.joints import RiffJoints, joints_of
from overtone.audio.kinds import AAC, HEADER_BYTES, MP3, MP4, Kind, check_tracks
from overtone.audio.pcm import LONGEST_WAV_HEADER, Block, SampleFeed, read_wav_layout
from overtone.audio.sources import sound_of
from overtone.errors import AudioError

PUSH_SAMPLES = 1 << 20
"""Samples of all channels that one push decodes at most, so that it is short; the rest comes with the next ones."""
AHEAD_SAMPLES = 1 << 18
"""Samples of all channels that FFmpeg's thread decodes ahead of the caller."""
MP3_HEAD = 1 << 18
"""Bytes at the beginning of an MP3 file that FFmpeg reads more than once: it looks for tags and the first frame."""
PATIENCE = 30.0
"""Seconds for which FFmpeg may be silent over bytes that are all there."""


class Feed(Protocol):
    """A reader of pieces: bytes in, blocks of samples out."""

    container: str
    is_quick: bool
    """True if a push takes no longer than its bytes are many; a codec makes hours of silence of a few."""

    def push(self, data: bytes) -> Iterator[Block]:
        """The next bytes -> the samples that are decoded by now. They are decoded while it is iterated."""

    def finish(self) -> Iterator[Block]:
        """The end of the bytes -> the rest."""

    def close(self) -> None:
        """Give up."""


class HeldFeed:
    """A container that can only be read whole: nothing comes before the end."""

    is_quick = False

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
        with sound_of(io.BytesIO(self._data)) as source:
            for block in source.blocks():
                if self._closed:
                    return
                yield block

    def close(self) -> None:
        """Stop at the next block."""
        self._closed = True


class WavFeed:
    """Recordings of plain samples, each after a WAV header. What is no sound between and after them is left out."""

    container = "WAV"
    is_quick = True

    def __init__(self) -> None:
        self._joints = RiffJoints()
        self._data = bytearray()
        """Bytes whose recording is not known yet."""
        self._first = 0
        """Place of the first byte of `_data`."""
        self._feed: SampleFeed | None = None
        """The reader of the recording; None until its header is whole."""

    def push(self, data: bytes) -> Iterator[Block]:
        """The samples that are whole by now. Raises AudioError."""
        self._data += data
        return self._read(ended=False)

    def finish(self) -> Iterator[Block]:
        """The rest. Raises AudioError."""
        return self._read(ended=True)

    def close(self) -> None:
        """Forget the rest."""
        self._data.clear()

    def _read(self, *, ended: bool) -> Iterator[Block]:
        for joint in self._joints.find(self._data, self._first, ended=ended):
            yield from self._take(joint - self._first)
            self._drop(joint - self._first)
            self._feed = None
        yield from self._take(len(self._data) - (0 if ended else self._joints.held))
        if ended and self._data:
            raise AudioError("The WAV audio ends before its samples begin.")

    def _take(self, size: int) -> Iterator[Block]:
        """The samples in the next bytes, so many, of one recording. A header that is not whole yet is kept."""
        if self._feed is None:
            layout = read_wav_layout(self._data[:size]) if size >= HEADER_BYTES else None
            if layout is None and size > LONGEST_WAV_HEADER:
                raise AudioError(f"A WAV header is longer than {LONGEST_WAV_HEADER} bytes.")
            if layout is None:
                return
            if not layout.coding:
                raise AudioError("A WAV recording after another one has a coding that is not accepted. Send PCM.")
            self._feed = SampleFeed(self.container, layout)
        data = bytes(self._data[:size])
        self._drop(size)
        yield from self._feed.push(data)

    def _drop(self, size: int) -> None:
        del self._data[:size]
        self._first += size


class ContainerFeed:
    """A container that FFmpeg decodes as it comes, in a thread of its own.

    The thread works while a caller waits in `push` or `finish`, and a little ahead of it. It ends with the audio, or
    when the feed is closed.
    """

    is_quick = False

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
            while True:
                track = Track(self._pieces, self._kind)
                is_wanted = all(self._hold(block) for block in track.blocks())
                track.close()
                if not (is_wanted and self._pieces.next_recording()):
                    break
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
        """True if a read waits for bytes."""
        self.closed = False
        self._kind = kind
        self._data = bytearray()
        self._first = 0
        """Place of the first byte of `_data` in the file."""
        self._position = 0
        self._ended = False
        self._finder = joints_of(kind)
        self._joints: deque[int] = deque()
        """Places where further recordings begin: reading ends there until `next_recording`."""

    def append(self, data: bytes) -> None:
        """The next piece."""
        with self.changed:
            self._data += data
            if self._kind is AAC:
                self._blot_tags(len(self._data) - len(data))
            self._joints += self._finder.find(self._data, self._first)
            self.hungry = self.hungry and not self._is_readable()
            self.changed.notify_all()

    def next_recording(self) -> bool:
        """Go to the next one of joined recordings; False where there is none. Raises AudioError."""
        with self.changed:
            if not self._joints or self.closed:
                return False
            if self._kind is MP4:  # whose description is looked at before FFmpeg gets it
                raise AudioError("Several MP4 recordings came after each other. Send each by itself.")
            joint = self._joints.popleft()
            del self._data[: joint - self._first]
            self._first = self._position = joint
            return True

    def end(self) -> None:
        """No more pieces come."""
        with self.changed:
            self._ended, self.hungry = True, False
            self._joints += self._finder.find(self._data, self._first, ended=True)
            self.changed.notify_all()

    def close(self) -> None:
        """Reading ends here."""
        with self.changed:
            self.closed = True
            self._data.clear()
            self.changed.notify_all()

    def seekable(self) -> bool:
        """True if FFmpeg may ask for the size, and go back to where it is."""
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
            data = bytes(self._data[begin : min(begin + size, self._readable_end() - self._first)])
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
        is_at_joint = bool(self._joints) and self._position >= self._joints[0]
        return self._ended or self.closed or is_at_joint or self._readable_end() > self._position

    def _readable_end(self) -> int:
        """One past the last byte that may be read."""
        there = self._first + len(self._data) - self._kept()
        return min(there, self._joints[0]) if self._joints else there

    def _kept(self) -> int:
        """Bytes that are not read yet, since the next piece may tell that they begin a tag, or another recording."""
        if self._ended or self.closed:
            return 0
        return 2 if self._kind is AAC else self._finder.held

    def _blot_tags(self, begin: int) -> None:
        """Make ID3 tags between frames unknown bytes: FFmpeg would unpack what is compressed in them."""
        place = self._data.find(b"ID3", max(0, begin - 2))
        while place >= 0:
            self._data[place : place + 3] = bytes(3)
            place = self._data.find(b"ID3", place + 3)
