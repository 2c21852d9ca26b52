"""Audio of any length through a model that hears a stretch at a time: overlapping windows on one frame grid.

Windows begin at multiples of the encoder's frame stride, so that the frames of neighbours fall on the same
instants. In the overlap both windows have frames; the seam lies near its middle, in the longest pause that both
agree on, so that no token is cut in two or said twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from overtone.decoding.ctc import CtcPath


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


def join_paths(windows: Sequence[Window], paths: Sequence[CtcPath]) -> CtcPath:
    """The paths of the windows of one recording as one path."""
    ids: list[npt.NDArray[np.int64]] = []
    log_probs: list[npt.NDArray[np.float32]] = []
    begin = 0
    for index, (window, path) in enumerate(zip(windows, paths, strict=True)):
        end = window.start + path.ids.size
        if index + 1 < len(windows):
            end = _seam(window, path, windows[index + 1], paths[index + 1])
        keep = slice(max(begin - window.start, 0), end - window.start)
        ids.append(path.ids[keep])
        log_probs.append(path.log_probs[keep])
        begin = end
    return CtcPath(ids=np.concatenate(ids), log_probs=np.concatenate(log_probs), blank=paths[0].blank)


def _seam(left: Window, left_path: CtcPath, right: Window, right_path: CtcPath) -> int:
    """The frame of the recording where the right window takes over from the left."""
    start, stop = right.start, min(left.start + left_path.ids.size, right.start + right_path.ids.size)
    middle = (start + stop) // 2
    quarter = (stop - start) // 4
    first, last = start + quarter, stop - quarter  # the outer quarters lack context on one side
    both_blank = (left_path.ids[first - left.start : last - left.start] == left_path.blank) & (
        right_path.ids[first - right.start : last - right.start] == left_path.blank
    )
    edges = np.flatnonzero(np.diff(both_blank, prepend=False, append=False))
    if edges.size == 0:
        return middle
    begins, ends = edges[0::2], edges[1::2]
    longest = np.flatnonzero(ends - begins == (ends - begins).max())
    centres = first + (begins[longest] + ends[longest]) // 2
    return int(centres[np.abs(centres - middle).argmin()])
