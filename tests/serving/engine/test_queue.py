"""Whose turn it is, and which rows go together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from overtone.serving.engine.queue import Row, WaitingRows


def row(
    group: str, mark: float, *, priority: Any = "offline", seconds: float = 1.0, arrived: float = 0.0, rank: int = 0
) -> Row:
    return Row(
        waveform=np.array([mark], np.float32), mel=None, seconds=seconds, choice=None, group=group, priority=priority,
        deadline=None, arrived=arrived, rank=rank,
    )  # fmt: skip


def take(
    waiting: WaitingRows, *, rows: int = 4, now: float = 0.5, seconds: float = 1e9, recording: float = 1e9
) -> list[str]:
    batch = waiting.take(now, max_rows=rows, max_seconds=seconds, max_recording_seconds=recording)
    return [f"{row.group}{row.waveform[0]:g}" for row in batch if row.waveform is not None]


def test_groups_take_turns() -> None:
    waiting = WaitingRows()
    for mark in range(8):
        waiting.add(row("a", mark))
    waiting.add(row("b", 0))
    waiting.add(row("c", 0))
    assert take(waiting) == ["a0", "b0", "c0", "a1"]
    waiting.add(row("d", 0))
    assert take(waiting, rows=2) == ["a2", "d0"]
    assert waiting.count == 5


def test_streams_go_first_and_recordings_are_not_forgotten() -> None:
    waiting = WaitingRows()
    for mark in range(4):
        waiting.add(row("a", mark, seconds=30.0))
        waiting.add(row("s", mark, priority="stream", seconds=4.0))
    assert take(waiting, rows=1) == ["s0"]
    assert take(waiting, rows=1) == ["s1"]
    assert take(waiting, rows=1, now=5.0) == ["a0"]
    assert take(waiting, rows=1, now=5.0) == ["s2"]
    assert take(waiting, rows=1, now=5.0) == ["a1"]


def test_only_rows_of_like_length_go_together_and_batches_are_bounded() -> None:
    waiting = WaitingRows()
    for mark, seconds in enumerate([10.0, 1.0, 9.0, 11.0, 1.1, 30.0]):
        waiting.add(row("a", mark, seconds=seconds))
    assert take(waiting) == ["a0", "a2", "a3"]
    assert take(waiting) == ["a1", "a4"]
    for mark in range(6):
        waiting.add(row("b", mark, seconds=30.0))
    assert take(waiting, seconds=70.0) == ["a5", "b0"]
    assert take(waiting, recording=10.0) == ["b1"]


def test_higher_ranks_go_first_and_every_fourth_batch_heeds_none() -> None:
    waiting = WaitingRows()
    for mark in range(3):
        waiting.add(row("low", mark, rank=-1))
        waiting.add(row("mid", mark))
    for mark in range(9):
        waiting.add(row("top", mark, rank=1))
    assert take(waiting, rows=2) == ["top0", "top1"]
    assert take(waiting, rows=4) == ["top2", "top3", "top4", "top5"]
    assert take(waiting, rows=4) == ["top6", "top7", "top8", "mid0"]
    waiting.add(row("top", 9, rank=1))
    assert take(waiting, rows=2) == ["low0", "mid1"]
    assert take(waiting, rows=3) == ["top9", "mid2", "low1"]
    assert take(waiting, rows=3) == ["low2"]


def test_a_recording_of_a_high_rank_waits_for_streams_and_a_group_may_have_several_ranks() -> None:
    waiting = WaitingRows()
    waiting.add(row("a", 0, rank=1))
    waiting.add(row("a", 1))
    waiting.add(row("s", 2, priority="stream", rank=-1))
    assert take(waiting, rows=1) == ["s2"]
    assert take(waiting, rows=1) == ["a0"]
    assert take(waiting, rows=1) == ["a1"]
    assert not any(waiting.groups.values())


def keep_waiting(waiting: WaitingRows, *, groups: list[tuple[str, int]]) -> None:
    """Have a stream and an overdue recording wait in each group, of a length of their own."""
    for priority, seconds in (("stream", 2.0), ("offline", 30.0)):
        for group, rank in groups:
            if (rank, group) not in waiting.groups[priority]:  # type: ignore[index]
                waiting.add(row(group, 0, priority=priority, seconds=seconds, rank=rank))


@pytest.mark.parametrize("priority", ["stream", "offline"])
@pytest.mark.parametrize("before", range(8))
def test_a_low_row_of_either_kind_is_served_while_higher_ones_of_both_always_wait(before: int, priority: str) -> None:
    waiting = WaitingRows()
    waiting.add(row("other", 0, rank=-1))
    served: list[str] = []
    for number in range(100):
        keep_waiting(waiting, groups=[("a", 1), ("b", 1)])
        if number == before:
            low = row("low", 0, priority=priority, seconds=2.0 if priority == "stream" else 30.0, rank=-1)
            waiting.add(low)
        served += take(waiting, rows=1, now=9.0)
    assert {"low0", "other0"} <= set(served)


def test_streams_and_recordings_of_several_groups_all_get_their_turn() -> None:
    """Kinds that lead by turns never leave the streams of one group and the recordings of another."""
    for groups in ([("a", 0), ("b", 0)], [("a", 1), ("b", -1), ("c", -1)]):
        waiting = WaitingRows()
        served = set()
        for _ in range(100):
            keep_waiting(waiting, groups=groups)
            batch = waiting.take(9.0, max_rows=1, max_seconds=1e9, max_recording_seconds=1e9)
            served |= {(row.group, row.priority) for row in batch}
        assert served == {(group, kind) for group, _ in groups for kind in ("stream", "offline")}
