"""Outcomes of command lines, and recordings for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ROOT / "overtone/prompts"
AUDIO = [str(PROMPTS / "audio" / name) for name in ("activated.ogg", "added.ogg")]

Outcome = tuple[int, str, str]
"""Exit code, standard output, standard error."""
Overtone = Callable[..., Outcome]


def one_line_error(outcome: Outcome, code: int = 2) -> str:
    assert outcome[0] == code
    assert outcome[1] == ""
    assert outcome[2].startswith("overtone: error: ")
    assert outcome[2].count("\n") == 1
    return outcome[2]
