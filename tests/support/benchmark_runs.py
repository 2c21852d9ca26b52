"""Benchmarks as a user starts them."""

from __future__ import annotations

import subprocess
import sys

from support.fixtures import HERE


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    result = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout
