"""Queue of the rows that wait for the worker, and the choice of the next batch.

Rows of one batch are of like length, whatever their adapters. Groups (adapters, tenants) take turns row by row.
Streams go before recordings, but a recording that has waited long gets every second turn. Groups of a higher rank go
before others of their kind; every fourth batch heeds no ranks, so that nobody waits for ever.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from traceback import format_exception
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from overtone.decoding.decoder import Emissions
from overtone.nets.encoder_cache import CachedEncoder, EncoderCache

Samples = npt.NDArray[np.float32]
Priority = Literal["stream", "offline"]

SHORTEST, LONGEST = 0.6, 1.3
"""Lengths of the rows that share a batch with a row, relative to its own."""
PATIENCE = 1.0
"""Seconds after which a recording no longer waits for all streams."""
FAIR = 4
"""Period of the batches that heed no ranks, counted in those that rows of several ranks wait for."""


class Turn(NamedTuple):
    """Place of a row in the queue: its group takes turns with those of the same rank; higher ranks go first."""

    rank: int
    group: str


Group = Turn | str | None
"""Group of a row with its rank, a group of rank 0, or none."""


def turn_of(group: Group, adapters: tuple[str, ...]) -> Turn:
    """Turn of a row; a group alone has rank 0, and adapters are the group of a row without one."""
    if group is None:
        return Turn(0, "+".join(adapters))
    return Turn(0, group) if isinstance(group, str) else group


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamStep:
    """One step of a stream that is computed with a state."""

    encoder: CachedEncoder
    mel: npt.NDArray[np.float32]
    """[F, T]: as many frames as a whole step has, filled up at the end of the stream."""
    frames: int
    """Valid ones of these."""
    cache: EncoderCache
    """State of this stream before the step."""
    last: bool
    """True if no further step is to come, so that all frames are given."""

    @property
    def kind(self) -> object:
        """Steps of one kind may share a batch: they are of one shape and under one attention context."""
        return self.encoder.context, self.cache.started


@dataclass(frozen=True, kw_only=True, eq=False)
class StepAnswer:
    """The answer to a step."""

    emissions: Emissions
    """[T, C]"""
    cache: EncoderCache
    """State of the stream after the step."""


@dataclass(kw_only=True, eq=False)
class Row:
    """One input of the model, and the future of its answer."""

    waveform: Samples | None
    """[S]; None where there are features."""
    mel: npt.NDArray[np.float32] | None
    """[F, T], normalised."""
    seconds: float
    choice: str | None
    """Argument of `AdapterSet.use` for it."""
    group: str
    priority: Priority
    deadline: float | None
    arrived: float
    language: str | None = None
    """Told to a model that is told languages."""
    step: StreamStep | None = None
    """In place of both: a step of a stream with a state."""
    future: Future[Any] = field(default_factory=Future)
    """Emissions [T, C], or for a step a StepAnswer."""
    rank: int = 0
    """Rows of a higher rank go first."""
    started: bool = False
    """The worker has begun with it; it can no longer be cancelled."""
    failures: int = 0

    @property
    def kind(self) -> object:
        """Rows of one kind may share a batch."""
        return None if self.step is None else self.step.kind

    @property
    def turn(self) -> Turn:
        """Place in the queue."""
        return Turn(self.rank, self.group)

    def free(self) -> None:
        """Forget the input, which may be a view of a whole recording."""
        self.waveform = self.mel = self.step = None


def answer_row(row: Row, answer: Emissions | StepAnswer) -> None:
    """Set the answer of a row, and free its input."""
    row.free()
    try:
        row.future.set_result(answer)
    except InvalidStateError:
        return  # answered before, by the shutdown


def refuse_row(row: Row, error: Exception) -> None:
    """Set the error of a row, and free its input."""
    row.free()
    try:
        row.future.set_exception(error)
    except InvalidStateError:
        return  # cancelled or answered before


def strip(error: BaseException) -> None:
    """Replace an error's traceback by a note of its lines: a traceback would keep the locals of all its functions."""
    error.add_note("".join(format_exception(error)).rstrip())
    error.__cause__ = error.__context__ = error.__traceback__ = None


