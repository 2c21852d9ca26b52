"""Errors of a base that several trainings need: one measures, the others wait for it, whatever happens to it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from overtone.training.base_errors import BaseErrors
from support.train_samples import environment

IDENTITY = {"base": "x", "data": [1, 2]}
HOLDER = """
import sys
from pathlib import Path
from overtone.training.base_errors import BaseErrors
with BaseErrors(Path(sys.argv[1])).alone({"base": "x", "data": [1, 2]}):
    print("held", flush=True)
    sys.stdin.read()
"""


def never() -> list[float]:
    raise AssertionError("it was measured already")


def test_counts_are_kept_by_what_they_depend_on(tmp_path: Path) -> None:
    shared = BaseErrors(tmp_path / "base")
    assert shared.known(IDENTITY) is None
    assert shared.measure(IDENTITY, lambda: [1, 2.5]) == [1, 2.5]
    assert BaseErrors(tmp_path / "base").measure(IDENTITY, never) == [1, 2.5]
    assert shared.measure({**IDENTITY, "base": "y"}, lambda: [3]) == [3]
    (file,) = [path for path in (tmp_path / "base").glob("*.json") if "2.5" in path.read_text()]
    for damaged in ("", "[]", '{"identity": "other", "counts": [1]}', '{"identity": 1, "counts": ["x"]}'):
        file.write_text(damaged)
        assert shared.known(IDENTITY) is None
    assert BaseErrors().measure(IDENTITY, lambda: [4]) == [4]
    assert BaseErrors().known(IDENTITY) is None


def test_one_measures_and_the_others_wait(tmp_path: Path) -> None:
    shared, begun, go = BaseErrors(tmp_path), threading.Event(), threading.Event()

    def slowly() -> list[float]:
        begun.set()
        assert go.wait(60)
        return [7]

    found: list[list[float]] = []
    first = threading.Thread(target=lambda: found.append(shared.measure(IDENTITY, slowly)))
    first.start()
    assert begun.wait(60)
    second = threading.Thread(target=lambda: found.append(shared.measure(IDENTITY, never)))
    second.start()
    assert not found
    go.set()
    for thread in (first, second):
        thread.join(60)
    assert found == [[7], [7]]


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait(60)
    assert BaseErrors(tmp_path).measure(IDENTITY, lambda: [5]) == [5]


def test_a_measurement_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        BaseErrors(tmp_path).measure(IDENTITY, never)
    assert BaseErrors(tmp_path).measure(IDENTITY, lambda: [6]) == [6]
