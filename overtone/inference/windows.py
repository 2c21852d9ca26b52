"""Windows: audio of any length through a model that takes a stretch at a time.

Windows begin at multiples of the encoder's frame stride, so that the frames of neighbours fall on the same
instants. In the overlap both windows have frames; the seam lies near its middle, in the longest pause that both
agree on, so that no token is cut in two or said twice.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from overtone.decoding.decoder import Alignment, Decoder, Emissions, Flags, Reading

WINDOW_SECONDS = 30.0
OVERLAP_SECONDS = 4.0
COMBINED = 4
"""Combinations of the windows' readings that are looked at for each alternative: some say the same."""


@dataclass(frozen=True)
class Window:
    """Half-open range of encoder frames of one recording."""

    start: int
    stop: int

    @property
    def frames(self) -> int:
        return self.stop - self.start


def plan_windows(frames: int, *, window: int, overlap: int) -> list[Window]:
    """The fewest windows of at most `window` frames that cover a recording, neighbours sharing `overlap` frames.

    They are equally long (to one frame), so that no short last window lacks context. overlap < window.
    """
    if frames <= window:
        return [Window(0, frames)]
    count = math.ceil((frames - overlap) / (window - overlap))
    starts = [index * (frames - overlap) // count for index in range(count + 1)]
    return [Window(starts[index], starts[index + 1] + overlap) for index in range(count)]


def join_windows(windows: Sequence[Window], alignments: Sequence[Alignment]) -> Alignment:
    """The alignments of the windows of one recording as one alignment."""
    return cut_and_join(windows, alignments, find_seams(windows, alignments))


def find_seams(windows: Sequence[Window], alignments: Sequence[Alignment]) -> list[int]:
    """The frames of the recording where windows take over from those before them."""
    pairs = zip(pairwise(windows), pairwise(alignments), strict=True)
    return [find_seam(left, before.silent, right, after.silent) for (left, right), (before, after) in pairs]


def cut_and_join(windows: Sequence[Window], alignments: Sequence[Alignment], seams: Sequence[int]) -> Alignment:
    """The alignments of windows, each up to the seam to the next, as one."""
    parts: list[Alignment] = []
    begin = 0
    ends = [*seams, windows[-1].start + len(alignments[-1])]
    for window, alignment, end in zip(windows, alignments, ends, strict=True):
        parts.append(alignment.cut(max(begin - window.start, 0), end - window.start))
        begin = end
    return parts[0].join(parts[1:])


def join_readings(windows: Sequence[Window], readings: Sequence[Sequence[Reading]], count: int) -> list[Alignment]:
    """The readings of the windows of one recording, each best first -> readings of the whole, best first.

    The seams are those of the best ones. Further readings have others in the windows that they cost least.
    """
    if len(windows) == 1:
        return [reading.alignment for reading in readings[0]]
    best = [own[0].alignment for own in readings]
    if count == 1:
        return [join_windows(windows, best)]
    seams = find_seams(windows, best)
    chosen: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for own in readings:
        chosen = heapq.nsmallest(
            COMBINED * count,
            (
                (lost + own[0].rank - other.rank, (*places, place))
                for lost, places in chosen
                for place, other in enumerate(own)
            ),
        )
    return [
        cut_and_join(windows, [own[place].alignment for own, place in zip(readings, places, strict=True)], seams)
        for _, places in chosen
    ]


def find_seam(left: Window, left_silent: Flags, right: Window, right_silent: Flags) -> int:
    """The frame of the recording where the right window takes over from the left.

    left_silent, right_silent: [T] bool for each window, true on frames without a token.
    """
    start, stop = right.start, min(left.start + left_silent.size, right.start + right_silent.size)
    middle = (start + stop) // 2
    quarter = (stop - start) // 4
    first, last = start + quarter, stop - quarter  # the outer quarters lack context on one side
    both = left_silent[first - left.start : last - left.start] & right_silent[first - right.start : last - right.start]
    edges = np.flatnonzero(np.diff(both, prepend=False, append=False))
    if edges.size == 0:
        return middle
    begins, ends = edges[0::2], edges[1::2]
    longest = np.flatnonzero(ends - begins == (ends - begins).max())
    centres = first + (begins[longest] + ends[longest]) // 2
    return int(centres[np.abs(centres - middle).argmin()])


class WindowJoiner:
    """The windows of one recording, in order -> one sequence of frames in a decoder; two are held at a time."""

    def __init__(
        self,
        windows: Sequence[Window],
        decoder: Decoder,
        align: Callable[[Emissions], Alignment],
        *,
        first: int = 0,
        last: int | None = None,
    ) -> None:
        """align: emissions [T, C] of a window -> its greedy alignment, which seams are found by.

        The frames [first, last) are decoded, all unless given; the rest is context.
        """
        self.windows = windows
        self.decoder = decoder
        self.align = align
        self.last = windows[-1].stop if last is None else last
        self.next = 0
        """The index of the window that `push` takes next."""
        self.begin = first
        """The first frame of the recording that is still to be decoded."""
        self._left: tuple[Emissions, Flags] | None = None

    @property
    def is_complete(self) -> bool:
        """True once every window has been pushed."""
        return self.next == len(self.windows)

    def push(self, emissions: Emissions) -> None:
        """Take emissions [T, C] of the next window, and decode the one before up to the seam between both."""
        window = self.windows[self.next]
        is_last = self.next + 1 == len(self.windows)
        silent = self.align(emissions).silent if len(self.windows) > 1 else np.zeros(0, dtype=np.bool_)
        if self._left is not None:
            before, left_silent = self._left
            left = self.windows[self.next - 1]
            seam = find_seam(left, left_silent, window, silent)
            self._decode(left, before, min(max(seam, self.begin), self.last))
        self._left = (emissions, silent)
        self.next += 1
        if is_last:
            self._decode(window, emissions, self.last)

    def _decode(self, window: Window, emissions: Emissions, end: int) -> None:
        if end > self.begin:
            self.decoder.push(emissions[self.begin - window.start : end - window.start])
            self.begin = end
