"""Processes that learn beside a server: they wait for their turn, and learn the adapter that they are told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone.errors import UsageError
from overtone.learning import versions as versions_module
from overtone.learning.versions import WAITS, Versions
from overtone.serving.learning import GENTLE


def test_a_worker_waits_for_another_ones_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def lock(number: int, *, wait: bool) -> bool:
        asked.append(wait)
        if not wait:
            raise BlockingIOError
        return True

    monkeypatch.setattr(versions_module, "lock", lock)
    monkeypatch.setattr(versions_module, "TRIES", 1)
    versions = Versions(tmp_path / "mine")
    with pytest.raises(UsageError, match="is being changed already"), versions.change():
        pass
    monkeypatch.setenv(WAITS, GENTLE[WAITS])
    with versions.change():
        assert asked == [False, True]