class WaitingRows:
    """Waiting rows by group. Not thread-safe: the engine's condition guards it."""

    def __init__(self) -> None:
        self.groups: OrderedDict[Turn, dict[Priority, deque[Row]]] = OrderedDict()
        """In the order of their turns, ranks left aside."""
        self.ranked = 0
        """Batches that rows of several ranks waited for."""
        self.count = 0
        self.recording_had_its_turn = False

    def rows(self) -> list[Row]:
        return [row for queues in self.groups.values() for queue in queues.values() for row in queue]

    def count_of(self, turn: Turn) -> int:
        return sum(map(len, self.groups.get(turn, {}).values()))

    def oldest(self) -> float:
        """Arrival of the row that waits longest; there must be one."""
        return min(queue[0].arrived for queues in self.groups.values() for queue in queues.values() if queue)

    def add(self, row: Row) -> None:
        if row.turn not in self.groups:
            self.groups[row.turn] = {"stream": deque(), "offline": deque()}
        self.groups[row.turn][row.priority].append(row)
        self.count += 1

    def discard(self, row: Row) -> bool:
        """Take a row out. Returns whether it was waiting."""
        queue = self.groups.get(row.turn, {}).get(row.priority)
        if queue is None or row not in queue:
            return False
        queue.remove(row)
        self.count -= 1
        if not any(self.groups[row.turn].values()):
            del self.groups[row.turn]
        return True

    def take_expired(self, now: float) -> list[Row]:
        """Take out and return the rows whose deadline has passed."""
        late = [row for row in self.rows() if row.deadline is not None and row.deadline <= now]
        for row in late:
            self.discard(row)
        return late

    def take(self, now: float, *, max_rows: int, max_seconds: float, max_recording_seconds: float) -> list[Row]:
        """Take out the next batch, at least one row: at most `max_rows`, and `max_seconds` with padding.

        max_recording_seconds: the same limit for a batch that a recording leads.
        """
        heeds_ranks = self.heed_ranks()
        lead = self.lead(now, heeds_ranks=heeds_ranks)
        limit = max_seconds if lead.priority == "stream" else min(max_seconds, max_recording_seconds)
        batch = [lead]
        self.serve(lead)
        ranks = sorted({turn.rank for turn in self.groups}, reverse=True) if heeds_ranks else [None]
        for rank in ranks:
            while len(batch) < max_rows and self.fill(batch, rank, max_rows, limit):
                pass
        return batch

    def heed_ranks(self) -> bool:
        """Tell whether ranks count for the next batch, and count the batch where there are several."""
        if len({turn.rank for turn in self.groups}) < 2:
            return False
        self.ranked += 1
        return self.ranked % FAIR != 0

    def fill(self, batch: list[Row], rank: int | None, max_rows: int, limit: float) -> bool:
        """Add a row of each group of a rank to a batch, as far as they fit. Returns whether there was one.

        rank: None for all groups. limit: seconds of the batch with padding.
        """
        before, lead = len(batch), batch[0]
        longest = max(row.seconds for row in batch)
        for turn in list(self.groups):
            if rank is not None and turn.rank != rank:
                continue
            row = self.fitting(turn, lead, longest, limit / (len(batch) + 1))
            if row is not None and len(batch) < max_rows:
                batch.append(row)
                longest = max(longest, row.seconds)
                self.serve(row)
        return len(batch) > before

    def lead(self, now: float, *, heeds_ranks: bool) -> Row:
        """Row whose turn it is."""
        streams = [queues["stream"][0] for queues in self.groups.values() if queues["stream"]]
        recordings = [queues["offline"][0] for queues in self.groups.values() if queues["offline"]]
        overdue = any(now - row.arrived > PATIENCE for row in recordings)
        takes_stream = bool(streams) and not (overdue and not self.recording_had_its_turn)
        self.recording_had_its_turn = not takes_stream
        rows = streams if takes_stream else recordings
        return max(rows, key=lambda row: row.rank) if heeds_ranks else rows[0]

    def fitting(self, turn: Turn, lead: Row, longest: float, room: float) -> Row | None:
        """First row of a group that may share a batch with the lead. room: seconds that a row may have."""
        for priority in ("stream", "offline") if lead.priority == "stream" else ("offline", "stream"):
            for row in self.groups[turn][priority]:
                alike = SHORTEST * lead.seconds <= row.seconds <= LONGEST * lead.seconds
                if alike and row.kind == lead.kind and max(longest, row.seconds) <= room:
                    return row
        return None

    def serve(self, row: Row) -> None:
        """Take a row out; its group goes to the end of the turns."""
        self.discard(row)
        if row.turn in self.groups:
            self.groups.move_to_end(row.turn)
