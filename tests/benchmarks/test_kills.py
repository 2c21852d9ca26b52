"""Killed writers of every kind leave the old or the new content."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kills import WRITES, run


@pytest.mark.parametrize("name", WRITES)
def test_kills_leave_a_whole_content_and_nothing_else(name: str, tmp_path: Path) -> None:
    _, firsts, failures = run(name, 3, tmp_path)
    assert failures == []
    assert 0 <= firsts <= 3
