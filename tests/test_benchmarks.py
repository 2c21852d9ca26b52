"""Every benchmark runs, on tiny shapes; nothing here looks at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", ["step", "inference"])
def test_shapes(name: str, tmp_path: Path) -> None:
    output = run(f"benchmarks.{name}", "--smoke", "--threads", "1", "--json", str(tmp_path / "figures.json"))
    assert "NOT COMPARED with NeMo" in output
    for expected in ("threads: 1", "conformer", "fastconformer", "bfloat16", "peak memory"):
        assert expected in output
    assert '"figures"' in (tmp_path / "figures.json").read_text("utf-8")


def test_startup() -> None:
    output = run("benchmarks.startup", "--smoke", "--threads", "1")
    assert "first transcription, bfloat16: peak memory" in output


def test_install() -> None:
    assert "packages: " in run("benchmarks.install", "--smoke")
