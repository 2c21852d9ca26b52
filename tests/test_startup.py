"""What a command does before it begins."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache

import pytest
import torch

from overtone import startup
from overtone.startup import CACHED_KERNELS, KERNEL_CACHES, fast_imports, limit_kernel_caches, pause_garbage_collection

SCRIPT = """
import gc
import os
from overtone.startup import fast_imports
with fast_imports():
    assert not gc.isenabled()
    import torch
assert os.environ["LRU_CACHE_CAPACITY"]
assert gc.isenabled() and gc.get_freeze_count() > 100_000
"""


def test_imports_are_left_out_of_later_searches() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


def test_nothing_changes_where_pytorch_is_there_already() -> None:
    assert torch.__name__ in sys.modules
    frozen = gc.get_freeze_count()
    with fast_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


@pytest.mark.parametrize(("name", "kept"), list(zip(KERNEL_CACHES, CACHED_KERNELS, strict=True)))
def test_what_the_user_says_of_kernels_stays(name: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    limit_kernel_caches()
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    limit_kernel_caches()
    assert os.environ[name] == str(kept)


def test_searches_pause_and_go_on() -> None:
    with pause_garbage_collection():
        assert not gc.isenabled()
        with pause_garbage_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_threads_that_come_at_once_share_one_lifeline(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    both = threading.Barrier(2)

    @cache
    def open_slowly() -> int:
        opened.append(len(opened))
        with suppress(threading.BrokenBarrierError):  # the second thread never comes here
            both.wait(0.2)
        return opened[-1]

    monkeypatch.setattr(startup, "open_lifeline", open_slowly)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(startup.lifeline())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (opened, found) == ([0], [0, 0])
