"""Queue of the rows that wait for the worker, and the choice of the next batch.

Rows of one batch are of like length, whatever their adapters. Groups (adapters, tenants) take turns row by row.
Streams go before recordings, but a recording that has waited long gets every second turn. Groups of a higher rank go
before others of their kind; every fourth batch that streams lead heeds no ranks, and so every fourth that recordings
lead: nobody waits for ever. Streams and recordings of a group have turns of their own.
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
"""Period of the batches that heed no ranks, counted for each kind in those that rows of several ranks wait for."""


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
        self.groups: dict[Priority, OrderedDict[Turn, deque[Row]]] = {"stream": OrderedDict(), "offline": OrderedDict()}
        """Streams and recordings by group, each in the order of their turns, ranks left aside."""
        self.ranked: dict[Priority, int] = {"stream": 0, "offline": 0}
        """Batches that rows of several ranks waited for, by the kind that led them: with one count for both, kinds that
        lead by turns would leave all the fair batches to one of them."""
        self.count = 0
        self.recording_had_its_turn = False

    def rows(self) -> list[Row]:
        return [row for groups in self.groups.values() for queue in groups.values() for row in queue]

    def count_of(self, turn: Turn) -> int:
        return sum(len(groups.get(turn, ())) for groups in self.groups.values())

    def oldest(self) -> float:
        """Arrival of the row that waits longest; there must be one."""
        return min(queue[0].arrived for groups in self.groups.values() for queue in groups.values())

    def add(self, row: Row) -> None:
        self.groups[row.priority].setdefault(row.turn, deque()).append(row)
        self.count += 1

    def discard(self, row: Row) -> bool:
        """Take a row out. Returns whether it was waiting."""
        groups = self.groups[row.priority]
        queue = groups.get(row.turn, ())
        if row not in queue:
            return False
        groups[row.turn].remove(row)
        self.count -= 1
        if not groups[row.turn]:
            del groups[row.turn]
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
        kind = self.choose_kind(now)
        ranks = self.ranks()
        heeds_ranks = self.heed_ranks(kind, ranks)
        rows = [queue[0] for queue in self.groups[kind].values()]
        lead = max(rows, key=lambda row: row.rank) if heeds_ranks else rows[0]
        limit = max_seconds if kind == "stream" else min(max_seconds, max_recording_seconds)
        batch = [lead]
        self.serve(lead)
        for rank in ranks if heeds_ranks else [None]:
            while len(batch) < max_rows and self.fill(batch, rank, max_rows, limit):
                pass
        return batch

    def ranks(self) -> list[int]:
        """Ranks that rows wait with, the highest first."""
        return sorted({turn.rank for groups in self.groups.values() for turn in groups}, reverse=True)

    def choose_kind(self, now: float) -> Priority:
        """Tell whether a stream or a recording leads the next batch, and note it."""
        streams, recordings = self.groups["stream"], self.groups["offline"]
        overdue = any(now - queue[0].arrived > PATIENCE for queue in recordings.values())
        takes_stream = bool(streams) and not (overdue and not self.recording_had_its_turn)
        self.recording_had_its_turn = not takes_stream
        return "stream" if takes_stream else "offline"

    def heed_ranks(self, kind: Priority, ranks: list[int]) -> bool:
        """Tell whether ranks count for the next batch, which a kind leads; count it where several ranks wait."""
        if len(ranks) < 2:
            return False
        self.ranked[kind] += 1
        return self.ranked[kind] % FAIR != 0

    def fill(self, batch: list[Row], rank: int | None, max_rows: int, limit: float) -> bool:
        """Add a row of each group of a rank to a batch, as far as they fit. Returns whether there was one.

        rank: None for all groups. limit: seconds of the batch with padding.
        """
        before, lead = len(batch), batch[0]
        longest = max(row.seconds for row in batch)
        first, second = self.kinds(lead)
        for turn in [*self.groups[first], *(turn for turn in self.groups[second] if turn not in self.groups[first])]:
            if rank is not None and turn.rank != rank:
                continue
            row = self.fitting(turn, lead, longest, limit / (len(batch) + 1))
            if row is not None and len(batch) < max_rows:
                batch.append(row)
                longest = max(longest, row.seconds)
                self.serve(row)
        return len(batch) > before

    def kinds(self, lead: Row) -> tuple[Priority, Priority]:
        """Kinds in the order in which rows join a batch: the lead's first."""
        return ("stream", "offline") if lead.priority == "stream" else ("offline", "stream")

    def fitting(self, turn: Turn, lead: Row, longest: float, room: float) -> Row | None:
        """First row of a group that may share a batch with the lead. room: seconds that a row may have."""
        for kind in self.kinds(lead):
            for row in self.groups[kind].get(turn, ()):
                alike = SHORTEST * lead.seconds <= row.seconds <= LONGEST * lead.seconds
                if alike and row.kind == lead.kind and max(longest, row.seconds) <= room:
                    return row
        return None

    def serve(self, row: Row) -> None:
        """Take a row out; its group goes to the end of its kind's turns."""
        self.discard(row)
        groups = self.groups[row.priority]
        if row.turn in groups:
            groups.move_to_end(row.turn)
