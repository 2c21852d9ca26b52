"""What the server asks of the C library's heap."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from overtone.serving.freed_memory import keep_freed_memory

SCRIPT = """
import ctypes
import resource
import sys

from overtone.serving.freed_memory import keep_freed_memory

if sys.argv[1] == "asked":
    assert keep_freed_memory(), "glibc refuses"
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
for turn in range(12):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [ctypes.c_void_p(library.malloc(30 << 20)) for _ in range(3)]
    for each in held:
        ctypes.memset(each, 1, 30 << 20)
    for each in held:
        library.free(each)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the kernel had to give to ten rounds of 90 MB."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=environment, check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_that_was_freed_is_used_again() -> None:
    assert faults("asked") < faults("not asked") / 10


def test_the_users_own_tuning_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()
